"""A form of the model in a power mode of a device, estimated, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.compiler.contender import Contender
from greencc.compiler.forms import PLAN_RANK
from greencc.compiler.planning.modes import OpenModes
from greencc.compiler.planning.search import aim_of
from greencc.core.report_plan import LimitVerdict
from greencc.meters.device import PowerMode
from greencc.meters.roofline import Estimate
from greencc.planner.assess_estimate import assess_estimate
from greencc.planner.budget import BudgetLimit, Objective
from greencc.report.plan import amount


@dataclass(eq=False)
class ModePoint:
    """A form in a mode.

    Attributes:
        contender: The form, built and judged.
        mode: The power mode.
        estimate: Of one inference, and of the power at the rate that was asked.
        size_bytes: Of the artifact.
        macs: Of one inference; None: not counted.
        error: Divergence of the outputs from the original's.
        place: Why it was chosen, or was not.
    """

    contender: Contender
    mode: PowerMode
    estimate: Estimate
    size_bytes: int
    macs: float | None
    error: float
    place: str = ""

    @property
    def lost(self) -> float:
        """On the planning split; 0 where nothing could be judged."""
        return self.contender.loss or 0.0

    @property
    def watts(self) -> float | None:
        """At the rate that was asked, or flat out where none was; None: the device does not keep up with the rate."""
        paced = self.estimate.at_rate
        if paced is None:
            return self.estimate.watts.value
        return None if paced.watts is None else paced.watts.value


@dataclass(frozen=True)
class Ask:
    """What was asked of an estimated plan.

    Attributes:
        budget: The limits.
        objective: What is minimised within them.
        rate: Requests per second that watts are for; None: flat out.
        max_drop: The most that a form may lose on the planning split.
        modes: Of the device.
        samples: Of the planning split.
    """

    budget: tuple[BudgetLimit, ...]
    objective: Objective
    rate: float | None
    max_drop: float
    modes: OpenModes
    samples: int = 0

    def loses_too_much(self, item: Contender) -> str:
        """Why a form is out by what it lost on the planning split; empty where it is not.

        One with less work needs room for what it loses on samples that it has not seen, as plans do.
        """
        lost = item.loss or 0.0
        if lost > self.max_drop:
            return f"loses {lost:.2%} on the planning split, more than the limit"
        if item.form.rank >= PLAN_RANK and lost > aim_of(self.max_drop, self.samples):
            return f"loses {lost:.2%} on the planning split, too close to the limit to hold on other samples"
        return ""

    def value(self, point: ModePoint) -> float:
        """What is minimised."""
        found = {
            Objective.ENERGY: point.estimate.energy.value,
            Objective.LATENCY: point.estimate.latency_ms.value,
            Objective.SIZE: float(point.size_bytes),
            Objective.ERROR: point.error,
        }
        return found[self.objective]

    def verdicts(self, point: ModePoint) -> tuple[LimitVerdict, ...]:
        """On all limits."""
        meaning = self.modes.meaning(point.mode, self.rate)
        return tuple(
            assess_estimate(
                limit, point.estimate, size_bytes=point.size_bytes, macs=point.macs, meaning=meaning
            )
            for limit in self.budget
        )

    def expected(self, point: ModePoint) -> bool:
        """Whether the central estimates keep all limits."""
        return all(
            verdict.met is not False and verdict.found is not None and verdict.found <= verdict.allowed
            for verdict in self.verdicts(point)
        )

    def missed(self, point: ModePoint) -> str:
        """The limits that are not kept even at the best end of the estimates, in words; empty: none."""
        return "; ".join(_missed(verdict) for verdict in self.verdicts(point) if verdict.met is False)

    def named(self, point: ModePoint) -> str:
        """A point for people: ``int8 in the 7W mode``."""
        name = point.contender.form.name
        return f"{name} in the {point.mode.name} mode" if point.mode.name else name


def _missed(verdict: LimitVerdict) -> str:
    if verdict.found is None:
        return f"{verdict.limit} (not known)"
    if not verdict.estimated:
        return f"{verdict.limit} (found {amount(verdict.found, verdict.unit)})"
    if verdict.low is not None and verdict.low > verdict.allowed:
        return f"{verdict.limit} (at least {amount(verdict.low, verdict.unit)} by estimate)"
    return f"{verdict.limit} (it does not keep up with the rate, by estimate)"
