"""One SVG: speed-up over FP32 by model and method, on a logarithmic axis, with marks for what broke the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.pictures import picture
from greencc.report.svg import tag

WIDTH = 960
_LEFT, _RIGHT, _TOP = 190, 720, 70
_LINE, _GAP = 15, 16
_LEGEND = _RIGHT + 34
_GREY = "#52525b"
_GRID = "#e4e4e7"
_MARKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Dot:
    """One method on one model: the original's latency in ONNX Runtime by its own, with the interval's ends.

    Attributes:
        method: Its label.
        colour: Its colour.
        ratio: Speed-up over FP32.
        low: Of the interval; None: it has no end.
        high: As `low`.
        kept: Whether it keeps the limit on accuracy.
        drop: What it loses, in percentage points, for the title.
        ours: Whether it is the plan.
    """

    method: str
    colour: str
    ratio: float
    low: float | None
    high: float | None
    kept: bool
    drop: float
    ours: bool = False


def planner_svg(title: str, cases: Sequence[tuple[str, Sequence[Dot]]]) -> str:
    """Rows of models, in each a line per method: a disc keeps the limit, a cross does not, the plan is a diamond."""
    values = [edge for _, dots in cases for dot in dots for edge in (dot.low, dot.ratio, dot.high) if edge]
    low, high = min([*values, 0.9]) / 1.08, max([*values, 1.1]) * 1.08

    def at(value: float) -> float:
        return _LEFT + math.log(value / low) / math.log(high / low) * (_RIGHT - _LEFT)

    heights = [_LINE * max(len(dots), 1) + _GAP for _, dots in cases]
    bottom = _TOP + sum(heights)
    methods = list(dict.fromkeys((dot.method, dot.colour, dot.ours) for _, dots in cases for dot in dots))
    height = max(bottom + 50, _TOP + 24 * (len(methods) + 2))
    parts = [
        tag("rect", x=0, y=0, width=WIDTH, height=height, fill="#ffffff"),
        tag("text", title, x=16, y=26, font_size=17, font_weight="bold"),
        tag(
            "text", "latency of FP32 in ONNX Runtime / latency of the variant", x=_LEFT, y=48, font_size=12.5
        ),
    ]
    for mark in (mark for mark in _MARKS if low <= mark <= high):
        x = _px(at(mark))
        look = {"stroke": _GREY if mark == 1.0 else _GRID, "stroke_width": 1.4 if mark == 1.0 else 1}
        parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, **look))
        parts.append(tag("text", f"{mark:g}×", x=x, y=bottom + 18, font_size=12, text_anchor="middle"))
    y = float(_TOP)
    for (name, dots), tall in zip(cases, heights, strict=True):
        parts.append(tag("line", x1=16, x2=_RIGHT, y1=_px(y), y2=_px(y), stroke=_GRID))
        parts.append(tag("text", name, x=16, y=_px(y + tall / 2 + 4), font_size=12.5))
        for index, dot in enumerate(dots):
            parts += _dot(dot, at, y + _GAP / 2 + _LINE * (index + 0.5))
        y += tall
    parts += _legend(methods)
    return picture(parts, WIDTH, height, f"{title}: speed-up over FP32 by model and method")


def _dot(dot: Dot, at: Callable[[float], float], y: float) -> list[Markup]:
    ends = {"x1": _px(at(dot.low or dot.ratio)), "x2": _px(at(dot.high or dot.ratio))}
    kept = "within the limit" if dot.kept else "breaks the limit"
    title = tag("title", f"{dot.method}: {dot.ratio:.2f}×, {dot.drop:+.2f} points lost, {kept}")
    return [
        tag("line", y1=_px(y), y2=_px(y), stroke=dot.colour, stroke_width=2, stroke_opacity="0.5", **ends),
        _marker(at(dot.ratio), y, dot.colour, kept=dot.kept, ours=dot.ours, title=title),
    ]


def _marker(
    x: float, y: float, colour: str, *, kept: bool, ours: bool, title: Markup | None = None
) -> Markup:
    inner = () if title is None else (title,)
    if not kept:
        d = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return tag("path", *inner, d=d, fill="none", stroke=colour, stroke_width=2.2)
    if ours:
        d = f"M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"
        return tag("path", *inner, d=d, fill=colour)
    return tag("circle", *inner, cx=_px(x), cy=_px(y), r=4.2, fill=colour)


def _legend(methods: Sequence[tuple[str, str, bool]]) -> list[Markup]:
    parts = []
    for index, (label, colour, ours) in enumerate([*methods, ("breaks the limit", _GREY, False)]):
        y = _TOP + 8 + 24 * index
        parts.append(_marker(_LEGEND, y, colour, kept=index < len(methods), ours=ours))
        parts.append(tag("text", label, x=_LEGEND + 14, y=y + 4, font_size=12.5))
    return parts


def _px(value: float) -> str:
    return f"{value:.1f}"
