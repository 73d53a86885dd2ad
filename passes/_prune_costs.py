"""What cutting channels saves: multiply-accumulates of every weighted node as channels go.

A convolution or product costs in proportion to the channels it reads and to those it computes, so what it costs later
is what it costs now times the share of both that is left.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.core.describe import nodes_cost
from greencc.core.graph import constant_tensor
from greencc.core.groups import PruneGroup
from greencc.core.shapes import bind_dims


@dataclass(frozen=True)
class _Share:
    """An axis of a node's weight that shrinks with a group: by `step` of the whole per channel."""

    node: str
    axis: int
    step: float


@dataclass
class WorkModel:
    """Work of a model while channels go.

    Attributes:
        whole: Multiply-accumulates of all nodes before anything is cut.
        macs: Of the nodes that groups touch.
    """

    whole: float
    macs: Mapping[str, float]
    _shares: Mapping[str, Sequence[_Share]]
    _left: dict[str, dict[int, float]] = field(default_factory=dict)

    def saved(self, group: str, channels: int) -> float:
        """What cutting so many more channels of a group saves now."""
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        for share in self._shares[group]:
            left = self._left.get(share.node, {}).get(share.axis, 1.0)
            before.setdefault(share.node, self.now(share.node))
            rest = after.get(share.node, before[share.node])
            after[share.node] = rest * max(0.0, left - channels * share.step) / left
        return sum(before.values()) - sum(after.values())

    def remove(self, group: str, channels: int) -> float:
        """Cut; what it saved."""
        gain = self.saved(group, channels)
        for share in self._shares[group]:
            left = self._left.setdefault(share.node, {})
            left[share.axis] = left.get(share.axis, 1.0) - channels * share.step
        return gain

    def now(self, node: str) -> float:
        """What a node costs at present."""
        return self.macs.get(node, 0.0) * math.prod(self._left.get(node, {}).values())


def macs_by_node(model: ir.Model, samples: Sequence[Feeds]) -> dict[str, float]:
    """Multiply-accumulates of each node for one inference; 0 where they are not known.

    Args:
        model: With inferred shapes; left unchanged.
        samples: The first one sets the sizes of dynamic axes; without any they count as 1 where they may.
    """
    if samples:
        model = bind_dims(model, {name: values.shape for name, values in samples[0].items()})
    return {cost.name: float(cost.macs or 0) for cost in nodes_cost(model)}


def macs_per_sample(model: ir.Model, samples: Sequence[Feeds]) -> float:
    """Multiply-accumulates of one sample, for budgets of work: sizes as for `macs_by_node`, over the samples bound."""
    return sum(macs_by_node(model, samples).values()) / bound_together(samples)


def bound_together(samples: Sequence[Feeds]) -> int:
    """Samples in the batch that sets the sizes."""
    first = np.shape(next(iter(samples[0].values()), 0)) if samples else ()
    return max(1, first[0]) if first else 1


def work_model(model: ir.Model, groups: Iterable[PruneGroup], samples: Sequence[Feeds]) -> WorkModel:
    """The work of a model and how its groups share in it.

    Args:
        model: With inferred shapes; left unchanged.
        groups: Its prune groups.
        samples: The first one sets the sizes of dynamic axes; without any they count as 1 where they may.
    """
    macs = macs_by_node(model, samples)
    nodes = {str(node.name): node for node in model.graph}
    shares: dict[str, list[_Share]] = defaultdict(list)
    for group in groups:
        for site in group.sites:
            node = nodes[site.node]
            weight = next((value for value in node.inputs[:2] if constant_tensor(value) is not None), None)
            # A bias or another parameter of a weighted node shrinks along, but is no work of its own.
            if weight is None or weight.name != site.tensor or not macs.get(site.node):
                continue
            tensor = constant_tensor(weight)
            assert tensor is not None
            shares[group.name].append(
                _Share(site.node, site.axis, site.positions.shape[1] / int(tensor.shape.numpy()[site.axis]))
            )
    touched = {share.node for rows in shares.values() for share in rows}
    return WorkModel(sum(macs.values()), {name: macs[name] for name in touched}, shares)
