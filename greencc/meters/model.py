"""Grade D: energy estimated from counted operations, bytes moved and measured time, where no meter exists.

    E = P(load) * T  +  sum over datatypes of e_mac * macs  +  e_byte * bytes
    P(load) = TDP * (idle + (1 - idle) * shared * load^3)

`T` is measured. The first term is what flows with time (leakage, clocks, caches, instruction handling); `shared` is
the part of the active power of CodeCarbon's law ``TDP * (0.1 + 0.9 * load^3)`` that does so instead of with the
counted operations. Every coefficient has a plausible range (see the tables below, with their origin), and the interval
is the smallest and the largest value over the corners of those ranges: each figure rises in every coefficient, and a
quotient of two figures is monotone in each coefficient that enters linearly (all but `process`, which gets its central
value besides its ends). A ratio takes both variants at the *same* corner, which is why it is much narrower than the
quotient of the two intervals.

These figures are gross (idle power included) and are always called *estimated*.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from greencc.core.errors import UsageError
from greencc.core.meter import EnergyComparison, Grade
from greencc.core.report import Energy, Interval
from greencc.meters._reading import SYSFS
from greencc.meters.rapl import design_power_watts

T = TypeVar("T")

MODEL_BOUNDARY = "CPU package + DRAM (estimated)"


@dataclass(frozen=True)
class Range:
    """A coefficient: its plausible ends and, between them, the value the central estimate takes."""

    low: float
    central: float
    high: float

    @classmethod
    def geometric(cls, low: float, high: float) -> Range:
        """The range whose centre is the geometric mean: for figures known up to a factor."""
        return cls(low, math.sqrt(low * high), high)


# pJ per multiply-accumulate (addition + multiplication), as (7 nm, 45 nm).
# 45 nm: Horowitz, ISSCC 2014. 7 nm: Jouppi et al., "Ten Lessons From Three Generations Shaped Google's TPUv4i",
# ISCA 2021.
# BF16 lies between INT8 and FP16 multipliers; it is given FP16's figures.
PICOJOULES_PER_MAC: Mapping[str, tuple[float, float]] = {
    "int8": (0.007 + 0.07, 0.03 + 0.2),
    "int32": (0.03 + 1.48, 0.1 + 3.1),
    "float16": (0.16 + 0.34, 0.4 + 1.1),
    "bfloat16": (0.16 + 0.34, 0.4 + 1.1),
    "float32": (0.38 + 1.31, 0.9 + 3.7),
    # 64 bits are in neither table: a multiplier's energy grows with the square of its width, an adder's linearly.
    "int64": (2.0 * 0.03 + 4.0 * 1.48, 2.0 * 0.1 + 4.0 * 3.1),
    "float64": (2.0 * 0.38 + 4.0 * 1.31, 2.0 * 0.9 + 4.0 * 3.7),
    # A complex multiply-accumulate is four real ones.
    "complex64": (4.0 * (0.38 + 1.31), 4.0 * (0.9 + 3.7)),
    "complex128": (4.0 * (2.0 * 0.38 + 4.0 * 1.31), 4.0 * (2.0 * 0.9 + 4.0 * 3.7)),
}

_ALIASES = {
    "float": "float32",
    "double": "float64",
    "uint8": "int8",
    "uint32": "int32",
    "uint64": "int64",
    "half": "float16",
}

# Types without figures of their own take those of the nearest wider type, an upper bound. The first match counts;
# a type that matches nothing is taken for float32.
_WIDER = (
    (re.compile(r"u?int16"), "int32"),
    (re.compile(r"bool|u?int[1-7]"), "int8"),
    (re.compile(r"float[1-8](e.*)?"), "float16"),
)
_WIDER_OTHERWISE = "float32"

# Energy of an instruction's handling, relative to its arithmetic, is inside `SHARED`, not here.
# 0 = 7 nm figures, 1 = 45 nm figures, log-linear between them. 0.35 is about a 14 to 16 nm process.
PROCESS = Range(0.0, 0.35, 1.0)
# pJ per byte: 64 bits from DRAM cost 1300 (DDR, 7 nm era) to 2600 pJ (45 nm era); from a large SRAM 14 to 100 pJ.
DRAM_PICOJOULES_PER_BYTE = Range.geometric(1300 / 8, 2600 / 8)
SRAM_PICOJOULES_PER_BYTE = Range.geometric(14 / 8, 100 / 8)
# Share of the bytes that come from DRAM rather than from a cache: unknown without counters.
DRAM_SHARE = Range(0.05, 0.3, 1.0)
# CodeCarbon's law has 0.1; measured idle packages draw 5 to 30 % of their design power.
IDLE_SHARE = Range(0.05, 0.1, 0.3)
# Part of the active power that flows with time. 1.0 is CodeCarbon's law.
SHARED = Range(0.4, 0.8, 1.0)


@dataclass(frozen=True)
class PowerClass:
    """Watts of design power per physical core for a class of CPUs, and where the figures come from."""

    name: str
    pattern: str
    watts_per_core: Range
    source: str


# Design power / cores of published parts. The first pattern that the CPU's name matches counts.
POWER_CLASSES: tuple[PowerClass, ...] = (
    PowerClass(
        "server",
        r"xeon|epyc|opteron",
        Range(3.5, 5.5, 10.0),
        "EPYC 9654: 360 W / 96; Xeon Platinum 8380: 270 W / 40; Xeon E5-2690 v4: 135 W / 14",
    ),
    PowerClass(
        "ARM server",
        r"neoverse|graviton|ampere|altra",
        Range(1.5, 2.5, 4.0),
        "Ampere Altra Q80-30: 210 W / 80; AmpereOne A192-32X: 400 W / 192",
    ),
    PowerClass(
        "small ARM core",
        r"cortex-a(35|53|55)",
        Range(0.15, 0.4, 1.0),
        "board power under load less idle, divided by cores (uncertain)",
    ),
    PowerClass(
        "big ARM core",
        r"cortex-a(5\d|7\d)|cortex-x|carmel|kryo",
        Range(0.7, 1.5, 3.0),
        "board power under load less idle, divided by cores (uncertain)",
    ),
    PowerClass(
        "mobile",
        r"\d{4,5}(u|y|h|hs|hx|p|g[147])\b|celeron|atom|pentium n|\bn\d{2,3}\b|mobile",
        Range(1.5, 5.0, 11.0),
        "Core i7-1165G7: 28 W / 4; Core i7-1260P: 28 W / 12; Core i7-10750H: 45 W / 6",
    ),
    PowerClass(
        "desktop",
        r"core\(tm\)|core i\d|ryzen|core ultra|\bi[3579]-",
        Range(5.0, 10.0, 20.0),
        "Ryzen 7 5800X: 105 W / 8; Core i9-13900K: 125 W / 24 (253 W turbo); Core i5-12400: 65 W / 6",
    ),
)
UNKNOWN_CLASS = PowerClass("unknown CPU", "", Range(1.0, 4.0, 12.0), "spans mobile, desktop and server cores")


@dataclass(frozen=True)
class DevicePower:
    """Design power of the cores an estimate may count, in watts, and how it is known."""

    watts: Range
    source: str


@dataclass(frozen=True)
class OperationCounts:
    """What one inference executes, of the compiled graph.

    Attributes:
        macs_by_dtype: Multiply-accumulates by the type they run in, in ONNX's or NumPy's spelling. A type without
            published figures (16-bit integers, 8-bit floats, ...) costs what the nearest wider one does.
        bytes_moved: Bytes of weights and activations read and written.
    """

    macs_by_dtype: Mapping[str, float]
    bytes_moved: float


@dataclass(frozen=True)
class Workload:
    """One variant: what it executes and its measured time per inference."""

    counts: OperationCounts
    seconds: float


@dataclass(frozen=True)
class Draw:
    """One choice of all coefficients."""

    watts: float
    idle: float
    shared: float
    process: float
    dram: float
    sram: float
    dram_share: float

    def millijoules(self, workload: Workload, load: float, *, net: bool = False) -> float:
        """Of one workload; `net` leaves the idle power out. The time may be 0."""
        return _millijoules(
            workload, replace(self, idle=0.0, watts=self.watts * (1.0 - self.idle)) if net else self, load
        )


def over_coefficients(power: DevicePower, figure: Callable[[Draw], T]) -> tuple[T, list[T]]:
    """`figure` with the central coefficients, and at every corner of their ranges."""
    return figure(_central(power)), [figure(draw) for draw in _corners(power)]


def device_power(facts: Mapping[str, str], root: Path = SYSFS) -> DevicePower:
    """Design power of the physical cores this machine shows.

    Args:
        facts: `Device.facts`: ``cpu`` and ``physical_cores`` are read.
        root: The sysfs root; powercap tells the design power of Intel packages without privileges.
    """
    known = design_power_watts(root)
    if known is not None:
        return DevicePower(_around(known), f"design power {known:g} W (powercap)")
    cores = _positive_int(facts.get("physical_cores", "")) or 1
    cpu = facts.get("cpu", "").lower()
    kind = next((kind for kind in POWER_CLASSES if re.search(kind.pattern, cpu)), UNKNOWN_CLASS)
    per_core = kind.watts_per_core
    watts = Range(per_core.low * cores, per_core.central * cores, per_core.high * cores)
    return DevicePower(
        watts,
        f"{kind.name} class: {per_core.low:g} to {per_core.high:g} W per core x {cores} (design power unknown)",
    )


def load_of(facts: Mapping[str, str]) -> float:
    """Share of the machine's cores that an inference keeps busy: threads / physical cores, at most 1."""
    threads = _positive_int(facts.get("threads", "")) or 1
    cores = _positive_int(facts.get("physical_cores", "")) or threads
    return min(1.0, threads / cores)


