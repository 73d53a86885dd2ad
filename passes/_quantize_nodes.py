"""What a single node can be in a quantized graph: its role, the inputs that carry integers, the form of its weight.

Facts of the operators, not of a target; `_quantize_placement` decides with them over the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.graph import (
    ONNX_DOMAINS,
    attribute_int,
    attribute_ints,
    constant_tensor,
    input_at,
    static_shape,
)
from greencc.passes._ranges import Range

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Each element of the output is an element of the first input (or, for linear Resize, a mean of some).
MOVEMENT = (
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "Identity",
    "MaxPool",
    "Pad",
    "ReduceMax",
    "ReduceMin",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
ARITHMETIC = (
    "Add",
    "AveragePool",
    "Concat",
    "Gelu",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mul",
    "ReduceMean",
    "Sigmoid",
    "Softmax",
    "Sub",
    "Tanh",
    "Where",
)
ABSORBED = ("Clip", "Relu")
FIXED_RANGES = {
    "HardSigmoid": Range(0.0, 1.0),
    "Sigmoid": Range(0.0, 1.0),
    "Softmax": Range(0.0, 1.0),
    "Tanh": Range(-1.0, 1.0),
}
# Their products are not those of `WEIGHTED`; each is named when it stays in float.
_OTHER_PRODUCTS = ("Einsum", "GRU", "LSTM", "RNN")
# Take integers only from this opset on; runtimes that drop the pair around them make invalid graphs before.
INTEGERS_SINCE = {"MaxPool": 12, "ReduceMax": 12, "ReduceMin": 12}
# What lies between the integers of a quantized weight and the node that reads it as floats.
_REREADS = ("Cast", "DequantizeLinear", "Mul", "Reshape", "Sub", "Transpose")
_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
_QUANTIZED_OPS = (
    "ConvInteger",
    "DynamicQuantize",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulInteger",
    "MatMulNBits",
    "QAttention",
    "QEmbedLayerNormalization",
    "QGemm",
    "QLinear",
    "QMoE",
)


@dataclass(frozen=True)
class Weighted:
    """How one weighted node is expressed with quantized inputs.

    Attributes:
        activations: Input indices that take quantized activations.
        weight: Input index of the constant weight, None for a product of two activations.
        axis: Axis of the output channels in the weight; None for one scale per tensor.
        bias: Input index of the constant bias, if there is one.
        groups: How often the output channels repeat those along `axis` (ConvTranspose, where the axis holds the
            channels of one group).
    """

    activations: tuple[int, ...]
    weight: int | None = None
    axis: int | None = None
    bias: int | None = None
    groups: int = 1


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a value nobody can change (see `constant_tensor`); reads no weights."""
    return constant_tensor(value)


def quantized_already(graph: ir.Graph) -> ir.Node | None:
    """The first node of a graph, its bodies included, that is quantized already, if any."""
    for node in graph.all_nodes():
        if is_quantized(node):
            return node
    return None


def is_quantized(node: ir.Node) -> bool:
    """True for an operator that reads or writes quantized values."""
    return node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type.startswith(_QUANTIZED_OPS)


def has_quantized_weight(node: ir.Node) -> bool:
    """True for a node whose weight comes from integers that are constant: it has been quantized."""
    value = input_at(node, 1)
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in _REREADS:
        first = input_at(producer, 0)
        if first is not None and (tensor := constant_tensor(first)) is not None:
            return tensor.dtype in _CODES
        producer = None if first is None else first.producer()
    return False


