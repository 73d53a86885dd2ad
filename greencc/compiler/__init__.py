"""The compiler: from an ONNX model to a verified, measured bundle.

Names are imported when they are first used: workers that evaluate candidates need little of it, and start sooner.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greencc.compiler.compile import compile_model
    from greencc.compiler.matrix import Matrix, compile_matrix
    from greencc.compiler.options import CompileOptions, Effort, Precision

_WHERE = {
    "CompileOptions": "greencc.compiler.options",
    "Effort": "greencc.compiler.options",
    "Matrix": "greencc.compiler.matrix",
    "Precision": "greencc.compiler.options",
    "compile_matrix": "greencc.compiler.matrix",
    "compile_model": "greencc.compiler.compile",
}

__all__ = ["CompileOptions", "Effort", "Matrix", "Precision", "compile_matrix", "compile_model"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'greencc.compiler' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