def estimate(workload: Workload, power: DevicePower, load: float) -> Energy:
    """Millijoules of one inference with the interval over all plausible coefficients.

    Raises:
        UsageError: A count, the time or the load is out of range.
    """
    _validate(workload, load)
    values = [_millijoules(workload, draw, load) for draw in _corners(power)]
    central = _millijoules(workload, _central(power), load)
    return Energy(
        value=central,
        low=min(values),
        high=max(values),
        grade=Grade.D.name,
        boundary=MODEL_BOUNDARY,
        method=f"estimated, gross: measured time x power at load {load:.2g} + operations + bytes; {power.source}"
        + _bounds_note(workload.counts),
    )


def central_millijoules(workload: Workload, power: DevicePower, load: float) -> float:
    """The central estimate alone, for weighing layers against each other.

    Raises:
        UsageError: As `estimate`.
    """
    _validate(workload, load)
    return _millijoules(workload, _central(power), load)


def estimate_pair(
    baseline: Workload,
    artifact: Workload,
    power: DevicePower,
    load: float,
    latency_ratio: Interval | None = None,
) -> EnergyComparison:
    """Estimates of both variants, and their ratio under shared coefficients.

    Args:
        baseline: The model as given.
        artifact: What was built of it.
        power: From `device_power`.
        load: From `load_of`.
        latency_ratio: Measured baseline / artifact time with its interval; widens the energy ratio accordingly.

    Raises:
        UsageError: As `estimate`.
    """
    first, second = estimate(baseline, power, load), estimate(artifact, power, load)
    measured = baseline.seconds / artifact.seconds
    speedup = latency_ratio or Interval(measured, measured, measured)
    if not 0.0 < speedup.low <= speedup.value <= speedup.high:
        raise UsageError(f"the latency ratio {speedup} is not a positive interval")
    ratios = [
        _ratio(baseline, artifact, draw, load, ratio)
        for draw in _corners(power)
        for ratio in (speedup.low, speedup.high)
    ]
    value = _ratio(baseline, artifact, _central(power), load, speedup.value)
    return EnergyComparison(first, second, Interval(value, min(value, *ratios), max(value, *ratios)))


