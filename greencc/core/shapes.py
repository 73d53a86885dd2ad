"""Shape inference and the full ONNX check, for models of any size.

Both are C++ functions that take a serialised model. They get one without weights: large initializers become
graph inputs of the same type, as `onnx_ir.passes.common` does; small ones stay, since their values are the
shapes, axes and indices that inference needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from greencc.core.errors import InputError, did_you_mean
from greencc.core.graph import ONNX_DOMAINS, subgraphs_of
from greencc.core.serialization import placeholder, replaced_weights, to_proto
from greencc.core.sizes import resolve_sizes

_SMALL = 1024
"""Bytes of the largest tensor that inference gets to see."""
_UNRANKED_DOMAIN = "greencc.unranked"
_INFERRED_DOMAINS = ONNX_DOMAINS | {"ai.onnx.ml"}
_FAILURES = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
)
_NODE_IN_MESSAGE = re.compile(r"\(op_type:(?P<op>[^,)]+)(?:, node name: (?P<name>.*?))?\):")
_NODE_IN_CHECK = re.compile(r"Bad node spec for node\. Name: (?P<name>.*?) OpType: (?P<op>\S+)")

# Operators whose output is as their first input, by domain.
_SAME_SHAPE = {
    "": frozenset({"GroupNormalization"}),
    "com.microsoft": frozenset({"FastGelu", "Gelu", "QuickGelu"}),
}
_Saved = list[tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None]]


def infer_shapes(model: ir.Model) -> None:
    """Forget what was inferred before and infer all types and shapes again, with data propagation.

    Graph inputs, graph outputs and the outputs of operators without an inference function of their own
    (custom domains) keep what they declare; initializers take the type of their tensor. A declared output
    shape that the graph contradicts is replaced by the inferred one. Functions are inferred per call: values
    in their bodies are left alone. When inference fails the model is unchanged.

    Raises:
        InputError: The shapes or types are inconsistent.
    """
    saved = _forget(model)
    try:
        _merge(model.graph, _inferred(structure_proto(model)).graph)
    except InputError:
        for value, kind, shape in saved:
            value.type, value.shape = kind, shape
        raise


def check_model(model: ir.Model) -> None:
    """Run the full ONNX check; operators of custom domains are accepted as they are.

    Raises:
        InputError: The model breaks the ONNX specification.
    """
    proto = structure_proto(model)
    _rank_everything(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except _FAILURES as error:
        raise InputError(
            f"the model breaks the ONNX specification{_culprit(str(error))}: {_reason(str(error))}",
            hint="export the model again, or report the pass that made it",
        ) from error


def bind_dims(model: ir.Model, feed_shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """Return a clone whose inputs have these shapes, and all shapes that follow from them.

    Args:
        model: Left unchanged; the clone shares its tensors.
        feed_shapes: Shapes by input name. A named dimension takes its size wherever the name occurs.

    Raises:
        InputError: An input is unknown, or a rank or fixed dimension differs.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    sizes: dict[str, int] = {}
    for name, shape in feed_shapes.items():
        if name not in inputs:
            raise InputError(f"the model has no input {name!r}", hint=did_you_mean(name, inputs))
        declared = inputs[name].shape
        if declared is None:
            continue
        fits = len(declared) == len(shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(declared, shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"input {name!r} of shape {declared} cannot take {list(shape)}",
                hint="feed the declared rank and fixed dimensions",
            )
        for dim, size in zip(declared, shape, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value:
                sizes.setdefault(dim.value, size)
    return _bound(model, sizes, feed_shapes)


def bind_sizes(model: ir.Model, sizes: Mapping[str, int], *, batch: int | None = None) -> ir.Model:
    """Return a clone with these sizes for named dimensions, and all shapes that follow from them.

    Args:
        model: Left unchanged; the clone shares its tensors.
        sizes: Sizes by dimension name.
        batch: Size of the inputs' first axes, where they are dynamic and `sizes` does not name them.
    """
    known = dict(sizes)
    shapes: dict[str, tuple[int | ir.SymbolicDim, ...]] = {}
    for value in model.graph.inputs:
        first = value.shape[0] if value.shape is not None and len(value.shape) else None
        if batch is None or value.shape is None or not isinstance(first, ir.SymbolicDim):
            continue
        if first.value:
            known.setdefault(first.value, batch)
        else:
            shapes[value.name or ""] = (batch, *value.shape[1:])
    return _bound(model, known, shapes)


def fix_inner_sizes(model: ir.Model, feed_shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """Return a clone whose inputs have these shapes but for the first axes, which stay as they are.

    Args:
        model: Left unchanged; the clone shares its tensors.
        feed_shapes: Shapes by input name, of the declared rank.
    """
    sizes: dict[str, int] = {}
    shapes: dict[str, tuple[int | ir.SymbolicDim, ...]] = {}
    first = {_free_batch(value) for value in model.graph.inputs}
    for value in model.graph.inputs:
        fed = feed_shapes.get(value.name or "")
        if value.shape is None or fed is None or not len(value.shape):
            continue
        shapes[value.name or ""] = (value.shape[0], *fed[1:])
        for dim, size in list(zip(value.shape, fed, strict=True))[1:]:
            if isinstance(dim, ir.SymbolicDim) and dim.value and dim.value not in first:
                sizes.setdefault(dim.value, size)
    return _bound(model, sizes, shapes)


def _free_batch(value: ir.Value) -> str | None:
    """The name of a free first axis."""
    size = value.shape[0] if value.shape is not None and len(value.shape) else 0
    return size.value if isinstance(size, ir.SymbolicDim) else None


def _bound(
    model: ir.Model, sizes: Mapping[str, int], shapes: Mapping[str, Iterable[int | ir.SymbolicDim]]
) -> ir.Model:
    bound = model.clone()
    for value in bound.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name or ""])
    for value in _annotated(bound):
        if value.shape is not None:
            value.shape = ir.Shape(
                sizes.get(dim.value or "", dim) if isinstance(dim, ir.SymbolicDim) else dim
                for dim in value.shape
            )
    infer_shapes(bound)
    resolved = resolve_sizes(structure_proto(bound))
    if resolved is not None:
        _merge(bound.graph, resolved.graph)
    return bound


def _annotated(model: ir.Model) -> Iterator[ir.Value]:
    """Values whose declared shape outlives inference."""
    yield from model.graph.inputs
    yield from model.graph.outputs
    for graph in model.graphs():
        if graph is not model.graph:
            yield from graph.inputs
        for node in graph:
            if not _has_inference(model, node):
                yield from (value for value in node.outputs if not value.is_graph_output())


def structure_proto(model: ir.Model) -> onnx.ModelProto:
    """The model with its large initializers turned into graph inputs."""
    names = Counter(value.name for graph in model.graphs() for value in graph.initializers.values())

    def place(value: ir.Value, tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        # A subgraph cannot have new inputs, but it sees those of the main graph, if the name is free there.
        if tensor.nbytes <= _SMALL or names[value.name] > 1:
            return None
        return placeholder(tensor, value.name or "", "", 0)

    with replaced_weights(model, place):
        proto = to_proto(model)
    known = {value.name for value in proto.graph.input}
    for graph in _graph_protos(proto.graph):
        kept = [entry for entry in graph.initializer if entry.data_location != onnx.TensorProto.EXTERNAL]
        if len(kept) == len(graph.initializer):
            continue
        for entry in graph.initializer:
            if entry.data_location == onnx.TensorProto.EXTERNAL and entry.name not in known:
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims)
                )
        initializers = [onnx.TensorProto.FromString(entry.SerializeToString()) for entry in kept]
        del graph.initializer[:]
        graph.initializer.extend(initializers)
    return proto


