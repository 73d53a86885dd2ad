"""The matrix report on a terminal, as rich renderables; it reads without colour."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from greencc.core.report_matrix import MatrixReport
from greencc.report import matrix_text as text
from greencc.report.figures import capitalized, printable


def matrix_summary(report: MatrixReport) -> RenderableType:
    """Headline, the table of targets, the cross check, and warnings."""
    parts: list[RenderableType] = [Text(text.headline(report), style="bold"), Text(), _targets(report)]
    checked = [found for found in text.cross_tables(report) if found.lines]
    if checked:
        parts += [Text(), _cross(checked)]
    for warning in report.warnings:
        message = capitalized(printable(warning))
        parts += [Text(), Text.assemble(("Warning: ", "bold yellow"), message)]
    return Group(*parts)


def _targets(report: MatrixReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Target", overflow="fold", min_width=8)
    for name in text.TARGET_HEADER[1:5]:
        table.add_column(name, overflow="fold")
    for line in text.target_lines(report):
        if line.failed:
            table.add_row(Text(printable(line.target)), Text("no bundle", style="yellow"), "", "", "")
        else:
            cells = ("\n".join(map(printable, parts)) for parts in line.cells[:4])
            table.add_row(Text(printable(line.target)), *map(Text, cells))
    return table


def _cross(tables: list[text.CrossTable]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left")
    table.title = "The same file under the arithmetic of other machines"
    table.add_column("File", overflow="fold")
    table.add_column("Sums", overflow="fold")
    for name in text.CROSS_HEADER[2:]:
        table.add_column(name, justify="right")
    for found in tables:
        for index, line in enumerate(found.lines):
            title = found.title.removeprefix("The file for ") if index == 0 else ""
            style = "yellow" if line.worse else ""
            mark = " (beyond the limit)" if line.worse else ""
            table.add_row(Text(printable(title)), Text(line.arithmetic + mark, style=style), *line.cells)
    return table
