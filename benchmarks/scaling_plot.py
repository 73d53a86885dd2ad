"""Time against size on logarithmic axes, as a small standalone SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.pictures import picture
from greencc.report.svg import tag

_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 520, 64, 352
_GREY, _GRID = "#52525b", "#e4e4e7"
_ROW = 24


@dataclass(frozen=True)
class Curve:
    """Points (size, seconds), both above 0."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def scaling_svg(title: str, across: str, up: str, curves: Sequence[Curve]) -> str:
    """Curves over decades.

    Args:
        title: Above the plot.
        across: What is on the horizontal axis.
        up: What is on the vertical axis.
        curves: In the order of the legend, at least one point in all.
    """
    points = [point for curve in curves for point in curve.points]
    columns = _decades([point[0] for point in points])
    rows = _decades([point[1] for point in points])
    parts = [
        tag("rect", x=0, y=0, width=_WIDTH, height=_HEIGHT, fill="#ffffff"),
        tag("text", title, x=_LEFT, y=26, font_size=17, font_weight="bold"),
        tag("text", up, x=_LEFT, y=_TOP - 12, font_size=13),
        tag("text", across, x=(_LEFT + _RIGHT) / 2, y=_BOTTOM + 42, font_size=13, text_anchor="middle"),
    ]
    for power in range(columns[0], columns[1] + 1):
        x = _place(10.0**power, columns, _LEFT, _RIGHT)
        parts.append(tag("line", x1=x, x2=x, y1=_TOP, y2=_BOTTOM, stroke=_GRID))
        text = f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"
        parts.append(tag("text", text, x=x, y=_BOTTOM + 18, font_size=12, text_anchor="middle", fill=_GREY))
    for power in range(rows[0], rows[1] + 1):
        y = _place(10.0**power, rows, _BOTTOM, _TOP)
        parts.append(tag("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, stroke=_GRID))
        parts.append(
            tag("text", f"{10.0**power:g}", x=_LEFT - 8, y=y + 4, font_size=12, text_anchor="end", fill=_GREY)
        )
    for index, curve in enumerate(curves):
        parts += _drawn(curve, columns, rows)
        parts += _named(curve, _TOP + 8 + _ROW * index)
    return picture(parts, _WIDTH, _HEIGHT, f"{title}: {up} by {across}")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _place(value: float, decades: tuple[int, int], start: float, end: float) -> float:
    share = (math.log10(value) - decades[0]) / (decades[1] - decades[0])
    return round(start + share * (end - start), 1)


def _drawn(curve: Curve, columns: tuple[int, int], rows: tuple[int, int]) -> list[Markup]:
    places = [(_place(x, columns, _LEFT, _RIGHT), _place(y, rows, _BOTTOM, _TOP)) for x, y in curve.points]
    path = " ".join(f"{'ML'[index > 0]}{x} {y}" for index, (x, y) in enumerate(places))
    dash = {"stroke_dasharray": "6 4"} if curve.dashed else {}
    parts = [tag("path", d=path, fill="none", stroke=curve.colour, stroke_width=2, **dash)]
    for (x, y), (size, seconds) in zip(places, curve.points, strict=True):
        title = tag("title", f"{curve.label}: {seconds:.3g} at {size:,}")
        fill = "#ffffff" if curve.dashed else curve.colour
        parts.append(
            tag("circle", title, cx=x, cy=y, r=3.5, fill=fill, stroke=curve.colour, stroke_width=1.6)
        )
    return parts


def _named(curve: Curve, y: float) -> list[Markup]:
    dash = {"stroke_dasharray": "6 4"} if curve.dashed else {}
    x = _RIGHT + 26
    line = tag("line", x1=x, x2=x + 28, y1=y, y2=y, stroke=curve.colour, stroke_width=2, **dash)
    return [line, tag("text", curve.label, x=x + 36, y=y + 4, font_size=12.5)]
