"""A plan as a multiple-choice knapsack with pairs: units, one option for each, and what every choice costs.

    minimise    objective . total(x)        subject to   row . total(x) <= bound   for every limit
    total(x) =  base + sum over units of the amounts of the option chosen
                     + sum over pairs of the amounts of every pair whose two options are both chosen

Amounts are linear: milliseconds, millijoules, bytes, multiply-accumulates, and the error of the outputs (additive to
first order, `greencc.verify.divergence`). A pair is there where two options touch one tensor: what they cost together
beyond the sum, or that they exclude each other. HAWQ-V3 (arXiv 2011.10680, section 3.4) poses the integer program
without pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from greencc.core.errors import UsageError


class Quantity(Enum):
    """What amounts are counted in."""

    LATENCY = "latency_ms"
    ENERGY = "energy_mj"
    SIZE = "size_bytes"
    MACS = "macs"
    ERROR = "error"


Amounts = Mapping[Quantity, float]
"""What something adds to each quantity; what is not named counts as 0."""

NOTHING: Amounts = MappingProxyType({})

Assignment = Mapping[str, str]
"""The name of the option chosen, by the name of the unit."""


@dataclass(frozen=True)
class Option:
    """One way to treat a unit, and what that adds to the totals."""

    name: str
    amounts: Amounts = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True)
class Unit:
    """Something that is decided as one: a layer's arithmetic, a group's channels, a layer's rank, a block.

    The first option leaves the unit as it is.
    """

    name: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        names = [option.name for option in self.options]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"unit {self.name!r} needs options with different names, not {names}")


@dataclass(frozen=True)
class Pair:
    """What two options of different units add when both are chosen; `forbidden`: they cannot be."""

    first: tuple[str, str]
    second: tuple[str, str]
    amounts: Amounts = field(default_factory=lambda: NOTHING)
    forbidden: bool = False


@dataclass(frozen=True)
class Limit:
    """``sum of weights * totals <= bound``. `name` is what people call it, as in a message."""

    name: str
    weights: Amounts
    bound: float


@dataclass(frozen=True)
class Problem:
    """Units, pairs, and what is there whatever is chosen.

    `barred` are whole assignments that cannot be built: each is a set of (unit, option) of which not all may be chosen.
    """

    units: tuple[Unit, ...]
    pairs: tuple[Pair, ...] = ()
    base: Amounts = field(default_factory=lambda: NOTHING)
    barred: tuple[frozenset[tuple[str, str]], ...] = ()

    def __post_init__(self) -> None:
        known = {unit.name: {option.name for option in unit.options} for unit in self.units}
        if len(known) != len(self.units):
            raise UsageError("two units of a plan have the same name")
        for pair in self.pairs:
            for unit, option in (pair.first, pair.second):
                if option not in known.get(unit, ()):
                    raise UsageError(f"a pair names {unit!r} = {option!r}, which is no option of a unit")
            if pair.first[0] == pair.second[0]:
                raise UsageError(f"a pair joins two options of the unit {pair.first[0]!r}")
        for amounts in (self.base, *(option.amounts for unit in self.units for option in unit.options)):
            if not all(math.isfinite(value) for value in amounts.values()):
                raise UsageError("an amount of a plan is not finite")

    def untouched(self) -> dict[str, str]:
        """Every unit as it is."""
        return {unit.name: unit.options[0].name for unit in self.units}

    def totals(self, chosen: Assignment) -> dict[Quantity, float]:
        """All quantities of a choice of one option for every unit."""
        found = {quantity: self.base.get(quantity, 0.0) for quantity in Quantity}
        parts: list[Amounts] = [
            option.amounts
            for unit in self.units
            for option in unit.options
            if chosen[unit.name] == option.name
        ]
        parts += [
            pair.amounts
            for pair in self.pairs
            if chosen[pair.first[0]] == pair.first[1] and chosen[pair.second[0]] == pair.second[1]
        ]
        for amounts in parts:
            for quantity, value in amounts.items():
                found[quantity] += value
        return found

    def allows(self, chosen: Assignment, limits: Sequence[Limit], tolerance: float = 1e-9) -> bool:
        """Whether a choice keeps all limits, and what is barred or forbidden."""
        picked = set(chosen.items())
        if any(part <= picked for part in self.barred):
            return False
        if any(pair.forbidden and {pair.first, pair.second} <= picked for pair in self.pairs):
            return False
        totals = self.totals(chosen)
        return all(
            weigh(limit.weights, totals) <= limit.bound + tolerance * max(1.0, abs(limit.bound))
            for limit in limits
        )


def weigh(weights: Amounts, totals: Mapping[Quantity, float]) -> float:
    """The weighted sum of totals."""
    return sum(weight * totals[quantity] for quantity, weight in weights.items())
