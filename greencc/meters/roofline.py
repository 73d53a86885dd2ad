"""Latency, energy and power of a graph on a device it does not run on, from the roofline and an energy table.

Per kernel (`greencc.core.kernels`), after Williams et al., "Roofline" (CACM 2009):

    t = max(sum of operations / rate, sum of bytes / bandwidth) + overhead of a launch
    E = e_op * operations + e_byte * bytes + P_busy * t

Weights come from the fastest memory level that holds all weights of the graph and its largest activations: each is read
once per inference, so a larger graph streams them from DRAM. Activations come from the fastest level that holds what
their kernel touches. A run that would draw more than the power mode's cap is slowed down until it does not.

The interval spans the ranges of the profile, or the leave-one-out error where it was calibrated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from greencc.core.errors import InputError, UsageError
from greencc.core.kernels import Kernel, Kernels, Work
from greencc.core.meter import Grade
from greencc.core.report import Energy, Interval
from greencc.meters.device import DeviceProfile, PowerMode
from greencc.meters.model import Range

Pick = Callable[[Range], float]


@dataclass(frozen=True)
class Demand:
    """What a kernel asks of a device.

    Attributes:
        operations: By type of the profile and kind of work.
        bytes: By index of the memory level.
        launches: The fewest and the most that it may be.
    """

    operations: Mapping[tuple[str, Work], float]
    bytes: Mapping[int, float]
    launches: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Estimated(Interval):
    """A figure of energy or power with the grade and the boundary of its profile."""

    grade: str
    boundary: str


@dataclass(frozen=True)
class LayerEstimate:
    """One kernel, before any throttling. `bound` is what most of its time goes to: ``compute``, ``memory`` or
    ``overhead``.
    """

    name: str
    op_type: str
    dtype: str
    microseconds: float
    share: float
    bound: str
    level: str
    operations: float
    bytes: float
    millijoules: Estimated


@dataclass(frozen=True)
class AtRate:
    """At a request rate: idle between inferences. `reachable` is ``yes``, ``no``, or ``uncertain`` within the interval.

    `millijoules` per inference include the idle time up to the next one; None where the rate is not reachable.
    """

    rate: float
    reachable: str
    utilisation: Interval
    watts: Estimated | None
    millijoules: Estimated | None


@dataclass(frozen=True)
class Estimate:
    """What one inference (of the whole batch) takes. Everything here is estimated, never measured.

    Attributes:
        latency_ms: Power cap applied.
        energy: Gross, idle power included.
        watts: While it runs.
        throttled: The power cap slows the central estimate down; `unthrottled_ms` is what it would take without.
        unthrottled_ms: Central estimate.
        layers: The kernels in graph order; times and energies before any throttling.
        at_rate: None without a rate.
        latency_method: Where the latency and its interval come from.
        notes: What a reader must know.
    """

    latency_ms: Interval
    energy: Energy
    watts: Estimated
    throttled: bool
    unthrottled_ms: float
    layers: tuple[LayerEstimate, ...]
    at_rate: AtRate | None
    latency_method: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One choice within all ranges: seconds, joules that do not flow with time, and watts that do."""

    seconds: float
    dynamic: float
    busy: float
    idle: float

    @property
    def joules(self) -> float:
        return self.dynamic + self.busy * self.seconds

    def capped(self, watts: float | None) -> Point:
        if watts is None or self.joules <= watts * self.seconds:
            return self
        return Point(self.dynamic / (watts - self.busy), self.dynamic, self.busy, self.idle)

    def joules_at(self, rate: float) -> float:
        return self.joules + self.idle * max(0.0, 1.0 / rate - self.seconds)


def demands(kernels: Kernels, profile: DeviceProfile) -> list[Demand]:
    """What each kernel asks of the device, in order."""
    held = profile.level_for(kernels.weight_bytes + kernels.activation_bytes)
    return [_demand(kernel, profile, held) for kernel in kernels.items]


def _demand(kernel: Kernel, profile: DeviceProfile, held: int) -> Demand:
    own = profile.costed(kernel.dtype)
    operations: dict[tuple[str, Work], float] = {}
    for work, count in kernel.operations.items():
        key = (own if work in profile.rates[own] else "float32", work)
        operations[key] = operations.get(key, 0.0) + count
    level = profile.level_for(kernel.weight_bytes + kernel.activation_bytes)
    moved = {level: kernel.activation_bytes}
    moved[held] = moved.get(held, 0.0) + kernel.weight_bytes
    return Demand(operations, moved, kernel.launches)


