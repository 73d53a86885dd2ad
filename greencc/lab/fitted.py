"""A device profile from fitted coefficients, and from the uncalibrated model where nothing was fitted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from greencc.core.engine import Device
from greencc.core.kernels import Work
from greencc.core.meter import Grade, Meter
from greencc.lab.fit import EnergyFit, TimeFit
from greencc.lab.runner import BenchmarkRun
from greencc.meters.device import Calibration, DeviceProfile, MemoryLevel, around, scaled
from greencc.meters.model import (
    DRAM_PICOJOULES_PER_BYTE,
    IDLE_SHARE,
    MODEL_BOUNDARY,
    SHARED,
    SRAM_PICOJOULES_PER_BYTE,
    Range,
    device_power,
    load_of,
    picojoules_per_operation,
)

_TABLE = {"float32": "FLOAT", "float16": "FLOAT16", "int8": "INT8"}
_TINY = 1e-6
_LONGEST = 500


@dataclass(frozen=True)
class Setup:
    """What `calibrate` needs besides a bench: of the machine, or of a test.

    Attributes:
        device: The machine.
        level_bytes: Sizes of its caches as the threads use them, from the fastest, with their names.
        versions: Of the runtime.
        now: Time stamp, ISO 8601.
    """

    device: Device
    level_bytes: Mapping[str, int]
    versions: Mapping[str, str]
    now: str


def local_name(device: Device) -> str:
    """The name of the profile of a machine that was calibrated."""
    return f"local-{device.fingerprint[:8]}"


def blank_profile(setup: Setup, meter: Meter | None) -> DeviceProfile:
    """The machine with its levels and the uncalibrated figures; times are placeholders until they are fitted."""
    facts = setup.device.facts
    one = Range(1.0, 1.0, 1.0)
    power = device_power(facts)
    load = load_of(facts)
    levels: list[tuple[str, int | None]] = [*setup.level_bytes.items(), ("DRAM", None)]
    return DeviceProfile(
        name=local_name(setup.device),
        title=f"{_text(setup.device.name) or 'This machine'}, {facts.get('threads', '1')} threads (calibrated here)",
        processor="cpu",
        boundary=MODEL_BOUNDARY if meter is None else meter.boundary,
        source=f"greencc lab calibrate; {power.source}"
        if meter is None
        else f"greencc lab calibrate with {meter.name}",
        grade=Grade.D if meter is None else Grade.C,
        cores=int(facts.get("threads", "1")),
        fingerprint=setup.device.fingerprint,
        rates={dtype: {Work.PRODUCT: one, Work.GROUPED: one, Work.FUNCTION: one} for dtype in _TABLE},
        peaks={},
        levels=tuple(
            MemoryLevel(
                name,
                size,
                one,
                scaled(DRAM_PICOJOULES_PER_BYTE if size is None else SRAM_PICOJOULES_PER_BYTE, 1e-12),
            )
            for name, size in levels
        ),
        kernel_seconds=one,
        run_seconds=one,
        idle_watts=_product(power.watts, IDLE_SHARE),
        busy_watts=Range(
            *(
                watts * (idle + (1.0 - idle) * shared * load**3)
                for watts, idle, shared in zip(
                    _ends(power.watts), _ends(IDLE_SHARE), _ends(SHARED), strict=True
                )
            )
        ),
        joules_per_operation={
            dtype: scaled(picojoules_per_operation(name), 1e-12) for dtype, name in _TABLE.items()
        },
    )


def _text(text: str) -> str:
    """What a profile may hold of a text that a machine tells of itself."""
    return "".join(letter for letter in text if letter.isprintable()).strip()[:_LONGEST]


def _ends(range_: Range) -> tuple[float, float, float]:
    return range_.low, range_.central, range_.high


def _product(first: Range, second: Range) -> Range:
    return Range(first.low * second.low, first.central * second.central, first.high * second.high)


def fitted_profile(
    blank: DeviceProfile,
    setup: Setup,
    times: TimeFit,
    energies: EnergyFit | None,
    run: BenchmarkRun,
    meter: Meter | None,
) -> DeviceProfile:
    """The profile with what was fitted; what was not keeps the figures of the uncalibrated model."""
    profile = replace(
        blank,
        rates=_rates(times),
        levels=_levels(blank.levels, times, energies),
        kernel_seconds=_exactly(times.kernel_seconds),
        run_seconds=_exactly(times.run_seconds),
        joules_per_operation={
            dtype: value
            for dtype, value in blank.joules_per_operation.items()
            if dtype == "float32" or any(key == dtype for key, _ in times.rates)
        },
        calibration=Calibration(
            date=setup.now,
            benchmarks=len(run.rows),
            latency_mape=max(times.error.mape, _TINY),
            latency_factor=times.error.factor,
            energy_mape=None if energies is None else max(energies.error.mape, _TINY),
            energy_factor=None if energies is None else energies.error.factor,
            meter=None if meter is None else meter.name,
            versions=dict(setup.versions),
            facts={key: _text(value) for key, value in setup.device.facts.items() if _text(value)},
        ),
    )
    if energies is None:
        return profile
    return replace(
        profile,
        idle_watts=around(max(statistics.fmean(run.idle_watts), _TINY), 1.0),
        busy_watts=_exactly(energies.busy_watts),
        joules_per_operation={
            dtype: _exactly(value) for dtype, value in energies.joules_per_operation.items()
        },
    )


def _rates(times: TimeFit) -> dict[str, dict[Work, Range]]:
    found: dict[str, dict[Work, Range]] = {}
    for (dtype, work), rate in times.rates.items():
        found.setdefault(dtype, {})[work] = _exactly(rate)
    return {dtype: found[dtype] for dtype in _TABLE if dtype in found}


def _levels(
    blank: Sequence[MemoryLevel], times: TimeFit, energies: EnergyFit | None
) -> tuple[MemoryLevel, ...]:
    """Levels that no benchmark used are as fast as the next slower one that some did, or as the slowest of all."""
    levels: list[MemoryLevel] = []
    bandwidth = min(times.bandwidths.values())
    for index in reversed(range(len(blank))):
        bandwidth = times.bandwidths.get(index, bandwidth)
        level = replace(blank[index], bytes_per_second=_exactly(bandwidth))
        if energies is not None:
            level = replace(level, joules_per_byte=_exactly(energies.joules_per_byte.get(index, 0.0)))
        levels.append(level)
    return tuple(reversed(levels))


def _exactly(value: float) -> Range:
    """A fitted figure: its uncertainty is in the leave-one-out error, not in a range of its own."""
    return Range(value, value, value)
