"""The front of the plans: what each loses, upright, against what it takes, along; one plot for each quantity.

Every mark can be reached with the keyboard and tells its figures as text; what was only predicted is hollow. Lower left
is better. A plan far outside would squeeze the others into a corner: it stands at the edge as a triangle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from greencc.core.report import Report
from greencc.core.report_plan import LimitVerdict, PlanInfo, PlanPoint
from greencc.report import plan as words
from greencc.report.figures import MINUS, capitalized, number, printable, round_share
from greencc.report.svg import tag, ticks

_LEFT, _RIGHT = 9.0, 98.0
_TOP, _BOTTOM = 38, 334
_HEIGHT = _BOTTOM + 44
_MOST = 400
_FAR = 1.25
_FAR_DROP = 2.5
_ROOM_WIDE, _ROOM_NARROW = 17.0, 34.0
_PERCENTILE = re.compile(r"\bp(50|95|99)\b")
_SHAPES = {
    "form": "M-5.5 -5.5h11v11h-11z",
    "plan": "M0 -6.5a6.5 6.5 0 1 0 .01 0z",
    "chosen": "M0 -10.5L10.5 0L0 10.5L-10.5 0z",
    "right": "M-6 -6.5L7 0L-6 6.5z",
    "up": "M-6.5 6L0 -7L6.5 6z",
}


@dataclass(frozen=True)
class View:
    """One plot: its `key` (``latency``, ``energy``, ``size``), the label of the switch, and the note beneath it.

    `drawn` are the places in the report of the points that have a mark.
    """

    key: str
    label: str
    svg: Markup
    note: str
    drawn: frozenset[int]


@dataclass(frozen=True)
class _Axis:
    """Values along, of measured and of predicted plans; `limits` are drawn as lines."""

    key: str
    label: str
    title: str
    unit: str
    value: Callable[[PlanPoint], float | None]
    limits: tuple[LimitVerdict, ...]


@dataclass(frozen=True)
class _Mark:
    """A plan at its place; `index` is that in the report."""

    index: int
    point: PlanPoint
    x: float
    y: float


@dataclass(frozen=True)
class _Scale:
    """A linear scale with its ticks, from `low` to `high`, onto `start` to `stop`."""

    low: float
    high: float
    steps: tuple[float, ...]
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + part * (self.stop - self.start), 2)


def front_views(report: Report) -> list[View]:
    """The plots that there are figures for: against latency, energy and size."""
    assert report.plan is not None
    plan = report.plan
    shown = sorted(
        enumerate(plan.points), key=lambda item: (not item[1].chosen, not item[1].verified, not item[1].front)
    )[:_MOST]
    by_error = sum(point.verified and point.drop is not None for _, point in shown) < 2
    views = []
    for axis in _axes(report, plan):
        marks = [
            _Mark(index, point, x, y)
            for index, point in shown
            if (x := axis.value(point)) is not None and (y := _loss(point, by_error)) is not None
        ]
        if marks:
            views.append(_view(axis, marks, report, by_error, len(plan.points) - len(marks)))
    return views


def _loss(point: PlanPoint, by_error: bool) -> float | None:
    if by_error:
        return point.error if point.verified else point.predicted_error
    return point.drop if point.verified or point.drop is not None else point.predicted_drop


def _axes(report: Report, plan: PlanInfo) -> tuple[_Axis, ...]:
    limits = {quantity: tuple(x for x in plan.limits if x.quantity == quantity) for quantity in _QUANTITIES}
    verified = [point for point in plan.points if point.verified]
    asked = {found.group() for limit in limits["latency"] if (found := _PERCENTILE.search(limit.limit))}
    by_p95 = asked == {"p95"} and all(point.latency_p95_ms is not None for point in verified)

    def latency(point: PlanPoint) -> float | None:
        if not point.verified:
            return point.predicted_latency_ms
        return point.latency_p95_ms if by_p95 else point.latency_ms

    return (
        _Axis(
            "latency",
            "Latency",
            "latency per inference, " + _latency_word(plan, by_p95),
            "ms",
            latency,
            limits["latency"],
        ),
        _Axis(
            "energy",
            "Energy",
            f"energy per inference, {words.energy_basis(report)}",
            "mJ",
            lambda point: point.energy_mj if point.verified else point.predicted_energy_mj,
            limits["energy"],
        ),
        _Axis(
            "size",
            "Size",
            "size on disk",
            "bytes",
            lambda point: point.size_bytes if point.verified else point.predicted_size_bytes,
            limits["size"],
        ),
    )


def _latency_word(plan: PlanInfo, by_p95: bool) -> str:
    if plan.estimated_on:
        return "estimated"
    return "95th percentile" if by_p95 else "median"


_QUANTITIES = ("latency", "energy", "size")


def _view(axis: _Axis, marks: Sequence[_Mark], report: Report, by_error: bool, left_out: int) -> View:
    front = _front([mark for mark in marks if mark.point.verified])
    lines = [limit for limit in axis.limits if limit.allowed <= 2.0 * max(mark.x for mark in marks)]
    near = [mark.x for mark in (*front, *(mark for mark in marks if mark.point.chosen))]
    right = max(mark.x for mark in marks)
    if near:
        right = min(right, _FAR * max([*near, *(limit.allowed for limit in lines)]))
    across = _scale(
        [*(mark.x for mark in marks if mark.x <= right), *(limit.allowed for limit in lines)],
        _LEFT,
        _RIGHT,
        7,
    )
    allowed = None if by_error else _max_drop(report)
    highest = max(mark.y for mark in marks)
    if allowed is not None:
        kept = [mark.y for mark in marks if mark.point.chosen]
        highest = max([min(highest, _FAR_DROP * allowed), allowed, *kept])
    up = _scale([0.0, highest, *(mark.y for mark in marks if mark.y <= highest)], _BOTTOM, _TOP, 5)
    parts = [*_grid(up, report, by_error), *_along(across, axis)]
    parts.append(_front_line(front, across, up))
    parts += [_limit_line(limit, across(limit.allowed), index) for index, limit in enumerate(lines)]
    if allowed is not None:
        parts.append(_drop_line(allowed, up))
    ordered = sorted(marks, key=lambda mark: (mark.point.chosen, mark.point.verified, mark.x))
    parts += [_draw(mark, axis, report, by_error, across, up) for mark in ordered]
    parts += [_name(mark, across, up) for mark in marks if mark.point.chosen]
    loss = "output error" if by_error else words.loss_label(report).split(",")[0].lower()
    title = f"{capitalized(loss)} against {axis.title}"
    count = sum(mark.point.verified for mark in marks)
    assert report.plan is not None
    what = "estimated" if report.plan.estimated_on else "verified"
    description = f"{count} {what} plans, {len(front)} on the front, {len(marks) - count} only predicted."
    svg = tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        class_="plot front",
        width="100%",
        height=_HEIGHT,
        role="group",
        aria_label=f"{title}. {description}",
    )
    note = _note(axis, marks, lines, across, up, left_out)
    return View(axis.key, axis.label, svg, note, frozenset(mark.index for mark in marks))


def _note(
    axis: _Axis,
    marks: Sequence[_Mark],
    lines: Sequence[LimitVerdict],
    across: _Scale,
    up: _Scale,
    left_out: int,
) -> str:
    texts = []
    if hidden := [limit.limit for limit in axis.limits if limit not in lines]:
        texts.append(f"Far right of the plot: the limit {', '.join(map(printable, hidden))}.")
    if axis.key == "latency" and any("p99" in limit.limit for limit in lines):
        texts.append("The limit is one of the 99th percentile, which these figures are below.")
    beyond = sum(mark.x > across.high or mark.y > up.high for mark in marks)
    if beyond:
        verb = "lies" if beyond == 1 else "lie"
        texts.append(f"{beyond} plan{'s' * (beyond > 1)} {verb} beyond the edge that the triangle points to.")
    if left_out:
        verb = "is" if left_out == 1 else "are"
        texts.append(
            f"{left_out} of the plans {verb} not drawn: a figure is not known, or there are too many."
        )
    return " ".join(texts)


def _max_drop(report: Report) -> float | None:
    """The accuracy that may be lost, as it was asked for."""
    asked = report.budget.asked.get("max_drop")
    return float(asked) if isinstance(asked, int | float) and 0 < asked <= 1 else None


def _front(marks: Sequence[_Mark]) -> list[_Mark]:
    """Those that no other beats in both values of this plot, by x."""
    best: list[_Mark] = []
    for mark in sorted(marks, key=lambda item: (item.x, item.y)):
        if not best or mark.y < best[-1].y:
            best.append(mark)
    return best


def _scale(values: Sequence[float], start: float, stop: float, most: int) -> _Scale:
    """Round ticks around the values; from 0 where the values come near it."""
    low, high = min(values), max(values)
    if 0.0 <= low <= 0.4 * high:
        low = 0.0
    largest = max(abs(low), abs(high))
    room = high - low
    if room <= 1e-9 * largest:  # nothing that a plot could tell apart
        room = largest or 1.0
    step = ticks(room, most)[1]
    first, last = math.floor(low / step - (low != 0.0) * 0.1), math.ceil(high / step - 1e-9)
    steps = tuple(round(index * step, 12) for index in range(first, max(last, first + 1) + 1))
    return _Scale(steps[0], steps[-1], steps, start, stop)


def _grid(up: _Scale, report: Report, by_error: bool) -> list[Markup]:
    parts: list[Markup] = []
    factor = 1.0 if by_error else 100.0
    for value in up.steps:
        y = up(value)
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="axis" if value == 0 else "grid"))
        text = f"{value * factor:.6g}".replace("-", MINUS)
        parts.append(tag("text", text, x="0", y=y - 4, class_="tick"))
    label = "Output error" if by_error else words.loss_label(report)
    return [*parts, tag("text", label, x="0", y="10", class_="tick")]


def _along(across: _Scale, axis: _Axis) -> list[Markup]:
    parts: list[Markup] = []
    for index, value in enumerate(across.steps):
        place = f"{across(value)}%"
        parts.append(tag("line", x1=place, x2=place, y1=_BOTTOM, y2=_BOTTOM + 4, class_="axis"))
        text = words.amount(value, axis.unit) if value else "0"
        css = "tick odd" if index % 2 else "tick"
        anchor = "end" if index == len(across.steps) - 1 else "middle"
        parts.append(tag("text", text, x=place, y=_BOTTOM + 17, text_anchor=anchor, class_=css))
    title = capitalized(axis.title)
    return [*parts, tag("text", title, x="98%", y=_BOTTOM + 37, text_anchor="end", class_="tick")]


def _front_line(front: Sequence[_Mark], across: _Scale, up: _Scale) -> Markup:
    """A staircase: what lies above and to the right of it is beaten by a plan on it."""
    if not front:
        return Markup("")
    path = [f"M{10 * across(front[0].x):.1f} {_TOP - 12}"]
    for mark in front:
        path.append(f"H{10 * across(mark.x):.1f}V{up(mark.y)}")
    path.append("H1000")
    line = "".join(path)
    return tag(
        "svg",
        tag("path", d=f"{line}V{_TOP - 12}Z", class_="beaten"),
        tag("path", d=line, class_="stairs"),
        x="0",
        y="0",
        width="100%",
        height=_BOTTOM,
        viewBox=f"0 0 1000 {_BOTTOM}",
        preserveAspectRatio="none",
    )


def _limit_line(limit: LimitVerdict, x: float, index: int) -> Markup:
    place = f"{x}%"
    anchor = "end" if x > 50 else "start"
    text = tag(
        "text",
        f"limit {printable(limit.limit)}",
        x=place,
        y=_TOP + 10 + 16 * index,
        dx=-6 if x > 50 else 6,
        text_anchor=anchor,
        class_="bound",
    )
    line = tag("line", x1=place, x2=place, y1=_TOP - 12, y2=_BOTTOM, class_="reference")
    return tag("g", line, text)


def _drop_line(allowed: float, up: _Scale) -> Markup:
    y = up(allowed)
    text = tag("text", f"limit {round_share(allowed)}", x="98%", y=y - 5, text_anchor="end", class_="bound")
    return tag("g", tag("line", x1="0", x2="100%", y1=y, y2=y, class_="reference"), text)


def _draw(mark: _Mark, axis: _Axis, report: Report, by_error: bool, across: _Scale, up: _Scale) -> Markup:
    """A mark that takes the focus, with its figures as its name; a ring shows what the card beneath is about."""
    point = mark.point
    kind = "chosen" if point.chosen else ("form" if point.origin == "form" else "plan")
    if mark.y > up.high:
        kind = "up" if kind != "chosen" else kind
    elif mark.x > across.high:
        kind = "right" if kind != "chosen" else kind
    loss = number(mark.y) if by_error else words.loss_text(report, mark.y)
    text = f"{words.point_name(point)}: {words.amount(mark.x, axis.unit)}"
    if axis.key == "energy":
        text += f" ({words.energy_basis(report)})"
    elif axis.key == "latency" and report.plan is not None and report.plan.estimated_on:
        text += " (estimated)"
    text += f", {loss} {'output error' if by_error else 'lost'}"
    if by_error is False and report.accuracy.baseline is None:
        text = text.removesuffix(" lost") + " of decisions changed"
    text += ", chosen" if point.chosen else ("" if point.verified else ", predicted, not verified")
    css = f"mark {kind} {'real' if point.verified else 'hollow'} {'form' if point.origin == 'form' else ''}"
    return tag(
        "svg",
        tag(
            "g",
            tag("title", text),
            tag("circle", r=15, class_="halo"),
            tag("path", d=_SHAPES[kind], class_="shape"),
            class_=css.rstrip(),
            tabindex="0",
            role="img",
            aria_label=text,
            data_point=mark.index,
        ),
        x=f"{across(mark.x)}%",
        y=up(mark.y),
        overflow="visible",
        # No size: what is drawn lies around its origin.
        width="1",
        height="1",
    )


def _name(mark: _Mark, across: _Scale, up: _Scale) -> Markup:
    """Below and to the left of a chosen plan there is nothing verified: it would have been chosen.

    Where that leaves too little room, the name stands above it; on a narrow screen that is so further to the right.
    """
    x, y = across(mark.x), up(mark.y)
    text = f"{words.point_name(mark.point)}, chosen"
    below = {"x": f"{x}%", "y": min(y + 22, _BOTTOM - 6), "dx": -12, "text_anchor": "end"}
    above = {"x": f"{x}%", "y": y - 15, "text_anchor": "start"}
    if x >= _ROOM_NARROW:
        return tag("text", text, class_="picked", **below)
    if x < _ROOM_WIDE:
        return tag("text", text, class_="picked", **above)
    wide = tag("text", text, class_="picked wide", **below)
    return wide + tag("text", text, class_="picked narrow", aria_hidden="true", **above)
