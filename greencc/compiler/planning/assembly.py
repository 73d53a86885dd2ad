"""The optimisation problem of a model: what every option adds, and what two options add together.

Times are those of the layers in place, scaled so that they sum to what the model as a whole takes. Millijoules follow
the times, layer by layer (`greencc.compiler.costs`). Where two options touch one layer their effects multiply, and the
pair carries the difference from the sum:

    time(layer) = time(arithmetic) x share(work left by all channels) x share(rank)

Neighbours of which one computes in integers and the other in float pay for the conversion of the tensor between them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType

from greencc.compiler.planning.kernels import LayerTimes
from greencc.compiler.planning.space import Kind, Number, PlanUnit, Space
from greencc.planner.problem import Amounts, Option, Pair, Problem, Quantity, Unit

# Pairs that add less than this share of the whole are left out.
_SMALLEST = 1e-5
_FLOAT_BYTES = 4.0
# Factors of a layer that lost channels must have less than this share of its work.
_WORTH_FACTORS = 0.85


@dataclass(frozen=True)
class LayerFacts:
    """A layer as it is.

    Attributes:
        us: Microseconds in place, by arithmetic; those not there are as in float.
        mj: Millijoules, likewise.
        weights: How many it has.
        macs: Of one inference.
    """

    us: Mapping[str, float]
    mj: Mapping[str, float]
    weights: int
    macs: float

    def time(self, number: str) -> float:
        return self.us.get(number, self.us[Number.FLOAT.value])

    def energy(self, number: str) -> float:
        return self.mj.get(number, self.mj[Number.FLOAT.value])


@dataclass(frozen=True)
class Edge:
    """Two layers with nothing between them that is decided on its own, and what a conversion between them takes."""

    writer: str
    reader: str
    us: float
    mj: float


@dataclass
class Corrections:
    """Factors by kind of unit that verified plans have shown: of the errors, and of the time that is saved."""

    error: dict[Kind, float] = field(default_factory=dict)
    saved: dict[Kind, float] = field(default_factory=dict)

    def of_error(self, kind: Kind) -> float:
        return self.error.get(kind, 1.0)

    def of_saved(self, kind: Kind) -> float:
        return self.saved.get(kind, 1.0)


@dataclass(frozen=True)
class Tables:
    """All that is known of a space.

    Attributes:
        layers: By name.
        times: Of what layers become.
        errors: Divergence of the outputs by the names of unit and option; 0 where it is not there.
        work: Share of its work that a layer keeps under an option, by unit, option and layer.
        edges: Where numbers are converted.
        base: The model with every unit as it is.
        weight_bytes: Bytes of a weight, by arithmetic.
        layer_bytes: What a layer in static INT8 has beside its weights: scales, zero points, nodes.
        measured: Which errors were measured, not predicted.
        unknown: Which are not known at all: such options are not chosen.
    """

    layers: Mapping[str, LayerFacts]
    times: LayerTimes
    errors: dict[tuple[str, str], float]
    work: Mapping[tuple[str, str], Mapping[str, float]]
    edges: tuple[Edge, ...]
    base: Amounts
    weight_bytes: Mapping[str, float]
    layer_bytes: float = 0.0
    measured: set[tuple[str, str]] = field(default_factory=set)
    unknown: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class Effect:
    """What an option makes of one layer, as shares of what it was.

    Attributes:
        time: Of its time, in float and as integers.
        work: Of its multiply-accumulates, and of its weights.
    """

    time: Mapping[str, float]
    work: float


def effects(space: Space, tables: Tables, unit: PlanUnit, option: str) -> dict[str, Effect]:
    """The layers that a structural option changes, and how."""
    found: dict[str, Effect] = {}
    for layer, work in tables.work.get((unit.name, option), {}).items():
        if layer not in tables.layers:
            continue
        shares = {}
        for number in Number:
            name = number.value
            if unit.kind is Kind.RANK:
                shares[name] = tables.times.ranks.get(
                    (unit.name, option, name), tables.times.ranks.get((unit.name, option, "float"), work)
                )
            else:
                shares[name] = tables.times.share(layer, name, work)
        found[layer] = Effect(shares, work)
    return found


def make_problem(
    space: Space, tables: Tables, corrections: Corrections, usual: Mapping[str, str] = MappingProxyType({})
) -> Problem:
    """Everything that options and pairs add to the untouched model.

    Args:
        space: What may be decided.
        tables: What is known of it.
        corrections: What verified plans have shown.
        usual: In what layers compute by which several structural options overlap (three options in one pair there are
            not); of others: integers where they can.
    """
    structural = {
        (unit.name, option): effects(space, tables, unit, option)
        for unit in space.units
        if unit.kind is not Kind.ARITHMETIC
        for option in unit.options[1:]
    }
    units = tuple(
        Unit(
            unit.name,
            tuple(
                Option(option, _alone(tables, corrections, unit, option, structural))
                for option in unit.options
            ),
        )
        for unit in space.units
    )
    pairs = _Pairs(space, tables, corrections, structural, usual)
    return Problem(units, tuple(pairs.all()), tables.base)


def _alone(
    tables: Tables,
    corrections: Corrections,
    unit: PlanUnit,
    option: str,
    structural: Mapping[tuple[str, str], Mapping[str, Effect]],
) -> Amounts:
    """What an option adds when everything else is as it is."""
    if option == unit.options[0]:
        return {}
    error = tables.errors.get((unit.name, option), 0.0) * corrections.of_error(unit.kind)
    factor = corrections.of_saved(unit.kind)
    if unit.kind is Kind.ARITHMETIC:
        facts = tables.layers[unit.subject]
        return {
            Quantity.LATENCY: factor * (facts.time(option) - facts.time("float")) / 1e3,
            Quantity.ENERGY: factor * (facts.energy(option) - facts.energy("float")),
            Quantity.SIZE: (tables.weight_bytes[option] - _FLOAT_BYTES) * facts.weights
            + (tables.layer_bytes if option == Number.INT8.value else 0.0),
            Quantity.ERROR: error,
        }
    found: dict[Quantity, float] = defaultdict(float, {Quantity.ERROR: error})
    for layer, effect in structural[unit.name, option].items():
        facts = tables.layers[layer]
        found[Quantity.LATENCY] += factor * facts.time("float") * (effect.time["float"] - 1.0) / 1e3
        found[Quantity.ENERGY] += factor * facts.energy("float") * (effect.time["float"] - 1.0)
        found[Quantity.SIZE] += _FLOAT_BYTES * facts.weights * (effect.work - 1.0)
        found[Quantity.MACS] += facts.macs * (effect.work - 1.0)
    return found


@dataclass(frozen=True)
class _Pairs:
    space: Space
    tables: Tables
    corrections: Corrections
    structural: Mapping[tuple[str, str], Mapping[str, Effect]]
    usual: Mapping[str, str]

    def all(self) -> Iterator[Pair]:
        found: dict[tuple[tuple[str, str], tuple[str, str]], dict[Quantity, float]] = {}
        for first, second, amounts in self._parts():
            total = found.setdefault((first, second), dict.fromkeys(Quantity, 0.0))
            for quantity, value in amounts.items():
                total[quantity] += value
        for (first, second), amounts in found.items():
            if self._matters(amounts):
                yield Pair(first, second, amounts)
        yield from self._forbidden()

    def _matters(self, amounts: Amounts) -> bool:
        base = self.tables.base
        return any(abs(value) > _SMALLEST * base.get(quantity, 0.0) for quantity, value in amounts.items())

    def _parts(self) -> Iterator[tuple[tuple[str, str], tuple[str, str], Amounts]]:
        numbers = {unit.subject: unit for unit in self.space.units if unit.kind is Kind.ARITHMETIC}
        by_layer: dict[str, list[tuple[tuple[str, str], Effect]]] = defaultdict(list)
        for key, changed in self.structural.items():
            for layer, effect in changed.items():
                by_layer[layer].append((key, effect))
        for layer, changes in by_layer.items():
            facts = self.tables.layers[layer]
            unit = numbers.get(layer)
            for key, effect in changes:
                for option in unit.options[1:] if unit is not None else ():
                    assert unit is not None
                    yield (unit.name, option), key, self._in_arithmetic(facts, option, effect, key)
            usual = self.usual.get(layer, "int8" if unit is not None and "int8" in unit.options else "float")
            for (first, one), (second, other) in combinations(changes, 2):
                if first[0] != second[0]:
                    kinds = self.space.unit(first[0]).kind, self.space.unit(second[0]).kind
                    yield first, second, self._together(facts, one, other, usual, kinds)
        for edge in self.tables.edges:
            yield from self._conversions(numbers, edge)

    def _in_arithmetic(self, facts: LayerFacts, option: str, effect: Effect, key: tuple[str, str]) -> Amounts:
        """A structural option saves less (or more) of a layer that computes in something else than float."""
        factor = self.corrections.of_saved(self.space.unit(key[0]).kind)
        weights = self.tables.weight_bytes[option] - _FLOAT_BYTES
        float_saved, saved = effect.time["float"] - 1.0, effect.time[option] - 1.0
        return {
            Quantity.LATENCY: factor * (facts.time(option) * saved - facts.time("float") * float_saved) / 1e3,
            Quantity.ENERGY: factor * (facts.energy(option) * saved - facts.energy("float") * float_saved),
            Quantity.SIZE: weights * facts.weights * (effect.work - 1.0),
        }

    def _together(
        self, facts: LayerFacts, one: Effect, other: Effect, number: str, kinds: tuple[Kind, Kind]
    ) -> Amounts:
        """What both save is saved once."""
        factor = math.sqrt(math.prod(map(self.corrections.of_saved, kinds)))
        overlap = factor * (1.0 - one.time[number]) * (1.0 - other.time[number])
        work = (1.0 - one.work) * (1.0 - other.work)
        return {
            Quantity.LATENCY: facts.time(number) * overlap / 1e3,
            Quantity.ENERGY: facts.energy(number) * overlap,
            Quantity.SIZE: self.tables.weight_bytes[number] * facts.weights * work,
            Quantity.MACS: facts.macs * work,
        }

    def _conversions(
        self, numbers: Mapping[str, PlanUnit], edge: Edge
    ) -> Iterator[tuple[tuple[str, str], tuple[str, str], Amounts]]:
        writer, reader = numbers.get(edge.writer), numbers.get(edge.reader)
        if writer is None or reader is None or writer is reader:
            return
        cost = {Quantity.LATENCY: edge.us / 1e3, Quantity.ENERGY: edge.mj}
        integer = Number.INT8.value
        for option in writer.options:
            for other in reader.options:
                if (option == integer) != (other == integer):
                    yield (writer.name, option), (reader.name, other), cost

    def _forbidden(self) -> Iterator[Pair]:
        """Nothing is decided inside a removed block, and no rank that saves nothing of what channels leave."""
        yield from self._useless_ranks()
        blocks = [unit for unit in self.space.units if unit.kind is Kind.BLOCK]
        others = [unit for unit in self.space.units if unit.kind in (Kind.RANK, Kind.CHANNELS, Kind.BLOCK)]
        for block in blocks:
            inside = set(block.nodes)
            for unit in others:
                if unit is block or not _within(unit, inside):
                    continue
                if unit.kind is Kind.BLOCK and unit.name < block.name:
                    continue
                for option in block.options[1:]:
                    for other in unit.options[1:]:
                        yield Pair((block.name, option), (unit.name, other), forbidden=True)

    def _useless_ranks(self) -> Iterator[Pair]:
        by_layer: dict[str, list[tuple[tuple[str, str], Effect]]] = defaultdict(list)
        for key, changed in self.structural.items():
            if self.space.unit(key[0]).kind is Kind.CHANNELS:
                for layer, effect in changed.items():
                    by_layer[layer].append((key, effect))
        for key, changed in self.structural.items():
            if self.space.unit(key[0]).kind is not Kind.RANK:
                continue
            for layer, rank in changed.items():
                for other, cut in by_layer.get(layer, ()):
                    # One of two factors shrinks with the channels, the other does not.
                    if rank.work * (1.0 + cut.work) / 2.0 > _WORTH_FACTORS * cut.work:
                        yield Pair(key, other, forbidden=True)


def _within(unit: PlanUnit, nodes: Iterable[str]) -> bool:
    """Whether a unit is about one of the nodes: by the node that names it, or, of blocks, by any."""
    inside = set(nodes)
    if unit.kind is Kind.BLOCK:
        return not inside.isdisjoint(unit.nodes)
    return unit.subject.split("#")[0] in inside
