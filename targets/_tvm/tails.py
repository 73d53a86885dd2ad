"""What follows a weighted operator or pool, as far as its kernel can compute it before it stores its sums."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import (
    attribute_int,
    constant_of,
    consumers,
    input_at,
    is_op,
    sole_consumer,
)
from greencc.targets._tvm.constants import Grid, dequantized, folded, quantized
from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Function,
    ScaleChannels,
    Step,
)


@dataclass
class Tail:
    """What follows an anchor, as far as its kernel can compute it.

    Attributes:
        value: The last value, which the kernel stores.
        nodes: Absorbed, in order.
        steps: Of the epilogue.
        arguments: What the steps read, in their order: arrays, or values that are added.
        grid: Of a QuantizeLinear at the end.
    """

    value: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    arguments: list[Array | ir.Value] = field(default_factory=list)
    grid: Grid | None = None


def read_tail(value: ir.Value, channels: int, axis: int, taken: set[ir.Node]) -> Tail:
    """Follow the value of an anchor through what a kernel can do to its sums.

    Args:
        value: The anchor's output.
        channels: Of the output.
        axis: Of the channels, from the end: -3 for images as ONNX has them, -1 for rows.
        taken: Nodes that other kernels compute.
    """
    tail = Tail(value)
    while True:
        found = _pattern(tail.value, taken) or _next(tail.value, channels, axis, taken)
        if found is None:
            return tail
        nodes, steps, arguments = found
        grid = quantized(nodes[-1])
        if grid is not None:
            tail.grid = grid
        tail.nodes.extend(nodes)
        for step in steps:
            before = tail.steps[-1] if tail.steps else None
            if isinstance(before, Clip) and isinstance(step, Clip):
                tail.steps[-1] = before.then(step)
            else:
                tail.steps.append(step)
        tail.arguments.extend(arguments)
        tail.value = nodes[-1].outputs[0]
        if grid is not None:
            return tail


_Found = tuple[list[ir.Node], list[Step], list[Array | ir.Value]]


def _next(value: ir.Value, channels: int, axis: int, taken: set[ir.Node]) -> _Found | None:
    node = sole_consumer(value)
    if node is None or node in taken:
        return None
    if is_op(node, "QuantizeLinear") and node.inputs[0] is value and quantized(node) is not None:
        return [node], [], []
    if is_op(node, "Relu"):
        return [node], [Clip(0.0, np.inf)], []
    if is_op(node, "Clip"):
        bounds = _bounds(node)
        return None if bounds is None else ([node], [Clip(*bounds)], [])
    if is_op(node, "Max", "Min"):
        bound = _bound(node, value, channels, axis)
        return None if bound is None else ([node], [bound], [])
    if is_op(node, *_FUNCTIONS):
        step = _function(node)
        return None if step is None else ([node], [step], [])
    if is_op(node, "BatchNormalization") and axis == -3 and node.inputs[0] is value:
        affine = batch_norm(node)
        if affine is None:
            return None
        return [node], [ScaleChannels(), AddChannels()], [*affine]
    if is_op(node, "Add", "Mul", "Sub", "Div"):
        return _binary(node, value, channels, axis)
    return None


def _binary(node: ir.Node, value: ir.Value, channels: int, axis: int) -> _Found | None:
    first = node.inputs[0] is value
    other = node.inputs[1] if first else node.inputs[0]
    if other is None or other is value or (node.op_type in ("Sub", "Div") and not first):
        return None
    constant = folded(other)
    if constant is not None:
        rank = value.shape.rank() if value.shape is not None else None
        array = per_channel(constant, channels, axis, rank)
        if array is None or array.dtype != np.float32:
            return None
        match node.op_type:
            case "Add":
                return [node], [AddChannels()], [array]
            case "Sub":
                return [node], [AddChannels()], [-array]
            case "Mul":
                return [node], [ScaleChannels()], [array]
        return None
    if node.op_type != "Add" or not _same_shape(value, other):
        return None
    source = dequantized(other)
    if source is not None:
        integers, grid = source
        return [node], [AddTensor(grid.dtype, float(grid.step), grid.zero)], [integers]
    if other.dtype is not ir.DataType.FLOAT:
        return None
    return [node], [AddTensor("float32")], [other]


def _pattern(value: ir.Value, taken: set[ir.Node]) -> _Found | None:
    """x * sigmoid(x) and x * hard_sigmoid(x): two readers of one value."""
    readers = consumers(value)
    if len(readers) != 2 or value.is_graph_output() or len(tuple(value.uses())) != 2:
        return None
    for gate, product in (readers, readers[::-1]):
        if not is_op(product, "Mul") or not is_op(gate, "Sigmoid", "HardSigmoid"):
            continue
        if gate in taken or product in taken or sole_consumer(gate.outputs[0]) is not product:
            continue
        if gate.op_type == "Sigmoid":
            return [gate, product], [Apply(Function.SILU)], []
        if np.isclose(_number(gate, "alpha", 0.2), 1 / 6) and _number(gate, "beta", 0.5) == 0.5:
            return [gate, product], [Apply(Function.HARD_SWISH)], []
    return None


_FUNCTIONS = ("HardSwish", "HardSigmoid", "LeakyRelu", "Sigmoid", "Tanh", "Gelu")


def _function(node: ir.Node) -> Step | None:
    match node.op_type:
        case "HardSwish":
            return Apply(Function.HARD_SWISH)
        case "HardSigmoid":
            return Apply(Function.HARD_SIGMOID, _number(node, "alpha", 0.2), _number(node, "beta", 0.5))
        case "LeakyRelu":
            return Apply(Function.LEAKY_RELU, _number(node, "alpha", 0.01))
        case "Sigmoid":
            return Apply(Function.SIGMOID)
        case "Tanh":
            return Apply(Function.TANH)
    attribute = node.attributes.get("approximate")
    if attribute is not None and attribute.as_string() != "none":
        return None
    return Apply(Function.GELU)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _bound(node: ir.Node, value: ir.Value, channels: int, axis: int) -> Clip | None:
    """The bound of a Max or Min of a value and a constant number."""
    others = [operand for operand in node.inputs if operand is not value]
    constant = folded(others[0]) if len(node.inputs) == 2 and len(others) == 1 else None
    rank = None if value.shape is None else value.shape.rank()
    if constant is None or constant.size != 1 or per_channel(constant, channels, axis, rank) is None:
        return None
    number = float(constant.reshape(()))
    if np.isnan(number):
        return None
    return Clip(number, np.inf) if node.op_type == "Max" else Clip(-np.inf, number)


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Clip when they are constant numbers, in order."""
    bounds = []
    for index, (name, missing) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        attribute, value = node.attributes.get(name), input_at(node, index)
        if attribute is not None:
            bounds.append(attribute.as_float())
        elif value is None:
            bounds.append(missing)
        else:
            constant = folded(value)
            if constant is None or constant.size != 1:
                return None
            bounds.append(float(constant.reshape(())))
    low, high = bounds
    return None if np.isnan(low) or np.isnan(high) else (min(low, high), high)


