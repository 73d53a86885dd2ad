"""Which run time was chosen among those that competed, and why."""

from __future__ import annotations

from greencc.core.report import BackendTrial, Report
from greencc.report.figures import MISSING, interval_text, number, points, printable, time_ms

HEADER = ("Run time", "Form", "Latency", "As fast as the first", "Drop", "", "Why")


def winner(report: Report) -> BackendTrial | None:
    """What was shipped on another run time than the compile's own; None where that one was kept."""
    return next((item for item in report.backends[1:] if item.chosen), None)


def sentence(report: Report) -> str | None:
    """The choice in one sentence, None where there was none."""
    if not report.backends:
        return None
    first, *others = report.backends
    if (found := winner(report)) is not None:
        return (
            f"Run time: {printable(found.backend)}, where {printable(found.form)} was {_speed(found)} as fast as "
            f"{printable(first.form)} on {printable(first.backend)}, {_how(found)}."
        )
    timed = [item for item in others if item.ratio is not None]
    if not timed:
        return f"Run time: {printable(first.backend)}; no other was timed."
    best = max(timed, key=lambda item: item.ratio.value if item.ratio is not None else 0.0)
    return (
        f"Run time: {printable(first.backend)}; the fastest of the others, {printable(best.form)}, was {_speed(best)} "
        f"as fast, {_how(best)}."
    )


def rows(report: Report) -> list[tuple[str, ...]]:
    """The cells of a table under `HEADER`."""
    return [
        (
            item.backend,
            item.form,
            MISSING if item.latency_ms is None else time_ms(item.latency_ms),
            MISSING if item.ratio is None else _speed(item),
            MISSING if item.drop is None else f"{points(item.drop)} points",
            "chosen" if item.chosen else "",
            _why(item),
        )
        for item in report.backends
    ]


def _why(item: BackendTrial) -> str:
    return f"{item.reason} (beside other processes)".lstrip() if item.busy and item.ratio else item.reason


def _how(item: BackendTrial) -> str:
    """How it was timed: what holds beside other processes need not hold without them."""
    return "measured in turns beside other processes that were busy" if item.busy else "in turns"


def _speed(item: BackendTrial) -> str:
    ratio = item.ratio
    if ratio is None:
        return MISSING
    if ratio.low == ratio.high:
        return f"{number(ratio.value)}x"
    return f"{number(ratio.value)}x {interval_text(ratio)}"
