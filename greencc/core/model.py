"""Load, check, infer, save and identify ONNX models.

The intermediate representation is `onnx_ir.Model`, without a wrapper. Weights stay memory-mapped, so a model
of any size loads in little memory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from greencc.core.errors import InputError


def load_model(path: Path) -> ir.Model:
    """Load a model and validate it.

    Raises:
        InputError: The file is missing, not an ONNX model, or hostile.
    """
    try:
        return ir.load(path)
    except Exception as error:
        raise InputError(f"{path} is not a valid ONNX model: {error}") from error


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model; weights go to `<name>.data` beside it when they exceed what protobuf can hold."""
    ir.save(model, path)


def infer_shapes(model: ir.Model) -> None:
    """Forget inner shapes and infer them again (inference alone leaves stale ones)."""
    ShapeInferencePass(strict_mode=False, data_prop=True)(model)


def check_model(model: ir.Model) -> None:
    """Run the full ONNX check.

    Raises:
        InputError: The model breaks the ONNX specification.
    """
    onnx.checker.check_model(ir.to_proto(model))


def digest(model: ir.Model) -> str:
    """SHA-256 over the graph and the weights, independent of how they are stored on disk."""
    return hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()
