"""Line plots as small standalone SVG files: two panels that share the axis of accuracy, and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.pictures import picture
from greencc.report.svg import tag

WIDTH, HEIGHT = 1060, 440
# Of the legend.
_ROW = 24
_TOP, _BOTTOM = 64, 372
_LEFT, _PANEL, _GAP = 62, 330, 36
_LEGEND = _LEFT + 2 * _PANEL + _GAP + 26
_GREY = "#52525b"
_GRID = "#e4e4e7"


@dataclass(frozen=True)
class Point:
    """One artifact: share of the MACs and of the latency that is left, and accuracy, all in percent."""

    macs: float | None
    latency: float | None
    accuracy: float


@dataclass(frozen=True)
class Series:
    """One method."""

    label: str
    colour: str
    points: Sequence[Point]
    peer: bool = False
    int8: bool = False


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def steps(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        scale = 10.0 ** math.floor(math.log10(rough))
        step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [step * index for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def curves_svg(
    title: str, metric: str, series: Sequence[Series], baseline: float, floor: float = 20.0
) -> str:
    """Accuracy against MACs (left) and against measured latency (right), both relative to the original.

    Args:
        title: Above the plot.
        metric: What is on the axis of accuracy.
        series: In the order of the legend.
        baseline: The original's accuracy in percent, a dashed line.
        floor: Points further below the baseline than this are drawn as triangles at the lower edge.
    """
    seen = [point for item in series for point in item.points]
    worst = min((point.accuracy for point in seen), default=baseline)
    best = max((point.accuracy for point in seen), default=baseline)
    low = max(min(worst, baseline), baseline - floor)
    margin = max(0.08 * (max(best, baseline) - low), 0.5)
    y = Axis(low - margin, max(best, baseline) + margin, _BOTTOM, _TOP)
    # A long legend makes the picture taller.
    height = max(HEIGHT, _TOP + 8 + _ROW * len(series))
    parts = [
        tag("rect", x=0, y=0, width=WIDTH, height=height, fill="#ffffff"),
        tag("text", title, x=_LEFT, y=26, font_size=17, font_weight="bold"),
    ]
    panels = (
        ("MACs, % of the original", [point.macs for point in seen]),
        ("measured latency, % of the original (batch 1, 1 thread)", [point.latency for point in seen]),
    )
    for index, (name, values) in enumerate(panels):
        start = _LEFT + index * (_PANEL + _GAP)
        known = [value for value in values if value is not None] + [100.0]
        edge = max(0.05 * (max(known) - min(known)), 1.5)
        x = Axis(min(known) - edge, max(known) + edge, start, start + _PANEL)
        parts += _frame(x, y, name, metric if index == 0 else "", baseline, labelled=index == 0)
        for item in series:
            places = [(point.macs if index == 0 else point.latency, point.accuracy) for point in item.points]
            if index == 0:
                places.sort(key=lambda place: place[0] if place[0] is not None else 0.0)
            parts += _line([place for place in places if place[0] is not None], item, x, y)  # type: ignore[misc]
    parts += _legend(series)
    return picture(parts, WIDTH, height, f"{title}: accuracy by work and by measured latency")


def _frame(x: Axis, y: Axis, name: str, metric: str, baseline: float, *, labelled: bool) -> list[Markup]:
    parts: list[Markup] = []
    for value in y.steps(6):
        level = _px(y.at(value))
        parts.append(tag("line", x1=_px(x.start), x2=_px(x.end), y1=level, y2=level, stroke=_GRID))
        if labelled:
            place = {"x": _px(x.start - 8), "y": _px(y.at(value) + 4)}
            parts.append(tag("text", f"{value:g}", font_size=12, text_anchor="end", fill=_GREY, **place))
    for value in x.steps(6):
        parts.append(tag("line", x1=_px(x.at(value)), x2=_px(x.at(value)), y1=_TOP, y2=_BOTTOM, stroke=_GRID))
        place = {"x": _px(x.at(value)), "y": _BOTTOM + 18}
        parts.append(tag("text", f"{value:g}", font_size=12, text_anchor="middle", fill=_GREY, **place))
    level = _px(y.at(baseline))
    parts.append(
        tag(
            "line",
            x1=_px(x.start),
            x2=_px(x.end),
            y1=level,
            y2=level,
            stroke="#18181b",
            stroke_dasharray="2 4",
        )
    )
    middle = _px((x.start + x.end) / 2)
    parts.append(tag("text", name, x=middle, y=_BOTTOM + 42, font_size=13, text_anchor="middle"))
    if metric:
        parts.append(tag("text", metric, x=_px(x.start), y=_TOP - 12, font_size=13))
    return parts


def _line(places: Sequence[tuple[float, float]], item: Series, x: Axis, y: Axis) -> list[Markup]:
    """Markers, and what joins them; where accuracy falls below the edge, the line ends there."""
    if not places:
        return []
    dots = [(x.at(value), y.at(max(accuracy, y.low)), accuracy < y.low) for value, accuracy in places]
    path = " ".join(f"{'ML'[index > 0]}{a:.1f} {b:.1f}" for index, (a, b, _) in enumerate(dots))
    dash = {"stroke_dasharray": "6 4"} if item.peer else {}
    parts = [
        tag("path", d=path, fill="none", stroke=item.colour, stroke_width=2, stroke_opacity="0.8", **dash)
    ]
    for (value, accuracy), (a, b, below) in zip(places, dots, strict=True):
        title = tag("title", f"{item.label}: {accuracy:.2f} % at {value:.0f} %")
        parts.append(_marker(a, b, item, title, below))
    return parts


def _marker(x: float, y: float, item: Series, title: Markup | None, below: bool = False) -> Markup:
    """A disc; a square for peers, a diamond for INT8, a triangle that points down where the value is off the plot."""
    inner = () if title is None else (title,)
    fill = "#ffffff" if item.peer else item.colour
    look = {"fill": fill, "stroke": item.colour, "stroke_width": 1.6}
    if below:
        d = f"M{x - 5:.1f} {y - 8:.1f}h10l-5 8z"
    elif item.peer:
        d = f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z"
    elif item.int8:
        d = f"M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
    else:
        return tag("circle", *inner, cx=_px(x), cy=_px(y), r=4, **look)
    return tag("path", *inner, d=d, **look)


def _legend(series: Sequence[Series]) -> list[Markup]:
    parts: list[Markup] = []
    for index, item in enumerate(series):
        y = _TOP + 8 + _ROW * index
        dash = {"stroke_dasharray": "6 4"} if item.peer else {}
        ends = {"x1": _LEGEND, "x2": _LEGEND + 28, "y1": y, "y2": y}
        parts.append(tag("line", stroke=item.colour, stroke_width=2, **ends, **dash))
        parts.append(_marker(_LEGEND + 14, y, item, None))
        parts.append(tag("text", item.label, x=_LEGEND + 36, y=y + 4, font_size=12.5))
    return parts


def _px(value: float) -> str:
    return f"{value:.1f}"
