"""What every rule reads, and the questions about Q/DQ graphs that several of them ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import (
    ONNX_DOMAINS,
    all_nodes,
    attribute_int,
    attribute_ints,
    constant_tensor,
    default_node_name,
    input_at,
    is_op,
    opset_of,
    static_shape,
)
from greencc.targets._tensorrt.faults import Fault
from greencc.targets._tensorrt.machine import TensorRtMachine

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Context:
    """What is checked, and against what.

    Attributes:
        model: With inferred shapes.
        machine: The TensorRT version and the GPU.
        dla: The graph is to run on a deep-learning accelerator.
        gpu: The GPU is known: rules that depend on it are checked.
        defaults: Names of graph inputs that have a default in the file.
    """

    model: ir.Model
    machine: TensorRtMachine
    dla: bool = False
    gpu: bool = True
    defaults: Collection[str] = ()
    nodes: tuple[ir.Node, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(all_nodes(self.model)))

    @property
    def opset(self) -> int:
        return opset_of(self.model)

    def of(self, *op_types: str) -> Iterator[ir.Node]:
        """Nodes of these operators of the default domain, those of bodies and functions included."""
        return (node for node in self.nodes if is_op(node, *op_types))


Check: TypeAlias = Callable[[Context], Iterator[Fault]]


def name_of(node: ir.Node) -> str:
    """How a fault names a node."""
    return node.name or default_node_name(node)


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that TensorRT sees: the default of a graph input is one too, because the parser imports it so."""
    if value is not None and value.is_graph_input():
        return value.const_value
    return constant_tensor(value)


def known(value: ir.Value | None) -> bool:
    """Whether a value is known when the engine is built: a constant, or computed from constants."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        each = waiting.pop()
        if each is None or each in seen or tensor_of(each) is not None:
            continue
        seen.add(each)
        producer = each.producer()
        if producer is None:
            return False
        waiting.extend(producer.inputs)
    return True


def array_of(value: ir.Value | None) -> Array | None:
    """The array of such a constant; never write into it."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """The element type of a value, as far as it is known."""
    if value is None:
        return None
    tensor = tensor_of(value)
    return value.dtype if tensor is None else tensor.dtype


def quantizes(node: ir.Node) -> bool:
    return is_op(node, "QuantizeLinear", "DequantizeLinear")


def quantized_type(node: ir.Node) -> ir.DataType | None:
    """The integer (or 8-bit float) type of a QuantizeLinear or DequantizeLinear node, by ONNX's rules."""
    if node.op_type == "DequantizeLinear":
        return dtype_of(input_at(node, 0))
    zero_point = input_at(node, 2)
    if zero_point is not None:
        return dtype_of(zero_point)
    given = attribute_int(node, "output_dtype", 0)
    return ir.DataType(given) if given else ir.DataType.UINT8


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from."""
    node = None if value is None else value.producer()
    return node if node is not None and is_op(node, "DequantizeLinear") else None


def quantizer(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear of the pair that a value comes from."""
    behind = dequantizer(value)
    node = None if behind is None or behind.inputs[0] is None else behind.inputs[0].producer()
    return node if node is not None and is_op(node, "QuantizeLinear") else None


def weight_pair(value: ir.Value | None) -> tuple[ir.Node, ...] | None:
    """The nodes that quantize a constant weight, the one next to its reader first; None: it is no quantized weight.

    Weights are stored as integers behind a DequantizeLinear, or as floats in front of a pair.
    """
    behind = dequantizer(value)
    if behind is None:
        return None
    if tensor_of(behind.inputs[0]) is not None:
        return (behind,)
    front = quantizer(value)
    return (behind, front) if front is not None and tensor_of(front.inputs[0]) is not None else None


def axis_of(node: ir.Node) -> int | None:
    """The axis of a pair node's scales, counted from the front; None where that is unknown."""
    axis, data = attribute_int(node, "axis", 1), node.inputs[0]
    if axis >= 0:
        return axis
    return None if data is None or data.shape is None else axis + data.shape.rank()


def scale_count(node: ir.Node) -> int | None:
    """How many scales a pair node has; None where that is unknown."""
    scale = input_at(node, 1)
    tensor = tensor_of(scale)
    if tensor is not None:
        return tensor.size
    shape = static_shape(scale)
    return None if shape is None else math.prod(shape)


def through_transpose(value: ir.Value | None, axis: int) -> tuple[ir.Value | None, int]:
    """The value in front of a Transpose, and the axis there that becomes `axis` behind it."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Transpose"):
        return value, axis
    data = node.inputs[0]
    rank = None if data is None or data.shape is None else data.shape.rank()
    if rank is None:
        return value, axis
    order = attribute_ints(node, "perm", tuple(reversed(range(rank))))
    return data, order[axis]


def in_default_domain(node: ir.Node) -> bool:
    return node.domain in ONNX_DOMAINS
