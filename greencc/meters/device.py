"""What a device can do and what it draws: the figures behind `greencc estimate`.

Every figure is a range: the central value is used for the estimate, the ends for its interval. A profile is of grade C
when its energy coefficients were fitted to a meter, of grade D otherwise. Its *times* may be calibrated all the same:
`calibration` then holds the leave-one-out error of the latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.kernels import Work
from greencc.core.meter import Grade
from greencc.meters.model import Range

DTYPES = ("float32", "float16", "int8")
"""Types a profile has figures for. Others are estimated as the nearest of them (`DeviceProfile.costed`)."""
BUSY_SHARE_OF_CAP = 0.6
_COSTED = {
    "FLOAT": "float32",
    "DOUBLE": "float32",
    "FLOAT16": "float16",
    "BFLOAT16": "float16",
    "INT8": "int8",
    "UINT8": "int8",
    "INT4": "int8",
    "UINT4": "int8",
}


@dataclass(frozen=True)
class MemoryLevel:
    """A cache or the main memory.

    Attributes:
        name: ``L2``, ``DRAM``.
        bytes: Size; None for the last level, which holds everything.
        bytes_per_second: Of all cores together.
        joules_per_byte: Moved from or to it.
    """

    name: str
    bytes: int | None
    bytes_per_second: Range
    joules_per_byte: Range


@dataclass(frozen=True)
class PowerMode:
    """A power mode: its cap in watts, and its clocks relative to what the profile's figures are for."""

    name: str
    watts: float | None
    compute: float = 1.0
    memory: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """How a profile was fitted.

    Attributes:
        date: ISO 8601.
        benchmarks: How many the fit rests on.
        latency_mape: Mean absolute relative error of the latency of a benchmark that was left out of the fit.
        latency_factor: 95 % of the left-out benchmarks lie within this factor of their estimate (above 1).
        energy_mape: Likewise of the energy; None: no meter.
        energy_factor: Likewise.
        meter: Name of the meter; None: no meter.
        versions: Of what ran the benchmarks.
        facts: About the machine.
    """

    date: str
    benchmarks: int
    latency_mape: float
    latency_factor: float
    energy_mape: float | None = None
    energy_factor: float | None = None
    meter: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceProfile:
    """A device.

    Attributes:
        name: On the command line.
        title: For people.
        processor: ``cpu`` or ``gpu``: what the figures are of.
        boundary: What the watts and joules cover.
        source: Where the figures come from.
        grade: Of the energy: C or D.
        cores: Processor cores that `rates` are for; None where threads mean nothing.
        fingerprint: Of the machine it was calibrated on (`greencc.core.engine.Device`).
        rates: Operations per second by type and kind of work.
        peaks: Theoretical operations per second by type, where known.
        levels: From the fastest to the main memory.
        kernel_seconds: Overhead of each kernel.
        run_seconds: Overhead of each inference.
        idle_watts: While nothing runs.
        busy_watts: What flows with time while an inference runs, idle power included.
        joules_per_operation: By type; a multiply-accumulate is two operations.
        modes: Power modes, the default one first.
        calibration: None for a table of published figures.
    """

    name: str
    title: str
    processor: str
    boundary: str
    source: str
    grade: Grade
    cores: int | None
    fingerprint: str | None
    rates: Mapping[str, Mapping[Work, Range]]
    peaks: Mapping[str, float]
    levels: tuple[MemoryLevel, ...]
    kernel_seconds: Range
    run_seconds: Range
    idle_watts: Range
    busy_watts: Range
    joules_per_operation: Mapping[str, Range]
    modes: tuple[PowerMode, ...] = ()
    calibration: Calibration | None = None

    @property
    def fuses_conversions(self) -> bool:
        """Whether quantizers and casts cost no launch of their own.

        The figures of a GPU are of TensorRT's engines, whose builder moves Q/DQ into the kernels beside them and
        chooses the types of its inputs ("Q/DQ Layer-Placement Recommendations" in NVIDIA's documentation).
        """
        return self.processor == "gpu"

    def costed(self, dtype: str) -> str:
        """The type of this profile whose figures an ONNX type takes: its own, or the nearest wider one."""
        wanted = _COSTED.get(dtype, "float32")
        for candidate in reversed(DTYPES[: DTYPES.index(wanted) + 1]):
            if candidate in self.rates:
                return candidate
        return "float32"

    def rate(self, dtype: str, work: Work) -> Range:
        """Operations per second of a costed type; kinds without a figure take those of float32."""
        return self.rates[dtype].get(work) or self.rates["float32"][work]

    def operation_joules(self, dtype: str) -> Range:
        """Joules per operation of a costed type."""
        return self.joules_per_operation.get(dtype, self.joules_per_operation["float32"])

    def level_for(self, size: float) -> int:
        """Index of the fastest level that holds `size` bytes."""
        for index, level in enumerate(self.levels):
            if level.bytes is None or size <= level.bytes:
                return index
        return len(self.levels) - 1

    def mode(self, name: str | None) -> PowerMode:
        """A power mode by name, upper or lower case; None: the default one.

        Raises:
            UsageError: There is none of that name.
        """
        if name is None:
            return self.modes[0] if self.modes else PowerMode("default", None)
        for mode in self.modes:
            if mode.name.lower() == name.lower():
                return mode
        if not self.modes:
            raise UsageError(f"{self.name} has no power modes", hint="leave out --mode")
        raise UsageError(
            f"{self.name} has no power mode {name!r}", hint=did_you_mean(name, [m.name for m in self.modes])
        )

    def at(self, mode: PowerMode, threads: int | None = None) -> DeviceProfile:
        """The profile with the clocks of a power mode, and with fewer threads than `cores`.

        Memory is taken to be as fast with fewer threads. What flows with time is at most `BUSY_SHARE_OF_CAP` of the
        mode's cap: lower clocks come with lower voltages.

        Raises:
            UsageError: The device takes no threads, or has fewer cores.
        """
        compute, memory = mode.compute, mode.memory
        if threads is not None:
            if self.cores is None:
                raise UsageError(
                    f"{self.name} is a GPU: threads do not apply to it", hint="leave out --threads"
                )
            if not 1 <= threads <= self.cores:
                raise UsageError(f"{self.name} has figures for 1 to {self.cores} threads, not {threads}")
            compute *= threads / self.cores
        busy = self.busy_watts
        if mode.watts is not None:
            limit = BUSY_SHARE_OF_CAP * mode.watts
            busy = Range(min(busy.low, limit), min(busy.central, limit), min(busy.high, limit))
        return replace(
            self,
            busy_watts=busy,
            rates={
                dtype: {work: scaled(rate, compute) for work, rate in rates.items()}
                for dtype, rates in self.rates.items()
            },
            levels=tuple(
                replace(
                    level,
                    bytes_per_second=scaled(
                        level.bytes_per_second, memory if level.bytes is None else mode.compute
                    ),
                )
                for level in self.levels
            ),
        )


def scaled(range_: Range, factor: float) -> Range:
    """All three values times a positive factor."""
    return Range(range_.low * factor, range_.central * factor, range_.high * factor)


def around(value: float, factor: float) -> Range:
    """From value / factor to value * factor."""
    if not (math.isfinite(value) and value > 0.0 and factor >= 1.0):
        raise ValueError(f"no range around {value} by a factor of {factor}")
    return Range(value / factor, value, value * factor)