def estimate(
    kernels: Kernels,
    profile: DeviceProfile,
    mode: PowerMode,
    *,
    threads: int | None = None,
    rate: float | None = None,
) -> Estimate:
    """Estimate one inference.

    Args:
        kernels: Of the graph as it would be deployed, with sizes bound.
        profile: Of the device.
        mode: One of its power modes.
        threads: For a CPU: how many of its cores.
        rate: Inferences asked for per second.

    Raises:
        UsageError: The rate or the threads do not fit.
        InputError: No work of the graph is known.
    """
    if rate is not None and not (math.isfinite(rate) and rate > 0.0):
        raise UsageError(f"the rate is {rate}", hint="inferences per second, above 0, such as 30/s")
    if not kernels.items:
        raise InputError("the graph has no node whose work is known, so there is nothing to estimate")
    device = profile.at(mode, threads)
    asked = demands(kernels, device)
    factor = 1.0 if device.calibration is None else device.calibration.latency_factor
    times = [
        _seconds(device, asked, fast=False, slow=False),
        _seconds(device, asked, fast=True, slow=False) / factor,
        _seconds(device, asked, fast=False, slow=True) * factor,
    ]
    central = _point(device, asked, times[0], _central).capped(mode.watts)
    corners = [
        _point(device, asked, seconds, pick).capped(mode.watts)
        for seconds, pick in itertools.product(times[1:], (_low, _high))
    ]
    points = [central, *corners]
    unthrottled = times[0]
    error = _energy_factor(device)
    energies = [point.joules for point in points]
    return Estimate(
        latency_ms=_interval(central.seconds, [point.seconds for point in points], 1e3),
        energy=Energy(
            value=central.joules * 1e3,
            low=min(energies) * 1e3 / error,
            high=max(energies) * 1e3 * error,
            grade=device.grade.name,
            boundary=device.boundary,
            method=_energy_method(device),
        ),
        watts=_estimated(
            device, central.joules / central.seconds, [point.joules / point.seconds for point in points]
        ),
        throttled=central.seconds > unthrottled,
        unthrottled_ms=unthrottled * 1e3,
        layers=_layers(kernels, device, asked, times[0]),
        at_rate=None if rate is None else _at_rate(device, central, points, rate),
        latency_method=_latency_method(device),
        notes=tuple(_notes(kernels, device, asked, points, mode)),
    )


def _low(range_: Range) -> float:
    return range_.low


def _central(range_: Range) -> float:
    return range_.central


def _high(range_: Range) -> float:
    return range_.high


def _parts(device: DeviceProfile, demand: Demand, rate: Pick, overhead: Pick) -> tuple[float, float, float]:
    """Seconds of computing, of moving data, and of the launch."""
    compute = sum(count / rate(device.rate(*key)) for key, count in demand.operations.items())
    memory = sum(moved / rate(device.levels[index].bytes_per_second) for index, moved in demand.bytes.items())
    return compute, memory, overhead(device.kernel_seconds)


def _kernel_seconds(device: DeviceProfile, demand: Demand, rate: Pick, overhead: Pick) -> float:
    compute, memory, launch = _parts(device, demand, rate, overhead)
    return max(compute, memory) + launch


def seconds_launching(device: DeviceProfile, asked: Sequence[Demand], *, most: bool) -> float:
    """Seconds at the central rates, if the graph took the most launches that it may, or the fewest.

    What is part of another kernel moves nothing of its own either.
    """
    launch = device.kernel_seconds.central
    if most:
        return central_seconds(device, asked) + launch * sum(demand.launches[1] - 1 for demand in asked)
    joined = [replace(demand, bytes={}) if demand.launches[0] == 0 else demand for demand in asked]
    launches = max(1, sum(demand.launches[0] for demand in asked))
    return central_seconds(device, joined) + launch * (launches - len(asked))


def _seconds(device: DeviceProfile, asked: Sequence[Demand], *, fast: bool, slow: bool) -> float:
    rate, overhead = (_high, _low) if fast else (_low, _high) if slow else (_central, _central)
    return overhead(device.run_seconds) + sum(
        _kernel_seconds(device, demand, rate, overhead) for demand in asked
    )


def central_seconds(device: DeviceProfile, asked: Sequence[Demand]) -> float:
    """Seconds of one inference at the central rates."""
    return _seconds(device, asked, fast=False, slow=False)


def central_joules(device: DeviceProfile, asked: Sequence[Demand]) -> float:
    """Joules of one inference that do not flow with time, at the central coefficients."""
    return sum(dynamic_joules(device, demand, _central) for demand in asked)


def dynamic_joules(device: DeviceProfile, demand: Demand, pick: Pick) -> float:
    """Energy of a kernel's operations and bytes, without what flows with time."""
    operations = sum(
        count * pick(device.operation_joules(dtype)) for (dtype, _), count in demand.operations.items()
    )
    moved = sum(count * pick(device.levels[index].joules_per_byte) for index, count in demand.bytes.items())
    return operations + moved


def _point(device: DeviceProfile, asked: Sequence[Demand], seconds: float, pick: Pick) -> Point:
    dynamic = sum(dynamic_joules(device, demand, pick) for demand in asked)
    return Point(seconds, dynamic, pick(device.busy_watts), pick(device.idle_watts))


def _energy_factor(device: DeviceProfile) -> float:
    calibration = device.calibration
    if device.grade is not Grade.C or calibration is None or calibration.energy_factor is None:
        return 1.0
    return calibration.energy_factor