def _graph_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graph_protos(attribute.g)
            for inner in attribute.graphs:
                yield from _graph_protos(inner)


def _has_inference(model: ir.Model, node: ir.Node) -> bool:
    if node.op_type in _SAME_SHAPE.get(node.domain, ()):
        return True
    return node.domain in _INFERRED_DOMAINS or node.op_identifier() in model.functions


def _forget(model: ir.Model) -> _Saved:
    """Clear what inference can find again; return what was there."""
    saved: _Saved = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                saved.append((value, value.type, value.shape))
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(value.const_value.shape.numpy())
        for node in graph:
            if not _has_inference(model, node):
                continue
            for value in node.outputs:
                if value.is_graph_output() and graph is model.graph:
                    continue
                saved.append((value, value.type, value.shape))
                value.type, value.shape = None, None
    for value in model.graph.outputs:
        saved.append((value, value.type, value.shape))
    return saved


def _infer(proto: onnx.ModelProto) -> onnx.ModelProto:
    # ONNX infers nothing for these; without them everything behind a recovered GELU would have no shape.
    for graph in _graph_protos(proto.graph):
        for node in graph.node:
            if node.op_type in _SAME_SHAPE.get(node.domain, ()):
                node.domain, node.op_type = "", "Identity"
                del node.input[1:]
                del node.attribute[:]
    return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return _infer(proto)
    except _FAILURES as error:
        first = error
    # Exporters misstate output shapes and runtimes only warn; the inferred shape is the right one.
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        return _infer(proto)
    except _FAILURES:
        raise InputError(
            f"shape inference failed{_culprit(str(first))}: {_reason(str(first))}",
            hint="check the shapes that the node reads, or export the model again",
        ) from first


