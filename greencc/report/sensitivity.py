"""The sensitivity table as a terminal table and as a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

from greencc.report.svg import tag

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROW = 22
_LABELS = 300
_WIDTH = 960
_TOP, _BOTTOM = 64, 44
_COLOURS = ("#2563a8", "#d97706", "#15803d")
# Errors smaller than the largest by more decades are drawn as none.
_MOST_DECADES, _FEWEST_DECADES = 8, 3
_LONGEST_LABEL = 44


def sensitivity_svg(
    names: Sequence[str], precisions: Sequence[str], errors: Sequence[dict[str, float]], title: str
) -> str:
    """A standalone SVG: one bar per layer and precision on a logarithmic axis, layers in graph order.

    Args:
        names: Of the layers.
        precisions: The series, at most three.
        errors: For each layer its error by precision; absent ones are not drawn.
        title: Above the plot.
    """
    seen = [value for row in errors for value in row.values() if value > 0]
    top = math.ceil(math.log10(max(seen))) if seen else 0
    lowest = math.floor(math.log10(min(seen))) if seen else top
    decades = min(max(top - lowest, _FEWEST_DECADES), _MOST_DECADES)
    bottom = top - decades
    height = _TOP + _ROW * len(names) + _BOTTOM
    span = _WIDTH - _LABELS - 20
    parts: list[Markup] = [
        tag("rect", x=0, y=0, width=_WIDTH, height=height, fill="#ffffff"),
        tag("text", title, x=12, y=24, font_size=16, font_weight="bold"),
        *_legend(precisions),
    ]
    for exponent in range(bottom, top + 1):
        x = _LABELS + span * (exponent - bottom) / decades
        parts.append(tag("line", x1=x, x2=x, y1=_TOP - 4, y2=height - _BOTTOM + 4, stroke="#d4d4d8"))
        parts.append(
            tag("text", f"1e{exponent}", x=x, y=height - _BOTTOM + 22, font_size=12, text_anchor="middle")
        )
    caption = "KL divergence of the class probabilities, or noise over signal power"
    parts.append(tag("text", caption, x=_LABELS + span / 2, y=height - 6, font_size=12, text_anchor="middle"))
    bar = (_ROW - 6) / max(len(precisions), 1)
    for index, (name, row) in enumerate(zip(names, errors, strict=True)):
        y = _TOP + _ROW * index
        shown = name if len(name) <= _LONGEST_LABEL else f"...{name[3 - _LONGEST_LABEL :]}"
        parts.append(
            tag("text", shown, tag("title", name), x=_LABELS - 8, y=y + 15, font_size=12, text_anchor="end")
        )
        for series, precision in enumerate(precisions):
            value = row.get(precision, 0.0)
            if value <= 10.0**bottom:
                continue
            width = span * (math.log10(value) - bottom) / decades
            parts.append(
                tag(
                    "rect",
                    tag("title", f"{name}, {precision}: {value:.3g}"),
                    x=_LABELS,
                    y=f"{y + 3 + series * bar:.1f}",
                    width=f"{width:.1f}",
                    height=f"{bar:.1f}",
                    fill=_COLOURS[series],
                )
            )
    return str(
        tag(
            "svg",
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            width=_WIDTH,
            height=height,
            viewBox=f"0 0 {_WIDTH} {height}",
            font_family="system-ui, sans-serif",
            fill="#18181b",
            role="img",
        )
    )


def _legend(precisions: Sequence[str]) -> list[Markup]:
    parts: list[Markup] = []
    for index, precision in enumerate(precisions):
        x = _LABELS + 150 * index
        parts.append(tag("rect", x=x, y=36, width=12, height=12, fill=_COLOURS[index]))
        parts.append(tag("text", precision, x=x + 18, y=47, font_size=13))
    return parts
