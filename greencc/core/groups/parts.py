"""What the labels of values and the subgraphs of nodes are made of."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import is_op
from greencc.core.groups.labels import AxisLabels, Ints

Axes = tuple[AxisLabels, ...]
# What is known of the entries of a vector of sizes: a number, the labels that it counts, or neither.
Entry = int | Ints | None
Entries = tuple[Entry, ...]
# Vectors longer than any shape are data.
LONGEST_SHAPE = 16


def base_of(value: ir.Value) -> ir.Value:
    """The constant behind Identity nodes."""
    while value.const_value is None and (producer := value.producer()) is not None:
        if not is_op(producer, "Identity") or producer.inputs[0] is None:
            break
        value = producer.inputs[0]
    return value


def names_of(base: ir.Value) -> list[ir.Value]:
    """A constant and the values that are the same through Identity nodes."""
    found = [base]
    for value in found:
        found += [usage.node.outputs[0] for usage in value.uses() if is_op(usage.node, "Identity")]
    return found


def captured(inner: ir.Graph, outer: ir.Graph) -> list[ir.Value]:
    """Values of the outer graph that a subgraph reads, at any depth."""
    found: dict[ir.Value, None] = {}
    read = [value for node in inner.all_nodes() for value in node.inputs if value is not None]
    read += [value for graph in (inner, *inner.subgraphs()) for value in graph.outputs]
    for value in read:
        producer = value.producer()
        owner = producer.graph if producer is not None else value.graph
        if owner is outer:
            found[value] = None
    return list(found)


def is_used(value: ir.Value) -> bool:
    """Whether an output is there and somebody reads it; absent ones have no name."""
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())
