"""What no plan can go below on a device, whatever it does to the model: the roofline without any overhead but a run's.

    t >= max(operations / fastest rate, bytes / fastest memory) + overhead of a run
    E >= e_op * operations + e_byte * bytes           net, without what flows with time beyond the idle power

after Williams et al., "Roofline" (CACM 2009), as `greencc.meters.roofline`, with every range of the profile at the end
that is best for the plan.
"""

from __future__ import annotations

from greencc.meters.device import DeviceProfile, PowerMode
from greencc.planner._units import Kind
from greencc.planner.limits import Floor


def idle_floor(watts: float, source: str = "measured") -> Floor:
    """No budget of watts can be below what is drawn while nothing runs; `source` says how that is known."""
    return Floor(Kind.POWER, watts, f"without any work the device draws ({source})")


def physics_floors(
    profile: DeviceProfile,
    mode: PowerMode,
    *,
    macs: float,
    bytes_moved: float,
    idle_watts: float | None = None,
) -> tuple[Floor, ...]:
    """Floors of latency, net energy and power of one inference on a device.

    Args:
        profile: Of the device.
        mode: Its power mode.
        macs: Multiply-accumulates that the smallest plan still has.
        bytes_moved: That it still has to move: inputs, outputs and the smallest weights.
        idle_watts: As measured; None: the least that the profile holds plausible.
    """
    device = profile.at(mode)
    peaks = [peak * mode.compute for peak in profile.peaks.values()]
    fastest = max(peaks + [rate.high for rates in device.rates.values() for rate in rates.values()])
    widest = max(level.bytes_per_second.high for level in device.levels)
    operations = 2.0 * macs
    seconds = max(operations / fastest, bytes_moved / widest) + device.run_seconds.low
    if device.calibration is not None:
        seconds /= device.calibration.latency_factor
    joules = operations * min(each.low for each in device.joules_per_operation.values())
    joules += bytes_moved * min(level.joules_per_byte.low for level in device.levels)
    joules += max(0.0, device.busy_watts.low - device.idle_watts.high) * seconds
    if device.calibration is not None and device.calibration.energy_factor is not None:
        joules /= device.calibration.energy_factor
    known = f"{profile.name} {mode.name}" if profile.modes else profile.name
    idle = (
        idle_floor(idle_watts)
        if idle_watts is not None
        else idle_floor(device.idle_watts.low, f"the least that is plausible of {profile.name}")
    )
    return (
        Floor(Kind.LATENCY, seconds * 1e3, f"the peak figures of {known} allow no less than"),
        Floor(Kind.ENERGY, joules * 1e3, f"the arithmetic and the memory of {known} take at least"),
        idle,
    )