def _merge(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    """Write the inferred types into the values of a graph and of its subgraphs."""
    types = {value.name: value.type for value in (*inferred.value_info, *inferred.output)}
    for node in graph:
        for value in node.outputs:
            found = types.get(value.name or "")
            if found is None or found.WhichOneof("value") in (None, "map_type"):
                continue
            kind = ir.serde.deserialize_type_proto_for_type(found)
            shape = ir.serde.deserialize_type_proto_for_shape(found)
            value.type = kind if kind is not None else value.type
            value.shape = shape if shape is not None else value.shape
    # Nodes are paired by order among those with bodies: others may have been replaced by their value.
    bodies = [node for node in graph if subgraphs_of(node)]
    protos = [node for node in inferred.node if any(a.HasField("g") or a.graphs for a in node.attribute)]
    for node, proto in zip(bodies, protos, strict=True):
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                _merge(node.attributes[attribute.name].as_graph(), attribute.g)
            elif attribute.graphs:
                inner = node.attributes[attribute.name].as_graphs()
                for sub, sub_proto in zip(inner, attribute.graphs, strict=True):
                    _merge(sub, sub_proto)


def _rank_everything(proto: onnx.ModelProto) -> None:
    """Hide interface values of unknown rank from the checker, which demands a shape field.

    ONNX allows them and runtimes run them: inputs become the outputs of a node the checker knows nothing
    about, outputs become inner values.
    """
    graph = proto.graph
    unranked = [value.name for value in graph.input if not _has_rank(value)]
    if unranked:
        proto.opset_import.append(onnx.helper.make_opsetid(_UNRANKED_DOMAIN, 1))
        source = onnx.helper.make_node("Input", [], unranked, domain=_UNRANKED_DOMAIN)
        nodes = [source, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
        del graph.node[:]
        graph.node.extend(nodes)
    for values in (graph.input, graph.output):
        kept = [value for value in values if _has_rank(value)]
        if len(kept) < len(values):
            copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
            del values[:]
            values.extend(copies)


def _has_rank(value: onnx.ValueInfoProto) -> bool:
    return not value.type.HasField("tensor_type") or value.type.tensor_type.HasField("shape")


def _culprit(message: str) -> str:
    match = _NODE_IN_MESSAGE.search(message) or _NODE_IN_CHECK.search(message)
    if match is None:
        return ""
    return f" at node {match['name']!r} ({match['op']})" if match["name"] else f" at a {match['op']} node"


def _reason(message: str) -> str:
    """The first line of an ONNX message without its prefixes."""
    first = next((line for line in message.splitlines() if line.strip()), "no reason given")
    return first.replace("[ShapeInferenceError] ", "").replace("[TypeInferenceError] ", "").strip()
