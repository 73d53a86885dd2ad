"""What a compile took, and after how many inferences it has paid for itself."""

from __future__ import annotations

from dataclasses import replace

from greencc.compiler.measurement import Measurement
from greencc.compiler.session import Session
from greencc.core.engine import Device
from greencc.core.meter import Grade
from greencc.core.report import BreakEven, CompileInfo, Energy, Interval
from greencc.meters.busy import BusyTime, inferences_to_repay
from greencc.meters.model import OperationCounts, Workload, device_power, load_of
from greencc.targets import make_target

_NOT_SHOWN = "no saving shown"


def account(
    session: Session,
    device: Device,
    measured: Measurement,
    counts: tuple[OperationCounts | None, OperationCounts | None],
) -> CompileInfo:
    """Close the session's window: the energy of the compile so far, and its break-even count.

    Args:
        session: Its window was opened when the compile began; without one, nothing is said of energy.
        device: What runs the artifact; the compile ran on it as well, unless nothing is timed on it here.
        measured: Energy per inference, before and after.
        counts: What one inference executes, before and after; None where it could not be counted.
    """
    info = session.compile_info()
    if session.window is None:
        return info
    here = session.estimator is None and not session.on_device
    host = device if here else make_target("cpu").device()
    power = device_power(host.facts)
    spent, busy = session.window.close_busy(power, host.facts)
    energy = spent.energy
    if energy is not None and session.cache.hits:
        energy = replace(
            energy,
            method=f"{energy.method}; this run alone: {session.cache.hits} results of earlier runs came from the cache",
        )
    repaid = _break_even(energy, measured)
    # What the two sides share cancels where one machine is behind both.
    shared = busy if here else None
    if (
        repaid.inferences is not None
        and shared is not None
        and counts[0] is not None
        and counts[1] is not None
    ):
        joint = _joint(shared, measured, (counts[0], counts[1]), device)
        repaid = repaid if joint is None else joint
    return replace(info, energy_j=energy, break_even=repaid)


def _break_even(energy: Energy | None, measured: Measurement) -> BreakEven:
    """With the intervals of the compile's energy and of the saving as if they were independent."""
    ratio, before, after = measured.ratio.energy, measured.baseline.energy_mj, measured.artifact.energy_mj
    if energy is None or ratio is None or before is None or after is None:
        return BreakEven(None, "the energy is not known")
    if measured.conditions.get("clean") is False:
        return BreakEven(None, "no saving claimed: other processes were busy while measuring")
    if measured.partial:
        return BreakEven(None, "no saving claimed: the energy rests on part of the measurement")
    # The ratio is of what both figures are: net, or gross where net energy cannot be told from nothing.
    saved = Interval(
        *(
            end * (1.0 - 1.0 / factor)
            for end, factor in (
                (before.value, ratio.value),
                (before.low, ratio.low),
                (before.high, ratio.high),
            )
        )
    )
    if ratio.low <= 1.0 or saved.low <= 0.0:
        return BreakEven(None, _NOT_SHOWN)
    counts = Interval(
        energy.value * 1e3 / saved.value, energy.low * 1e3 / saved.high, energy.high * 1e3 / saved.low
    )
    return BreakEven(counts, _how(energy, before))


def _joint(
    busy: BusyTime, measured: Measurement, counts: tuple[OperationCounts, OperationCounts], device: Device
) -> BreakEven | None:
    """Both sides estimated by one model: what they share cancels, as in a ratio. None: one of them was measured."""
    before, after = measured.baseline, measured.artifact
    if before.energy_mj is None or Grade[before.energy_mj.grade].measured:
        return None
    found = inferences_to_repay(
        busy,
        Workload(counts[0], before.latency_ms.median / 1e3),
        Workload(counts[1], after.latency_ms.median / 1e3),
        device_power(device.facts),
        load_of(device.facts),
        measured.ratio.latency,
    )
    if found is None:
        return BreakEven(None, _NOT_SHOWN)
    return BreakEven(found, "estimated, grade D: both sides by the same model")


def _how(energy: Energy, saving: Energy) -> str:
    sides = (energy, saving)
    word = "measured" if all(Grade[side.grade].measured for side in sides) else "estimated"
    return f"{word}, grade {max(side.grade for side in sides)}"
