"""What is measured of a model before its plan: times in place, conversions, work that channels leave."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from greencc.compiler.costs import GroupCost
from greencc.compiler.layers import Origins
from greencc.compiler.planning.assembly import Edge, LayerFacts
from greencc.compiler.planning.space import WEIGHTED, Kind, Number, Space
from greencc.core.data import Feeds
from greencc.core.describe import nodes_cost
from greencc.core.engine import NodeTime
from greencc.core.graph import constant_tensor, input_at, static_shape
from greencc.core.groups import analyse
from greencc.core.shapes import bind_dims
from greencc.passes._prune_costs import WorkModel, work_model

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
# Differences of times below this share are noise: a tie.
_TIE = 0.05
# Profiles and whole runs that differ by more than this do not fit together.
_ANCHOR = (0.2, 5.0)


@dataclass(frozen=True)
class Profiles:
    """Profiles of whole artifacts.

    Attributes:
        model: The cleaned-up model, whose names count.
        floats: Its times by node.
        costs: Of the groups that may run as integers.
        integers: Times of the INT8 form with every group in integers, and its graph; None where there is none.
        dynamic: Times of the dynamic form; None likewise.
        whole_us: Measured latency of the whole in float.
        integer_us: That with every group in integers; None where there is no such form.
    """

    model: ir.Model
    floats: Sequence[NodeTime]
    costs: Mapping[str, GroupCost]
    integers: tuple[ir.Model, Sequence[NodeTime]] | None
    dynamic: Sequence[NodeTime] | None
    whole_us: float
    integer_us: float | None

    @property
    def scale(self) -> float:
        """What the profile's times are multiplied with to sum to the whole."""
        total = sum(row.microseconds for row in self.floats)
        return self.whole_us / total if total else 1.0


def by_layer(model: ir.Model, times: Iterable[NodeTime]) -> dict[str, float]:
    """Microseconds by the node of the model that the runtime's nodes came from."""
    origins = Origins(model)
    spent: dict[str, float] = defaultdict(float)
    for row in times:
        name = None if row.op_type in _CONVERSIONS else origins.find(row.name)
        if name is not None:
            spent[name] += row.microseconds
    return spent


def unmapped_share(model: ir.Model, times: Sequence[NodeTime]) -> float:
    """Share of a profile's time whose names do not map back to nodes of the model."""
    known = sum(by_layer(model, times).values())
    total = sum(row.microseconds for row in times)
    return 1.0 - known / total if total else 0.0


