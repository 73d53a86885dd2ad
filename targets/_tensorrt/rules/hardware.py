"""What this GPU, and this version on it, cannot do: precisions, sparsity, memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import graphs_of, input_at
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import TensorRtVersion
from greencc.targets._tensorrt.rules._context import (
    Context,
    array_of,
    name_of,
    quantized_type,
    tensor_of,
    weight_pair,
)

_T = ir.DataType
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_BFLOAT16_SINCE = TensorRtVersion(9, 0)
_FLOAT8_SINCE = TensorRtVersion(9, 0)
_LEAST_ZEROS = 0.48


def check_precisions(context: Context) -> Iterator[Fault]:
    """INT8, FP8, FP16 and BF16 where there are none."""
    machine = context.machine
    for node in context.of(*_PAIR):
        found = quantized_type(node)
        if found is _T.FLOAT8E4M3FN:
            if machine.version < _FLOAT8_SINCE:
                yield error(
                    Rule.NO_FLOAT8,
                    name_of(node),
                    f"TensorRT {machine.version} reads no FP8",
                    f"quantize to INT8, or use TensorRT {_FLOAT8_SINCE} or later",
                )
            elif context.gpu and not machine.float8:
                yield error(
                    Rule.NO_FLOAT8,
                    name_of(node),
                    f"{machine.gpu.name} (compute capability {_capability(machine.gpu.sm)}) computes in no FP8; "
                    "Ada and later do",
                    "quantize to INT8",
                )
        elif found is _T.INT8 and context.gpu and not machine.gpu.int8:
            yield error(
                Rule.NO_INT8,
                name_of(node),
                f"{machine.gpu.name} (compute capability {_capability(machine.gpu.sm)}) has no INT8 products",
                "compile with --precision fp16",
            )
    yield from _halves(context)


def _capability(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"


def _halves(context: Context) -> Iterator[Fault]:
    machine = context.machine
    found: dict[ir.DataType, str] = {}
    for value in context.model.graph.inputs:
        if value.dtype is not None:
            found.setdefault(value.dtype, value.name or "")
    for node in context.nodes:
        for output in node.outputs:
            if output.dtype is not None:
                found.setdefault(output.dtype, name_of(node))
    if _T.BFLOAT16 in found:
        if machine.version < _BFLOAT16_SINCE:
            yield error(
                Rule.NO_HALF,
                found[_T.BFLOAT16],
                f"it is BF16, which TensorRT {machine.version} does not have",
                f"use FP16, or TensorRT {_BFLOAT16_SINCE} or later",
            )
        elif context.gpu and not machine.gpu.bfloat16:
            yield error(
                Rule.NO_HALF,
                found[_T.BFLOAT16],
                f"it is BF16, which {machine.gpu.name} does not compute in; Ampere and later do",
                "use FP16",
            )
    if _T.FLOAT16 in found and context.gpu and not machine.gpu.float16:
        yield error(
            Rule.NO_HALF,
            found[_T.FLOAT16],
            f"it is FP16, which {machine.gpu.name} is not faster in",
            "compile with --precision fp32",
        )


def check_sparsity(context: Context) -> Iterator[Fault]:
    """Weights that were pruned for sparse kernels that are not there, or along an axis that those do not use."""
    for node in context.of("Conv", "Gemm", "MatMul"):
        weight = _weight(node)
        if weight is None or weight.ndim < 2 or weight.size < 64:
            continue
        if np.count_nonzero(weight) > (1.0 - _LEAST_ZEROS) * weight.size:
            continue
        inputs = _input_axis(node, weight.ndim)
        if _two_of_four(weight, inputs):
            if context.gpu and not context.machine.gpu.sparsity:
                yield warning(
                    Rule.SPARSITY,
                    name_of(node),
                    f"its weights are 2:4 sparse, which {context.machine.gpu.name} gains nothing from; Ampere and "
                    "later do",
                    "prune channels instead",
                )
        else:
            other = next(
                (axis for axis in range(weight.ndim) if axis != inputs and _two_of_four(weight, axis)), None
            )
            if other is not None:
                yield warning(
                    Rule.SPARSITY,
                    name_of(node),
                    f"its weights are 2:4 sparse along axis {other}, and sparse kernels want it along the input "
                    f"channels, axis {inputs}",
                    "prune along the input channels: --passes 'sparsify{pattern=2:4}'",
                )


def _weight(node: ir.Node) -> Array | None:
    """The weight as floats or integers; zero is zero in both."""
    value = input_at(node, 1)
    pair = weight_pair(value)
    return array_of(pair[-1].inputs[0] if pair else value)


def _input_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 1
    attribute = node.attributes.get("transB")
    transposed = attribute is not None and not attribute.is_ref() and bool(attribute.as_int())
    return rank - 1 if transposed else rank - 2


def _two_of_four(weight: Array, axis: int) -> bool:
    """Whether at most two of every four neighbours along an axis are nonzero; whole groups only."""
    if weight.shape[axis] % 4:
        return False
    rows = np.moveaxis(weight, axis, -1)
    return bool((np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, 4), axis=-1) <= 2).all())


def check_memory(context: Context) -> Iterator[Fault]:
    """Weights beside what the device has."""
    memory = context.machine.memory_bytes
    if memory is None:
        return
    size = sum(
        value.const_value.nbytes
        for graph in graphs_of(context.model)
        if isinstance(graph, ir.Graph)
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    size += sum(
        tensor.nbytes for node in context.of("Constant") if (tensor := tensor_of(node.outputs[0])) is not None
    )
    shown = f"the weights take {size / 2**30:.1f} GiB and the device has {memory / 2**30:.0f} GiB"
    if size > memory:
        yield error(
            Rule.MEMORY,
            "",
            f"{shown} for everything",
            "compile with fewer bits or prune, or choose a larger device",
        )
    elif 2 * size > memory:
        yield warning(
            Rule.MEMORY,
            "",
            f"{shown}: the builder holds them twice, so that building there may fail",
            "compile with fewer bits or prune, or choose a larger device",
        )
