"""Where pairs stand: TensorRT fuses what lies between them, by the pattern that it knows.

Source: NVIDIA TensorRT documentation, "Working with Quantized Types", "Q/DQ Layer-Placement Recommendations".
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from greencc.core.graph import attribute_int, consumers, input_at, is_op, sole_consumer
from greencc.targets._tensorrt.faults import Fault, Rule, warning
from greencc.targets._tensorrt.rules._context import (
    WEIGHTED,
    Context,
    dequantizer,
    name_of,
    quantizer,
    tensor_of,
    weight_pair,
)

_FUSED = ("BatchNormalization", "Clip", "LeakyRelu", "Relu")
_POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool")
_CHANNELS = 16


def check_outputs(context: Context) -> Iterator[Fault]:
    """Pairs at the end of the graph: they round the result and save nothing."""
    for value in context.model.graph.outputs:
        node = value.producer()
        if node is None:
            continue
        if is_op(node, "QuantizeLinear") or quantizer(value) is not None:
            yield warning(
                Rule.QUANTIZED_OUTPUT,
                value.name or "",
                f"the output is quantized by {name_of(node)}: its layer loses the float output that it would give",
                "leave outputs unquantized",
            )


def check_fusion(context: Context) -> Iterator[Fault]:
    """A pair between a weighted layer and what is fused into it."""
    for node in context.of(*_FUSED):
        front = quantizer(input_at(node, 0))
        source = None if front is None or front.inputs[0] is None else front.inputs[0].producer()
        if front is None or source is None:
            continue
        if is_op(source, *WEIGHTED) or (
            is_op(source, "BatchNormalization") and node.op_type != source.op_type
        ):
            yield warning(
                Rule.BROKEN_FUSION,
                name_of(front),
                f"it stands between {source.op_type} and {node.op_type}, which are then not fused",
                f"quantize behind {node.op_type}",
            )


def check_residuals(context: Context) -> Iterator[Fault]:
    """Sums of a convolution and a skip connection: the skip is quantized, the convolution's output is not."""
    for node in context.of("Add"):
        if len(node.inputs) != 2 or any(tensor_of(value) is not None for value in node.inputs):
            continue
        quantized = [quantizer(value) is not None for value in node.inputs]
        branches = [_weighted_branch(value) for value in node.inputs]
        for side in (0, 1):
            other = 1 - side
            if (
                quantized[side]
                and branches[side] is not None
                and (branches[other] is None or quantized[other])
            ):
                yield warning(
                    Rule.RESIDUAL_ADD,
                    name_of(node),
                    f"the branch from {_kind(branches[side])} is quantized before the sum, which is then not fused "
                    "into it",
                    "quantize the skip connection alone",
                )
                break
            branch = branches[side]
            if branch is not None and not quantized[side] and not quantized[other] and _runs_int8(branch):
                yield warning(
                    Rule.RESIDUAL_ADD,
                    name_of(node),
                    f"the skip connection beside {_kind(branch)} is not quantized, so that its sum is float",
                    "quantize the skip connection, unless it was left so on purpose: greencc does where rounding it "
                    "would cost the accuracy or save nothing",
                )
                break


def _kind(node: ir.Node | None) -> str:
    return "" if node is None else f"{node.op_type} {name_of(node)!r}"


def _weighted_branch(value: ir.Value | None) -> ir.Node | None:
    """The weighted layer that a value comes from, through a pair and a BatchNormalization that nobody else reads."""
    front = quantizer(value)
    if front is not None:
        value = front.inputs[0]
    node = None if value is None else value.producer()
    if node is not None and is_op(node, "BatchNormalization") and value is not None and sole_consumer(value):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node if node is not None and is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul") else None


def _runs_int8(node: ir.Node) -> bool:
    return dequantizer(input_at(node, 0)) is not None and dequantizer(input_at(node, 1)) is not None


def check_bridges(context: Context) -> Iterator[Fault]:
    """Pools and joins between quantized layers that are float themselves."""
    for node in context.of(*_POOLS):
        if dequantizer(input_at(node, 0)) is None and _is_quantized_next(node.outputs[0]):
            yield warning(
                Rule.FLOAT_BRIDGE,
                name_of(node),
                f"{node.op_type} runs in float although its result is quantized",
                f"quantize its input, on the way into {node.op_type}",
            )
    for node in context.of("Concat"):
        inputs = [value for value in node.inputs if value is not None and tensor_of(value) is None]
        quantized = [quantizer(value) is not None for value in inputs]
        if inputs and not all(quantized) and (any(quantized) or _is_quantized_next(node.outputs[0])):
            bare = inputs[quantized.index(False)]
            yield warning(
                Rule.FLOAT_BRIDGE,
                name_of(node),
                f"Concat joins quantized values in float, because {bare.name!r} is not quantized",
                "quantize every input of it, all with one scale",
            )


def _is_quantized_next(value: ir.Value) -> bool:
    """Whether everything that reads a value quantizes it."""
    readers = consumers(value)
    return bool(readers) and all(is_op(reader, "QuantizeLinear") for reader in readers)


def check_small(context: Context) -> Iterator[Fault]:
    """Products that gain nothing from INT8: with a vector, and convolutions of few channels."""
    for node in context.of(*WEIGHTED):
        if weight_pair(input_at(node, 1)) is None or dequantizer(input_at(node, 0)) is None:
            continue
        problem = _few_channels(node) if is_op(node, "Conv", "ConvTranspose") else _vector(node)
        if problem is not None:
            yield warning(
                Rule.SMALL_PRODUCT,
                name_of(node),
                f"{node.op_type} {problem}, and is mostly slower in INT8 than in half precision",
                "leave it in float",
            )


def _few_channels(node: ir.Node) -> str | None:
    weight = input_at(node, 1)
    if weight is None or weight.shape is None or not weight.shape.is_static() or weight.shape.rank() < 2:
        return None
    first, second = (int(size) for size in weight.shape.numpy()[:2])
    group = attribute_int(node, "group", 1)
    # Conv: [outputs, inputs / group, ...]; ConvTranspose: [inputs, outputs / group, ...].
    fewest = min(first, second * group)
    return f"has few channels ({fewest})" if fewest < _CHANNELS else None


def _vector(node: ir.Node) -> str | None:
    """One row or one column, where that is known."""
    columns = node.outputs[0].shape
    if columns is None or columns.rank() < 1:
        return None
    if columns[-1] == 1:
        return "has one output"
    rows = columns[:-1]
    if rows and all(isinstance(dim, int) and dim == 1 for dim in rows):
        return "multiplies one vector"
    return None
