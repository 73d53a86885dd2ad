"""Energy in every format: net and gross, what may be claimed of it, and what a meter that failed leaves."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from greencc.core.report import Energy, Interval, Report
from greencc.report import figures_table, judge, render_html, render_markdown
from greencc.report.figures import figure_rows, measured_rows
from greencc.report.json_out import dump_report


def measured_report(report: Report, baseline: Energy, artifact: Energy, **fields: Any) -> Report:
    return replace(
        report,
        baseline=replace(report.baseline, energy_mj=baseline),
        artifact=replace(report.artifact, energy_mj=artifact),
        **fields,
    )


NET = Energy(1.0, 0.9, 1.1, "B", "package-0", "measured with rapl", 1.5, 1.42, 1.58)
GROSS = Energy(2.0, 1.9, 2.1, "B", "package-0", "measured with rapl, gross")


def test_gross_stands_beside_net_in_every_format(full_report: Report) -> None:
    report = measured_report(full_report, NET, replace(NET, value=0.5, low=0.4, high=0.6))
    rows = {row.label: row for row in figure_rows(report)}
    net, gross = rows["Energy, measured (B), net"], rows["Energy, measured (B), gross"]
    assert (net.baseline, net.change) == ("1.00 mJ [900 µJ, 1.10 mJ]", "saves 47 % [38, 54]")
    assert (gross.baseline, gross.change) == ("1.50 mJ [1.42 mJ, 1.58 mJ]", "")
    assert gross.note == "measured, grade B: package-0, idle power included"
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(figures_table(report))
    for text in (console.export_text(), render_markdown(report), render_html(report)):
        assert "Energy, measured (B), net" in text
        assert "Energy, measured (B), gross" in text
        assert "1.42 mJ" in text.replace("\N{NO-BREAK SPACE}", " ")
    data = json.loads(dump_report(report))["baseline"]["energy_mj"]
    assert [data[key] for key in ("gross", "gross_low", "gross_high")] == [1.5, 1.42, 1.58]
    assert "47 % less energy and" in judge(report).headline
    assert "measured, grade B, net" in render_html(report)


def test_a_gross_ratio_is_called_gross_and_stands_beside_gross_figures(full_report: Report) -> None:
    report = measured_report(full_report, GROSS, replace(GROSS, value=1.0, low=0.9, high=1.1))
    labels = [row.label for row in figure_rows(report)]
    assert [label for label in labels if "nergy" in label] == ["Energy, measured (B), gross"]
    row = figure_rows(report)[labels.index("Energy, measured (B), gross")]
    assert (row.baseline, row.change) == ("2.00 mJ [1.90 mJ, 2.10 mJ]", "saves 47 % [38, 54], gross")
    assert "47 % less energy (gross)" in judge(report).headline
    assert "Measured energy (grade B, package-0, gross): saves" in judge(report).text
    # One side alone is known net: both are shown gross.
    mixed = measured_report(full_report, NET, GROSS)
    row = next(row for row in figure_rows(mixed) if row.label == "Energy, measured (B), gross")
    assert (row.baseline, row.artifact) == ("1.50 mJ [1.42 mJ, 1.58 mJ]", "2.00 mJ [1.90 mJ, 2.10 mJ]")


def test_nothing_is_claimed_of_energy_that_rests_on_part_of_the_measurement(full_report: Report) -> None:
    report = measured_report(full_report, NET, NET, conditions={"energy_problem": "the rail vanished"})
    row = next(row for row in figure_rows(report) if row.label == "Energy, measured (B), net")
    assert row.change == "no saving claimed"
    assert row.note.endswith("; the energy rests on part of the measurement")
    verdict = judge(report)
    assert verdict.headline.startswith("INT8: 1.84× faster and 3.87× smaller;")
    assert "net): no saving claimed: the energy rests on part of the measurement." in verdict.text
    assert "no saving claimed" in render_html(report)
    # An estimate after a meter that gave nothing is whole.
    estimated = replace(full_report, conditions=report.conditions)
    assert "47 % less energy (estimated)" in judge(estimated).headline


def test_an_artifact_beside_itself_shows_noise(full_report: Report) -> None:
    ratio = replace(full_report.ratio, energy=Interval(1.17, 1.08, 1.28))
    report = measured_report(full_report, NET, NET, ratio=ratio)
    rows = {
        row.label: row.change
        for row in measured_rows(report.baseline, report.artifact, ratio, {"same_artifact": True})
    }
    assert rows["Latency, median"] == "1.84× [1.79, 1.90], noise"
    assert rows["Energy, measured (B), net"] == "1.17× [1.08, 1.28], noise"
