"""Grade C: energy of inferences whose time was measured, from a profile calibrated on this machine.

    E = P_busy * T + sum e_op * operations + sum e_byte * bytes

with the coefficients that `greencc lab calibrate` fitted to a meter. The interval is the leave-one-out error of that
fit. Errors of two variants of one model are not the same error, so the ratio's interval has both, unlike that of the
uncalibrated model, which only varies coefficients that both share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from greencc.core.errors import UsageError
from greencc.core.kernels import Kernels
from greencc.core.meter import EnergyComparison, Grade
from greencc.core.report import Energy, Interval
from greencc.meters.device import DeviceProfile
from greencc.meters.model import Range
from greencc.meters.roofline import demands, dynamic_joules


@dataclass(frozen=True)
class TimedKernels:
    """One variant: what it executes, and its measured seconds per inference."""

    kernels: Kernels
    seconds: float


def calibrated_pair(
    baseline: TimedKernels, artifact: TimedKernels, profile: DeviceProfile, latency_ratio: Interval
) -> EnergyComparison:
    """Estimates of both variants, and their ratio.

    Args:
        baseline: The model as given.
        artifact: What was built of it.
        profile: Of grade C, calibrated on this machine.
        latency_ratio: Measured baseline / artifact time with its interval.

    Raises:
        UsageError: The profile has no calibrated energy, or a time is not positive.
    """
    calibration = profile.calibration
    if profile.grade is not Grade.C or calibration is None or calibration.energy_factor is None:
        raise UsageError(f"the energy coefficients of {profile.name} are not calibrated")
    if not (
        baseline.seconds > 0.0 and artifact.seconds > 0.0 and 0.0 < latency_ratio.low <= latency_ratio.high
    ):
        raise UsageError("an energy estimate needs positive times")
    factor = calibration.energy_factor
    method = (
        f"estimated, gross: measured time x fitted power + operations + bytes; coefficients fitted to "
        f"{calibration.meter or 'a meter'} on {calibration.date}, leave-one-out error {calibration.energy_mape:.0%}"
    )
    joules = [_joules(each, profile) for each in (baseline, artifact)]
    first, second = (
        Energy(
            value * 1e3, value * 1e3 / factor, value * 1e3 * factor, Grade.C.name, profile.boundary, method
        )
        for value in joules
    )
    value = joules[0] / joules[1]
    # Two independent errors of the fit, and that of the measured times.
    timing = max(latency_ratio.high / latency_ratio.value, latency_ratio.value / latency_ratio.low)
    both = math.exp(math.hypot(math.sqrt(2.0) * math.log(factor), math.log(timing)))
    return EnergyComparison(first, second, Interval(value, value / both, value * both))


def _joules(variant: TimedKernels, profile: DeviceProfile) -> float:
    dynamic = sum(dynamic_joules(profile, demand, _central) for demand in demands(variant.kernels, profile))
    return profile.busy_watts.central * variant.seconds + dynamic


def _central(range_: Range) -> float:
    return range_.central
