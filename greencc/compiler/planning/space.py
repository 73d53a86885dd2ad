"""What a plan decides: units with their options, and the passes that an assignment stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import onnx_ir as ir

from greencc.compiler.forms import BLOCK, SMALLEST_WEIGHT
from greencc.compiler.groups import Group
from greencc.compiler.variants import Variant
from greencc.core.graph import constant_tensor, input_at
from greencc.core.pass_list import format_passes
from greencc.core.passes import Pass
from greencc.passes.offers import Offer, OfferKind, structural_steps
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights, WeightMethod
from greencc.passes.upgrade_opset import UpgradeOpset
from greencc.planner.problem import Assignment

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
WHOLE = "whole"
"""The option that leaves a structure as it is."""


class Kind(Enum):
    """What is decided of a unit."""

    ARITHMETIC = "arithmetic"
    CHANNELS = "channels"
    RANK = "rank"
    BLOCK = "block"


class Number(Enum):
    """What a layer computes in and stores its weights as; the value is the option's name."""

    FLOAT = "float"
    INT8 = "int8"
    DYNAMIC = "int8-dynamic"
    WEIGHTS8 = "int8-weights"
    WEIGHTS4 = "int4-weights"


_OFFERED = {OfferKind.CHANNELS: Kind.CHANNELS, OfferKind.RANK: Kind.RANK, OfferKind.BLOCK: Kind.BLOCK}


@dataclass(frozen=True)
class PlanUnit:
    """Something that is decided as one.

    Attributes:
        kind: What is decided.
        subject: The layer, group or block.
        options: Names; the first leaves it as it is.
        nodes: Nodes of the model that it touches.
    """

    kind: Kind
    subject: str
    options: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind.value}:{self.subject}"


@dataclass(frozen=True)
class PlanSteps:
    """A plan as passes after the clean-up: structure and preparation, static INT8, and what follows it."""

    prepare: tuple[Pass, ...] = ()
    quantize: QuantizeInt8 | None = None
    extra: tuple[Pass, ...] = ()

    @property
    def all(self) -> tuple[Pass, ...]:
        return (*self.prepare, *(() if self.quantize is None else (self.quantize,)), *self.extra)

    def __str__(self) -> str:
        return format_passes(self.all)


