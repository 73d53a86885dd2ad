"""The budget of a compile: rows for the solver, and verdicts on points and on what was measured in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from greencc.compiler.measurement import Measurement
from greencc.compiler.options import CompileOptions
from greencc.compiler.planning.points import Figures
from greencc.core.engine import Device
from greencc.core.meter import Grade
from greencc.core.report import Energy, Latency
from greencc.core.report_plan import LimitVerdict
from greencc.meters.model import MODEL_BOUNDARY, device_power, over_coefficients
from greencc.planner.assess import assess
from greencc.planner.budget import BudgetLimit, Objective
from greencc.planner.limits import conflicts, limits_for
from greencc.planner.problem import Limit

_ESTIMATED = "estimated: central coefficients of the device's model"


@dataclass
class Asked:
    """What was asked for, and what the machine draws.

    Attributes:
        budget: The limits.
        objective: What is minimised.
        rate: Requests per second; None: flat out.
        idle_watts: Drawn while nothing runs, estimated.
        max_drop: The most that a plan may lose on the planning split.
        tails: Latency at a percentile over the median, by percentile, of the original.
        warnings: What was asked but says less than it seems to.
    """

    budget: tuple[BudgetLimit, ...]
    objective: Objective
    rate: float | None
    idle_watts: float
    max_drop: float = 1.0
    tails: dict[int, float] = field(default_factory=lambda: {50: 1.0, 95: 1.0, 99: 1.0})
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: CompileOptions, device: Device) -> Asked:
        """Of a compile.

        Raises:
            UsageError: What was asked contradicts itself.
        """
        budget = options.limits
        objective = options.minimize or Objective.ENERGY
        warnings = conflicts(budget, objective, options.rate)
        idle = over_coefficients(device_power(device.facts), lambda draw: draw.watts * draw.idle)[0]
        return cls(budget, objective, options.rate, idle, options.max_drop, warnings=warnings)

    def rows(self) -> tuple[Limit, ...]:
        """For the solver."""
        return limits_for(self.budget, rate=self.rate, idle_watts=self.idle_watts, tails=self.tails)

    def learn_tails(self, latency_ms: Mapping[int, float]) -> None:
        """Take the tails of a measurement."""
        self.tails = {key: max(value / latency_ms[50], 1.0) for key, value in latency_ms.items()}

    def of_point(self, figures: Figures) -> tuple[LimitVerdict, ...]:
        """Verdicts on a point, by its quick figures."""
        ms = figures.latency_ms
        latency = Latency(ms[50], ms[95], ms[99], 0)
        energy = None
        if figures.energy_mj is not None:
            value = figures.energy_mj
            energy = Energy(value, value, value, Grade.D.name, MODEL_BOUNDARY, _ESTIMATED)
        return tuple(
            assess(
                limit,
                latency=latency,
                energy=energy,
                size_bytes=figures.size_bytes,
                macs=figures.macs,
                rate=self.rate,
                idle_watts=self.idle_watts,
            )
            for limit in self.budget
        )

    def keeps(self, figures: Figures) -> bool:
        """Whether a point keeps all limits."""
        return all(verdict.met for verdict in self.of_point(figures))

    def of_measurement(self, measured: Measurement) -> tuple[LimitVerdict, ...]:
        """Verdicts on the artifact, by what was measured of it in the end."""
        found = measured.artifact
        return tuple(
            assess(
                limit,
                latency=found.latency_ms,
                energy=found.energy_mj,
                size_bytes=found.size_bytes,
                macs=None if found.macs is None else float(found.macs),
                rate=self.rate,
                idle_watts=self.idle_watts,
            )
            for limit in self.budget
        )


def missed(verdicts: Sequence[LimitVerdict]) -> str:
    """The limits that are not kept, in words."""
    return "; ".join(
        f"{verdict.limit} (found {'nothing' if verdict.found is None else f'{verdict.found:.4g} {verdict.unit}'})"
        for verdict in verdicts
        if not verdict.met
    )
