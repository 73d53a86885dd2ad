"""What a plan may take, in one line: ``5W,33ms p99,40MB``.

```
budget     = limit {"," limit}
limit      = number unit [percentile] | device ":" mode
percentile = ("@" | " ") ("p50" | "p95" | "p99")         of a latency; p95 where it is left out
```

Watts are average power of the board (flat out, or at the request rate), joules are net energy of one inference,
times are latencies, bytes the artifact's size, MACs the multiply-accumulates of one inference. docs/planner.md has the
grammar with what is measured and what is estimated.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum

from greencc.core.errors import UsageError
from greencc.planner._units import Kind as Kind
from greencc.planner._units import format_figure, unit_of
from greencc.planner.presets import find_preset
from greencc.planner.problem import Amounts, Quantity

PERCENTILES = (50, 95, 99)
DEFAULT_PERCENTILE = 95


class Objective(Enum):
    """What is minimised within the budget."""

    ENERGY = "energy"
    LATENCY = "latency"
    SIZE = "size"
    ERROR = "error"

    @property
    def weights(self) -> Amounts:
        """As the objective of a `Problem`."""
        return {Quantity[self.name]: 1.0}


@dataclass(frozen=True)
class BudgetLimit:
    """One limit.

    Attributes:
        kind: What it is about.
        value: The most that is allowed, in `kind.unit`.
        percentile: 50, 95 or 99 of a latency (95 where none is given); None of everything else.
        text: As it was asked for; what counts is the rest.
        mode: The device and power mode that the watts are from, or empty.
        device: That device alone.
    """

    kind: Kind
    value: float
    percentile: int | None = None
    text: str = field(default="", compare=False)
    mode: str = field(default="", compare=False)
    device: str = field(default="", compare=False)

    @property
    def mode_name(self) -> str:
        """The power mode by its own name, or empty."""
        return self.mode.removeprefix(self.device).strip()

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or self.value <= 0.0:
            raise UsageError(
                f"a limit of {self.value:g} {self.kind.unit}", hint="give a finite number above 0"
            )
        if self.kind is Kind.LATENCY and self.percentile is None:
            object.__setattr__(self, "percentile", DEFAULT_PERCENTILE)
        if self.kind is not Kind.LATENCY and self.percentile is not None:
            raise UsageError(
                f"{self.shown}: percentiles are of latencies", hint=f"leave out p{self.percentile}"
            )
        if self.percentile is not None and self.percentile not in PERCENTILES:
            raise UsageError(
                f"p{self.percentile} is not measured", hint="the percentiles are p50, p95 and p99"
            )

    @property
    def shown(self) -> str:
        """For messages: as it was asked for, a latency always with its percentile."""
        if not self.text or self.kind is Kind.LATENCY:
            return format_limit(self)
        return self.text


def format_limit(limit: BudgetLimit) -> str:
    """What `parse_budget` reads as the same limit, such as ``33ms p95``."""
    figure = format_figure(limit.kind, limit.value)
    return figure if limit.percentile is None else f"{figure} p{limit.percentile}"


def format_budget(budget: Sequence[BudgetLimit]) -> str:
    """What `parse_budget` reads as the same budget."""
    return ",".join(format_limit(limit) for limit in budget)


_NUMBER = r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,4}(?!\d))?|nan|inf(?:inity)?)"
_LIMIT = re.compile(
    rf"(?P<number>{_NUMBER})\s*(?P<unit>[^\s@\d.+-]*)(?:(?:\s*@\s*|\s+)p(?P<percentile>\d{{1,4}}))?",
    re.IGNORECASE | re.ASCII,
)
_PERCENTILE_FIRST = re.compile(r"p(\d{1,4})\s*[=<:@ ]=?\s*(\S.*)", re.IGNORECASE | re.ASCII)
_HOW = "write 5W, 20mJ, 33ms, 33ms p99, 40MB or 1.5GMACs, joined by commas"


def parse_budget(text: str) -> tuple[BudgetLimit, ...]:
    """The limits in the order in which they stand.

    Raises:
        UsageError: It is empty or malformed, a number is not above 0, a unit is unknown or not what is meant, a device
            or mode is unknown, or two limits contradict each other.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise UsageError("the budget is empty", hint=_HOW)
    if not all(parts):
        raise UsageError(f"{text!r} has a comma too many", hint=_HOW)
    for first, second in itertools.pairwise(parts):
        # "1,5W" is someone's decimal comma: a number without a unit is followed by digits.
        if re.fullmatch(r"[+-]?\d+", first, re.ASCII) and second[0].isdigit():
            raise UsageError(
                f"{first + ',' + second!r}: the unit is missing",
                hint=f"commas separate limits; did you mean {first}.{second}?",
            )
    budget = tuple(_parse(part) for part in parts)
    check_together(budget)
    return budget


def _parse(part: str) -> BudgetLimit:
    first = _PERCENTILE_FIRST.fullmatch(part)
    if first is not None:
        raise UsageError(f"{part!r} is not a limit", hint=f"did you mean {first[2]}@p{first[1]}?")
    match = _LIMIT.fullmatch(part)
    if match is None:
        preset = find_preset(part)
        if preset is None:
            raise UsageError(f"{part!r} is not a limit", hint=_HOW)
        return BudgetLimit(Kind.POWER, preset.watts, text=part, mode=preset.shown, device=preset.device)
    number = match["number"]
    if "n" in number.lower():
        raise UsageError(f"{part!r} is not finite", hint=_HOW)
    kind, factor = unit_of(match["unit"], number)
    value = float(Decimal(number) * factor)
    if not math.isfinite(value):
        raise UsageError(f"{part!r} is not finite", hint=_HOW)
    if value == 0.0:
        raise UsageError(f"{part!r} is a limit of zero, which nothing keeps", hint="give more than 0")
    if value < 0.0:
        raise UsageError(f"{part!r} is negative", hint=f"did you mean {part.removeprefix('-').strip()}?")
    percentile = None if match["percentile"] is None else int(match["percentile"])
    return BudgetLimit(kind, value, percentile, text=part)


def check_together(budget: Sequence[BudgetLimit]) -> None:
    """Refuse what cannot be meant: two limits of one kind, or a percentile that another one makes pointless.

    Raises:
        UsageError: As said.
    """
    for first, second in itertools.combinations(budget, 2):
        if first.kind is not second.kind:
            continue
        if first.percentile == second.percentile:
            what = first.kind.value if first.percentile is None else f"p{first.percentile} latency"
            tighter = min(first, second, key=lambda limit: limit.value)
            raise UsageError(
                f"two limits on the {what}: {first.shown} and {second.shown}", hint=f"keep {tighter.shown}"
            )
        low, high = sorted((first, second), key=lambda limit: limit.percentile or 0)
        if low.value >= high.value:
            raise UsageError(
                f"{low.shown} and {high.shown} contradict each other: p{low.percentile} is never above "
                f"p{high.percentile}, so the first says nothing",
                hint=f"drop {low.shown}, or make it the tighter of the two",
            )
