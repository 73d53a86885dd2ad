"""Which inputs and outputs of a node change type when it computes in half precision, by the operator's schema.

Resize takes `roi` and `scales` in types of their own, TopK gives integer indices, LayerNormalization gives its mean in
a type of its own: what is bound to the type of the first output follows it, the rest stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import onnx
import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS, constant_tensor, is_op


class HalfType(Enum):
    """The 16-bit float format."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.FLOAT16 if self is HalfType.FLOAT16 else ir.DataType.BFLOAT16


FLOAT16_MAX = 65504.0
PRODUCTS = frozenset({"Attention", "Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"})
# They hand values on unchanged, whatever the type, so runtimes have them for every type.
MOVEMENT = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
# They read a value of any float type and give out none, so they never need a cast before them.
_BLIND = ("Cast", "Shape", "Size")


def half_inputs(node: ir.Node, opset: int) -> list[int]:
    """Inputs of the type that the first output has."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    kind = schema.outputs[0].type_str
    return [
        index
        for index, value in enumerate(node.inputs)
        if value is not None and schema.inputs[min(index, len(schema.inputs) - 1)].type_str == kind
    ]


def half_outputs(node: ir.Node, opset: int) -> list[ir.Value]:
    """Outputs of the type that the first output has, as far as they are there."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    kind = schema.outputs[0].type_str
    return [
        value
        for index, value in enumerate(node.outputs)
        if value.name and schema.outputs[min(index, len(schema.outputs) - 1)].type_str == kind
    ]


def half_values(node: ir.Node, opset: int) -> Iterator[ir.Value]:
    """The values of a node that would be in half precision."""
    for index in half_inputs(node, opset):
        value = node.inputs[index]
        assert value is not None
        yield value
    yield from half_outputs(node, opset)


def is_blind(node: ir.Node) -> bool:
    """True for a reader that does not care which float type it is given."""
    return is_op(node, *_BLIND)


def convertible(node: ir.Node, opset: int, element: HalfType) -> bool:
    """True for a standard operator whose data are float32 and whose schema takes half precision for them."""
    if node.domain not in ONNX_DOMAINS or not onnx.defs.has(node.op_type, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    if not schema.outputs or is_blind(node):
        return False
    values = list(half_values(node, opset))
    # What makes floats of nothing but integers or shapes has no input to convert.
    if not half_inputs(node, opset) or any(_dtype(value) is not ir.DataType.FLOAT for value in values):
        return False
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    return f"tensor({element.value})" in allowed.get(schema.outputs[0].type_str, [])


def _dtype(value: ir.Value) -> ir.DataType | None:
    tensor = constant_tensor(value)
    return value.dtype if tensor is None else tensor.dtype
