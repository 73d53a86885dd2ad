"""Summaries: intervals against known truth, what is claimed and what is not, and pages that escape what they show."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from greencc.core.report import Energy, Interval
from greencc.lab.campaign_record import CellRecord, dump_record, parse_record
from greencc.lab.campaign_run import run_test_campaign
from greencc.lab.campaign_statistics import combine_energies, combine_ratios
from greencc.lab.campaign_store import read_records
from greencc.measure.intervals import t_quantile
from greencc.report.campaign_html import render_campaign
from greencc.report.campaign_markdown import render_campaign_markdown
from greencc.report.campaign_plot import gain_plot
from greencc.report.campaign_summary import CampaignSummary, Row
from greencc.report.campaign_text import findings, missing, row_text
from tests.lab.campaign_fakes import TEXT, FakeBench, accuracy, make_spec


def around(log: float, half: float) -> Interval:
    return Interval(math.exp(log), math.exp(log - half), math.exp(log + half))


@pytest.mark.parametrize("repetitions", [2, 3, 8])
def test_intervals_hold_the_truth_although_repetitions_differ(repetitions: int) -> None:
    """Between repetitions ratios differ three times as much as a repetition's own interval says."""
    draw = np.random.default_rng(3)
    truth, within, between = math.log(1.8), 0.01, 0.03
    held = own = 0
    campaigns = 600
    for _ in range(campaigns):
        logs = truth + draw.normal(0.0, between, repetitions) + draw.normal(0.0, within, repetitions)
        ratios = [around(float(log), 1.96 * within) for log in logs]
        found = combine_ratios(ratios, 0.95).interval
        held += found.low <= 1.8 <= found.high
        own += ratios[0].low <= 1.8 <= ratios[0].high
    # 95 % less twice the standard error of a share of 600.
    assert held / campaigns >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / campaigns)
    assert own / campaigns < 0.7


def test_agreement_by_chance_does_not_narrow_the_interval() -> None:
    ratios = [around(0.5, 0.04), around(0.5, 0.04)]
    found = combine_ratios(ratios, 0.95)
    assert found.spread == 0.0
    assert math.log(found.interval.high / found.interval.value) == pytest.approx(0.04 / math.sqrt(2))


def test_the_interval_is_students_of_the_logarithms() -> None:
    logs = [0.1, 0.2, 0.36]
    found = combine_ratios([around(log, 0.001) for log in logs], 0.9)
    half = t_quantile(0.9, 2.0) * float(np.std(logs, ddof=1)) / math.sqrt(3)
    assert math.log(found.interval.value) == pytest.approx(0.22)
    assert math.log(found.interval.low) == pytest.approx(0.22 - half)
    assert (found.repetitions, found.spread) == (3, pytest.approx(float(np.std(logs, ddof=1))))


def test_one_repetition_has_its_own_interval() -> None:
    found = combine_ratios([around(0.5, 0.1)], 0.95)
    assert found.spread is None
    assert found.interval.low == pytest.approx(math.exp(0.4))


def test_what_is_common_to_all_repetitions_does_not_average_out() -> None:
    ratios = [around(0.5 + 0.001 * n, 0.3) for n in (-1, 0, 1)]
    estimated = combine_ratios(ratios, 0.95, common=True).interval
    measured = combine_ratios(ratios, 0.95).interval
    assert math.log(estimated.high / estimated.value) > 0.3
    assert math.log(measured.high / measured.value) == pytest.approx(0.3 / math.sqrt(3))


def test_energies_that_hold_nothing_are_combined_as_they_are() -> None:
    positive = [Energy(value, 0.8 * value, 1.3 * value, "D", "x", "y") for value in (1.0, 1.1)]
    assert combine_energies(positive, 0.95).low > 0.0
    near_zero = [Energy(0.1, -0.2, 0.4, "B", "x", "y"), Energy(0.2, -0.1, 0.5, "B", "x", "y")]
    found = combine_energies(near_zero, 0.95)
    assert found.value == pytest.approx(0.15)
    assert found.low < -0.15


