"""Plots of the backends' benchmark: small panels of lines, one per model, and layers under their roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from benchmarks.peaks import Peaks
from benchmarks.pictures import picture
from greencc.report.svg import tag

_GREY, _GRID = "#52525b", "#e4e4e7"
_COLUMNS = 4
_PANEL_WIDTH, _PANEL_HEIGHT = 190, 130
_GAP_X, _GAP_Y = 62, 66
_LEFT, _TOP, _LEGEND_ROW = 60, 60, 22
_ROOF = (60, 560, 70, 400)
"""Left, right, top and bottom of a roofline."""


@dataclass(frozen=True)
class Line:
    """Points (x, y), both above 0; FP32 is solid, INT8 dashed."""

    label: str
    colour: str
    dashed: bool
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One model."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from `low` to `high` on the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def marks(self) -> list[float]:
        """1, 2, 5 times powers of ten, or powers of ten alone where those are many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if math.log10(self.high / self.low) < 1.7 else (1,)
        values = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


def scaling_svg(title: str, across: str, up: str, panels: Sequence[Panel]) -> str:
    """A grid of panels with logarithmic axes; every size that was measured has a mark.

    Args:
        title: Above all.
        across: What is on the horizontal axes.
        up: What is on the vertical axes.
        panels: At least one, each with a point.
    """
    names = list(dict.fromkeys((line.label, line.colour, line.dashed) for panel in panels for line in panel.lines))
    rows = -(-len(panels) // _COLUMNS)
    width = _LEFT + _COLUMNS * (_PANEL_WIDTH + _GAP_X)
    legend = _TOP + rows * (_PANEL_HEIGHT + _GAP_Y) + 4
    height = legend + _LEGEND_ROW * -(-len(names) // _COLUMNS) + 6
    parts = [
        tag("rect", x=0, y=0, width=width, height=height, fill="#ffffff"),
        tag("text", title, x=_LEFT, y=22, font_size=16, font_weight="bold"),
        tag("text", f"{up}, by {across}", x=_LEFT, y=40, font_size=12, fill=_GREY),
    ]
    for index, panel in enumerate(panels):
        left = _LEFT + index % _COLUMNS * (_PANEL_WIDTH + _GAP_X)
        top = _TOP + index // _COLUMNS * (_PANEL_HEIGHT + _GAP_Y) + 16
        parts += _panel(panel, left, top)
    for index, (label, colour, dashed) in enumerate(names):
        x = _LEFT + index % _COLUMNS * (_PANEL_WIDTH + _GAP_X)
        y = legend + index // _COLUMNS * _LEGEND_ROW
        parts.append(tag("line", x1=x, x2=x + 26, y1=y, y2=y, stroke=colour, stroke_width=2, **_dash(dashed)))
        parts.append(tag("text", label, x=x + 32, y=y + 4, font_size=12))
    return picture(parts, width, height, f"{title}: {up} by {across}")


def _panel(panel: Panel, left: float, top: float) -> list[Markup]:
    right, bottom = left + _PANEL_WIDTH, top + _PANEL_HEIGHT
    points = [point for line in panel.lines for point in line.points]
    across = sorted({x for x, _ in points})
    low, high = min(y for _, y in points), max(y for _, y in points)
    x = Scale(across[0] / 1.1, across[-1] * 1.1, left, right)
    y = Scale(low / 1.15, high * 1.15, bottom, top)
    parts = [tag("text", panel.title, x=left, y=top - 7, font_size=12, font_weight="bold")]
    for value in y.marks():
        level = y.at(value)
        parts.append(tag("line", x1=left, x2=right, y1=level, y2=level, stroke=_GRID))
        label = {"x": left - 5, "y": level + 4, "font_size": 11, "text_anchor": "end", "fill": _GREY}
        parts.append(tag("text", f"{value:g}", **label))
    for value in across:
        place = {"x": x.at(value), "y": bottom + 15, "font_size": 11, "text_anchor": "middle", "fill": _GREY}
        parts.append(tag("text", f"{value:g}", **place))
    for line in panel.lines:
        ends = [(x.at(a), y.at(b)) for a, b in line.points]
        path = " ".join(f"{'ML'[index > 0]}{a} {b}" for index, (a, b) in enumerate(ends))
        parts.append(tag("path", d=path, fill="none", stroke=line.colour, stroke_width=1.8, **_dash(line.dashed)))
        for (a, b), (size, value) in zip(ends, line.points, strict=True):
            note = tag("title", f"{panel.title}, {line.label}: {value:.3g} at {size:g}")
            parts.append(tag("circle", note, cx=a, cy=b, r=2.6, fill=line.colour))
    return parts


def _dash(dashed: bool) -> dict[str, str]:
    return {"stroke_dasharray": "5 3"} if dashed else {}


@dataclass(frozen=True)
class Dot:
    """A layer: operations per byte, operations per second that it reached, and its share of the artifact's time."""

    series: str
    colour: str
    title: str
    intensity: float
    rate: float
    share: float


def roofline_svg(title: str, peaks: Peaks, panels: Sequence[tuple[str, bool, Sequence[Dot]]]) -> str:
    """Layers under the roof of their arithmetic, panels side by side.

    Args:
        title: Above all.
        peaks: Of the machine. The slopes are the smallest, the middle and the largest buffer measured.
        panels: Their title, whether they are about integers, and their layers; the area of a dot is its share of time.
    """
    left, right, top, bottom = _ROOF
    step = right + 70
    series = list(dict.fromkeys((dot.series, dot.colour) for _, _, dots in panels for dot in dots))
    width, height = step * len(panels), bottom + 62 + _LEGEND_ROW * -(-len(series) // _COLUMNS)
    parts = [
        tag("rect", x=0, y=0, width=width, height=height, fill="#ffffff"),
        tag("text", title, x=left, y=24, font_size=16, font_weight="bold"),
    ]
    for index, (name, integers, dots) in enumerate(panels):
        parts += _roof(name, integers, dots, peaks, (left + index * step, right + index * step, top, bottom))
    for index, (label, colour) in enumerate(series):
        x, y = left + index % _COLUMNS * 230, bottom + 60 + index // _COLUMNS * _LEGEND_ROW
        parts.append(tag("circle", cx=x + 5, cy=y - 4, r=5, fill=colour, fill_opacity=0.6))
        parts.append(tag("text", label, x=x + 16, y=y, font_size=12))
    return picture(parts, width, height, title)


def _roof(
    name: str, integers: bool, dots: Sequence[Dot], peaks: Peaks, place: tuple[float, float, float, float]
) -> list[Markup]:
    left, right, top, bottom = place
    peak = peaks.ops(integers)
    tops = [dot.rate for dot in dots] + ([peak] if peak else [])
    x = Scale(min([1.0, *(dot.intensity for dot in dots)]) / 1.3, max(dot.intensity for dot in dots) * 1.5, left, right)
    y = Scale(min(dot.rate for dot in dots) / 1.5, max(tops) * 1.6, bottom, top)
    parts = [tag("text", name, x=left, y=top - 12, font_size=13, font_weight="bold")]
    for value in y.marks():
        parts.append(tag("line", x1=left, x2=right, y1=y.at(value), y2=y.at(value), stroke=_GRID))
        label = {"x": left - 6, "y": y.at(value) + 4, "font_size": 11, "text_anchor": "end", "fill": _GREY}
        parts.append(tag("text", f"{value / 1e9:g}", **label))
    for value in x.marks():
        parts.append(tag("line", x1=x.at(value), x2=x.at(value), y1=top, y2=bottom, stroke=_GRID))
        label = {"x": x.at(value), "y": bottom + 16, "font_size": 11, "text_anchor": "middle", "fill": _GREY}
        parts.append(tag("text", f"{value:g}", **label))
    middle = {"x": (left + right) / 2, "y": bottom + 34, "font_size": 12, "text_anchor": "middle"}
    parts.append(tag("text", "operations per byte (Gop/s upwards)", **middle))
    if peak:
        parts.append(tag("line", x1=left, x2=right, y1=y.at(peak), y2=y.at(peak), stroke="#18181b", stroke_width=1.5))
        note = {"x": right, "y": y.at(peak) - 5, "font_size": 11, "text_anchor": "end"}
        parts.append(tag("text", f"{peak / 1e9:.0f} Gop/s", **note))
    for size, rate in slopes(peaks):
        parts += _slope(x, y, size, rate, peak or max(tops))
    for dot in dots:
        note = tag("title", f"{dot.title}: {dot.rate / 1e9:.3g} Gop/s, {100 * dot.share:.1f} % of the time")
        radius = 2.0 + 16.0 * math.sqrt(dot.share)
        at = {"cx": x.at(dot.intensity), "cy": y.at(dot.rate), "r": f"{radius:.1f}"}
        parts.append(tag("circle", note, fill=dot.colour, fill_opacity=0.45, stroke=dot.colour, **at))
    return parts


def slopes(peaks: Peaks) -> list[tuple[int, float]]:
    """Sizes and rates to draw: of the smallest, the middle and the largest buffer."""
    sizes = peaks.bandwidth
    return [sizes[index] for index in sorted({0, len(sizes) // 2, len(sizes) - 1})]


def _slope(x: Scale, y: Scale, size: int, rate: float, peak: float) -> list[Markup]:
    """The line of a bandwidth, from the lower edge to the peak, as far as it is in the panel."""
    start, end = max(x.low, y.low / rate), min(x.high, peak / rate)
    if start >= end:
        return []
    ends = {"x1": x.at(start), "y1": y.at(start * rate), "x2": x.at(end), "y2": y.at(end * rate)}
    unit = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
    note = tag("title", f"{rate / 1e9:.0f} GB/s from {unit}")
    return [
        tag("line", note, stroke=_GREY, stroke_dasharray="3 3", **ends),
        tag("text", f"{rate / 1e9:.0f} GB/s ({unit})", x=ends["x1"] + 4, y=ends["y1"] - 6, font_size=10, fill=_GREY),
    ]