def batch_norm(node: ir.Node) -> tuple[Array, Array] | None:
    """The factor and the summand per channel of a BatchNormalization in inference."""
    if attribute_int(node, "training_mode", 0) or len(node.inputs) != 5:
        return None
    parameters = [constant_of(value) for value in node.inputs[1:]]
    if any(part is None or part.dtype != np.float32 for part in parameters):
        return None
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parameters if part is not None)
    factor = gamma / np.sqrt(variance + _number(node, "epsilon", 1e-5))
    return factor.astype(np.float32), (beta - mean * factor).astype(np.float32)


def per_channel(array: Array, channels: int, axis: int, rank: int | None) -> Array | None:
    """A constant operand as one number per channel, or None where it varies along another axis."""
    if array.size == 1:
        # More axes than the other operand has would change the shape of the result.
        return None if rank is None or array.ndim > rank else np.full(channels, array.reshape(()))
    if rank is None or array.ndim > rank:
        return None
    padded = (1,) * (rank - array.ndim) + array.shape
    expected = [1] * rank
    expected[axis] = channels
    return array.reshape(-1) if padded == tuple(expected) else None


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    if first.shape is None or second.shape is None or first.shape.rank() != second.shape.rank():
        return False
    for left, right in zip(first.shape, second.shape, strict=True):
        if isinstance(left, int) or isinstance(right, int):
            if left != right:
                return False
        elif left.value is None or left.value != right.value:
            return False
    return True
