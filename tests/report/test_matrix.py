"""The matrix report: what its cells claim, what they do not, and names that try to break out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from greencc.core.report import NOTHING_CONVERTED, BuildInfo, Candidate, Interval, Report
from greencc.core.report_matrix import (
    ArithmeticResult,
    CrossRow,
    MatrixReport,
    TargetFailure,
    TargetResult,
    TargetRow,
)
from greencc.report import matrix_text
from greencc.report.matrix import dump_matrix, render_matrix_html, render_matrix_markdown
from greencc.report.matrix_table import matrix_summary

FORMS = (
    Candidate("original", 2.0, 0.0, False, "the model as it came"),
    Candidate("fp32", 1.5, 0.0, False, "slower"),
    Candidate("int8-minmax", 0.5, 0.004, True, "the fastest <b>form</b>"),
    Candidate("int8-mse", None, 0.03, False, "loses more than the limit"),
    Candidate("plan-7", None, None, False, "cannot run"),
)


def result(report: Report, target: str) -> TargetResult:
    return TargetResult(
        bundle=f"net.{target}.greencc",
        verdict="INT8: 4.00× faster.",
        precision="int8",
        runs_on=target,
        device="Test CPU",
        baseline=report.baseline,
        artifact=report.artifact,
        ratio=report.ratio,
        accuracy=replace(report.accuracy, drop=0.0032, epsilon=0.01),
        met=True,
        forms=FORMS,
        build=None,
        warnings=(),
    )


def cross(loss: float, limit: float = 0.01) -> CrossRow:
    results = (
        ArithmeticResult("as shipped", "cpu on Test CPU", False, 0.92, 0.002, 0.0),
        ArithmeticResult("16-bit pairs", "x86 without VNNI", True, 0.922 - loss, loss, 0.08),
    )
    warnings = ("the file for cpu loses 6.00 points",) if loss - 0.002 > limit else ()
    return CrossRow(
        "cpu", "net.cpu.greencc/artifact/model.onnx", "top-1 accuracy", 500, results, "", warnings
    )


@pytest.fixture
def matrix(full_report: Report) -> MatrixReport:
    rows = (
        TargetRow("cpu", 30.0, 0, 0.0, result(full_report, "cpu"), None),
        TargetRow("jetson", 12.0, 7, 4.2, replace(
            result(full_report, "jetson"), build=BuildInfo("not built on the device", built=False)
        ), None),
        TargetRow("tvm-arm", 2.0, 1, 0.4, None, TargetFailure("no <compiler> is here", "apt-get it", 5)),
    )  # fmt: skip
    none = CrossRow("jetson", "x", "", 0, (), "its activations are floats", ())
    return MatrixReport(
        greencc="0.1",
        created="2026-01-01T00:00:00+00:00",
        model=full_report.model,
        asked={},
        max_drop=0.01,
        rows=rows,
        cross=(cross(0.06), none),
        seconds=44.0,
    )


def terminal(report: MatrixReport) -> str:
    console = Console(width=160, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(matrix_summary(report))
    return capture.get()


def test_headlines(matrix: MatrixReport) -> None:
    assert matrix_text.headline(matrix) == (
        "2 of 3 targets have a bundle; one file loses more than the limit on other machines."
    )
    fine = replace(matrix, rows=matrix.rows[:2], cross=(cross(0.004),))
    assert matrix_text.headline(fine) == (
        "All 2 targets have a bundle; the one file that was checked keeps the limit under every arithmetic."
    )
    assert matrix_text.headline(replace(fine, cross=())) == "All 2 targets have a bundle."


def test_every_format_says_what_failed_and_what_is_worse(matrix: MatrixReport) -> None:
    assert matrix.exit_code == 5
    assert matrix.warnings == (
        "no bundle for tvm-arm: no <compiler> is here",
        "the file for cpu loses 6.00 points",
    )
    for text in (render_matrix_html(matrix), render_matrix_markdown(matrix), terminal(matrix)):
        assert "6.00 points" in text
        assert "compiler" in text
        assert "16-bit pairs" in text
        assert "not built on the device" in text


def test_markup_in_names_stays_text(matrix: MatrixReport) -> None:
    page, markdown = render_matrix_html(matrix), render_matrix_markdown(matrix)
    assert "<compiler>" not in page
    assert "&lt;compiler&gt;" in page
    assert "<b>form</b>" not in page
    assert "\\<compiler\\>" in markdown


def test_the_page_needs_nothing_from_elsewhere(matrix: MatrixReport) -> None:
    page = render_matrix_html(matrix)
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert 'href="net.cpu.greencc/report.html"' in page


def test_forms_are_sorted_into_columns(matrix: MatrixReport) -> None:
    assert matrix_text.form_columns(matrix) == ["original", "fp32", "int8", "other"]
    shipped, beyond = matrix_text.form_cells(matrix.rows[0], "int8")
    assert (shipped.kind, beyond.kind) == ("shipped", "over")
    assert shipped.text.startswith("int8-minmax: −0.32, ")
    assert shipped.text.endswith("shipped")
    assert beyond.text == "int8-mse: −3.00"
    (unknown,) = matrix_text.form_cells(matrix.rows[0], "other")
    assert unknown.text == "–"
    assert matrix_text.form_cells(matrix.rows[2], "int8") == []
    assert "planning split" in matrix_text.FORMS_NOTE


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("original", "original"), ("fp32", "fp32"), ("int8", "int8"), ("int8-entropy-adaround", "int8"),
        ("int8-dynamic", "int8-dynamic"), ("int8-weights", "int8-weights"), ("mixed-minmax", "mixed"),
        ("plan 3", "other"),
    ],
)  # fmt: skip
def test_families(name: str, column: str) -> None:
    assert matrix_text.family(name) == column


def test_many_forms_of_a_kind_are_cut(matrix: MatrixReport) -> None:
    row = matrix.rows[0]
    assert row.result is not None
    many = tuple(Candidate(f"int8-{index}", None, index / 1000, index == 7, "") for index in range(9))
    cells = matrix_text.form_cells(replace(row, result=replace(row.result, forms=many)), "int8")
    assert [cell.name for cell in cells] == ["int8-7", "int8-0", "int8-1", "int8-2", ""]
    assert cells[-1].text == "and 5 more"


def test_a_form_in_which_nothing_was_converted_is_not_shown_as_one_that_loses_nothing(
    matrix: MatrixReport,
) -> None:
    row = matrix.rows[0]
    assert row.result is not None
    none = Candidate("int8", None, None, False, NOTHING_CONVERTED)
    with_none = replace(row, result=replace(row.result, forms=(none,)))
    (cell,) = matrix_text.form_cells(with_none, "int8")
    assert (cell.text, cell.kind) == ("nothing to convert", "")
    named = replace(row, result=replace(row.result, forms=(none, *FORMS)))
    assert "int8: nothing to convert" in [cell.text for cell in matrix_text.form_cells(named, "int8")]


def test_every_line_of_an_estimate_calls_itself_one(matrix: MatrixReport) -> None:
    row = matrix.rows[0]
    assert row.result is not None
    found = row.result
    assert found.artifact.energy_mj is not None
    guessed = replace(
        found.artifact,
        latency_ms=replace(found.artifact.latency_ms, method="estimated: a model"),
        energy_mj=replace(found.artifact.energy_mj, grade="D"),
    )
    one = Interval(1.5, 1.2, 1.8)
    ratio = replace(found.ratio, latency=one, energy=one)
    (line,) = matrix_text.target_lines(
        replace(matrix, rows=(replace(row, result=replace(found, artifact=guessed, ratio=ratio)),))
    )
    assert line.cells[2][-1] == "1.50× faster [1.20, 1.80], estimated"
    assert line.cells[3][-1].startswith("saves 33 %")
    assert line.cells[3][-1].endswith("estimated")


def test_nothing_is_claimed_of_a_busy_machine(matrix: MatrixReport) -> None:
    row = matrix.rows[0]
    assert row.result is not None
    doubt = "other processes were busy while measuring"
    doubted = replace(row, result=replace(row.result, latency_doubt=doubt, energy_doubt=doubt))
    (line,) = matrix_text.target_lines(replace(matrix, rows=(doubted,)))
    latency, energy = line.cells[2], line.cells[3]
    assert latency[-1] == energy[-1] == f"no saving claimed: {doubt}"
    assert not any("faster" in part for part in latency)
    (sure,) = matrix_text.target_lines(replace(matrix, rows=(row,)))
    assert "faster" in sure.cells[2][-1]
    assert any("grade" in part for part in sure.cells[3])


def test_json_has_no_nan_and_keeps_the_schema(matrix: MatrixReport) -> None:
    text = dump_matrix(matrix)
    assert '"schema": "greencc.matrix/1"' in text
    assert text.endswith("}\n")