def _ratio(baseline: Workload, artifact: Workload, draw: Draw, load: float, speedup: float) -> float:
    timed = Workload(artifact.counts, baseline.seconds / speedup)
    return _millijoules(baseline, draw, load) / _millijoules(timed, draw, load)


def _millijoules(workload: Workload, draw: Draw, load: float) -> float:
    watts = draw.watts * (draw.idle + (1.0 - draw.idle) * draw.shared * load**3)
    macs = sum(
        count * _picojoules(dtype, draw.process)
        for dtype, count in sorted(workload.counts.macs_by_dtype.items())
    )
    per_byte = draw.dram_share * draw.dram + (1.0 - draw.dram_share) * draw.sram
    return watts * workload.seconds * 1e3 + (macs + per_byte * workload.counts.bytes_moved) * 1e-9


def _picojoules(dtype: str, process: float) -> float:
    small, large = PICOJOULES_PER_MAC[_costed_as(dtype)[0]]
    return math.exp((1.0 - process) * math.log(small) + process * math.log(large))


def picojoules_per_operation(dtype: str) -> Range:
    """pJ of an addition or a multiplication in a type, over the plausible processes."""
    low, central, high = (
        _picojoules(dtype, end) / 2.0 for end in (PROCESS.low, PROCESS.central, PROCESS.high)
    )
    return Range(low, central, high)


