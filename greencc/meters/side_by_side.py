"""Several graphs on a device that they cannot be timed on: how their estimated times and energies compare.

Errors that the graphs share cancel in a ratio, others do not. What a float kernel reaches of its peak says little of
what an integer kernel reaches of its own, so rates of different types vary independently, as do memory, overheads and
the coefficients of energy. So does how many kernels a runtime makes of the same nodes: one that a graph has and the
other has not may have cost a launch, or nothing. Every ratio is taken with both graphs at the same corner of these
ranges, and its interval has the smallest and the largest. A calibrated profile has no ranges: there the errors of the
fit count, which two graphs do not share (as in `greencc.meters.calibrated`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from greencc.core.errors import InputError
from greencc.core.kernels import Kernels
from greencc.core.report import Interval, Latency
from greencc.meters.device import DeviceProfile, PowerMode
from greencc.meters.model import Range
from greencc.meters.roofline import (
    Demand,
    Estimate,
    Point,
    central_joules,
    central_seconds,
    demands,
    estimate,
    seconds_launching,
)

APART = 1.1
"""Graphs whose figures differ by a smaller factor are not told apart by a profile that was not calibrated."""


@dataclass(frozen=True)
class SideBySide:
    """Estimates of graphs in their order, and the first one's latency and energy divided by each of the others'."""

    each: tuple[Estimate, ...]
    latency: tuple[Interval, ...]
    energy: tuple[Interval, ...]

    @property
    def told_apart(self) -> bool:
        """False where something differs, but all by less than `APART`, and no interval is on one side of 1."""
        ratios = (*self.latency, *self.energy)
        near = all(1.0 / APART < ratio.value < APART and ratio.low <= 1.0 <= ratio.high for ratio in ratios)
        return not near or all(ratio.value == 1.0 for ratio in ratios)


def side_by_side(
    graphs: Sequence[Kernels], profile: DeviceProfile, mode: PowerMode, threads: int | None = None
) -> SideBySide:
    """Estimate graphs and compare the first with the others.

    Args:
        graphs: Kernels with sizes bound, at least one.
        profile: Of the device.
        mode: One of its power modes.
        threads: For a CPU: how many of its cores.

    Raises:
        InputError: Nothing is known of the work of a graph.
        UsageError: The device has fewer cores.
    """
    if not graphs:
        raise InputError("there is no graph to estimate")
    each = tuple(estimate(kernels, profile, mode, threads=threads) for kernels in graphs)
    device = profile.at(mode, threads)
    asked = [demands(kernels, device) for kernels in graphs]
    central = _points([central_seconds(device, demand) for demand in asked], _Costs.of(device, asked), mode)
    types = sorted({key[0] for demand in itertools.chain(*asked) for key in demand.operations})
    corners = [_points(times, costs, mode) for times, costs in _corners(device, types, asked)]
    calibration = profile.calibration
    slack = None if calibration is None else calibration.latency_factor ** math.sqrt(2.0)
    energy_slack = slack
    if calibration is not None and calibration.energy_factor is not None:
        energy_slack = calibration.energy_factor ** math.sqrt(2.0)
    others = range(1, len(graphs))
    return SideBySide(
        each,
        tuple(
            _interval([points[0].seconds / points[index].seconds for points in (central, *corners)], slack)
            for index in others
        ),
        tuple(
            _interval(
                [points[0].joules / points[index].joules for points in (central, *corners)], energy_slack
            )
            for index in others
        ),
    )


def latency_of(found: Estimate) -> Latency:
    """An estimate as a report has it."""
    interval = found.latency_ms
    return Latency(
        interval.value, None, None, 0, low=interval.low, high=interval.high, method=found.latency_method
    )


def _interval(values: Sequence[float], slack: float | None) -> Interval:
    """Of the central ratio, which comes first, and the others; `slack`: the errors of a fit, None: there is none."""
    low, high = min(values) / (slack or 1.0), max(values) * (slack or 1.0)
    if slack is None and 1.0 / APART < values[0] < APART:
        low, high = min(low, 1.0), max(high, 1.0)
    return Interval(values[0], low, high)


@dataclass(frozen=True)
class _Costs:
    """At one choice of the coefficients: joules of each graph that do not flow with time, and watts that do."""

    dynamic: tuple[float, ...]
    busy: float
    idle: float

    @classmethod
    def of(cls, device: DeviceProfile, asked: Sequence[Sequence[Demand]]) -> _Costs:
        dynamic = tuple(central_joules(device, demand) for demand in asked)
        return cls(dynamic, device.busy_watts.central, device.idle_watts.central)


def _points(times: Sequence[float], costs: _Costs, mode: PowerMode) -> list[Point]:
    return [
        Point(seconds, dynamic, costs.busy, costs.idle).capped(mode.watts)
        for seconds, dynamic in zip(times, costs.dynamic, strict=True)
    ]


def _corners(
    device: DeviceProfile, types: Sequence[str], asked: Sequence[Sequence[Demand]]
) -> Iterator[tuple[list[float], _Costs]]:
    """Seconds of each graph at every corner of the ranges of time, with the costs at each corner of those of energy.

    The two kinds of range have nothing to do with each other, but there are few enough corners for all pairs.
    """
    times = []
    for slow in itertools.product((False, True), repeat=len(types) + 2):
        by_type = dict(zip(types, slow, strict=False))
        held = replace(
            device,
            rates={
                dtype: {
                    work: _end(rate, not by_type.get(dtype, by_type.get("float32", False)))
                    for work, rate in rates.items()
                }
                for dtype, rates in device.rates.items()
            },
            levels=tuple(
                replace(level, bytes_per_second=_end(level.bytes_per_second, not slow[-2]))
                for level in device.levels
            ),
            kernel_seconds=_end(device.kernel_seconds, slow[-1]),
            run_seconds=_end(device.run_seconds, slow[-1]),
        )
        times.append([central_seconds(held, demand) for demand in asked])
        times += [[seconds_launching(held, demand, most=most) for demand in asked] for most in (False, True)]
    costs = []
    for dear in itertools.product((False, True), repeat=len(types) + 2):
        by_type = dict(zip(types, dear, strict=False))
        held = replace(
            device,
            joules_per_operation={
                dtype: _end(joules, by_type.get(dtype, by_type.get("float32", False)))
                for dtype, joules in device.joules_per_operation.items()
            },
            levels=tuple(
                replace(level, joules_per_byte=_end(level.joules_per_byte, dear[-2]))
                for level in device.levels
            ),
            busy_watts=_end(device.busy_watts, dear[-1]),
        )
        costs.append(_Costs.of(held, asked))
    return itertools.product(times, costs)


def _end(range_: Range, high: bool) -> Range:
    value = range_.high if high else range_.low
    return Range(value, value, value)
