"""A budget as the linear limits of a `Problem`, and the least that each of them could ask for.

    latency    tail * t <= bound                                 t: median, tail: measured percentile / median
    power      E <= W * t                                        flat out, E gross (mJ / ms = W)
    power      idle + rate * (E - idle * t) / 1000 <= W          at a rate, with t <= 1000 / rate to keep up

Energies are gross or, with `net`, without the idle power, which is then added to the watts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greencc.core.errors import LimitError, UsageError
from greencc.planner._units import format_figure, format_least
from greencc.planner.budget import BudgetLimit, Kind, Objective, check_together
from greencc.planner.problem import Amounts, Limit, Problem, Quantity

_PLAIN = {Kind.ENERGY: Quantity.ENERGY, Kind.SIZE: Quantity.SIZE, Kind.MACS: Quantity.MACS}
_LATENCY: Amounts = {Quantity.LATENCY: 1.0}
_MEDIAN = 50
_SLACK = 1e-9


@dataclass(frozen=True)
class _Terms:
    """What turns a budget into rows; the arguments of `limits_for`."""

    rate: float | None
    idle_watts: float | None
    tails: Mapping[int, float]
    net: bool

    def __post_init__(self) -> None:
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0.0):
            raise UsageError(f"the rate is {self.rate:g}", hint="requests per second, above 0, such as 30/s")
        if self.idle_watts is not None and not (math.isfinite(self.idle_watts) and self.idle_watts >= 0.0):
            raise UsageError(f"the idle power is {self.idle_watts:g} W")
        if self.net and self.idle_watts is None:
            raise UsageError("energies without the idle power need to know it")

    def tail(self, percentile: int) -> float:
        """The factor of a percentile.

        Raises:
            UsageError: It is not there, or not a positive number.
        """
        factor = self.tails.get(percentile, 1.0 if percentile == _MEDIAN else math.nan)
        if not (math.isfinite(factor) and factor > 0.0):
            raise UsageError(f"the factor of p{percentile} over the median is not known")
        return factor


def keeping_up(rate: float) -> str:
    """The name of the limit that a request is done before the next one comes."""
    return f"keeping up with {rate:g}/s"


def limits_for(
    budget: Sequence[BudgetLimit],
    *,
    rate: float | None = None,
    idle_watts: float | None = None,
    tails: Mapping[int, float] | None = None,
    net: bool = False,
) -> tuple[Limit, ...]:
    """The rows of a budget, in its order; a power at a rate is followed by the one that keeps up with it.

    Args:
        budget: The limits.
        rate: Requests per second that the watts are for; None: flat out.
        idle_watts: Drawn while nothing runs; None: not known, counted as 0 between requests.
        tails: Measured latency at a percentile / median, by percentile; 50 needs none.
        net: Whether the problem's energies leave the idle power out.

    Raises:
        UsageError: A tail factor is missing, or a rate or the idle power is out of range.
    """
    terms = _Terms(rate, idle_watts, tails or {}, net)
    rows = []
    for limit in budget:
        rows.append(_row(limit, terms))
        if limit.kind is Kind.POWER and terms.rate is not None:
            rows.append(Limit(keeping_up(terms.rate), _LATENCY, 1e3 / terms.rate))
    return tuple(rows)


def _row(limit: BudgetLimit, terms: _Terms) -> Limit:
    if limit.kind is Kind.LATENCY:
        assert limit.percentile is not None
        return Limit(limit.shown, {Quantity.LATENCY: terms.tail(limit.percentile)}, limit.value)
    if limit.kind is not Kind.POWER:
        return Limit(limit.shown, {_PLAIN[limit.kind]: 1.0}, limit.value)
    idle = terms.idle_watts or 0.0
    if terms.rate is None:
        drawn = limit.value - idle if terms.net else limit.value
        return Limit(limit.shown, {Quantity.ENERGY: 1.0, Quantity.LATENCY: -drawn}, 0.0)
    share = terms.rate / 1e3
    weights = {Quantity.ENERGY: share} | ({} if terms.net else {Quantity.LATENCY: -share * idle})
    return Limit(limit.shown, weights, limit.value - idle)


def lower_bounds(problem: Problem, limits: Sequence[Limit]) -> tuple[float, ...]:
    """What the left side of each limit is at least, whatever is chosen and whatever the other limits say.

    Every unit takes its smallest option, and a pair counts only where that makes the sum smaller: without pairs the
    bound is reached, with pairs it may lie below what is.
    """
    choices = _choices(problem)
    return tuple(
        sum(min(_weigh(limit.weights, one) for one in several) for several in choices) for limit in limits
    )


def _choices(problem: Problem) -> list[list[Amounts]]:
    """Sets of amounts of which one each is taken, at best."""
    units = [[option.amounts for option in unit.options] for unit in problem.units]
    return [[problem.base], *units, *([{}, pair.amounts] for pair in problem.pairs if not pair.forbidden)]


def _weigh(weights: Amounts, amounts: Amounts) -> float:
    return sum(weight * amounts.get(quantity, 0.0) for quantity, weight in weights.items())


def _least_ratio(problem: Problem) -> float:
    """The least energy / latency, by Dinkelbach's iteration (Management Science 13, 1967); 0 where no time is left."""
    choices = _choices(problem)
    if lower_bounds(problem, [Limit("", _LATENCY, 0.0)])[0] <= 0.0:
        return 0.0
    ratio = math.inf
    picked = [several[0] for several in choices]
    while True:
        energy, latency = (
            sum(amounts.get(quantity, 0.0) for amounts in picked)
            for quantity in (Quantity.ENERGY, Quantity.LATENCY)
        )
        found = energy / latency
        # The ratio falls strictly until it is the least, over finitely many choices.
        if found >= ratio - _SLACK * abs(found):
            return min(found, ratio)
        ratio = found
        weights = {Quantity.ENERGY: 1.0, Quantity.LATENCY: -ratio}
        picked = [min(several, key=lambda amounts: _weigh(weights, amounts)) for several in choices]


