"""Residual blocks: where a value x reaches an Add directly and meets what a branch f made of it, y = x + f(x).

Removing the block means y = x: no shape changes, whatever the block computes. That covers identity blocks of residual
networks (He et al. 2016, arXiv 1603.05027), inverted residuals (MobileNetV2), attention and feed-forward blocks of
transformers with the normalisation before (inside f, removed with it) or after them (behind the Add, kept).
An Add whose shortcut is computed too (a projection with stride) is no block: neither operand depends on the other.

f may read values besides x that do not depend on x (an attention mask). Nobody else may read what is computed inside,
except for integers: exporters share sizes between blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from greencc.core.graph import constant_tensor, is_op, subgraphs_of
from greencc.passes._rewriter import node_name, remove

Shape = tuple[int, ...]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Block:
    """A residual block of the main graph.

    Attributes:
        add: The node that joins both paths; the block is called after it.
        skip: x.
        branch: f(x).
        nodes: What is removed with the block, in graph order, without the Add.
    """

    add: ir.Node
    skip: ir.Value
    branch: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        return node_name(self.add)

    @property
    def output(self) -> ir.Value:
        return self.add.outputs[0]


@dataclass(frozen=True)
class Refused:
    """An Add that joins two computed values but cannot be removed with its branch."""

    name: str
    reason: str


def find_blocks(
    model: ir.Model, shapes: Mapping[str, Shape] = MappingProxyType({})
) -> tuple[list[Block], list[Refused]]:
    """The residual blocks of the main graph in graph order, those inside others included, and what is none.

    Args:
        model: With inferred shapes.
        shapes: Of values whose shapes inference alone does not tell, for some input.
    """
    graph = _Order(model.graph)
    blocks: list[Block] = []
    refused: list[Refused] = []
    for node in model.graph:
        operands = [value for value in node.inputs if value is not None]
        if not is_op(node, "Add", "Sum") or len(operands) != 2 or operands[0] is operands[1]:
            continue
        if any(constant_tensor(value) is not None or value.dtype not in _FLOATS for value in operands):
            continue
        found = _block(node, operands[0], operands[1], graph, shapes)
        if isinstance(found, Block):
            blocks.append(found)
        else:
            refused.append(Refused(node_name(node), found))
    return blocks, refused


def drop(model: ir.Model, block: Block) -> None:
    """Let x take the place of x + f(x) and remove what only computed f(x). Names of graph outputs stay.

    Args:
        model: The model `block` was found in; other blocks of it are stale afterwards.
        block: What to remove.
    """
    graph = model.graph
    output = block.output
    if output.is_graph_output():
        # An output keeps its name, and x may be an input or another output.
        identity = ir.node("Identity", [block.skip], name=block.add.name)
        result = identity.outputs[0]
        graph.insert_before(block.add, identity)
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, result.type, result.shape = output.name, output.type, output.shape
    else:
        output.replace_all_uses_with(block.skip)
    touched: list[ir.Value] = []
    for node in (block.add, *reversed(block.nodes)):
        touched += [value for value in node.inputs if value is not None]
        touched += [
            value for inner in subgraphs_of(node) for child in inner for value in child.inputs if value
        ]
        remove(node)
    for value in dict.fromkeys(touched):
        if value.is_initializer() and not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            graph.initializers.pop(str(value.name), None)


class _Order:
    """The nodes of the main graph by position, and which of them each use belongs to."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.position = {node: index for index, node in enumerate(graph)}
        self._outer = {
            inner: node for node in graph for sub in subgraphs_of(node) for inner in sub.all_nodes()
        }
        # What a subgraph returns it reads, though no node does.
        self.returned: dict[ir.Value, ir.Node] = {
            value: node for node in graph for sub in _deep(node) for value in sub.outputs
        }

    def readers(self, value: ir.Value) -> Iterator[ir.Node]:
        """The nodes of the main graph that read a value, by themselves or in their subgraphs."""
        for usage in value.uses():
            yield self._outer.get(usage.node, usage.node)
        if value in self.returned:
            yield self.returned[value]


def _deep(node: ir.Node) -> Iterator[ir.Graph]:
    for sub in subgraphs_of(node):
        yield sub
        for child in sub:
            yield from _deep(child)


def _block(
    add: ir.Node, first: ir.Value, second: ir.Value, order: _Order, shapes: Mapping[str, Shape]
) -> Block | str:
    for skip, branch in ((first, second), (second, first)):
        inside = _between(skip, branch, add, order)
        if inside:
            break
    else:
        return "neither operand is computed from the other (a projection, or a join of branches)"
    if not _same_shape(skip, add.outputs[0], shapes):
        return "the Add may broadcast its shortcut: their shapes differ or are not known"
    if any(subgraphs_of(node) for node in inside):
        return "its branch holds control flow"
    members = set(inside)
    for node in inside:
        for value in node.outputs:
            others = [
                reader for reader in order.readers(value) if reader not in members and reader is not add
            ]
            if value.is_graph_output() or (others and value.dtype in _FLOATS):
                where = (
                    f"{others[0].op_type} {node_name(others[0])!r}" if others else "an output of the model"
                )
                return f"{value.name!r} inside its branch is also read by {where}"
    return Block(add, skip, branch, _dead(add, skip, branch, order))


def _between(skip: ir.Value, branch: ir.Value, add: ir.Node, order: _Order) -> list[ir.Node]:
    """The nodes on paths from `skip` to `branch`, in graph order; none when there is no path."""
    last = order.position[add]
    below: set[ir.Node] = set()
    pending = [skip]
    while pending:
        for reader in order.readers(pending.pop()):
            if reader not in below and order.position[reader] < last:
                below.add(reader)
                pending.extend(reader.outputs)
    above: set[ir.Node] = set()
    values = [branch]
    while values:
        node = values.pop().producer()
        if node is not None and node in below and node not in above:
            above.add(node)
            values.extend(value for value in _reads(node) if value is not None)
    return sorted(above, key=lambda node: order.position[node])


def _reads(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node reads, in its subgraphs too."""
    yield from node.inputs
    for sub in _deep(node):
        yield from sub.outputs
        for child in sub:
            yield from child.inputs


def _dead(add: ir.Node, skip: ir.Value, branch: ir.Value, order: _Order) -> tuple[ir.Node, ...]:
    """The nodes whose results nobody needs when the readers of the Add take `skip`."""
    dead = {add}
    pending = [branch.producer()]
    while pending:
        node = pending.pop()
        if node is None or node in dead or node not in order.position:
            continue
        if any(
            value is skip
            or value.is_graph_output()
            or any(reader not in dead for reader in order.readers(value))
            for value in node.outputs
        ):
            continue
        dead.add(node)
        pending.extend(value.producer() for value in _reads(node) if value is not None)
    return tuple(sorted(dead - {add}, key=lambda node: order.position[node]))


def _same_shape(first: ir.Value, second: ir.Value, shapes: Mapping[str, Shape]) -> bool:
    """Equal shapes: as inferred, dynamic dimensions by name, or else those for some input."""
    one, other = ([_size(dim) for dim in value.shape or [None]] for value in (first, second))
    if None not in one and one == other:
        return True
    known = shapes.get(str(first.name))
    return known is not None and known == shapes.get(str(second.name))


def _size(dim: int | ir.SymbolicDim | None) -> int | str | None:
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim
