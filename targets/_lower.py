"""Bring a model's opset and IR version within what a runtime accepts."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from greencc.core.errors import InputError


def within_versions(
    model: ir.Model, max_opset: int, max_ir_version: int, runtime: str = "onnxruntime"
) -> ir.Model:
    """Return the model itself when it fits, else a converted clone.

    The IR version only says which fields the file may use; a model that uses none of the newer ones loads the same
    with a lower number. The opset is converted down with ONNX's version converter.

    Args:
        model: Not changed.
        max_opset: The newest opset of the default domain.
        max_ir_version: The newest version of the file format.
        runtime: The package that knows no more, for messages.

    Raises:
        InputError: The converter has no way down for one of the operators.
    """
    opset = model.opset_imports.get("", 0)
    if opset <= max_opset and model.ir_version <= max_ir_version:
        return model
    lowered = model.clone()
    if opset > max_opset:
        lowered = _convert(lowered, opset, max_opset, runtime)
    lowered.ir_version = min(lowered.ir_version, max_ir_version)
    return lowered


def _convert(model: ir.Model, opset: int, max_opset: int, runtime: str) -> ir.Model:
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), max_opset))
    except Exception as error:
        raise InputError(
            f"the model uses opset {opset}, the installed {runtime} knows up to {max_opset}, "
            f"and it cannot be converted: {' '.join(str(error).split())[:200]}",
            hint=f"update {runtime}, or export the model with an older opset",
        ) from error
    for name, value in converted.graph.initializers.items():
        if name in weights:
            value.const_value = weights[name]
    return converted
