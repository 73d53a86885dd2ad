"""Shapes that depend on computed sizes.

ONNX inference follows sizes through a few operators only; exporters compute targets of Reshape, Slice and
Expand with many more (casts, divisions, comparisons). Once the input shapes are fixed those computations are
constant: they are evaluated here, replaced by their values, and inference runs again until nothing new is
found. Only small tensors are evaluated, whatever sizes the graph asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]

_LARGEST = 1024
"""Elements of the largest value that is evaluated."""
_ROUNDS = 64
_EVALUATED = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "Div", "Equal", "Floor", "Gather", "Greater",
        "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
        "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Slice", "Sqrt", "Squeeze",
        "Sub", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators whose result is not larger than a product of two inputs."""
_GROWING = frozenset({"ConstantOfShape", "Expand", "Range", "Tile"})
"""Operators that are evaluated only once inference knows that the result is small."""
_FAILURES = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def resolve_sizes(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Infer shapes, evaluating what they depend on.

    Args:
        proto: A model without large weights; it is edited.

    Returns:
        The model with inferred types of all values, where computed sizes became initializers; None when
        inference finds that the graph contradicts the sizes.
    """
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    found: dict[str, Array] = {}
    inferred = proto
    for _ in range(_ROUNDS):
        try:
            inferred = onnx.shape_inference.infer_shapes(
                proto, check_type=True, strict_mode=True, data_prop=True
            )
        except (onnx.shape_inference.InferenceError, *_FAILURES):
            return None
        values = dict(_evaluate(proto.graph, _static_shapes(inferred.graph), opsets))
        if not values:
            break
        found |= values
        kept = [node for node in proto.graph.node if not _all_in(node, values)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)
        proto.graph.initializer.extend(_tensor(name, value) for name, value in values.items())
    kept_info = [value for value in inferred.graph.value_info if value.name not in found]
    infos = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept_info]
    for name, array in found.items():
        tensor = _tensor(name, array)
        infos.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    del inferred.graph.value_info[:]
    inferred.graph.value_info.extend(infos)
    return inferred


def _all_in(node: onnx.NodeProto, values: Mapping[str, Array]) -> bool:
    return all(name in values for name in node.output)


def _tensor(name: str, value: Array) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)


def _static_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _evaluate(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], opsets: Mapping[str, int]
) -> Iterator[tuple[str, Array]]:
    """Yield the outputs of the nodes that can be evaluated now, in graph order."""
    outputs = {value.name for value in graph.output}
    values: dict[str, Array] = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type != onnx.TensorProto.STRING and int(np.prod(tensor.dims)) <= _LARGEST
    }
    for node in graph.node:
        if node.domain or len(node.output) != 1 or node.output[0] in outputs:
            continue
        value = _value(node, values, shapes, opsets)
        if value is not None and value.size <= _LARGEST:
            values[node.output[0]] = value
            yield node.output[0], value


def _value(
    node: onnx.NodeProto,
    values: Mapping[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    opsets: Mapping[str, int],
) -> Array | None:
    if node.op_type in ("Shape", "Size"):
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(np.prod(shape, dtype=np.int64))
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], dtype=np.int64)
    if node.op_type not in _EVALUATED | _GROWING or any(name and name not in values for name in node.input):
        return None
    result = shapes.get(node.output[0])
    if node.op_type in _GROWING and (result is None or int(np.prod(result)) > _LARGEST):
        return None
    if node.op_type == "Unsqueeze" and node.attribute:
        # The reference implementation of opset 11 takes no scalars.
        return np.expand_dims(values[node.input[0]], tuple(node.attribute[0].ints))
    feeds = {name: values[name] for name in node.input if name}
    try:
        with np.errstate(all="ignore"):
            value = next(iter(ReferenceEvaluator(node, opsets=dict(opsets)).run(None, feeds)))
    except _FAILURES:
        return None
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None