def _interval(value: float, values: Sequence[float], unit: float = 1.0) -> Interval:
    return Interval(value * unit, min(values) * unit, max(values) * unit)


def _estimated(device: DeviceProfile, value: float, values: Sequence[float], unit: float = 1.0) -> Estimated:
    """Over the ranges, and by the error of a calibrated profile's energies further."""
    error = _energy_factor(device)
    low, high = min(values) / error, max(values) * error
    return Estimated(value * unit, low * unit, high * unit, device.grade.name, device.boundary)


def _layers(
    kernels: Kernels, device: DeviceProfile, asked: Sequence[Demand], total: float
) -> tuple[LayerEstimate, ...]:
    rows = []
    factor = 1.0 if device.calibration is None else device.calibration.latency_factor
    for kernel, demand in zip(kernels.items, asked, strict=True):
        compute, memory, launch = _parts(device, demand, _central, _central)
        seconds = max(compute, memory) + launch
        bound = "overhead" if launch > max(compute, memory) else "compute" if compute >= memory else "memory"
        slowest = max(demand.bytes, key=lambda index: demand.bytes[index], default=0)
        fast, slow = (
            _kernel_seconds(device, demand, _high, _low),
            _kernel_seconds(device, demand, _low, _high),
        )
        joules = [
            dynamic_joules(device, demand, pick) + pick(device.busy_watts) * spent
            for pick, spent in ((_central, seconds), (_low, fast / factor), (_high, slow * factor))
        ]
        rows.append(
            LayerEstimate(
                name=kernel.name,
                op_type=kernel.op_type,
                dtype=device.costed(kernel.dtype),
                microseconds=seconds * 1e6,
                share=seconds / total,
                bound=bound,
                level=device.levels[slowest].name,
                operations=sum(kernel.operations.values()),
                bytes=kernel.weight_bytes + kernel.activation_bytes,
                millijoules=_estimated(device, joules[0], joules, 1e3),
            )
        )
    return tuple(rows)


def _at_rate(device: DeviceProfile, central: Point, points: Sequence[Point], rate: float) -> AtRate:
    busy = [point.seconds * rate for point in points]
    reachable = "yes" if max(busy) <= 1.0 else "no" if min(busy) > 1.0 else "uncertain"
    utilisation = _interval(central.seconds * rate, busy)
    if reachable == "no":
        return AtRate(rate, reachable, utilisation, None, None)
    energies = [point.joules_at(rate) for point in points if point.seconds * rate <= 1.0]
    value = min(max(central.joules_at(rate), min(energies)), max(energies))
    watts, millijoules = (_estimated(device, value, energies, unit) for unit in (rate, 1e3))
    return AtRate(rate, reachable, utilisation, watts, millijoules)


def _latency_method(device: DeviceProfile) -> str:
    calibration = device.calibration
    if calibration is None:
        return "estimated: roofline over published figures, the interval spans their ranges"
    return (
        f"estimated: roofline fitted to {calibration.benchmarks} benchmarks on {calibration.date}, "
        f"leave-one-out error {calibration.latency_mape:.0%}, interval a factor of {calibration.latency_factor:.2f}"
    )


def _energy_method(device: DeviceProfile) -> str:
    calibration = device.calibration
    if device.grade is Grade.C and calibration is not None and calibration.energy_mape is not None:
        return (
            f"estimated, gross: fitted to {calibration.meter or 'a meter'} on {calibration.date}, "
            f"leave-one-out error {calibration.energy_mape:.0%}"
        )
    return f"estimated, gross: operations + bytes + time, coefficients not calibrated; {device.source}"


def _notes(
    kernels: Kernels,
    device: DeviceProfile,
    asked: Sequence[Demand],
    points: Sequence[Point],
    mode: PowerMode,
) -> list[str]:
    notes = []
    if kernels.unknown:
        first = kernels.unknown[0]
        notes.append(
            f"{len(kernels.unknown)} nodes (such as {first.op_type} {first.name!r}) are left out: their work is unknown"
        )
    replaced = sorted(
        {
            f"{kernel.dtype.lower()} as {device.costed(kernel.dtype)}"
            for kernel in kernels.items
            if kernel.multiplications and not device.costed(kernel.dtype).startswith(_plain(kernel.dtype))
        }
    )
    if replaced:
        notes.append(f"no figures of its own: {', '.join(replaced)}")
    if mode.watts is not None and any(
        math.isclose(point.joules / point.seconds, mode.watts) for point in points
    ):
        notes.append(f"at the {mode.name} mode's cap of {mode.watts:g} W somewhere within the interval")
    held = device.level_for(kernels.weight_bytes + kernels.activation_bytes)
    if len(device.levels) > 1 and held == len(device.levels) - 1:
        notes.append(f"the weights do not fit a cache: they stream from {device.levels[held].name}")
    return notes


def _plain(dtype: str) -> str:
    return {"FLOAT": "float32", "UINT8": "int8"}.get(dtype, dtype.lower())
