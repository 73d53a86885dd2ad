"""The compiler: from an ONNX model to a verified, measured bundle."""

from greencc.compiler.compile import compile_model
from greencc.compiler.options import CompileOptions, Effort, Precision

__all__ = ["CompileOptions", "Effort", "Precision", "compile_model"]
