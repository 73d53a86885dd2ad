"""The ONNX file that a TensorRT version builds the best engine from, of the compiler's float or QDQ graph.

What passes decide by the target's capabilities stays as it is: where pairs are, which scales they have. What is left
to emission is how that TensorRT wants it written.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from greencc.core.errors import InputError
from greencc.core.graph import ensure_names, opset_of
from greencc.core.model import infer_shapes
from greencc.core.opsets import raise_opset
from greencc.targets._tensorrt.machine import TensorRtMachine
from greencc.targets._tensorrt.older import lower_opset
from greencc.targets._tensorrt.pairs import normalize_pairs

_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9}


def emit(model: ir.Model, machine: TensorRtMachine) -> ir.Model:
    """A model in the form that a machine's TensorRT wants.

    Args:
        model: The compiler's; not changed.
        machine: The TensorRT version and GPU it is for.

    Raises:
        InputError: Something has no such form; the message names it.
    """
    emitted = model.clone()
    InlinePass()(emitted)
    ensure_names(emitted)
    _drop_defaults(emitted)
    infer_shapes(emitted)
    normalize_pairs(emitted, integer_weights=machine.integer_weights, float8=machine.float8)
    _to_opset(emitted, machine)
    infer_shapes(emitted)
    return emitted


def _drop_defaults(model: ir.Model) -> None:
    """Initializers are no inputs: their values are final."""
    defaults = [value for value in model.graph.inputs if value.is_initializer()]
    for value in defaults:
        model.graph.inputs.remove(value)


def _to_opset(model: ir.Model, machine: TensorRtMachine) -> None:
    runtime = f"TensorRT {machine.version}"
    if opset_of(model) < machine.min_opset:
        reason = raise_opset(model, machine.min_opset)
        if reason is not None:
            raise InputError(
                f"{runtime} wants opset {machine.min_opset}; the model has {opset_of(model)} and cannot be "
                f"converted: {reason}",
                hint=f"export the model with opset {machine.min_opset}",
            )
    lower_opset(model, machine.max_opset, runtime)
    model.ir_version = min(model.ir_version, _IR_VERSIONS[opset_of(model)])