def _costed_as(dtype: str) -> tuple[str, bool]:
    """The type whose figures a type takes, and whether they are only an upper bound for it."""
    name = _ALIASES.get(dtype.lower(), dtype.lower())
    if name in PICOJOULES_PER_MAC:
        return name, False
    wider = (known for pattern, known in _WIDER if pattern.fullmatch(name))
    return next(wider, _WIDER_OTHERWISE), True


def _bounds_note(counts: OperationCounts) -> str:
    bounded = [
        f"{dtype.lower()} operations as {known}"
        for dtype, known, bound in ((dtype, *_costed_as(dtype)) for dtype in sorted(counts.macs_by_dtype))
        if bound
    ]
    return f"; upper bound: {', '.join(bounded)}" if bounded else ""


def _ranges(power: DevicePower) -> tuple[Range, ...]:
    """In the order of `Draw`'s fields."""
    return (
        power.watts,
        IDLE_SHARE,
        SHARED,
        PROCESS,
        DRAM_PICOJOULES_PER_BYTE,
        SRAM_PICOJOULES_PER_BYTE,
        DRAM_SHARE,
    )


def _corners(power: DevicePower) -> Iterator[Draw]:
    for ends in itertools.product(
        *(
            (item.low, item.central, item.high) if item is PROCESS else (item.low, item.high)
            for item in _ranges(power)
        )
    ):
        yield Draw(*ends)


def _central(power: DevicePower) -> Draw:
    return Draw(*(item.central for item in _ranges(power)))


def _around(watts: float) -> Range:
    """A package may be configured, or boosted, 20 % away from its published design power."""
    return Range(0.8 * watts, watts, 1.2 * watts)


def _validate(workload: Workload, load: float) -> None:
    counts = workload.counts
    numbers = [workload.seconds, counts.bytes_moved, *counts.macs_by_dtype.values()]
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or workload.seconds == 0:
        raise UsageError(f"an estimate needs non-negative counts and a positive time, not {workload}")
    if not 0.0 < load <= 1.0:
        raise UsageError(f"the load is {load}", hint="expected a fraction above 0, at most 1")


def _positive_int(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) > 0 else None