def layer_facts(space: Space, found: Profiles, feeds: Feeds, watts: float) -> dict[str, LayerFacts]:
    """Times, energies and sizes of all layers.

    Args:
        space: Its layers.
        found: Of the artifacts.
        feeds: One inference.
        watts: Mean power, for layers of which only the time is known.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    macs = {cost.name: float(cost.macs or 0) for cost in nodes_cost(bind_dims(found.model, shapes))}
    floats = by_layer(found.model, found.floats)
    dynamic = {} if found.dynamic is None else by_layer(found.model, found.dynamic)
    nodes = {str(node.name): node for node in found.model.graph}
    facts: dict[str, LayerFacts] = {}
    for name in dict.fromkeys((*space.layers, *space.groups)):
        tensor = constant_tensor(input_at(nodes[name], 1)) if name in nodes else None
        cost = found.costs.get(name)
        us, mj = {}, {}
        if cost is not None:
            before, after = _settled(cost.float_us, cost.int8_us)
            us = {Number.FLOAT.value: before, Number.INT8.value: after}
            mj = {Number.FLOAT.value: cost.float_mj, Number.INT8.value: cost.int8_mj}
        else:
            us = {Number.FLOAT.value: floats.get(name, 0.0)}
            mj = {Number.FLOAT.value: watts * us[Number.FLOAT.value] / 1e3}
        if name in dynamic:
            before, after = _settled(us[Number.FLOAT.value], dynamic[name])
            us[Number.DYNAMIC.value] = after
            share = after / before if before else 1.0
            mj[Number.DYNAMIC.value] = mj[Number.FLOAT.value] * share
        facts[name] = LayerFacts(
            {number: value * found.scale for number, value in us.items()},
            {number: value * found.scale for number, value in mj.items()},
            0 if tensor is None else int(tensor.size),
            macs.get(name, 0.0),
        )
    return _anchored(facts, found)


def _anchored(facts: dict[str, LayerFacts], found: Profiles) -> dict[str, LayerFacts]:
    """Scale the layers' integer times so that with all of them the whole takes what was measured of it.

    Profiles of integers and floats are off by different factors, and what lies between the layers differs, too.
    """
    integer, floating = Number.INT8.value, Number.FLOAT.value
    if found.integer_us is None:
        return facts
    before = sum(fact.us[floating] for fact in facts.values() if integer in fact.us)
    after = sum(fact.us[integer] for fact in facts.values() if integer in fact.us)
    wanted = found.integer_us - (found.whole_us - before)
    if after <= 0.0 or not _ANCHOR[0] <= wanted / after <= _ANCHOR[1]:
        return facts
    factor = wanted / after
    return {
        name: replace(
            fact,
            us={**fact.us, integer: fact.us[integer] * factor},
            mj={**fact.mj, integer: fact.mj[integer] * factor},
        )
        if integer in fact.us
        else fact
        for name, fact in facts.items()
    }


def _settled(before: float, after: float) -> tuple[float, float]:
    """Two times, alike where a fusion hides one of them or they differ by noise alone."""
    if not before or not after:
        most = max(before, after)
        return most, most
    if abs(before - after) <= _TIE * max(before, after):
        return before, before
    return before, after


def edges_of(space: Space, found: Profiles, feeds: Feeds, watts: float) -> tuple[Edge, ...]:
    """Between which layers numbers are converted when one of them computes in integers and the other does not."""
    per_element = _conversion_us(found, feeds)
    if per_element <= 0.0:
        return ()
    shapes = {name: array.shape for name, array in feeds.items()}
    model = bind_dims(found.model, shapes)
    layers = set(space.groups)
    edges: dict[tuple[str, str], Edge] = {}
    for node in model.graph:
        reader = str(node.name)
        source = input_at(node, 0)
        if reader not in layers or source is None:
            continue
        shape = static_shape(source)
        if shape is None:
            continue
        elements = math.prod(shape)
        us = per_element * elements * found.scale
        for writer in _writers(source, layers):
            edges[writer, reader] = Edge(writer, reader, us, watts * us / 1e3)
    return tuple(edges.values())


def _writers(value: ir.Value, layers: set[str], most: int = 64) -> list[str]:
    """The nearest layers that a value comes from."""
    found: list[str] = []
    seen: set[ir.Node] = set()
    open_values: list[ir.Value] = [value]
    while open_values and len(seen) < most:
        producer = open_values.pop().producer()
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        if str(producer.name) in layers:
            found.append(str(producer.name))
        elif producer.op_type not in WEIGHTED:
            open_values += [each for each in producer.inputs if each is not None]
    return found


def _conversion_us(found: Profiles, feeds: Feeds) -> float:
    """Microseconds per element of a conversion, from those in the INT8 form; 0 where none was seen."""
    if found.integers is None:
        return 0.0
    graph, times = found.integers
    model = bind_dims(graph, {name: array.shape for name, array in feeds.items()})
    sizes: dict[str, int] = {}
    for node in model.graph:
        if node.op_type in _CONVERSIONS:
            shape = static_shape(node.inputs[0])
            if shape is not None:
                elements = math.prod(shape)
                sizes[str(node.name)] = elements
    rows = [row for row in times if row.op_type in _CONVERSIONS and sizes.get(row.name)]
    total = sum(sizes[row.name] for row in rows)
    return sum(row.microseconds for row in rows) / total if total else 0.0


@dataclass(frozen=True)
class ChannelWork:
    """What is left of the layers' work when groups lose channels."""

    space: Space
    work: WorkModel | None
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, space: Space, model: ir.Model, samples: Sequence[Feeds]) -> ChannelWork:
        """For the groups that the space may cut."""
        wanted = {unit.subject for unit in space.units if unit.kind is Kind.CHANNELS}
        groups = [group for group in analyse(model).groups if group.name in wanted] if wanted else []
        sizes = {group.name: group.size for group in groups}
        return cls(space, work_model(model, groups, samples) if groups else None, sizes)

    def left(self, chosen: Mapping[str, str]) -> dict[str, float]:
        """By layer, for an assignment of channel units; layers that keep all are left out."""
        if self.work is None:
            return {}
        work = replace(self.work, _left={})
        for name, option in chosen.items():
            unit = self.space.unit(name)
            if unit.kind is Kind.CHANNELS and option != unit.options[0]:
                work.remove(unit.subject, self.sizes[unit.subject] - int(option))
        return {
            node: work.now(node) / whole
            for node, whole in work.macs.items()
            if whole and work.now(node) < whole
        }


def work_shares(
    space: Space, channels: ChannelWork, macs: Callable[[str], float]
) -> dict[tuple[str, str], dict[str, float]]:
    """Share of its work that each layer keeps, by unit and option."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for (name, option), offer in space.offers.items():
        unit = space.unit(name)
        if unit.kind is Kind.CHANNELS:
            found[name, option] = channels.left({name: option})
        elif unit.kind is Kind.BLOCK:
            found[name, option] = {layer: 0.0 for layer in space.layers if layer in offer.nodes}
        else:
            whole = macs(unit.subject)
            left = 1.0 - offer.saved_macs / whole if whole else 1.0
            found[name, option] = {unit.subject: min(max(left, 0.0), 1.0)}
    return found
