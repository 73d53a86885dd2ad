"""The matrix report (one model, several targets) as JSON, Markdown and HTML."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from greencc.core.report_matrix import MATRIX_SCHEMA, MatrixReport
from greencc.report import figures as show
from greencc.report import matrix_text as text
from greencc.report.json_out import dump_document, from_plain, parse_document, read_document
from greencc.report.markdown import bullets, escape, section, table
from greencc.report.page import page_environment


def dump_matrix(report: MatrixReport) -> str:
    """Return the JSON text, ending in a newline; see `greencc.report.json_out` for the rules."""
    return dump_document(report, "matrix")


def load_matrix(path: Path) -> MatrixReport:
    """Read a `matrix.json`.

    Raises:
        InputError: It is missing, not JSON, of another schema, or a field is missing or of the wrong type.
    """
    written = read_document(path, "matrix")
    data = parse_document(written, f"cannot read the matrix {path}: it", MATRIX_SCHEMA)
    return from_plain(data, MatrixReport, str(path))


def render_matrix_markdown(report: MatrixReport) -> str:
    """Return GitHub-flavoured Markdown, ending in a newline. Names are escaped."""
    columns = text.form_columns(report)
    forms = [
        (row.target, *(" / ".join(cell.text for cell in text.form_cells(row, column)) for column in columns))
        for row in report.rows
        if row.result is not None
    ]
    targets = [
        (line.target, *(", ".join(parts) for parts in line.cells)) for line in text.target_lines(report)
    ]
    parts = [
        f"# {escape(report.model.name)} on {len(report.rows)} targets",
        f"**{escape(text.headline(report))}**",
        *section("Warnings", bullets(show.capitalized(line) for line in report.warnings)),
        *section("Targets", table(text.TARGET_HEADER, targets)),
        *section("Every form", table(("Target", *columns), forms)),
        *([escape(text.FORMS_NOTE)] if forms else []),
        *section("The same file on other machines", _cross(report)),
        *section("Time", table(text.TIME_HEADER, text.time_lines(report), right=(1, 2, 3))),
        escape(text.provenance(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _cross(report: MatrixReport) -> str:
    parts = []
    for found in text.cross_tables(report):
        rows = [(line.arithmetic, line.machines, *line.cells) for line in found.lines]
        if rows:
            parts.append(f"**{escape(found.title)}**")
            parts.append(table(text.CROSS_HEADER, rows, right=(2, 3, 4)))
        else:
            parts.append(escape(f"{found.title}: {found.note}."))
    return "\n\n".join([*parts, escape(text.CROSS_NOTE)]) if parts else ""


def _spec(text: str) -> Markup:
    """A target that may be broken behind the commas between its options."""
    return Markup(",<wbr>").join(show.printable(text).split(","))


def render_matrix_html(report: MatrixReport) -> str:
    """Return the page, self-contained: no network, no fonts, no script. Every text is escaped."""
    environment = page_environment()
    environment.filters.update(capitalized=show.capitalized, unbroken=show.unbroken, spec=_spec)
    columns = text.form_columns(report)
    return environment.get_template("matrix.html.j2").render(
        report=report,
        headline=text.headline(report),
        lead=text.lead(report),
        lines=text.target_lines(report),
        columns=columns,
        forms=[
            (row.target, [text.form_cells(row, column) for column in columns])
            for row in report.rows
            if row.result is not None
        ],
        forms_note=text.FORMS_NOTE,
        cross=text.cross_tables(report),
        cross_header=text.CROSS_HEADER,
        cross_note=text.CROSS_NOTE,
        target_header=text.TARGET_HEADER,
        time_header=text.TIME_HEADER,
        times=text.time_lines(report),
        provenance=text.provenance(report),
    )