def quantized_form(node: ir.Node) -> str:
    """In which form such a node holds integers."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return "QuantizeLinear/DequantizeLinear pairs"
    if node.op_type.startswith(("QLinear", "QGemm", "QAttention", "QEmbed")):
        return "integer operators"
    if node.op_type.startswith(("DynamicQuantize", "MatMulInteger", "ConvInteger")):
        return "dynamic quantization"
    return "block-wise quantized weights"


def data_inputs(node: ir.Node) -> list[int]:
    """Indices of the inputs of a movement or arithmetic node that carry activations or constant operands."""
    if node.op_type in MOVEMENT or node.op_type == "ReduceMean":
        return [0]
    if node.op_type == "Where":
        return [1, 2]
    return [index for index, value in enumerate(node.inputs) if value is not None]


def is_absorbable(node: ir.Node, int8: Int8Support) -> bool:
    """True for a Relu or Clip that the quantization of its output makes redundant.

    It must be the only reader of a value which is free to take another scale, and, for Clip, start at 0: only there
    the quantized range ends exactly where the clipping does.
    """
    value = input_at(node, 0)
    if node.op_type not in ABSORBED or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    producer = value.producer()
    # The output of a movement shares the scale of its input, where negative values still need room.
    if producer is None or producer.op_type in MOVEMENT:
        return False
    return node.op_type == "Relu" or not int8.quantize_outputs or _clips_from_zero(node)


def _clips_from_zero(node: ir.Node) -> bool:
    low, high = clip_bounds(node)
    return low == 0.0 and high is not None and high >= 0.0


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Bounds of a Clip, infinite where there is none, None where it is computed."""
    bounds: list[float | None] = []
    for index, name, unbounded in ((1, "min", -np.inf), (2, "max", np.inf)):
        attribute, value = node.attributes.get(name), input_at(node, index)
        if attribute is not None:
            bounds.append(attribute.as_float())
        elif value is None:
            bounds.append(float(unbounded))
        else:
            tensor = constant(value)
            bounds.append(
                float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None
            )
    return bounds[0], bounds[1]


def is_float(value: ir.Value | None, int8: Int8Support) -> bool:
    """True for a value of the float types that are quantized: float32, and float16 where scales may be."""
    if value is None:
        return False
    return value.dtype in (ir.DataType.FLOAT, None) or (
        value.dtype is ir.DataType.FLOAT16 and int8.scale_type is ElementType.FLOAT16
    )


def is_expressible(node: ir.Node, int8: Int8Support, opset: int) -> bool:
    """True for movement and arithmetic nodes that integer kernels compute as the float ones would."""
    kind = node.op_type
    if (kind not in MOVEMENT and kind not in ARITHMETIC) or opset < INTEGERS_SINCE.get(kind, 0):
        return False
    if not node.inputs or not all(is_float(input_at(node, index), int8) for index in data_inputs(node)):
        return False
    if not all(is_float(value, int8) and value.dtype for value in node.outputs if value.uses()):
        return False
    constants = [
        tensor for index in data_inputs(node) if (tensor := constant(node.inputs[index])) is not None
    ]
    if kind in ("Add", "Mul", "Sub", "Where") and constants:
        # Chains of these (a hand-written hard-swish, a learnable affine) would be rounded at every step, and a mask
        # filled with -1e9 would take the whole range. Clean-up folds most of them into weights; what is left is cheap
        # in float.
        return False
    if any(not np.isfinite(tensor.numpy()).all() for tensor in constants):
        return False
    match kind:
        case "MaxPool":
            return len(node.outputs) == 1
        case "AveragePool":
            # Integer average pooling knows no dilations (ONNX Runtime then refuses the whole graph).
            return set(attribute_ints(node, "dilations", ())) <= {1}
        case "Resize":
            outside = text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
            return text(node, "mode", "nearest") in int8.resize_modes and not outside
        case "Gather" | "GatherElements":
            return not constants
        case "Pad":
            return pads_with_zero(node)
    return True


def pads_with_zero(node: ir.Node) -> bool:
    """True when padding adds no value outside the range of the input, which always holds 0."""
    if text(node, "mode", "constant") != "constant":
        return True
    value = input_at(node, 2)
    if value is None:
        attribute = node.attributes.get("value")
        return attribute is None or attribute.as_float() == 0.0
    tensor = constant(value)
    return tensor is not None and not tensor.numpy().any()


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def unquantized_product(node: ir.Node) -> str | None:
    """Why a node that multiplies by weights, but is none of `WEIGHTED`, stays in float; None for other nodes."""
    if node.domain in ONNX_DOMAINS:
        if node.op_type in _OTHER_PRODUCTS:
            return "static quantization has no form for it"
        return None
    for value in node.inputs:
        tensor = constant(value)
        if tensor is not None and len(tensor.shape) >= 2 and tensor.dtype.is_floating_point():
            return f"an operator of domain {node.domain!r}"
    return None


