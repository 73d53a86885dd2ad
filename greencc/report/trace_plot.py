"""A campaign's power against time as one SVG file: idle windows and blocks shaded, discarded ones hatched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from greencc.core.data import Array
from greencc.report.figures import number, printable
from greencc.report.svg import tag, ticks

_WIDTH, _HEIGHT = 960, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 64, 292
# One column of the plot is a mean with its extremes: a trace has more points than the plot has pixels.
_COLUMNS = 880
_STYLE = Markup("""
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #333; }
.title { font-size: 15px; font-weight: 600; }
.grid { stroke: #ddd; }
.axis { stroke: #555; }
.idle { fill: #d9dde2; }
.baseline { fill: #cfe1f7; }
.artifact { fill: #d3eed3; }
.mean { fill: none; stroke: #1b1f24; stroke-width: 1.2; stroke-linejoin: round; }
.range { fill: #1b1f24; fill-opacity: 0.18; }
""")


@dataclass(frozen=True)
class Span:
    """A shaded stretch of time: `kind` is ``idle``, ``baseline`` or ``artifact``."""

    kind: str
    begin: float
    end: float
    discarded: bool = False


def trace_plot(seconds: Array, watts: Array, spans: Sequence[Span], *, title: str, subtitle: str) -> str:
    """Render the plot.

    Args:
        seconds: Times of the readings, rising. NaN in `watts` breaks the line.
        watts: Mean power since the reading before.
        spans: What to shade.
        title: First line.
        subtitle: Second line: grade and boundary of the meter.
    """
    start = float(min([*seconds[:1], *(span.begin for span in spans)], default=0.0))
    end = float(max([*seconds[-1:], *(span.end for span in spans)], default=1.0))
    length = max(end - start, 1e-9)
    top_watts = _top(watts)

    def x(at: float) -> float:
        return round(_LEFT + (at - start) / length * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(value: float) -> float:
        return round(_BOTTOM - value / top_watts * (_BOTTOM - _TOP), 2)

    parts: list[Markup] = [
        tag("style", _STYLE),
        tag(
            "defs",
            tag(
                "pattern",
                tag("path", d="M0 6L6 0", stroke="#b3261e", stroke_width="1.2"),
                id="hatch",
                width="6",
                height="6",
                patternUnits="userSpaceOnUse",
            ),
        ),
        tag("text", printable(title), x=_LEFT, y="20", class_="title"),
        tag("text", printable(subtitle), x=_LEFT, y="38"),
        *_legend(spans),
    ]
    for span in spans:
        place = {
            "x": x(span.begin),
            "y": _TOP,
            "width": round(x(span.end) - x(span.begin), 2),
            "height": _BOTTOM - _TOP,
        }
        parts.append(tag("rect", tag("title", _describe(span, start)), class_=span.kind, **place))
        if span.discarded:
            parts.append(tag("rect", fill="url(#hatch)", **place))
    for value in ticks(top_watts, 5):
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", f"{value:g} W", x=_LEFT - 6, y=y(value) + 4, text_anchor="end"))
    for value in ticks(length, 8):
        parts.append(tag("text", f"{value:g} s", x=x(start + value), y=_BOTTOM + 18, text_anchor="middle"))
    parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="axis"))
    for columns in _columns(seconds, watts, start, length):
        upper = " ".join(f"{x(at)},{y(high)}" for at, _, _, high in columns)
        lower = " ".join(f"{x(at)},{y(low)}" for at, _, low, _ in reversed(columns))
        parts.append(tag("polygon", points=f"{upper} {lower}", class_="range"))
        parts.append(
            tag(
                "polyline", points=" ".join(f"{x(at)},{y(mean)}" for at, mean, _, _ in columns), class_="mean"
            )
        )
    caption = "Line: mean power of each pixel; band: lowest and highest reading in it."
    parts.append(tag("text", caption, x=_LEFT, y=_HEIGHT - 8))
    svg = tag(
        "svg",
        tag("title", printable(title)),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        role="img",
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{svg}\n'


def _top(watts: Array) -> float:
    known = watts[np.isfinite(watts)]
    return float(known.max()) * 1.08 if len(known) and known.max() > 0.0 else 1.0


def _legend(spans: Sequence[Span]) -> list[Markup]:
    parts: list[Markup] = []
    place = _LEFT
    kinds = [kind for kind in ("idle", "baseline", "artifact") if any(span.kind == kind for span in spans)]
    for kind in kinds:
        parts.append(tag("rect", x=place, y="46", width="12", height="12", class_=kind))
        parts.append(tag("text", kind, x=place + 17, y="56"))
        place += 90
    if any(span.discarded for span in spans):
        parts.append(tag("rect", x=place, y="46", width="12", height="12", fill="url(#hatch)"))
        parts.append(tag("text", "discarded", x=place + 17, y="56"))
    return parts


def _describe(span: Span, start: float) -> str:
    state = ", discarded" if span.discarded else ""
    return f"{span.kind}, {number(span.begin - start)} to {number(span.end - start)} s{state}"


_Column = tuple[float, float, float, float]


def _columns(seconds: Array, watts: Array, start: float, length: float) -> list[list[_Column]]:
    """Time, mean, lowest and highest of every column that has readings, in unbroken stretches."""
    stretches: list[list[_Column]] = [[]]
    column = np.minimum((seconds - start) / length * _COLUMNS, _COLUMNS - 1).astype(int)
    edges = np.flatnonzero(np.diff(column)) + 1
    for times, values in zip(np.split(seconds, edges), np.split(watts, edges), strict=True):
        known = values[np.isfinite(values)]
        if len(known) < len(values) and stretches[-1]:
            stretches.append([])
        if len(known):
            stretches[-1].append(
                (float(times.mean()), float(known.mean()), float(known.min()), float(known.max()))
            )
    return [stretch for stretch in stretches if stretch]
