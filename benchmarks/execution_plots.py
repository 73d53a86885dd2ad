"""Wall time of error tables, and the simulated schedules, as one standalone SVG of three panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from benchmarks.compression_plots import Axis
from benchmarks.pictures import picture
from greencc.report.svg import tag

_WIDTH, _HEIGHT = 1060, 400
_TOP, _BOTTOM, _LEFT, _PANEL, _GAP = 64, 300, 62, 270, 72
_COLOURS = ("#18181b", "#2563eb", "#059669", "#d97706", "#7c3aed")
_GREY, _GRID = "#52525b", "#e4e4e7"

Lines = Mapping[str, Sequence[tuple[float, float]]]
"""Points of each series by its name."""


def panels_svg(title: str, panels: Sequence[tuple[str, str, Lines]]) -> str:
    """Line plots side by side; each panel is its x label, its y label and its lines. Both axes start at 0."""
    parts = [
        tag("rect", x=0, y=0, width=_WIDTH, height=_HEIGHT, fill="#ffffff"),
        tag("text", title, x=_LEFT, y=26, font_size=17, font_weight="bold"),
    ]
    for index, (across, up, lines) in enumerate(panels):
        start = _LEFT + index * (_PANEL + _GAP)
        points = [point for line in lines.values() for point in line]
        x = Axis(0.0, 1.05 * max(point[0] for point in points), start, start + _PANEL)
        y = Axis(0.0, 1.1 * max(point[1] for point in points), _BOTTOM, _TOP)
        parts += _frame(x, y, across, up)
        for number, (name, line) in enumerate(lines.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            parts += _line(x, y, line, colour, name)
            row = _BOTTOM + 58 + 16 * (number // 2)
            column = start + _PANEL // 2 * (number % 2)
            parts.append(tag("circle", cx=column + 5, cy=row - 4, r=4, fill=colour))
            parts.append(tag("text", name, x=column + 14, y=row, font_size=12))
    return picture(parts, _WIDTH, _HEIGHT, title)


def _frame(x: Axis, y: Axis, across: str, up: str) -> list[Markup]:
    parts: list[Markup] = []
    for value in y.steps(5):
        level = f"{y.at(value):.1f}"
        parts.append(tag("line", x1=x.start, x2=x.end, y1=level, y2=level, stroke=_GRID))
        place = {"x": x.start - 8, "y": f"{y.at(value) + 4:.1f}"}
        parts.append(tag("text", f"{value:g}", font_size=12, text_anchor="end", fill=_GREY, **place))
    for value in x.steps(5):
        place = {"x": f"{x.at(value):.1f}", "y": _BOTTOM + 18}
        parts.append(tag("text", f"{value:,g}", font_size=12, text_anchor="middle", fill=_GREY, **place))
    middle = f"{(x.start + x.end) / 2:.1f}"
    parts.append(tag("text", across, x=middle, y=_BOTTOM + 38, font_size=13, text_anchor="middle"))
    parts.append(tag("text", up, x=x.start, y=_TOP - 12, font_size=13))
    return parts


def _line(x: Axis, y: Axis, line: Sequence[tuple[float, float]], colour: str, name: str) -> list[Markup]:
    dots = [(x.at(a), y.at(b)) for a, b in sorted(line)]
    path = " ".join(f"{'ML'[index > 0]}{a:.1f} {b:.1f}" for index, (a, b) in enumerate(dots))
    parts = [tag("path", d=path, fill="none", stroke=colour, stroke_width=2)]
    for (a, b), (across, up) in zip(dots, sorted(line), strict=True):
        note = tag("title", f"{name}: {up:.3g} at {across:g}")
        parts.append(tag("circle", note, cx=f"{a:.1f}", cy=f"{b:.1f}", r=3.5, fill=colour))
    return parts
