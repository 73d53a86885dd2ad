"""Several graphs on a device that they cannot be timed on: how their estimated times and energies compare.

Errors that the graphs share cancel in a ratio, others do not. What a float kernel reaches of its peak says little of
what an integer kernel reaches of its own, so rates of different types vary independently, as do memory, overheads and
the coefficients of energy; every ratio is taken with both graphs at the same corner of these ranges, and its interval
has the smallest and the largest. A calibrated profile has no ranges: there the errors of the fit count, which two
graphs do not share (as in `greencc.meters.calibrated`).
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
from greencc.meters.roofline import Demand, Estimate, Point, central_seconds, demands, estimate, point_of


@dataclass(frozen=True)
class SideBySide:
    """Estimates of graphs in their order, and the first one's latency and energy divided by each of the others'."""

    each: tuple[Estimate, ...]
    latency: tuple[Interval, ...]
    energy: tuple[Interval, ...]


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
    central = _points(device, asked, mode)
    types = sorted({key[0] for demand in itertools.chain(*asked) for key in demand.operations})
    corners = [_points_at(time, asked, energies, mode) for time, energies in _corners(device, types, asked)]
    calibration = profile.calibration
    slack = 1.0 if calibration is None else calibration.latency_factor ** math.sqrt(2.0)
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


def _interval(values: Sequence[float], slack: float) -> Interval:
    return Interval(values[0], min(values) / slack, max(values) * slack)


def _points(device: DeviceProfile, asked: Sequence[Sequence[Demand]], mode: PowerMode) -> list[Point]:
    return [point_of(device, demand, central_seconds(device, demand)).capped(mode.watts) for demand in asked]


def _points_at(
    times: Sequence[float], asked: Sequence[Sequence[Demand]], device: DeviceProfile, mode: PowerMode
) -> list[Point]:
    return [
        point_of(device, demand, seconds).capped(mode.watts)
        for demand, seconds in zip(asked, times, strict=True)
    ]


def _corners(
    device: DeviceProfile, types: Sequence[str], asked: Sequence[Sequence[Demand]]
) -> Iterator[tuple[list[float], DeviceProfile]]:
    """Seconds of each graph at every corner of the ranges of time, with the device at each corner of those of energy.

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
    costs = []
    for dear in itertools.product((False, True), repeat=len(types) + 2):
        by_type = dict(zip(types, dear, strict=False))
        costs.append(
            replace(
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
        )
    return itertools.product(times, costs)


def _end(range_: Range, high: bool) -> Range:
    value = range_.high if high else range_.low
    return Range(value, value, value)
