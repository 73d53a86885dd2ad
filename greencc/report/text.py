"""The final table of the command line, as rich renderables. It reads without colour and at 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greencc.core.report import Figures, Ratio, Report
from greencc.report import build
from greencc.report.energy import notes
from greencc.report.figures import Row, capitalized, figure_rows, latency_estimated, measured_rows, printable
from greencc.report.plan import plan_sentences
from greencc.report.verdict import judge

_PLAN_POINTERS = (
    "The bundle's report.html draws the plans and says why each unit is as it is, as does 'greencc explain'."
)


def summary(report: Report) -> RenderableType:
    """Verdict, table of baseline / artifact / ratio, the plan, what is known of energy and carbon, and warnings."""
    verdict = judge(report)
    parts: list[RenderableType] = [Text(verdict.headline, style="bold")]
    if verdict.notice is not None:
        parts.append(Text(verdict.notice, style="bold yellow"))
    parts += [Text(), figures_table(report)]
    sentences = " ".join(verdict.details)
    parts += [Text(), Text(sentences)]
    if report.plan is not None:
        parts += [Text(), Text(" ".join([*plan_sentences(report), _PLAN_POINTERS]))]
    if report.build is not None:
        parts += _build(report)
    found = notes(report)
    for note in found:
        parts += [Text(), Text(note)]
    if found and report.warnings:
        parts.append(Text())
    for warning in report.warnings:
        parts.append(_warning(warning))
    return Group(*parts)


def _build(report: Report) -> list[RenderableType]:
    """What was checked of an artifact that goes to a device, and what is left to do there."""
    lines = [f"{name}: {result}. {note}." for name, result, note in build.check_rows(report)]
    steps = build.steps(report)
    lines += [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    return [Text(), Text("\n".join(lines))] if lines else []


def figures_table(report: Report) -> Table:
    """Baseline / artifact / ratio of a compile."""
    return _table(figure_rows(report))


def measurement_table(
    baseline: Figures, artifact: Figures, ratio: Ratio, conditions: Mapping[str, object]
) -> Table:
    """Baseline / artifact / ratio of a measurement, which has no accuracy; its conditions tell what may be claimed."""
    return _table(measured_rows(baseline, artifact, ratio, conditions))


def _table(rows: Sequence[Row]) -> Table:
    """What the ratio means is said in words, never by colour alone."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
    table.add_column("", overflow="fold")
    table.add_column("Baseline", justify="right", overflow="fold")
    table.add_column("Artifact", justify="right", overflow="fold")
    table.add_column("Change", overflow="fold")
    for row in rows:
        table.add_row(Text(row.label), _cell(row.baseline), _cell(row.artifact), _change(row))
    return table


def candidates_table(report: Report) -> Table:
    """The forms the compile considered."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    latency = "Latency, estimated" if latency_estimated(report.baseline, report.artifact) else "Latency"
    for name, justify in (("Form", "left"), (latency, "right"), ("Drop", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    table.add_column("", overflow="fold")
    for item in report.candidates:
        table.add_row(
            Text(("* " if item.chosen else "  ") + printable(item.name)),
            "" if item.latency_ms is None else f"{item.latency_ms:.3g} ms",
            "" if item.drop is None else f"{item.drop * 100:.2f} points",
            Text(printable(item.reason)),
        )
    return table


def _cell(text: str) -> Text:
    # The interval goes on a line of its own, so that figures line up and fit.
    return Text(text.replace(" [", "\n["))


def _change(row: Row) -> Text:
    if not row.change:
        return Text("")
    # Blue and yellow are told apart by every kind of colour blindness; the words carry the meaning.
    gained = any(word in row.change for word in ("faster", "smaller", "saves", "fewer"))
    lost = any(word in row.change for word in ("slower", "larger", "costs"))
    style = "bold blue" if gained else ("bold yellow" if lost else "")
    return Text(row.change.replace(" [", "\n["), style=style)


def _warning(text: str) -> Text:
    return Text.assemble(("Warning: ", "bold yellow"), capitalized(printable(text)))
