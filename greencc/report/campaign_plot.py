"""Gain against accuracy drop, with intervals: every variant a numbered mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from greencc.core.report import Interval
from greencc.report.campaign_summary import Row
from greencc.report.figures import MINUS, interval_text, number, points, printable
from greencc.report.svg import figure, tag, ticks

_LEFT, _RIGHT = 11.0, 96.0
_TOP, _BOTTOM = 18, 250
_RADIUS = 9
_CLOSE_PERCENT = 4.0
_Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Mark:
    label: int
    row: Row
    drop: Interval
    gain: Interval


@dataclass(frozen=True)
class GainPlot:
    """The plot, its marks (number, name, is it the model itself), and what is upright: ``energy`` or ``latency``."""

    svg: Markup
    marks: tuple[tuple[int, str, bool], ...]
    quantity: str


def gain_plot(rows: Sequence[Row]) -> GainPlot | None:
    """Energy ratio where every row has one, else latency ratio, upright; accuracy drop along.

    Rows without either are left out; None when there is none.
    """
    known = [row for row in rows if _drop(row) is not None]
    by_energy = bool(known) and all(_energy(row) is not None for row in known)
    marks: list[_Mark] = []
    for row in known:
        drop, gain = _drop(row), _energy(row) if by_energy else _latency(row)
        if drop is not None and gain is not None:
            marks.append(_Mark(len(marks) + 1, row, drop, gain))
    if not marks:
        return None
    quantity = "energy" if by_energy else "latency"
    devices = {mark.row.device for mark in marks}
    names = tuple(
        (
            mark.label,
            f"{mark.row.variant} on {mark.row.device}" if len(devices) > 1 else mark.row.variant,
            mark.row.original,
        )
        for mark in marks
    )
    return GainPlot(_draw(marks, quantity), names, quantity)


def _drop(row: Row) -> Interval | None:
    """In points."""
    if row.original:
        return Interval(0.0, 0.0, 0.0) if row.measured else None
    found = row.accuracy
    if found is None or found.drop is None or found.low is None or found.high is None:
        return None
    return Interval(100.0 * found.drop, 100.0 * found.low, 100.0 * found.high)


def _energy(row: Row) -> Interval | None:
    return None if row.energy is None or row.energy.ratio is None else row.energy.ratio.interval


def _latency(row: Row) -> Interval | None:
    return None if row.latency is None or row.latency.ratio is None else row.latency.ratio.interval


def _draw(marks: Sequence[_Mark], quantity: str) -> Markup:
    across = _axis([value for mark in marks for value in (mark.drop.low, mark.drop.high)])
    up = _ratio_axis([mark.gain for mark in marks])
    height = math.log(up[-1] / up[0])

    def x(value: float) -> float:
        return round(_LEFT + (value - across[0]) / (across[-1] - across[0]) * (_RIGHT - _LEFT), 2)

    def y(value: float) -> float:
        value = min(max(value, up[0]), up[-1])
        return round(_BOTTOM - math.log(value / up[0]) / height * (_BOTTOM - _TOP), 1)

    parts: list[Markup] = []
    for value in up:
        css = "reference" if math.isclose(value, 1.0) else "grid"
        parts.append(tag("line", x1="0", x2="100%", y1=y(value), y2=y(value), class_=css))
        parts.append(tag("text", f"{value:g}×", x="0", y=y(value) - 4, class_="tick"))
    for value in across:
        text = f"{value:g}".replace("-", MINUS)
        place = f"{x(value)}%"
        parts.append(tag("line", x1=place, x2=place, y1=_BOTTOM, y2=_BOTTOM + 4, class_="axis"))
        parts.append(tag("text", text, x=place, y=_BOTTOM + 17, text_anchor="middle", class_="tick"))
    caption = "accuracy drop in points (left is better)"
    parts.append(tag("text", caption, x="50%", y=_BOTTOM + 36, text_anchor="middle", class_="tick"))
    parts += [_whiskers(mark, x, y) for mark in marks]
    taken: list[tuple[float, float]] = []
    for mark in marks:
        here = x(mark.drop.value), y(mark.gain.value)
        # Marks on one another would hide one: those that come later stand beside it.
        beside = sum(
            abs(here[0] - at[0]) < _CLOSE_PERCENT and abs(here[1] - at[1]) < 2 * _RADIUS for at in taken
        )
        taken.append(here)
        parts.append(_dot(mark, *here, 2 * _RADIUS * beside))
    best = max(marks, key=lambda mark: mark.gain.value)
    description = (
        f"{len(marks)} variants; highest: {printable(best.row.variant)}, {number(best.gain.value)} times, "
        f"drop {number(best.drop.value)} points."
    )
    title = f"{quantity.capitalize()} of the model over that of the variant, against accuracy drop"
    return figure(title, description, _BOTTOM + 44, parts)


def _whiskers(mark: _Mark, x: _Scale, y: _Scale) -> Markup:
    middle, level = f"{x(mark.drop.value)}%", y(mark.gain.value)
    lines = [
        tag("line", x1=middle, x2=middle, y1=y(mark.gain.low), y2=y(mark.gain.high), class_="whisker"),
        tag(
            "line",
            x1=f"{x(mark.drop.low)}%",
            x2=f"{x(mark.drop.high)}%",
            y1=level,
            y2=level,
            class_="whisker",
        ),
    ]
    return tag("g", *lines)


def _dot(mark: _Mark, across: float, level: float, beside: int) -> Markup:
    place = f"{across}%"
    title = (
        f"{mark.label}: {printable(mark.row.variant)} on {printable(mark.row.device)}, "
        f"{number(mark.gain.value)}× {interval_text(mark.gain)}, drop {points(mark.drop.value / 100)} points "
        f"[{points(mark.drop.low / 100)}, {points(mark.drop.high / 100)}]"
    )
    css = "mark original" if mark.row.original else "mark"
    return tag(
        "g",
        tag("title", title),
        tag("circle", cx=place, cy=level, r=_RADIUS, class_=css),
        tag("text", str(mark.label), x=place, y=level + 4, text_anchor="middle", class_=f"{css} digit"),
        transform=f"translate({beside} 0)",
    )


def _axis(values: Sequence[float]) -> list[float]:
    """Round values that span the given ones and 0, at least two."""
    low, high = min([*values, 0.0]), max([*values, 0.0])
    step = ticks((high - low) or 1.0, 5)[1]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _ratio_axis(gains: Sequence[Interval]) -> list[float]:
    """Round ratios for a logarithmic axis that spans the given ones and 1.

    Two repetitions can leave an interval that would squeeze all marks into a line: such ends run out of the plot.
    """
    values = [gain.value for gain in gains]
    room = 2.0 * max(max(values) / min(values), 1.5)
    low = min(1.0, *(max(gain.low, min(values) / room) for gain in gains))
    high = max(1.0, *(min(gain.high, max(values) * room) for gain in gains))
    if high / low > 4.0:
        steps = [factor * 10.0**power for power in range(-6, 7) for factor in (1.0, 2.0, 5.0)]
    else:
        step = ticks((high - low) or 0.1, 5)[1]
        steps = [round(index * step, 10) for index in range(1, math.ceil(high / step) + 2)]
        if 1.0 not in steps:
            steps = sorted([*steps, 1.0])
    first = max([index for index, value in enumerate(steps) if value <= low * (1 + 1e-9)], default=0)
    last = min(
        [index for index, value in enumerate(steps) if value >= high * (1 - 1e-9)], default=len(steps) - 1
    )
    return steps[first : max(last, first + 1) + 1]
