"""Element types of inputs, outputs, constants and values in between."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from greencc.core.graph import graphs_of, is_op
from greencc.targets._tensorrt.faults import Fault, Rule, error, warning
from greencc.targets._tensorrt.machine import TensorRtVersion
from greencc.targets._tensorrt.rules._context import Context, quantizes

_T = ir.DataType
_NEVER = frozenset(
    {
        _T.INT16, _T.UINT16, _T.UINT32, _T.UINT64, _T.STRING, _T.COMPLEX64, _T.COMPLEX128, _T.FLOAT8E5M2,
        _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2FNUZ, _T.UINT4,
    }
)  # fmt: skip
_INT64_SINCE = TensorRtVersion(9, 0)
_UINT8_SINCE = TensorRtVersion(8, 5)
_INT32 = np.iinfo(np.int32)


def check_interface(context: Context) -> Iterator[Fault]:
    """Types of graph inputs and outputs that an engine does not have, or changes."""
    graph, version = context.model.graph, context.machine.version
    for what, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            name, kind = value.name or "", value.dtype
            if kind is None:
                continue
            if kind in _NEVER:
                yield error(
                    Rule.ELEMENT_TYPE,
                    name,
                    f"the {what} has type {kind}, which TensorRT does not have",
                    "use INT32 or a float type",
                )
            elif kind is _T.DOUBLE:
                yield warning(
                    Rule.ELEMENT_TYPE,
                    name,
                    f"the {what} is DOUBLE; the engine takes and gives FLOAT, clamped to its range",
                    "export the model in FLOAT",
                )
            elif kind is _T.UINT8 and version < _UINT8_SINCE:
                yield error(
                    Rule.ELEMENT_TYPE,
                    name,
                    f"the {what} is UINT8, which TensorRT {version} does not have",
                    f"feed FLOAT, or use TensorRT {_UINT8_SINCE} or later",
                )
            elif kind is _T.INT64 and version < _INT64_SINCE:
                yield warning(
                    Rule.ELEMENT_TYPE,
                    name,
                    f"the {what} is INT64; an engine of TensorRT {version} takes and gives INT32",
                    "feed INT32, or export the model so",
                )


def check_inner(context: Context) -> Iterator[Fault]:
    """Types of what nodes compute. Quantized values have rules of their own."""
    inputs = set(context.model.graph.inputs)
    for node in context.nodes:
        if quantizes(node):
            continue
        for value in node.outputs:
            if value.dtype in _NEVER:
                yield _inner(node, value)
        if not is_op(node, "Cast", "CastLike", "Constant", "Identity", "DynamicQuantizeLinear"):
            for each in node.inputs:
                # A network input may be UINT8 as long as nothing but a Cast reads it.
                if each is not None and each.dtype is _T.UINT8 and (each in inputs or _computed(each)):
                    yield error(
                        Rule.ELEMENT_TYPE,
                        node.name or "",
                        f"{node.op_type} reads UINT8, which only inputs and outputs of the network may be",
                        "cast it to FLOAT or INT32 first",
                    )
                    break


def _computed(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and not is_op(producer, "QuantizeLinear", "Constant")


def _inner(node: ir.Node, value: ir.Value) -> Fault:
    return error(
        Rule.ELEMENT_TYPE,
        node.name or "",
        f"{node.op_type} gives {value.dtype}, which TensorRT does not have",
        "compute in INT32 or in a float type",
    )


def check_constants(context: Context) -> Iterator[Fault]:
    """Constants that change when they are imported."""
    for graph in graphs_of(context.model):
        if not isinstance(graph, ir.Graph):
            continue
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or not value.uses():
                continue
            if tensor.dtype is _T.DOUBLE:
                yield warning(
                    Rule.ELEMENT_TYPE,
                    name,
                    "the constant is DOUBLE and is cast to FLOAT, clamped to its range",
                    "export the model in FLOAT",
                )
            elif tensor.dtype is _T.INT64 and context.machine.version < _INT64_SINCE:
                yield from _clamped(name, value, tensor)


def _clamped(name: str, value: ir.Value, tensor: ir.TensorProtocol) -> Iterator[Fault]:
    # "To the end", as Slice has it, is the same number of elements when it is clamped.
    if all(is_op(node, "Slice") for node, _ in value.uses()) or not tensor.size:
        return
    array = tensor.numpy()
    if array.max() > _INT32.max or array.min() < _INT32.min:
        yield warning(
            Rule.INT64_RANGE,
            name,
            f"the constant holds values beyond 32 bits ({array.min()} to {array.max()}), which are clamped",
            "keep integers within 32 bits, or use TensorRT 9.0 or later",
        )
