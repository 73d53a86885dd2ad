"""Which run time was chosen, and why, in every form of the report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from greencc.core.report import BackendTrial, Interval, Report
from greencc.report import dump_report, parse_report, render_html, render_markdown
from greencc.report.run_times import sentence
from greencc.report.verdict import judge

OWN = BackendTrial(
    "cpu", "int8", 25.0, Interval(1.0, 1.0, 1.0), 0.001, chosen=False, reason="not chosen: slower"
)
FAST = BackendTrial(
    "openvino:threads=1",
    "int8 on openvino",
    18.0,
    Interval(1.39, 1.36, 1.42),
    0.002,
    chosen=True,
    reason="fastest",
)
FAILED = BackendTrial(
    "tvm-cpu", "fp32 on <tvm>", None, None, None, chosen=False, reason="not tried: no operator 'Foo|Bar'"
)


def on(report: Report, *rows: BackendTrial) -> Report:
    return replace(report, backends=rows)


def kept(row: BackendTrial) -> BackendTrial:
    return replace(row, chosen=not row.chosen)


def test_another_run_time(full_report: Report) -> None:
    report = on(full_report, OWN, FAST, FAILED)
    assert sentence(report) == (
        "Run time: openvino:threads=1, where int8 on openvino was 1.39x [1.36, 1.42] as fast as int8 on cpu, in turns."
    )
    verdict = judge(report)
    assert " on openvino" in verdict.headline
    assert sentence(report) in verdict.details
    assert " on openvino" not in judge(full_report).headline


def test_the_compiles_own(full_report: Report) -> None:
    report = on(full_report, kept(OWN), replace(kept(FAST), ratio=Interval(0.9, 0.88, 0.92)), FAILED)
    assert sentence(report) == (
        "Run time: cpu; the fastest of the others, int8 on openvino, was 0.9x [0.88, 0.92] as fast, in turns."
    )
    assert " on " not in judge(report).headline.split(":")[0]
    assert sentence(on(full_report, kept(OWN), FAILED)) == "Run time: cpu; no other was timed."
    assert sentence(full_report) is None


def test_a_busy_machine_is_told(full_report: Report) -> None:
    report = on(full_report, replace(OWN, busy=True), replace(FAST, busy=True), FAILED)
    how = "measured in turns beside other processes that were busy."
    found = sentence(report)
    assert found is not None
    assert found.endswith(f"1.39x [1.36, 1.42] as fast as int8 on cpu, {how}")
    lost = sentence(on(full_report, replace(kept(OWN), busy=True), replace(kept(FAST), busy=True)))
    assert lost is not None
    assert lost.endswith(f"as fast, {how}")
    for shown in (render_markdown(report), render_html(report)):
        assert "fastest (beside other processes)" in shown
    assert parse_report(dump_report(report), where="a test").backends == report.backends


def test_every_form_has_them(full_report: Report) -> None:
    report = on(full_report, OWN, FAST, FAILED)
    text = dump_report(report)
    assert parse_report(text, where="a test").backends == report.backends
    assert json.loads(text)["backends"][1]["ratio"] == {"value": 1.39, "low": 1.36, "high": 1.42}
    markdown, page = render_markdown(report), render_html(report)
    for shown in (markdown, page):
        assert "Run times" in shown
        assert "1.39x" in shown
        assert "fp32 on <tvm>" not in shown
    assert "| openvino:threads=1 | int8 on openvino | 18.0 ms |" in markdown
    assert "fp32 on &lt;tvm&gt;" in page
    assert "no operator &#39;Foo|Bar&#39;" in page


def test_nothing_is_said_where_there_was_no_choice(full_report: Report) -> None:
    assert "Run times" not in render_markdown(full_report)
    assert "Run times" not in render_html(full_report)
    assert json.loads(dump_report(full_report))["backends"] == []


def test_reports_of_before_are_read(full_report: Report) -> None:
    data = json.loads(dump_report(full_report))
    del data["backends"]
    assert parse_report(json.dumps(data), where="a test").backends == ()
    data["backends"] = [{"backend": 3}]
    with pytest.raises(Exception, match="backends"):
        parse_report(json.dumps(data), where="a test")