def describe(node: ir.Node, int8: Int8Support) -> Weighted | str:
    """How a weighted node is quantized, or why it cannot be."""
    first, second = input_at(node, 0), input_at(node, 1)
    if first is None or second is None:
        return "an operand is missing"
    tensor = constant(second)
    if constant(first) is not None:
        return "its first operand is constant"
    for name, value in (("first operand", first), ("weight", second)):
        if value.is_graph_input() and value.is_initializer():
            return f"its {name} is an initializer that an input can override"
    if (
        not is_float(first, int8)
        or not is_float(second, int8)
        or (tensor is not None and tensor.dtype is not (first.dtype or ir.DataType.FLOAT))
    ):
        return "its operands are not float32"
    if tensor is None:
        if node.op_type != "MatMul":
            return "its weight is computed"
        if not int8.activation_products:
            return "the target multiplies two activations in float"
        if any(value.shape is not None and value.shape.rank() < 2 for value in (first, second)):
            return "it multiplies by a vector"
        return _narrow(node, int8, static_shape(second)) or Weighted(activations=(0, 1))
    if tensor.size == 0:
        return "its weight is empty"
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    bias = None
    bias_tensor = None
    if node.op_type != "MatMul" and (added := input_at(node, 2)) is not None:
        bias_tensor = constant(added)
        if bias_tensor is None:
            overridable = added.is_graph_input() and added.is_initializer()
            return f"its bias is {'an initializer that an input can override' if overridable else 'computed'}"
        bias = 2
    groups = 1
    axis: int | None
    if node.op_type in ("Conv", "ConvTranspose"):
        axis = 0 if node.op_type == "Conv" else 1
        group = attribute_int(node, "group", 1)
        outputs, inputs = (shape[0], shape[1] * group) if axis == 0 else (shape[1] * group, shape[0])
        if min(outputs, inputs) < int8.min_channels:
            return f"it has {inputs} input and {outputs} output channels; below {int8.min_channels} integers do not pay"
        # Axis 1 of ConvTranspose holds the channels of one group; the groups share the scales.
        groups = group if axis == 1 else 1
    elif node.op_type == "Gemm":
        axis = 0 if attribute_int(node, "transB", 0) else 1
        if attribute_int(node, "transA", 0):
            return "it transposes its activations"
        if _number(node, "alpha") <= 0:
            return "its alpha is not positive"
        if bias_tensor is not None:
            added_shape = [int(dim) for dim in bias_tensor.shape.numpy()]
            if any(dim != 1 for dim in added_shape[:-1]) or (
                added_shape and added_shape[-1] not in (1, shape[axis])
            ):
                return f"its bias of shape {added_shape} is not one value per output channel"
    else:
        if len(shape) < 2:
            return "it multiplies by a vector"
        if len(shape) > 2 and not int8.stacked_weights:
            return "the target multiplies by stacked weights in float"
        axis = 1 if len(shape) == 2 else None
    if node.op_type in ("Gemm", "MatMul") and (reason := _narrow(node, int8, shape)) is not None:
        return reason
    return Weighted((0,), weight=1, axis=axis if int8.per_channel else None, bias=bias, groups=groups)


def _narrow(node: ir.Node, int8: Int8Support, weight: tuple[int, ...] | None) -> str | None:
    """Why a product with one row or one column is left in float; dimensions that are not known do not count."""
    if not int8.skip_gemv:
        return None
    columns = None
    if weight is not None:
        columns = weight[-2] if attribute_int(node, "transB", 0) and node.op_type == "Gemm" else weight[-1]
    first = node.inputs[0]
    dims = list(first.shape)[:-1] if first is not None and first.shape is not None else [None]
    if weight is None or len(weight) > 2:
        dims = dims[-1:]
    rows = (
        int(np.prod([dim for dim in dims if isinstance(dim, int)]))
        if all(isinstance(dim, int) for dim in dims)
        else None
    )
    if rows == 1 or columns == 1:
        return f"it multiplies by a vector ({'one row' if rows == 1 else 'one column'}), which integers do not speed up"
    return None