@dataclass(frozen=True)
class Floor:
    """The least that a kind of limit could ask for, and why; a latency's is of one percentile, or (None) of any."""

    kind: Kind
    least: float
    why: str
    percentile: int | None = None


def plan_floors(
    problem: Problem,
    budget: Sequence[BudgetLimit],
    *,
    rate: float | None = None,
    idle_watts: float | None = None,
    tails: Mapping[int, float] | None = None,
    net: bool = False,
) -> tuple[Floor, ...]:
    """What no choice of options goes below, as the tables have it: one for each limit, and one to keep up by.

    Args:
        problem: With the measured amounts.
        budget: The limits.
        rate: This and what follows: as `limits_for`.
        idle_watts: Likewise.
        tails: Likewise.
        net: Likewise.

    Raises:
        UsageError: As `limits_for`.
    """
    terms = _Terms(rate, idle_watts, tails or {}, net)
    why = "the best option everywhere still takes"
    floors = [Floor(limit.kind, _least(problem, limit, terms), why, limit.percentile) for limit in budget]
    least_time = lower_bounds(problem, [Limit("", _LATENCY, 0.0)])[0]
    return (*floors, Floor(Kind.LATENCY, least_time, why, _MEDIAN))


def _least(problem: Problem, limit: BudgetLimit, terms: _Terms) -> float:
    idle = terms.idle_watts or 0.0
    if limit.kind is Kind.POWER and terms.rate is None:
        return _least_ratio(problem) + (idle if terms.net else 0.0)
    least = lower_bounds(problem, [_row(limit, terms)])[0]
    return least + idle if limit.kind is Kind.POWER else least


def require_reachable(budget: Sequence[BudgetLimit], floors: Sequence[Floor], rate: float | None) -> None:
    """Refuse a budget that is below a floor, and say where the floor is.

    Args:
        budget: The limits.
        floors: Of `plan_floors`, or of `greencc.planner.physics`.
        rate: As `limits_for`.

    Raises:
        LimitError: Every limit that cannot be kept, with the least that could be asked for.
    """
    lines = unreachable(budget, floors, rate)
    if lines:
        raise LimitError("; ".join(lines), hint="raise the limit, lower the rate, or take another device")


def unreachable(
    budget: Sequence[BudgetLimit], floors: Sequence[Floor], rate: float | None
) -> tuple[str, ...]:
    """What `require_reachable` says of every limit that is below a floor."""
    paced = rate is not None and any(limit.kind is Kind.POWER for limit in budget)
    lines: list[str] = []
    for floor in floors:
        least = f"{floor.why} {format_least(floor.kind, floor.least)}" if floor.least > 0.0 else ""
        for limit in budget:
            about = limit.kind is floor.kind and floor.percentile in (None, limit.percentile)
            if about and floor.least > limit.value * (1.0 + _SLACK):
                lines.append(f"{limit.shown} is out of reach: {least}")
        slowest = floor.kind is Kind.LATENCY and floor.percentile in (None, _MEDIAN)
        if paced and rate is not None and slowest and floor.least * rate > 1e3 * (1.0 + _SLACK):
            lines.append(f"{keeping_up(rate)} is out of reach: {least}, that is {1e3 / floor.least:.4g}/s")
    return tuple(dict.fromkeys(lines))


def conflicts(budget: Sequence[BudgetLimit], objective: Objective, rate: float | None) -> tuple[str, ...]:
    """What is wrong with what was asked, before anything is measured.

    Returns:
        Warnings: what was asked is carried out, but says less than it seems to.

    Raises:
        UsageError: Limits contradict each other, or there is nothing to decide.
    """
    check_together(budget)
    if objective is Objective.ERROR and not budget:
        raise UsageError(
            "the least error without a budget is the model as it is",
            hint="say what it has to fit with --budget, such as 33ms or 40MB",
        )
    powers = [limit for limit in budget if limit.kind is Kind.POWER]
    warnings = []
    if rate is not None and not powers:
        warnings.append(
            f"--rate {rate:g}/s changes nothing: it is what a limit in W is for; to keep up with it, ask for "
            f"--budget {format_figure(Kind.LATENCY, float(f'{1e3 / rate:.4g}'))}"
        )
    for limit in powers:
        if rate is None:
            warnings.append(
                f"{limit.shown} without --rate is the power flat out, energy over time, which a slower model keeps "
                "more easily; with --rate 30/s it is the average at that many requests"
            )
    for limit in budget:
        if rate is None or not powers or limit.percentile != _MEDIAN:
            continue
        if limit.value >= 1e3 / rate:
            warnings.append(
                f"{limit.shown} says nothing beside --rate {rate:g}/s, which needs {1e3 / rate:.4g} ms to keep up"
            )
    return tuple(warnings)
