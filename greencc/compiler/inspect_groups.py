"""`greencc inspect --groups`: the prune groups of a model, what hangs on them, and which layers join them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from greencc.calibration import synthetic
from greencc.compiler.session import available_target
from greencc.core.data import Feeds
from greencc.core.describe import describe, input_specs
from greencc.core.engine import Target
from greencc.core.graph import constant_tensor, ensure_names
from greencc.core.groups import PruneGroup, Role, Structure, analyse
from greencc.core.model import infer_shapes, load_model
from greencc.core.passes import Context
from greencc.core.pipeline import Pipeline
from greencc.core.progress import Progress, silent
from greencc.core.shapes import bind_dims
from greencc.passes import default_cleanup


@dataclass(frozen=True)
class GroupRow:
    """A prune group. What hangs on a channel is counted by the weights that hold it, each layer once.

    Attributes:
        name: The node that computes the channels first.
        kind: "channels", "heads", "hidden units".
        channels: How many there are.
        width: Coordinates of each.
        tensors: Constants that shrink with them.
        params: Parameters that hang on one channel.
        macs: Multiply-accumulates that hang on one channel, at the batch of the model (1 where it is dynamic);
            None: not known.
        params_share: Of the parameters of the model, those in which the group has a part.
        macs_share: Likewise.
        reason: Why no channel may be cut; None where they may.
    """

    name: str
    kind: str
    channels: int
    width: int
    tensors: int
    params: int
    macs: int | None
    params_share: float
    macs_share: float | None
    reason: str | None


@dataclass(frozen=True)
class GroupLink:
    """A layer that reads the channels of one group and computes those of another, or of the same."""

    reads: str
    writes: str
    layer: str


@dataclass(frozen=True)
class GroupTable:
    """The prune groups of a cleaned-up model, in the order of the graph.

    Attributes:
        params: Of the model.
        macs: Of the model, likewise; None: not known.
        groups: The groups; those with a reason may not be cut.
        links: Layers between groups.
        unknown: Operators that no rule is known of, where groups end: each with the names of its nodes.
    """

    params: int
    macs: int | None
    groups: tuple[GroupRow, ...]
    links: tuple[GroupLink, ...]
    unknown: dict[str, list[str]]


def prune_groups(path: Path, target: str = "cpu", progress: Progress = silent) -> GroupTable:
    """Find the prune groups of a model after the clean-up, as `greencc compile` would see them.

    Args:
        path: The model.
        target: Its kernels decide what the clean-up does.
        progress: Shows how far it is.

    Raises:
        InputError: The model is bad, or the target cannot run it.
    """
    source = load_model(path)
    ensure_names(source)
    inputs = input_specs(source)
    batch = (inputs[0].batch or 1) if inputs else 1
    sample = next(iter(synthetic(inputs, batch).batches(batch))).feeds
    model = _cleaned(source, available_target(target), sample, progress)
    infer_shapes(model)
    return table_of(model, analyse(model), sample)


def _cleaned(source: ir.Model, target: Target, sample: Feeds, progress: Progress) -> ir.Model:
    capabilities = target.capabilities()
    context = Context(capabilities, target.reference, [sample], progress=progress)
    model, _ = Pipeline(context).run(source, default_cleanup(capabilities))
    return model


def table_of(model: ir.Model, structure: Structure, sample: Feeds) -> GroupTable:
    """The table of a model whose groups were found; dynamic sizes are those of a sample."""
    facts = describe(bind_dims(model, {name: array.shape for name, array in sample.items()}))
    work = {cost.name: cost.macs for cost in facts.costs}
    shapes = {
        str(value.name): tuple(int(size) for size in tensor.shape.numpy())
        for node in model.graph
        for value in node.inputs
        if value is not None and (tensor := constant_tensor(value)) is not None
    }
    rows = []
    for group in structure.groups:
        held = _Held(group, shapes, work)
        params, macs = held.params(group.size), held.macs(group.size)
        row = GroupRow(
            name=group.name,
            kind=group.kind,
            channels=group.size,
            width=group.width,
            tensors=len(held.axes),
            params=round(held.params(1)),
            macs=None if macs is None else round(held.macs(1) or 0.0),
            params_share=params / facts.params if facts.params else 0.0,
            macs_share=None if macs is None or not facts.macs else macs / facts.macs,
            reason=group.reason,
        )
        rows.append(row)
    unknown = {operator: list(nodes) for operator, nodes in sorted(structure.unknown.items())}
    return GroupTable(facts.params, facts.macs, tuple(rows), tuple(_links(model, structure.groups)), unknown)


class _Held:
    """What hangs on channels of a group, by the weights that hold them."""

    def __init__(
        self, group: PruneGroup, shapes: Mapping[str, tuple[int, ...]], work: Mapping[str, int | None]
    ) -> None:
        self._shapes, self._work = shapes, work
        places: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._nodes: dict[str, str] = {}
        for site in group.sites:
            places[site.tensor][site.axis].update(site.positions[0].tolist())
            # A layer's work shrinks with its largest tensor: the bias beside a weight says the same of it.
            largest = self._nodes.get(site.node, site.tensor)
            self._nodes[site.node] = max(largest, site.tensor, key=self._size)
        self.axes = {
            tensor: {axis: len(found) for axis, found in axes.items()} for tensor, axes in places.items()
        }

    def params(self, channels: int) -> float:
        return sum(self._size(tensor) * self._share(tensor, channels) for tensor in self.axes)

    def macs(self, channels: int) -> float | None:
        total = 0.0
        for node, tensor in self._nodes.items():
            macs = self._work.get(node)
            if macs is None:
                return None
            total += macs * self._share(tensor, channels)
        return total

    def _size(self, tensor: str) -> int:
        return math.prod(self._shapes[tensor])

    def _share(self, tensor: str, channels: int) -> float:
        """The part of a tensor that so many channels take; rows and columns may cross where they have both."""
        left = 1.0
        for axis, count in self.axes[tensor].items():
            left *= 1.0 - min(1.0, channels * count / self._shapes[tensor][axis])
        return 1.0 - left


def _links(model: ir.Model, groups: tuple[PruneGroup, ...]) -> Iterator[GroupLink]:
    """Layers that compute the channels of one group from those of another, in graph order."""
    reads: dict[str, dict[str, None]] = defaultdict(dict)
    writes: dict[str, dict[str, None]] = defaultdict(dict)
    for group in groups:
        for site in group.sites:
            if site.role is Role.CONSUMER:
                reads[site.node][group.name] = None
            elif site.role is Role.PRODUCER:
                writes[site.node][group.name] = None
        for reader in group.readers:
            reads[reader.node][group.name] = None
    for node in model.graph:
        layer = str(node.name)
        for source in reads.get(layer, ()):
            for result in writes.get(layer, ()):
                yield GroupLink(source, result, layer)
