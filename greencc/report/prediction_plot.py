"""How good the tables of a plan were: measured against predicted, for one quantity."""

from __future__ import annotations

import math

from markupsafe import Markup

from greencc.report import plan as words
from greencc.report.figures import printable, share
from greencc.report.svg import tag

_MOST = 400


def prediction_plot(found: words.Accuracy) -> Markup:
    """Measured against predicted, with the line where they are equal; on both axes the same scale."""
    values = [value for item in found.pairs for value in (item.predicted, item.measured)]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low > 20.0
    if logarithmic:
        values = [math.log(value) for value in values]
        low, high = min(values), max(values)
    elif low >= 0:
        low = 0.0
    room = (high - low) or abs(high) or 1.0
    low, high = low - 0.06 * room, high + 0.06 * room
    height = 150

    def part(value: float) -> float:
        value = math.log(value) if logarithmic else value
        return (value - low) / (high - low)

    parts = [tag("rect", x="0", y="0", width="100%", height=height, class_="frame")]
    parts.append(tag("line", x1="0", y1=height, x2="100%", y2="0", class_="equal"))
    for item in found.pairs[:_MOST]:
        text = (
            f"{printable(item.point)}: predicted {words.amount(item.predicted, found.unit)}, "
            f"measured {words.amount(item.measured, found.unit)}"
        )
        place = {
            "cx": f"{100 * part(item.predicted):.2f}%",
            "cy": round(height * (1 - part(item.measured)), 1),
        }
        parts.append(tag("circle", tag("title", text), r="4", class_="dot", **place))
    parts.append(tag("text", "measured", x="6", y="16", class_="tick"))
    parts.append(tag("text", "predicted", x="99%", y=height - 7, text_anchor="end", class_="tick"))
    title = f"{words.quantity_label(found.quantity)}, measured against predicted"
    median = "no relative error" if found.median is None else f"median error {share(found.median, 2)}"
    description = f"{len(found.pairs)} pairs, {median}" + (", logarithmic scales." if logarithmic else ".")
    return tag(
        "svg",
        tag("title", title),
        tag("desc", description),
        *parts,
        class_="plot pairs",
        width="100%",
        height=height,
        role="img",
        aria_label=f"{title}. {description}",
    )
