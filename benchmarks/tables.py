"""Cells and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Row

NONE = "–"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def ratio_text(ratio: Row | None) -> str:
    """``1.74 [1.61, 1.89]``, an open end where the interval has none."""
    if ratio is None:
        return NONE
    ends = [NONE if ratio[key] is None else f"{ratio[key]:.2f}" for key in ("low", "high")]
    if ratio["low"] == ratio["high"] or (ratio["high"] is None and not ratio["low"]):
        return f"{ratio['value']:.2f}"
    return f"{ratio['value']:.2f} [{ends[0]}, {ends[1]}]"


def percent(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
