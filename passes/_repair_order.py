"""Which layers are repaired in one pass over the data: as far as possible those that do not follow each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from greencc.core.graph import subgraphs_of
from greencc.passes._linear_view import linear_view


@dataclass(frozen=True)
class Join:
    """Where the output of a layer is added to another branch.

    Attributes:
        total: The sum, by its name in the original model.
        other: The other branch, by its name in the compressed model.
    """

    total: str
    other: str


@dataclass(frozen=True)
class Source:
    """What a layer reads, in the original model: what it will read when all before it is repaired.

    Attributes:
        value: Name of the value there.
        keep: Channels of it that the compressed model still has; None: all of them.
    """

    value: str
    keep: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Refit:
    """A layer to repair.

    Attributes:
        node: Weighted node of the compressed model, by name.
        target: Value of the original model that its output should give.
        keep: Channels of that value that the node still computes; None: all of them.
        join: The output is added to another branch, for whose errors the layer is to make up as well: its target
            is the original's sum less that branch.
        source: What it reads, in the original: serves where the layers before it are not repaired yet.
        inherits: It lost nothing itself; it only makes up for what the layers before it could not.
    """

    node: str
    target: str
    keep: tuple[int, ...] | None = None
    join: Join | None = None
    source: Source | None = None
    inherits: bool = False


def layers_behind(model: ir.Model, values: Sequence[ir.Value]) -> list[Refit]:
    """All weighted layers that depend on some values of a model, each to give what it gave in the original."""
    reached: set[ir.Value | None] = set(values)
    layers = []
    for node in model.graph:
        if any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            if linear_view(node) is not None:
                layers.append(Refit(str(node.name), str(node.outputs[0].name)))
    return layers


@dataclass(frozen=True)
class Step:
    """A layer of a round.

    Attributes:
        item: The layer.
        follows: Others of the round come before it: what it reads will still change.
    """

    item: Refit
    follows: bool


def plan_rounds(model: ir.Model, layers: Sequence[Refit], limit: int) -> list[list[Step]]:
    """Layers in groups, in the order of the graph, `limit` groups at most.

    The level of a layer is the number of layers to repair on the longest path to what it depends on; those of one
    level do not depend on each other. More levels than groups are divided evenly; a layer that only makes up for
    others is left out where it would not see them repaired.
    """
    by_node = {item.node: item for item in layers}
    by_name = {str(value.name): value for node in model.graph for value in node.outputs}
    depth: dict[ir.Value, int] = {}
    levels: dict[str, int] = {}
    for node in model.graph:
        level = max((depth.get(value, 0) for value in _read(node)), default=0)
        item = by_node.get(str(node.name))
        if item is not None:
            other = None if item.join is None else by_name.get(item.join.other)
            level = max(level, 0 if other is None else depth.get(other, 0))
            levels[item.node] = level
            level += 1
        for value in node.outputs:
            depth[value] = level
    count = max(levels.values(), default=-1) + 1
    rounds = min(count, limit)
    groups: list[list[Step]] = [[] for _ in range(rounds)]
    for name, level in levels.items():
        number = level * rounds // count
        follows = level > 0 and number == (level - 1) * rounds // count
        if not (follows and by_node[name].inherits):
            groups[number].append(Step(by_node[name], follows))
    return [group for group in groups if group]


def _read(node: ir.Node) -> list[ir.Value]:
    """The values a node depends on, those its subgraphs capture included."""
    found = [value for value in node.inputs if value is not None]
    for inner in subgraphs_of(node):
        found += [value for other in inner.all_nodes() for value in other.inputs if value is not None]
        found += list(inner.outputs)
    return found
