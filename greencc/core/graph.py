"""Small questions and edits that every pass needs.

`onnx_ir` has the graph; what is here adds the rules passes must agree on: what counts as a constant, how new
values and nodes are named, which graphs a model has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

ONNX_DOMAINS = frozenset({"", "ai.onnx"})


def graphs_of(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, its subgraphs at any depth, then every function with its subgraphs."""
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of all graphs of the model, subgraphs and functions included, in a fixed order."""
    for graph in graphs_of(model):
        yield from graph


def subgraphs_of(node: ir.Node) -> tuple[ir.Graph, ...]:
    """The subgraphs directly inside a node (If, Loop, Scan), in attribute order."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return tuple(found)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """True when the node is one of these operators of the default domain."""
    return node is not None and node.domain in ONNX_DOMAINS and node.op_type in op_types


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor a value always holds, or None.

    Initializers and outputs of `Constant` and of `Identity` of a constant are constants; a graph input that
    merely has a default is not. Reading `shape`, `dtype` and `nbytes` of the result touches no weights.
    """
    while value is not None and value.const_value is None and is_op(value.producer(), "Identity"):
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and producer.inputs else None
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or not is_op(producer, "Constant") or len(producer.attributes) != 1:
        return None
    return _attribute_tensor(next(iter(producer.attributes.values())))


def _attribute_tensor(attribute: ir.Attr) -> ir.TensorProtocol | None:
    """The value of a Constant node. (`ir.convenience.get_const_tensor` renames the tensor it returns.)"""
    if attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_float" | "value_floats":
            return ir.tensor(np.array(attribute.value, dtype=np.float32))
        case "value_int" | "value_ints":
            return ir.tensor(np.array(attribute.value, dtype=np.int64))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            texts = attribute.as_strings()
            return ir.StringTensor([text.encode() for text in texts], shape=ir.Shape([len(texts)]))
    return None


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The array a value always holds, or None; see `constant_tensor`. Never write into it: clones share it."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def consumers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read a value, each once, in order of first use; nodes in subgraphs are included."""
    return tuple(dict.fromkeys(usage.node for usage in value.uses()))


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, when it is read once and is no graph output; otherwise None."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at `index`, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a value when every dimension is a known integer, otherwise None."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


class Names:
    """Hands out value and node names that the model does not use yet.

    Building it walks the whole model once; a pass makes one and keeps it.
    """

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        for graph in graphs_of(model):
            known: list[ir.Value] = [*graph.inputs]
            if isinstance(graph, ir.Graph):
                known.extend(graph.initializers.values())
            for node in graph:
                known.extend(node.outputs)
                if node.name:
                    self._nodes.add(node.name)
            self._values.update(value.name for value in known if value.name)

    def value(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, ... when a value is called that already."""
        return _claim(base, self._values)

    def node(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, ... when a node is called that already."""
        return _claim(base, self._nodes)


def _claim(base: str, taken: set[str]) -> str:
    name = base
    suffixes = count(1)
    while name in taken:
        name = f"{base}_{next(suffixes)}"
    taken.add(name)
    return name


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """Register a new constant of a graph and return its value; `name` must be unused (see `Names`)."""
    tensor = ir.tensor(np.asarray(array, order="C")) if isinstance(array, np.ndarray) else array
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nobody reads any more, and what it alone was made of."""
    if value.uses() or value.is_graph_output():
        return
    if value.is_initializer():
        if not value.is_graph_input():
            del graph.initializers[str(value.name)]
    elif (producer := value.producer()) is not None:
        sources = [source for source in producer.inputs if source is not None]
        graph.remove(producer, safe=True)
        for source in sources:
            drop_unused(graph, source)


def ensure_names(model: ir.Model) -> int:
    """Give every node of the model a unique, non-empty name; return how many were renamed.

    A node without a name is called after its operator and first output; the first node that has a name keeps
    it. The names depend on the graph alone, so findings and per-node reports are stable between runs.
    """
    nodes = list(all_nodes(model))
    taken: set[str] = set()
    rename: list[ir.Node] = []
    for node in nodes:
        if node.name and node.name not in taken:
            taken.add(node.name)
        else:
            rename.append(node)
    for node in rename:
        node.name = _claim(node.name or default_node_name(node), taken)
    return len(rename)


def default_node_name(node: ir.Node) -> str:
    """What an unnamed node is called."""
    output = next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type}_{output}" if output else node.op_type


def label(node: ir.Node) -> str:
    """The node as messages show it: ``'name' (Domain::Op)``."""
    operator = f"{node.domain}::{node.op_type}" if node.domain not in ONNX_DOMAINS else node.op_type
    return f"{node.name or default_node_name(node)!r} ({operator})"


def opset_of(model: ir.Model) -> int:
    """The version of the default operator set the model uses."""
    return int(model.opset_imports[""])


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An INTS attribute, or the default when it is absent or refers to a function's attribute."""
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None or attribute.is_ref() else tuple(attribute.as_ints())


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    """An INT attribute, or the default when it is absent or refers to a function's attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else int(attribute.as_int())


def external_files(model: ir.Model) -> list[str]:
    """Files beside the model that hold its weights, relative to it."""
    return sorted(
        {
            str(value.const_value.location)
            for graph in model.graphs()
            for value in graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
    )
