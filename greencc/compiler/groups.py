"""Groups of nodes that are quantized, or left in float, together.

A group is one weighted operator that runs as integers and the integer arithmetic right after it (Add, Concat,
pooling, ...). Data movement (Reshape, ...) follows its neighbours by itself. Groups are the unit of the error table,
the cost table and every decision to leave something in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from greencc.passes._quantize_nodes import ABSORBED, MOVEMENT, WEIGHTED


@dataclass(frozen=True)
class Group:
    """A weighted node and what is decided along with it.

    Attributes:
        name: Of the weighted node.
        op_type: Of the weighted node.
        nodes: Names of all nodes of the group, the weighted one first.
    """

    name: str
    op_type: str
    nodes: tuple[str, ...]


def integer_nodes(quantized: ir.Model) -> list[ir.Node]:
    """The operators of a Q/DQ graph that a runtime may run as integers.

    Weighted ones have both operands dequantized; others read a dequantized value and have their result quantized.
    """
    return [
        node
        for node in quantized.graph
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        and (
            _weighted(node)
            if node.op_type in WEIGHTED
            else any(map(_dequantized, node.inputs)) and _requantized(node)
        )
    ]


def quantized_groups(quantized: ir.Model) -> tuple[Group, ...]:
    """The groups of a QDQ graph, in graph order.

    Arithmetic belongs to the last weighted node before it, or to the first one after it where none comes before.
    """
    members: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    nearest: dict[ir.Value, str] = {}
    homeless: list[ir.Node] = []
    integers = set(integer_nodes(quantized))
    order: dict[str, int] = {}
    for node in quantized.graph:
        name = str(node.name)
        before = [nearest[value] for value in node.inputs if value is not None and value in nearest]
        home = max(before, key=order.__getitem__, default=None)
        if node in integers and node.op_type in WEIGHTED:
            order[name] = len(order)
            members[name], types[name] = [name], node.op_type
            home = name
        elif node in integers and node.op_type not in MOVEMENT and node.op_type not in ABSORBED:
            if home is None:
                homeless.append(node)
            else:
                members[home].append(name)
        if home is not None:
            for value in node.outputs:
                nearest[value] = home
    first = next(iter(members), None)
    if first is not None:
        members[first] += [str(node.name) for node in homeless]
    return tuple(Group(name, types[name], tuple(nodes)) for name, nodes in members.items())


def _weighted(node: ir.Node) -> bool:
    return len(node.inputs) > 1 and _dequantized(node.inputs[0]) and _dequantized(node.inputs[1])


def _requantized(node: ir.Node) -> bool:
    """True where a reader of the first output, past a Relu or Clip, is a QuantizeLinear."""
    readers = node.outputs[0].consumers()
    return any(
        reader.op_type == "QuantizeLinear" or (reader.op_type in ABSORBED and _requantized(reader))
        for reader in readers
    )


def _dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"
