"""The page that plots of benchmarks are drawn on."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from greencc.report.svg import tag


def picture(parts: Sequence[Markup], width: float, height: float, label: str) -> str:
    """An SVG file of what was drawn; `label` is for people who cannot see it."""
    return str(
        tag(
            "svg",
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {width} {height}",
            font_family="system-ui, sans-serif",
            fill="#18181b",
            role="img",
            aria_label=label,
        )
    )