def campaign(folder: Path, bench: FakeBench, text: str = TEXT) -> CampaignSummary:
    return run_test_campaign(make_spec(folder, text), folder / "out", bench)


def the_row(summary: CampaignSummary, variant: str = "small") -> Row:
    (row,) = [row for row in summary.rows if row.variant == variant]
    return row


def test_a_summary_has_the_truth_in_its_intervals(tmp_path: Path) -> None:
    summary = campaign(tmp_path, FakeBench(), TEXT.replace("repetitions = 3", "repetitions = 6"))
    row = the_row(summary)
    assert row.latency is not None
    assert row.latency.ratio is not None
    assert row.latency.ratio.repetitions == 6
    assert row.latency.ratio.interval.low <= 2.0 <= row.latency.ratio.interval.high
    assert row.energy is not None
    assert row.energy.ratio is not None
    assert (row.energy.grade, row.energy.boundary) == ("B", "test rail")
    assert row.energy.baseline.value == pytest.approx(10.0)
    assert row.load is None
    assert (summary.blocks, summary.discarded) == (36, {"another process was busy": 12})
    assert summary.warnings == ("the load average is 3.2 on 2 CPUs (12 of 12 measurements)",)
    found = row_text(row, 6)
    assert "faster" in found.latency
    assert "saves" in found.energy
    assert found.energy_note == "measured, grade B, test rail"
    assert found.accuracy.startswith("drop 0.20 points [")
    assert "certified: at most 1 %, n = 4,000" in found.accuracy_note
    assert found.size == "4.00× smaller"
    assert row_text(the_row(summary, "original"), 6).latency.endswith(", noise")
    (sentence,) = findings(summary)
    assert sentence.startswith("net on here: small is the fastest, ")
    assert "grade B" in sentence
    data = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert data["rows"][1]["energy"]["ratio"]["interval"]["value"] == pytest.approx(
        row.energy.ratio.interval.value, rel=1e-5
    )
    assert data["conditions"]["here"]["temperature_celsius"] == "40 to 45"


def test_a_busy_machine_claims_nothing(tmp_path: Path) -> None:
    summary = campaign(tmp_path, FakeBench(clean=False))
    found = row_text(the_row(summary), 3)
    assert found.latency.startswith("no saving claimed: ")
    assert found.energy.startswith("no saving claimed: ")
    assert found.repetitions == "3 of 3, 3 disturbed"
    assert "no saving is claimed" in findings(summary)[0]


@pytest.mark.parametrize("grade", ["C", "D"])
def test_estimates_are_called_estimates(grade: str, tmp_path: Path) -> None:
    summary = campaign(tmp_path, FakeBench(grade=grade))
    found = row_text(the_row(summary), 3)
    assert found.energy_note == f"estimated, grade {grade}, test rail"
    assert found.energy.endswith(", estimated")
    for text in (render_campaign(summary), render_campaign_markdown(summary)):
        assert f"estimated, grade {grade}" in text
        assert f"measured, grade {grade}" not in text


