"""What TensorRT reads in a Q/DQ pair: types, zero points and scales. Several faults are accepted silently."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, consumers, input_at, is_op
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import TensorRtVersion, Typing
from greencc.targets._tensorrt.rules._context import (
    WEIGHTED,
    Context,
    array_of,
    axis_of,
    dtype_of,
    known,
    name_of,
    quantized_type,
    scale_count,
    tensor_of,
    through_transpose,
    weight_pair,
)

_T = ir.DataType
_INT4_SINCE = TensorRtVersion(10, 0)
_FLOAT4_SINCE = TensorRtVersion(10, 8)
_BLACKWELL = 100
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_HALF_SCALES_SINCE = 19


def check_types(context: Context) -> Iterator[Fault]:
    """Integer types of Q and DQ."""
    for node in context.of(*_PAIR):
        found = quantized_type(node)
        if found is _T.INT32:
            yield _bias(node)
        elif found is _T.UINT8:
            yield _unsigned(node)
        elif found in (_T.INT4, _T.FLOAT4E2M1):
            yield from _four_bits(node, found, context)
        elif found is not None and found not in (_T.INT8, _T.FLOAT8E4M3FN):
            yield error(
                Rule.QUANTIZED_TYPE,
                name_of(node),
                f"{node.op_type} is {found}, which TensorRT does not quantize to",
                "quantize to INT8",
            )


def _bias(node: ir.Node) -> Fault:
    readers = [reader for reader in consumers(node.outputs[0]) if is_op(reader, *WEIGHTED)]
    whose = f" of {name_of(readers[0])}" if readers else ""
    return error(
        Rule.INT32_BIAS,
        name_of(node),
        f"the bias{whose} is INT32 behind a DequantizeLinear, which TensorRT refuses",
        "store the bias as floats",
    )


def _unsigned(node: ir.Node) -> Fault:
    if node.op_type == "QuantizeLinear" and input_at(node, 2) is None:
        return error(
            Rule.MISSING_ZERO_POINT,
            name_of(node),
            "QuantizeLinear has no zero point, so it is UINT8 to ONNX and silently INT8 to TensorRT",
            "add an INT8 zero point of 0",
        )
    return error(
        Rule.QUANTIZED_TYPE,
        name_of(node),
        f"{node.op_type} is UINT8, which TensorRT silently takes as INT8: values above 127 come out wrong",
        "quantize symmetrically to INT8",
    )


def _four_bits(node: ir.Node, found: ir.DataType, context: Context) -> Iterator[Fault]:
    version = context.machine.version
    since = _INT4_SINCE if found is _T.INT4 else _FLOAT4_SINCE
    if version < since:
        yield error(
            Rule.QUANTIZED_TYPE,
            name_of(node),
            f"{node.op_type} is {found}, which TensorRT {version} does not have",
            f"quantize to INT8, or use TensorRT {since} or later",
        )
    elif found is _T.INT4 and not _of_constant(node):
        yield warning(
            Rule.QUANTIZED_TYPE,
            name_of(node),
            f"{node.op_type} makes INT4 of what is computed; TensorRT has products with INT4 weights alone",
            "quantize activations to INT8",
        )
    elif found is _T.FLOAT4E2M1 and context.gpu and context.machine.gpu.sm < _BLACKWELL:
        yield error(
            Rule.QUANTIZED_TYPE,
            name_of(node),
            f"{node.op_type} is FP4, which {context.machine.gpu.name} does not compute in",
            "quantize to INT8",
        )


def _of_constant(node: ir.Node) -> bool:
    """Whether what a pair node reads is constant, or the result of one that reads a constant."""
    value = node.inputs[0]
    if tensor_of(value) is not None:
        return True
    producer = None if value is None else value.producer()
    return producer is not None and is_op(producer, *_PAIR) and tensor_of(producer.inputs[0]) is not None


def check_zero_points(context: Context) -> Iterator[Fault]:
    """Zero points: symmetric quantization alone, and known when it is built."""
    for node in context.of(*_PAIR):
        zero_point = input_at(node, 2)
        if zero_point is None:
            continue
        zeros = array_of(zero_point)
        if zeros is None:
            if known(zero_point):
                continue
            yield error(
                Rule.NONZERO_ZERO_POINT,
                name_of(node),
                "its zero point is computed, and must be a constant 0",
                "quantize statically and symmetrically",
            )
        elif zeros.astype(np.float32).any():
            first = zeros.astype(np.float32).ravel()
            shown = f"{first[np.flatnonzero(first)[0]]:g}"
            yield error(
                Rule.NONZERO_ZERO_POINT,
                name_of(node),
                f"its zero point is {shown}, and TensorRT quantizes symmetrically: the parser stops",
                "quantize symmetrically (zero point 0)",
            )


def check_scales(context: Context) -> Iterator[Fault]:
    """Type and value of scales."""
    for node in context.of(*_PAIR):
        scale = input_at(node, 1)
        found = dtype_of(scale)
        strong = context.machine.typing is Typing.STRONG
        if found in (_T.FLOAT16, _T.BFLOAT16):
            if not strong:
                yield error(
                    Rule.SCALE_TYPE,
                    name_of(node),
                    f"its scale is {found}; TensorRT {context.machine.version} wants FLOAT scales, and takes "
                    "half precision from builder flags",
                    "store scales as FLOAT and build with --fp16",
                )
            elif context.opset < _HALF_SCALES_SINCE:
                yield error(
                    Rule.SCALE_TYPE,
                    name_of(node),
                    f"its scale is {found} at opset {context.opset}; scales are FLOAT before {_HALF_SCALES_SINCE}",
                    f"write the graph at opset {_HALF_SCALES_SINCE} or later",
                )
        scales = array_of(scale)
        if scales is None:
            if known(scale):
                continue
            yield error(
                Rule.SCALE_VALUE,
                name_of(node),
                "its scale is computed, and must be known when the engine is built",
                "quantize statically",
            )
            continue
        values = scales.astype(np.float64)
        if not np.isfinite(values).all() or (values <= 0).any():
            yield error(
                Rule.SCALE_VALUE,
                name_of(node),
                f"it has a scale of {_worst(values):g}, and scales must be positive and finite",
                "quantize again with data that reach this value",
            )


def _worst(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    bad = values[~(np.isfinite(values) & (values > 0))]
    return float(bad.ravel()[0])


def check_activations(context: Context) -> Iterator[Fault]:
    """Activations have one scale per tensor."""
    for node in context.of(*_PAIR):
        count = scale_count(node)
        if count is not None and count > 1 and not _of_constant(node):
            yield error(
                Rule.ACTIVATION_SCALE,
                name_of(node),
                f"it has {count} scales for an activation, and TensorRT wants one per tensor",
                "quantize activations per tensor",
            )


def check_weight_axes(context: Context) -> Iterator[Fault]:
    """Scales of weights go along output channels. TensorRT builds a Conv with another axis, and computes wrongly."""
    for node in context.of(*WEIGHTED):
        pair = weight_pair(_untransposed(node))
        if pair is None:
            continue
        expected = _expected_axis(node)
        for each in pair:
            count = scale_count(each)
            if (
                expected is None
                or count is None
                or count <= 1
                or attribute_int(each, "block_size", 0)
                or axis_of(each) == expected
            ):
                continue
            silently = ": it builds silently, and computes wrongly" if node.op_type == "Conv" else ""
            yield error(
                Rule.WEIGHT_AXIS,
                name_of(each),
                f"the weight of {node.op_type} {name_of(node)!r} is quantized along axis {axis_of(each)} and its "
                f"output channels are axis {expected}{silently}",
                f"quantize along axis {expected}, or per tensor",
            )
            break


def _untransposed(node: ir.Node) -> ir.Value | None:
    return through_transpose(input_at(node, 1), 0)[0]


def _expected_axis(node: ir.Node) -> int | None:
    """The output channels in the weight, as the axis of the tensor that is quantized."""
    weight = input_at(node, 1)
    rank = None if weight is None or weight.shape is None else weight.shape.rank()
    match node.op_type:
        case "Conv":
            axis = 0
        case "ConvTranspose":
            axis = 1
        case "Gemm":
            axis = 0 if attribute_int(node, "transB", 0) else 1
        case _:
            if rank is None:
                return None
            axis = rank - 1
    return through_transpose(weight, axis)[1]
