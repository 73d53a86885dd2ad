"""Load, check, infer, save and identify ONNX models.

The intermediate representation is `onnx_ir.Model`, without a wrapper. Weights stay memory-mapped, so a model
of any size loads in little memory.
"""

from greencc.core.loading import load_model
from greencc.core.serialization import EXTERNAL_THRESHOLD, digest, save_model
from greencc.core.shapes import bind_dims, check_model, infer_shapes

__all__ = [
    "EXTERNAL_THRESHOLD",
    "bind_dims",
    "check_model",
    "digest",
    "infer_shapes",
    "load_model",
    "save_model",
]