def test_energy_of_another_grade_is_left_out_and_said(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_test_campaign(spec, tmp_path / "out", FakeBench(grade="D", interrupt_after=2))
    summary = run_test_campaign(spec, tmp_path / "out", FakeBench(grade="B"))
    row = the_row(summary)
    assert row.energy is not None
    assert row.energy.ratio is not None
    assert (row.energy.grade, row.energy.ratio.repetitions, row.measured) == ("B", 2, 3)
    assert any("energy of 1 repetitions has another grade" in warning for warning in summary.warnings)


def test_gross_energy_is_not_averaged_with_net(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_test_campaign(spec, tmp_path / "out", FakeBench(net=False, interrupt_after=2))
    summary = run_test_campaign(spec, tmp_path / "out", FakeBench())
    row = the_row(summary)
    assert row.energy is not None
    assert row.energy.ratio is not None
    assert (row.energy.ratio.repetitions, row.measured) == (2, 3)
    assert any("than grade B, test rail, net, and is left out" in warning for warning in summary.warnings)


def test_no_energy_is_a_dash_and_the_plot_shows_latency(tmp_path: Path) -> None:
    summary = campaign(tmp_path, FakeBench(grade=None))
    assert row_text(the_row(summary), 3).energy == "–"
    plot = gain_plot(summary.rows)
    assert plot is not None
    assert plot.quantity == "latency"
    assert [mark[1:] for mark in plot.marks] == [("original", True), ("small", False)]


def test_a_plot_needs_a_drop_and_keeps_odd_intervals_inside(tmp_path: Path) -> None:
    summary = campaign(tmp_path, FakeBench())
    row = the_row(summary)
    assert gain_plot([replace(row, accuracy=None)]) is None
    assert row.energy is not None
    assert row.energy.ratio is not None
    for low, high in ((1e-9, 1e300), (1.999, 2.001), (0.1, 30.0)):
        energy = replace(row.energy, ratio=replace(row.energy.ratio, interval=Interval(2.0, low, high)))
        plot = gain_plot([replace(row, energy=energy, accuracy=accuracy(0.0, low=0.0, high=0.0))])
        assert plot is not None
        places = [float(text) for text in re.findall(r' c?y[12]?="([0-9.-]+)"', str(plot.svg))]
        assert min(places) >= 0.0
        assert max(places) <= 300.0
        assert "nan" not in str(plot.svg)


HOSTILE = '<script>alert("x")</script>‮&\n**bold**'


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_everything_is_escaped(tmp_path: Path) -> None:
    clean = campaign(tmp_path, FakeBench())
    row = replace(
        the_row(clean),
        model=HOSTILE, variant=HOSTILE, device=HOSTILE, form=HOSTILE, bundle=f"bundles/{HOSTILE}", measured=1,
        reasons=(HOSTILE,), accuracy=accuracy(metric=HOSTILE, reason=HOSTILE),
    )  # fmt: skip
    assert row.energy is not None
    row = replace(row, energy=replace(row.energy, boundary=HOSTILE, method=HOSTILE))
    summary = replace(
        clean,
        name=HOSTILE, rows=(row,), file=HOSTILE, command=HOSTILE, text=HOSTILE, protocol=HOSTILE, load=HOSTILE,
        warnings=(HOSTILE,), discarded={HOSTILE: 1}, inputs={HOSTILE: HOSTILE}, devices={HOSTILE: {HOSTILE: HOSTILE}},
        conditions={HOSTILE: {HOSTILE: HOSTILE}}, versions={HOSTILE: HOSTILE}, started=HOSTILE,
    )  # fmt: skip
    page = render_campaign(summary)
    tags = Tags()
    tags.feed(page)
    assert "script" not in {tag for tag, _ in tags.found}
    assert "‮" not in page
    for tag, attributes in tags.found:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not (attributes.get("href") or "").startswith(("http", "javascript", "//", "/"))
    text = render_campaign_markdown(summary)
    assert "<script>" not in text
    assert "\n**bold" not in text


def test_only_bundles_beside_the_page_are_linked(tmp_path: Path) -> None:
    summary = campaign(tmp_path, FakeBench())
    assert 'href="bundles/small.greencc/report.html"' in render_campaign(summary)
    for place in ("/etc", "../bundles/x", "bundles/../../x", "javascript:x"):
        page = render_campaign(replace(summary, rows=(replace(the_row(summary), bundle=place),)))
        assert "report.html" not in page


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = render_campaign(campaign(tmp_path, FakeBench()))
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:|bundles/)""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_what_is_missing_is_listed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        campaign(tmp_path, FakeBench(interrupt_after=3))
    data = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert data["cells_measured"] == 3
    summary = campaign(tmp_path, FakeBench())
    assert missing(summary) == []


def test_records_survive_the_file(tmp_path: Path) -> None:
    campaign(tmp_path, FakeBench())
    for record in read_records(tmp_path / "out"):
        line = dump_record(record)
        assert "\n" not in line
        assert parse_record(line, "here") == record
        assert isinstance(record, CellRecord)
