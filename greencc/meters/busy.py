"""Grade D for work whose operations nobody counts: energy from the CPU time of processes.

    E = TDP * T * (idle + (1 - idle) * a)      load^3 <= a <= load      load = CPU seconds / (T * cores)

The power law of `greencc.meters.model` has the cube of the load; of a time with ups and downs only the mean load is
known. The mean of the cubes lies between the cube of the mean (steady load) and the mean itself (all cores or none),
and the central estimate takes the square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greencc.core.meter import Grade
from greencc.core.report import Energy, Interval
from greencc.meters.model import MODEL_BOUNDARY, DevicePower, Draw, Workload, over_coefficients


@dataclass(frozen=True)
class BusyTime:
    """A stretch of time in which processes were busy for `cpu_seconds` on a machine with `cores`."""

    seconds: float
    cpu_seconds: float
    cores: int

    @classmethod
    def of(cls, seconds: float, cpu_seconds: float, facts: Mapping[str, str]) -> BusyTime:
        """With the physical cores of `Device.facts` (its threads where those are unknown)."""
        known = (facts.get(name, "") for name in ("physical_cores", "threads"))
        cores = next((int(text) for text in known if text.isdigit() and int(text) > 0), 1)
        return cls(seconds, max(0.0, cpu_seconds), cores)

    @property
    def load(self) -> float:
        """Mean share of the cores that were busy; hardware threads may push the quotient beyond 1."""
        return min(1.0, self.cpu_seconds / (self.seconds * self.cores))

    def joules(self, draw: Draw) -> tuple[float, float, float]:
        """Steady, central and all-or-nothing, with one choice of the coefficients."""
        low, central, high = (
            draw.watts * self.seconds * (draw.idle + (1.0 - draw.idle) * self.load**power)
            for power in (3, 2, 1)
        )
        return low, central, high


def estimate_busy(busy: BusyTime, power: DevicePower) -> Energy:
    """Joules (not millijoules) of a stretch of time, gross, with the interval over all plausible coefficients."""
    (_, value, _), corners = over_coefficients(power, busy.joules)
    return Energy(
        value=value,
        low=min(low for low, _, _ in corners),
        high=max(high for _, _, high in corners),
        grade=Grade.D.name,
        boundary=MODEL_BOUNDARY,
        method=(
            f"estimated, gross: {busy.cpu_seconds:.3g} s of CPU time in {busy.seconds:.3g} s on {busy.cores} cores "
            f"x power law; {power.source}"
        ),
    )


def inferences_to_repay(
    busy: BusyTime,
    baseline: Workload,
    artifact: Workload,
    power: DevicePower,
    load: float,
    latency_ratio: Interval,
) -> Interval | None:
    """How many inferences save what `busy` took, all of it estimated with the *same* coefficients.

    Args:
        busy: What is to be repaid.
        baseline: One inference before.
        artifact: One inference after.
        power: From `device_power`.
        load: From `load_of`.
        latency_ratio: Measured baseline / artifact time, with its interval.

    Returns:
        The count with its interval; None where some plausible choice of coefficients shows no saving.
    """

    def saved(draw: Draw, ratio: float) -> float:
        timed = Workload(artifact.counts, baseline.seconds / ratio)
        return (draw.millijoules(baseline, load) - draw.millijoules(timed, load)) / 1e3

    def both(draw: Draw) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        ratios = (latency_ratio.low, latency_ratio.value, latency_ratio.high)
        least, central, most = (saved(draw, ratio) for ratio in ratios)
        return busy.joules(draw), (least, central, most)

    (spent, gained), corners = over_coefficients(power, both)
    if gained[1] <= 0.0 or any(least <= 0.0 for _, (least, _, _) in corners):
        return None
    counts = [count for (low, _, high), (least, _, most) in corners for count in (low / most, high / least)]
    value = spent[1] / gained[1]
    return Interval(value, min(value, *counts), max(value, *counts))
