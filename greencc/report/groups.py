"""The prune groups of a model as a picture: a bar for each, and arcs for the layers between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from greencc.report.figures import printable, shorten
from greencc.report.svg import tag

_ROW = 30
_LABELS, _BARS, _ARCS, _REASONS = 290, 300, 130, 400
_NUMBERS = 110
_TOP, _BOTTOM = 88, 66
_PARAMS, _MACS, _LOCKED, _LOCKED_MACS = "#2563a8", "#8fb8e0", "#71717a", "#c4c4cb"
_DOWN, _UP = "#15803d", "#d97706"
_FAINT, _GRID = "#52525b", "#e4e4e7"
_LONGEST_LABEL, _LONGEST_REASON = 34, 58
# Of the text in the drawing, in pixels per character: SVG cannot measure it.
_ADVANCE = 6.4


@dataclass(frozen=True)
class GroupBar:
    """A group: its name, what it has ("64 channels"), its shares of the model, and why it is locked (or None)."""

    name: str
    what: str
    params: float
    macs: float | None
    reason: str | None


@dataclass(frozen=True)
class Arc:
    """A layer that reads the channels of the group number `source` and computes those of number `target`."""

    source: int
    target: int
    layer: str


def groups_svg(bars: Sequence[GroupBar], arcs: Sequence[Arc], title: str) -> str:
    """A standalone SVG: groups in graph order with their shares, arcs from what a layer reads to what it writes."""
    locked = any(bar.reason is not None for bar in bars)
    width = _LABELS + _BARS + _NUMBERS + _ARCS + (_REASONS if locked else 0)
    height = _TOP + _ROW * len(bars) + _BOTTOM
    largest = max((max(bar.params, bar.macs or 0.0) for bar in bars), default=0.0)
    step = next(
        step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if 5 * step >= min(largest, 5.0)
    )
    end = step * max(1, math.ceil(largest / step - 1e-9))
    parts: list[Markup] = [
        tag("rect", x=0, y=0, width=width, height=height, fill="#ffffff"),
        tag("text", shorten(printable(title), width // 9), x=12, y=26, font_size=16, font_weight="bold"),
        *_legend(locked),
        *_grid(end, step, height),
    ]
    for index, bar in enumerate(bars):
        parts += _row(bar, _TOP + _ROW * index, end)
    parts += _arcs(arcs, len(bars))
    notes = (
        "A weight belongs to the group that it computes and to the one that it reads: the shares add up to more "
        "than 100 %.",
        "An arc is a layer that reads the channels of one group and computes those of another; a thick one stands for "
        "several.",
    )
    for line, note in enumerate(notes):
        parts.append(tag("text", note, x=12, y=height - 28 + 17 * line, font_size=12, fill=_FAINT))
    return str(
        tag(
            "svg",
            tag("title", printable(title)),
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {width} {height}",
            font_family="system-ui, sans-serif",
            fill="#18181b",
            role="img",
        )
    )


def _legend(locked: bool) -> list[Markup]:
    entries = [(_PARAMS, "parameters"), (_MACS, "multiply-accumulates")]
    if locked:
        entries += [(_LOCKED, "the same of groups that must stay"), (_LOCKED_MACS, "")]
    parts: list[Markup] = []
    x = 12.0
    for index, (colour, text) in enumerate(entries):
        parts.append(tag("rect", x=x, y=44, width=12, height=12, fill=colour))
        if index == 2:
            parts.append(tag("rect", x=x + 14, y=44, width=12, height=12, fill=_LOCKED_MACS))
            x += 14
        parts.append(tag("text", text, x=x + 18, y=55, font_size=13))
        x += 34 + _ADVANCE * 1.1 * len(text)
        if index == 2:
            break
    for colour, text in ((_DOWN, "layer, downwards"), (_UP, "upwards")):
        parts.append(tag("path", d=f"M{x:.0f} 50h14", stroke=colour, stroke_width="2.5", fill="none"))
        parts.append(tag("text", text, x=x + 20, y=55, font_size=13))
        x += 36 + _ADVANCE * 1.1 * len(text)
    return parts


def _grid(end: float, step: float, height: int) -> list[Markup]:
    parts: list[Markup] = []
    for tick in range(round(end / step) + 1):
        x = _LABELS + _BARS * tick * step / end
        parts.append(tag("line", x1=x, x2=x, y1=_TOP - 6, y2=height - _BOTTOM + 2, stroke=_GRID))
        label = f"{100 * tick * step:.0f} %"
        parts.append(tag("text", label, x=x, y=_TOP - 12, font_size=11, text_anchor="middle", fill=_FAINT))
    return parts


def _row(bar: GroupBar, y: int, end: float) -> list[Markup]:
    free = bar.reason is None
    name = printable(bar.name)
    parts = [
        tag(
            "text",
            shorten(name, _LONGEST_LABEL),
            tag("title", name),
            x=_LABELS - 10,
            y=y + 13,
            font_size=12,
            font_weight="600" if free else "400",
            text_anchor="end",
            fill="#18181b" if free else _FAINT,
        ),
        tag(
            "text",
            printable(bar.what),
            x=_LABELS - 10,
            y=y + 26,
            font_size=11,
            text_anchor="end",
            fill=_FAINT,
        ),
    ]
    shares = (
        (bar.params, "parameters", _PARAMS if free else _LOCKED),
        (bar.macs, "multiply-accumulates", _MACS if free else _LOCKED_MACS),
    )
    for line, (share, what, colour) in enumerate(shares):
        if share is None:
            continue
        parts.append(
            tag(
                "rect",
                tag("title", f"{name}: {share:.1%} of the {what}"),
                x=_LABELS,
                y=y + 4 + 11 * line,
                width=f"{_BARS * share / end:.1f}",
                height=10,
                fill=colour,
            )
        )
    numbers = f"{bar.params:.1%}" + ("" if bar.macs is None else f" / {bar.macs:.1%}")
    parts.append(
        tag(
            "text",
            numbers,
            x=_LABELS + _BARS + _NUMBERS - 14,
            y=y + 19,
            font_size=11,
            text_anchor="end",
            fill=_FAINT,
        )
    )
    if bar.reason is not None:
        reason = printable(bar.reason)
        text = tag("title", reason)
        x = _LABELS + _BARS + _NUMBERS + _ARCS
        shown = f"stays: {shorten(reason, _LONGEST_REASON)}"
        parts.append(tag("text", shown, text, x=x, y=y + 19, font_size=11, fill=_FAINT))
    return parts


def _arcs(arcs: Sequence[Arc], rows: int) -> list[Markup]:
    """One arc per pair of groups, as far to the side as its ends are apart; long ones first, beneath the others."""
    pairs = Counter((arc.source, arc.target) for arc in arcs)
    layers: dict[tuple[int, int], list[str]] = {}
    for arc in arcs:
        layers.setdefault((arc.source, arc.target), []).append(printable(arc.layer))
    parts: list[Markup] = []
    left = _LABELS + _BARS + _NUMBERS
    most = max((abs(a - b) for a, b in pairs), default=1) or 1
    for (source, target), count in sorted(pairs.items(), key=lambda pair: -abs(pair[0][0] - pair[0][1])):
        start, stop = (_TOP + _ROW * row + _ROW / 2 for row in (source, target))
        # Arrows leave a row below its middle and arrive above it, so that there and back are told apart.
        start, stop = (start - 6, stop + 6) if source == target else (start + 4, stop - 4)
        reach = (_ARCS - 34) * (0.25 + 0.75 * math.sqrt(abs(source - target) / most))
        colour = _DOWN if target > source else _UP
        x = left + reach * 4 / 3
        line = f"M{left} {start:.1f}C{x:.1f} {start:.1f} {x:.1f} {stop:.1f} {left + 5} {stop:.1f}"
        names = tag("title", ", ".join(layers[source, target]))
        parts.append(
            tag(
                "path",
                names,
                d=line,
                stroke=colour,
                stroke_width=f"{min(1.0 + 0.6 * count, 4.0):.1f}",
                fill="none",
                opacity="0.8",
            )
        )
        head = f"M{left} {stop:.1f}l8 -3.5v7z"
        parts.append(tag("path", names, d=head, fill=colour))
    return parts
