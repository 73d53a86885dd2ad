"""Small inline SVG plots that stay readable at any width.

Positions along x are percentages and text has a fixed size, so a plot fills its container without scaling its labels
(a viewBox would shrink them on a phone). Shapes that need a path live in a nested, stretched viewport. Colours come
from the page's CSS classes, so that dark mode and print apply. Text is escaped by markupsafe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from greencc.core.report import Latency, LayerError
from greencc.report.figures import MINUS, printable, time_ms

# Runs beyond this multiple of the slower p99 are counted in the caption instead of squeezing the plot.
_HEADROOM = 1.12
_BINS = 140
_REFERENCE_DB = 20.0
# Room for the labels of the y axis, in percent; they are 36 pixels wide.
_LEFT = 13.0


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """One element. A trailing underscore in an attribute's name is dropped, other underscores become hyphens."""
    listed = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
    )
    inner = Markup("").join(escape(child) for child in children)
    # `name` is one of this module's own literals.
    opening, closing = Markup(f"<{name}"), Markup(f"</{name}>")  # noqa: S704
    return opening + listed + Markup(">") + inner + closing


@dataclass(frozen=True)
class LatencyPlot:
    """The plot, and how many runs lie beyond its right edge."""

    svg: Markup
    beyond: int


def latency_plot(baseline: Latency, artifact: Latency) -> LatencyPlot | None:
    """Distributions of single-run latencies, one row each over a shared axis that starts at 0.

    Returns None when there are no samples, as of an estimate.
    """
    if not baseline.samples or not artifact.samples:
        return None
    tails = baseline.percentiles, artifact.percentiles
    # A few stragglers must not squeeze both distributions into one bar.
    p95, p99 = (max(tail[percentile] for tail in tails) for percentile in (95, 99))
    median = max(baseline.median, artifact.median)
    reach = max(median, min(p99, max(1.25 * p95, 2.5 * median)))
    end = reach * _HEADROOM or 1.0
    rows = ((baseline, "Baseline", "b"), (artifact, "Artifact", "a"))
    parts: list[Markup] = []
    height = 84
    for index, (latency, label, css) in enumerate(rows):
        parts += _latency_row(latency, label, css, end, top=index * height)
    bottom = len(rows) * height
    parts += _time_axis(end, bottom)
    beyond = sum(sample > end for latency, _, _ in rows for sample in latency.samples)
    title = "Distribution of single-run latencies"
    description = (
        f"Baseline: median {time_ms(baseline.median)}, p95 {time_ms(tails[0][95])}. "
        f"Artifact: median {time_ms(artifact.median)}, p95 {time_ms(tails[1][95])}."
    )
    return LatencyPlot(figure(title, description, bottom + 24, parts), beyond)


def _latency_row(latency: Latency, label: str, css: str, end: float, top: int) -> list[Markup]:
    base = top + 76
    summary = f"median {time_ms(latency.median)}"
    p95 = latency.percentiles[95]
    return [
        tag("text", label, x="0", y=top + 14, class_=f"label {css}"),
        tag("text", summary, x="100%", y=top + 14, text_anchor="end", class_="value"),
        tag(
            "svg",
            tag("path", d=_histogram(latency.samples, end), class_=f"area {css}"),
            x="0",
            y=top + 24,
            width="100%",
            height=base - top - 24,
            viewBox="0 0 1000 100",
            preserveAspectRatio="none",
        ),
        tag("line", x1="0", x2="100%", y1=base, y2=base, class_="axis"),
        _marker(latency.median, end, top + 20, base, f"median {css}", f"{label}: {summary}"),
        _marker(min(p95, end), end, top + 46, base, f"p95 {css}", f"{label}: p95 {time_ms(p95)}"),
    ]


def _marker(value: float, end: float, top: int, bottom: int, css: str, title: str) -> Markup:
    x = percent(value / end)
    return tag("line", tag("title", title), x1=x, x2=x, y1=top, y2=bottom, class_=css)


def _histogram(samples: Sequence[float], end: float) -> str:
    """Path of a histogram in a 1000 x 100 box, as high as its fullest bin."""
    counts = [0] * _BINS
    for sample in samples:
        if 0.0 <= sample <= end:
            counts[min(_BINS - 1, int(sample / end * _BINS))] += 1
    top = max(counts) or 1
    width = 1000 / _BINS
    path = ["M0 100"]
    for index, count in enumerate(counts):
        y = f"{100 - 100 * count / top:.1f}"
        path.append(f"L{index * width:.1f} {y}L{(index + 1) * width:.1f} {y}")
    return "".join(path) + "L1000 100Z"


