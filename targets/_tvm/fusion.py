"""Finds what kernels of ours compute in a graph, with everything a kernel needs: workload, weights, arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import (
    attribute_int,
    attribute_ints,
    constant_of,
    input_at,
    is_op,
    label,
    sole_consumer,
)
from greencc.targets._tvm.constants import dequantized, folded, quantized
from greencc.targets._tvm.failures import named
from greencc.targets._tvm.images import image_size, window_pads
from greencc.targets._tvm.kernels.products import pairs_fit
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.sums import Sums, finish, read_sums
from greencc.targets._tvm.tails import read_tail
from greencc.targets._tvm.workload import (
    BatchedProduct,
    Conv,
    Dense,
    Depthwise,
    Pool,
    PoolKind,
    Window,
    Workload,
)


@dataclass(frozen=True)
class Fused:
    """Nodes that one kernel computes.

    Attributes:
        nodes: In order, the anchor first.
        workload: What the kernel computes.
        data: What it reads, as the graph has it: NCHW images, or rows of any rank.
        dtype: Type of `data`; where it differs from the workload's, 128 lies between the two.
        weights: Constant weights in ONNX's order, [in, out] of a product; None where there are none.
        second: The second operand of a product of activations.
        arguments: The epilogue's: constants, or values of the output's shape.
        output: The value computed.
    """

    nodes: tuple[ir.Node, ...]
    workload: Workload
    data: ir.Value
    dtype: str
    weights: Array | None
    arguments: tuple[Array | ir.Value, ...]
    output: ir.Value
    second: ir.Value | None = None

    @property
    def integers(self) -> bool:
        """True when it computes on integers."""
        return self.dtype != "float32"


def fuse(model: ir.Model, machine: Machine) -> list[Fused]:
    """The kernels of a graph whose shapes are inferred; no node is in two of them.

    Args:
        model: Not changed. Images must have fixed channels, rows and columns to be taken; batches may be dynamic.
        machine: What the kernels run on.

    Raises:
        InputError: A window does not fit into its image.
    """
    taken: set[ir.Node] = set()
    found: list[Fused] = []
    for node in model.graph:
        if node in taken:
            continue
        with named(node):
            fused = _match(node, machine, taken)
        if fused is not None:
            taken.update(fused.nodes)
            found.append(fused)
    return found


def _match(node: ir.Node, machine: Machine, taken: set[ir.Node]) -> Fused | None:
    if is_op(node, "Conv"):
        return _conv(node, machine, taken)
    if is_op(node, "Gemm", "MatMul"):
        return _dense(node, machine, taken) or _batched(node, taken)
    if is_op(node, "MaxPool"):
        return _max_pool(node, taken)
    if is_op(node, "AveragePool", "GlobalAveragePool", "ReduceMean"):
        return _average_pool(node, taken)
    return None


def _conv(node: ir.Node, machine: Machine, taken: set[ir.Node]) -> Fused | None:
    size, operand = image_size(node.inputs[0]), folded(node.inputs[1])
    if size is None or operand is None or operand.ndim != 4:
        return None
    channels, rows, columns = size
    outputs, _, *kernel = operand.shape
    groups = attribute_int(node, "group", 1)
    pads = window_pads(node, (rows, columns), (kernel[0], kernel[1]))
    sums = read_sums(node, 0, outputs)
    if pads is None or sums is None:
        return None
    strides, dilations = (attribute_ints(node, name, (1, 1)) for name in ("strides", "dilations"))
    window = Window(
        rows, columns, (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]), pads
    )
    if min(window.output) < 1:
        raise InputError(
            f"{label(node)}: its window of {kernel[0]}x{kernel[1]} does not fit into images of {rows}x{columns}",
            hint="give larger images, or pads",
        )
    depthwise = groups == channels == outputs and groups > 1
    tail = read_tail(node.outputs[0], outputs, -3, taken)
    sums = _for_machine(sums, machine)
    epilogue, weights, arguments = finish(sums, tail, 0)
    data, zero = _data(sums, machine)
    workload: Workload
    if depthwise:
        workload = Depthwise(window, channels, data, zero, epilogue)
    else:
        workload = Conv(window, (channels, outputs), groups, data, zero, _pairs(sums, machine), epilogue)
    return Fused(
        (node, *tail.nodes), workload, sums.value, _dtype(sums), weights, tuple(arguments), tail.value
    )


def _dense(node: ir.Node, machine: Machine, taken: set[ir.Node]) -> Fused | None:
    stored = folded(node.inputs[1])
    if stored is None or stored.ndim != 2 or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    rank = node.inputs[0].shape.rank()
    transposed = node.op_type == "Gemm" and bool(attribute_int(node, "transB", 0))
    if node.op_type == "Gemm":
        factors = [node.attributes.get(name) for name in ("alpha", "beta")]
        if attribute_int(node, "transA", 0) or any(f is not None and f.as_float() != 1.0 for f in factors):
            return None
    elif rank < 2:
        return None
    inputs, outputs = stored.shape[::-1] if transposed else stored.shape
    sums = read_sums(node, 0 if transposed else 1, outputs)
    if sums is None:
        return None
    if transposed:
        sums = replace(sums, weights=np.ascontiguousarray(sums.weights.T))
    tail = read_tail(node.outputs[0], outputs, -1, taken)
    sums = _for_machine(sums, machine)
    epilogue, weights, arguments = finish(sums, tail, 1)
    data, zero = _data(sums, machine)
    rows = int(np.prod([size for size in list(node.inputs[0].shape)[1:-1] if isinstance(size, int)] or [1]))
    workload = Dense((inputs, outputs), rows, data, zero, _pairs(sums, machine), epilogue)
    return Fused(
        (node, *tail.nodes), workload, sums.value, _dtype(sums), weights, tuple(arguments), tail.value
    )


def _batched(node: ir.Node, taken: set[ir.Node]) -> Fused | None:
    """A float product of two activations with equal leading axes."""
    first, second = node.inputs[0], node.inputs[1]
    if not is_op(node, "MatMul") or first is None or second is None:
        return None
    if first.shape is None or second.shape is None or first.dtype is not ir.DataType.FLOAT:
        return None
    rank = first.shape.rank()
    if rank < 3 or second.shape.rank() != rank or folded(second) is not None or folded(first) is not None:
        return None
    for left, right in zip(list(first.shape)[:-2], list(second.shape)[:-2], strict=True):
        same = (
            left == right
            if isinstance(left, int)
            else _name(left) is not None and _name(left) == _name(right)
        )
        if not same:
            return None
    sizes = (first.shape[-2], first.shape[-1], second.shape[-1])
    if not all(isinstance(size, int) for size in sizes):
        return None
    m, k, n = (int(size) for size in sizes if isinstance(size, int))
    tail = read_tail(node.outputs[0], n, -1, taken)
    empty = Sums(first, None, np.zeros((0, n), np.float32), None, None, None)
    epilogue, _, arguments = finish(empty, replace(tail), 1)
    if len(tail.steps) != len(epilogue.steps) or epilogue.bias:
        # Channel factors went into weights that there are none of.
        tail.nodes.clear()
        epilogue, arguments, output = type(epilogue)(), [], node.outputs[0]
    else:
        output = tail.value
    workload = BatchedProduct((m, k, n), epilogue=epilogue)
    return Fused((node, *tail.nodes), workload, first, "float32", None, tuple(arguments), output, second)


def _max_pool(node: ir.Node, taken: set[ir.Node]) -> Fused | None:
    window = _pool_window(node)
    value = node.inputs[0]
    if window is None or value is None or len(node.outputs) > 1:
        return None
    channels = image_size(value)
    assert channels is not None
    reader, source = sole_consumer(node.outputs[0]), dequantized(value)
    grid = quantized(reader)
    if source is not None and grid is not None and reader is not None and reader not in taken:
        integers, read = source
        if grid.equals(read):
            # The largest integer stands for the largest number.
            workload = Pool(window, channels[0], PoolKind.MAX, read.dtype, zero_point=read.zero)
            return Fused((node, reader), workload, integers, read.dtype, None, (), reader.outputs[0])
    if value.dtype is not ir.DataType.FLOAT:
        return None
    return Fused(
        (node,), Pool(window, channels[0], PoolKind.MAX), value, "float32", None, (), node.outputs[0]
    )


def _average_pool(node: ir.Node, taken: set[ir.Node]) -> Fused | None:
    value, size = node.inputs[0], image_size(node.inputs[0])
    if size is None or value is None:
        return None
    channels, rows, columns = size
    window = Window(rows, columns, (rows, columns)) if _is_global(node) else _pool_window(node)
    if window is None:
        return None
    counted = node.op_type == "AveragePool" and bool(attribute_int(node, "count_include_pad", 0))
    keeps = node.op_type != "ReduceMean" or bool(attribute_int(node, "keepdims", 1))
    source = dequantized(value)
    tail = read_tail(node.outputs[0], channels, -3 if keeps else -1, taken)
    if source is None:
        if value.dtype is not ir.DataType.FLOAT:
            return None
        sums = Sums(value, None, np.zeros((0, channels), np.float32), None, None, None)
        if tail.steps and not isinstance(tail.steps[0], _plain_steps()):
            tail = type(tail)(node.outputs[0])
    else:
        integers, grid = source
        scale = np.full(channels, grid.step, np.float32)
        sums = Sums(integers, grid, np.zeros((0, channels), np.int8), scale, None, None)
    epilogue, _, arguments = finish(sums, tail, 1)
    zero = 0 if sums.grid is None else sums.grid.zero
    workload = Pool(window, channels, PoolKind.AVERAGE, _dtype(sums), counted, zero, epilogue)
    return Fused((node, *tail.nodes), workload, sums.value, _dtype(sums), None, tuple(arguments), tail.value)


def _plain_steps() -> tuple[type, ...]:
    """Steps that do not go into weights, which a pool has none of."""
    from greencc.targets._tvm.epilogue import AddTensor, Apply, Clip

    return AddTensor, Apply, Clip


def _is_global(node: ir.Node) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type != "ReduceMean":
        return False
    axes: tuple[int, ...] = attribute_ints(node, "axes", ())
    given = constant_of(input_at(node, 1))
    if given is not None:
        axes = tuple(int(axis) for axis in given.reshape(-1))
    return sorted(axis % 4 for axis in axes) == [2, 3]


def _pool_window(node: ir.Node) -> Window | None:
    """The window of a pool over images; None where it is global by another name, or rounds its output up."""
    size = image_size(node.inputs[0])
    kernel = attribute_ints(node, "kernel_shape", ())
    if size is None or len(kernel) != 2 or attribute_int(node, "storage_order", 0):
        return None
    pads = window_pads(node, size[1:], (kernel[0], kernel[1]))
    if pads is None:
        return None
    strides, dilations = (attribute_ints(node, name, (1, 1)) for name in ("strides", "dilations"))
    window = Window(
        size[1], size[2], (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]), pads
    )
    output = image_size(node.outputs[0])
    return window if output is not None and output[1:] == window.output else None


def _for_machine(sums: Sums, machine: Machine) -> Sums:
    """Fold the zero point of what is read into the bias, as the machine's integers have it."""
    if sums.grid is None:
        return sums
    zero = _data(sums, machine)[1]
    axes = tuple(range(1, sums.weights.ndim)) if sums.weights.ndim == 4 else (0,)
    totals = sums.weights.astype(np.int64).sum(axes)
    bias = (0 if sums.bias is None else sums.bias.astype(np.int64)) - zero * totals
    if not np.any(bias):
        return replace(sums, bias=None)
    return replace(sums, bias=bias.astype(np.int32))


def _data(sums: Sums, machine: Machine) -> tuple[str, int]:
    """Type and zero point of what the kernel reads."""
    if sums.grid is None:
        return "float32", 0
    shift = {"uint8": 128, "int8": 0}
    return machine.activation, sums.grid.zero + shift[machine.activation] - shift[sums.grid.dtype]


def _pairs(sums: Sums, machine: Machine) -> bool:
    return sums.grid is not None and pairs_fit(sums.weights, machine)


def _dtype(sums: Sums) -> str:
    return "float32" if sums.grid is None else sums.grid.dtype


def _name(size: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(size, int) else size.value