@dataclass(frozen=True)
class Space:
    """Everything that may be decided of a model.

    Attributes:
        units: In the order of the graph, the arithmetic first.
        offers: By the names of unit and option.
        groups: That may run as static INT8, by the name of the layer.
        layers: Weighted nodes, in the order of the graph.
        variant: How static INT8 is done; None where it cannot be.
        gptq: Whether there are data to round 4-bit weights by.
    """

    units: tuple[PlanUnit, ...]
    offers: Mapping[tuple[str, str], Offer]
    groups: Mapping[str, Group]
    layers: tuple[str, ...]
    variant: Variant | None
    gptq: bool = False
    _by_name: dict[str, PlanUnit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update({unit.name: unit for unit in self.units})

    def unit(self, name: str) -> PlanUnit:
        return self._by_name[name]

    def untouched(self) -> dict[str, str]:
        """Every unit as it is."""
        return {unit.name: unit.options[0] for unit in self.units}

    def chosen_offers(self, chosen: Assignment) -> list[Offer]:
        """The structural offers among the choices."""
        return [self.offers[pair] for pair in chosen.items() if pair in self.offers]

    def layers_as(self, chosen: Assignment, number: Number) -> list[str]:
        """The layers that have an arithmetic."""
        return [
            unit.subject
            for unit in self.units
            if unit.kind is Kind.ARITHMETIC and chosen[unit.name] == number.value
        ]

    def steps(self, chosen: Assignment) -> PlanSteps:
        """The passes that an assignment stands for."""
        structure = structural_steps(self.chosen_offers(chosen))
        integers = set(self.layers_as(chosen, Number.INT8))
        quantize, prepare = None, structure
        if integers and self.variant is not None:
            left = {
                node for name, group in self.groups.items() if name not in integers for node in group.nodes
            }
            left -= self._removed(chosen)
            quantize = replace(self.variant.quantize, exclude=tuple(sorted(left)))
            prepare = (*structure, *self.variant.prepare)
        return PlanSteps(prepare, quantize, tuple(self._extra(chosen)))

    def _extra(self, chosen: Assignment) -> Iterable[Pass]:
        """Dynamic and weight-only quantization of what static INT8 left."""
        gone = self._removed(chosen)
        dynamic = self.layers_as(chosen, Number.DYNAMIC)
        if dynamic:
            yield QuantizeDynamic(exclude=self._others(dynamic, gone))
        four = self.layers_as(chosen, Number.WEIGHTS4)
        if four:
            # 4-bit types exist since opset 21.
            yield UpgradeOpset(target=21, below=21)
            method = WeightMethod.GPTQ if self.gptq else WeightMethod.NEAREST
            step = QuantizeWeights(
                bits=4, min_elements=SMALLEST_WEIGHT, method=method, exclude=self._others(four, gone)
            )
            yield replace(step, ops=("Gemm", "MatMul"), block_size=BLOCK)
            yield replace(step, ops=("Conv", "ConvTranspose"), symmetric=False)
        eight = self.layers_as(chosen, Number.WEIGHTS8)
        if eight:
            step = QuantizeWeights(min_elements=SMALLEST_WEIGHT, exclude=self._others(eight, gone))
            yield replace(step, ops=("Gemm", "MatMul"), block_size=BLOCK)
            yield replace(step, ops=("Conv", "ConvTranspose"))

    def _others(self, layers: Iterable[str], gone: frozenset[str]) -> tuple[str, ...]:
        left = {*layers, *gone}
        return tuple(name for name in self.layers if name not in left)

    def _removed(self, chosen: Assignment) -> frozenset[str]:
        """Nodes that go with the blocks."""
        blocks = (offer for offer in self.chosen_offers(chosen) if offer.kind is OfferKind.BLOCK)
        return frozenset(node for offer in blocks for node in offer.nodes)

    def alone(self, unit: PlanUnit, option: str) -> dict[str, str]:
        """One option and nothing else."""
        return {**self.untouched(), unit.name: option}

    def summary(self, chosen: Assignment) -> str:
        """A plan in a line."""
        parts = []
        total = sum(unit.kind is Kind.ARITHMETIC for unit in self.units)
        for number in Number:
            count = len(self.layers_as(chosen, number))
            if count and number is not Number.FLOAT:
                parts.append(f"{number.value} in {count} of {total} layers")
        words = {Kind.CHANNELS: "cut", Kind.RANK: "factorised", Kind.BLOCK: "removed"}
        nouns = {Kind.CHANNELS: "group", Kind.RANK: "layer", Kind.BLOCK: "block"}
        for kind, word in words.items():
            count = sum(unit.kind is kind and chosen[unit.name] != unit.options[0] for unit in self.units)
            if count:
                parts.append(f"{count} {nouns[kind]}{'s' * (count > 1)} {word}")
        return ", ".join(parts) or "all in float"


def weighted_layers(model: ir.Model) -> tuple[str, ...]:
    """Names of the nodes of the main graph with constant weights."""
    return tuple(
        str(node.name)
        for node in model.graph
        if node.op_type in WEIGHTED and constant_tensor(input_at(node, 1)) is not None
    )


def make_space(
    model: ir.Model,
    *,
    groups: Iterable[Group],
    variant: Variant | None,
    offers: Iterable[Offer],
    dynamic: Iterable[str],
    small_weights: bool,
    gptq: bool,
) -> Space:
    """Collect units and options.

    Args:
        model: The cleaned-up model.
        groups: That may run as static INT8.
        variant: How.
        offers: Structural options.
        dynamic: Layers that may be quantized at run time.
        small_weights: Offer weights in 8 and 4 bits: only sizes gain from them on most targets.
        gptq: Round 4-bit weights by the calibration data.
    """
    by_layer = {group.name: group for group in groups}
    layers = weighted_layers(model)
    nodes = {str(node.name): node for node in model.graph}
    at_run_time = set(dynamic)
    units = []
    for name in dict.fromkeys((*layers, *by_layer)):
        options = [Number.FLOAT]
        if name in by_layer:
            options.append(Number.INT8)
        if name in at_run_time:
            options.append(Number.DYNAMIC)
        tensor = constant_tensor(input_at(nodes[name], 1)) if name in nodes else None
        if small_weights and tensor is not None and tensor.size >= SMALLEST_WEIGHT:
            options += [Number.WEIGHTS8, Number.WEIGHTS4]
        if len(options) > 1:
            touched = by_layer[name].nodes if name in by_layer else (name,)
            units.append(PlanUnit(Kind.ARITHMETIC, name, tuple(item.value for item in options), touched))
    by_unit: dict[tuple[Kind, str], list[Offer]] = {}
    for offer in offers:
        by_unit.setdefault((_OFFERED[offer.kind], offer.unit), []).append(offer)
    known: dict[tuple[str, str], Offer] = {}
    for (kind, subject), found in by_unit.items():
        touched = tuple(dict.fromkeys(node for offer in found for node in offer.nodes))
        unit = PlanUnit(kind, subject, (WHOLE, *(offer.option for offer in found)), touched)
        units.append(unit)
        known.update({(unit.name, offer.option): offer for offer in found})
    return Space(tuple(units), known, by_layer, layers, variant, gptq)