def _time_axis(end: float, y: int) -> list[Markup]:
    parts = []
    factor, unit = (1.0, "ms") if end < 1000 else (1e-3, "s")
    if end < 1:
        factor, unit = 1e3, "µs"
    for value in ticks(end, 5):
        anchor = "start" if value == 0 else ("end" if value > 0.95 * end else "middle")
        text = "0" if value == 0 else f"{value * factor:g} {unit}"
        parts.append(tag("text", text, x=percent(value / end), y=y + 14, text_anchor=anchor, class_="tick"))
    return parts


def sqnr_plot(errors: Sequence[LayerError]) -> Markup | None:
    """SQNR of every layer in graph order, with the line where the error is a tenth of the signal."""
    if not errors:
        return None
    values = [item.sqnr_db for item in errors]
    high = max(*values, _REFERENCE_DB + 10.0)
    low = min(0.0, *values)
    steps = ticks(high - low, 4)
    span = steps[-1] + (steps[1] if steps[-1] < high - low else 0.0)
    low = math.floor(low / steps[1]) * steps[1]
    high = low + span if low + span >= high else high
    top, bottom = 14, 194

    def y(value: float) -> float:
        return round(bottom - (value - low) / (high - low) * (bottom - top), 1)

    parts: list[Markup] = []
    for step in range(int((high - low) / steps[1]) + 1):
        value = low + step * steps[1]
        parts.append(tag("line", x1="0", x2="100%", y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", f"{value:g} dB".replace("-", MINUS), x="0", y=y(value) - 4, class_="tick"))
    line = y(_REFERENCE_DB)
    parts.append(tag("line", x1="0", x2="100%", y1=line, y2=line, class_="reference"))
    count = len(errors)
    for index, item in enumerate(errors):
        x = _LEFT + (99.0 - _LEFT) * (index + 0.5) / count
        title = tag("title", f"{printable(item.name)} ({printable(item.op_type)}): {item.sqnr_db:.1f} dB")
        parts.append(_dot(x, y(item.sqnr_db), item.sqnr_db < _REFERENCE_DB, title))
    parts.append(tag("text", "first layer", x=f"{_LEFT}%", y=bottom + 16, class_="tick"))
    parts.append(tag("text", "last layer", x="99%", y=bottom + 16, text_anchor="end", class_="tick"))
    below = sum(value < _REFERENCE_DB for value in values)
    description = f"{count} layers, lowest {min(values):.1f} dB, {below} below {_REFERENCE_DB:g} dB."
    return figure("Signal to quantization noise ratio by layer", description, bottom + 26, parts)


def _dot(x: float, y: float, low: bool, title: Markup) -> Markup:
    """A filled dot; below the reference a larger ring, told apart by shape as well as colour."""
    place = {"cx": f"{x:.2f}%", "cy": y}
    if low:
        return tag("circle", title, r="5", class_="ring", **place)
    return tag("circle", title, r="3", class_="dot", **place)


def bars(values: Sequence[tuple[float | None, str]], end: float) -> Markup:
    """Horizontal bars under one another, each (value, CSS class), on a scale from 0 to `end`. Decoration: its
    numbers stand beside it as text, so it is hidden from screen readers.
    """
    parts = [
        tag("rect", x="0", y=index * 9, width=percent(max(value, 0.0) / end), height=7, rx="1.5", class_=css)
        for index, (value, css) in enumerate(values)
        if value is not None and end > 0
    ]
    return tag("svg", *parts, class_="bars", width="100%", height=9 * len(values) - 2, aria_hidden="true")


def ticks(end: float, most: int) -> list[float]:
    """Round values from 0 up to `end`: at most `most` + 1 of them, at least two."""
    if end <= 0 or not math.isfinite(end):
        return [0.0, 1.0]
    rough = end / most
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    return [index * step for index in range(max(1, int(end / step + 1e-9)) + 1)]


def figure(title: str, description: str, height: int, parts: Sequence[Markup]) -> Markup:
    """A plot that fills its container's width, with what it shows as text for those who do not see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        class_="plot",
        width="100%",
        height=height,
        role="img",
        aria_label=f"{title}. {description}",
    )


def percent(share: float) -> str:
    """A share of the width."""
    return f"{100 * share:.2f}%"


def _attribute(value: object) -> str:
    return printable(value)
