"""The verdict claims what the intervals show, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greencc.core.report import Budget, Energy, Interval, Report
from greencc.report import judge, render_html, with_verdict
from greencc.report.figures import (
    bytes_text,
    change_text,
    energy_change,
    figure_rows,
    joules,
    number,
    points,
    printable,
    shorten,
    time_ms,
)


def test_full(full_report: Report) -> None:
    verdict = judge(full_report)
    assert verdict.headline == (
        "INT8: 1.84× faster, 47 % less energy (estimated) and 3.87× smaller; "
        "accuracy drop of at most 1 % certified to 95 %."
    )
    assert verdict.details == (
        "Measured latency: 1.84× faster [1.79, 1.90].",
        "Estimated energy (grade D, package (model)): saves 47 % [38, 54].",
        "Certified: with 95 % confidence the drop in accuracy is at most 1 % (18 of 4,500 samples got worse).",
    )
    assert with_verdict(full_report).verdict == verdict.text


def test_fp32_kept_says_why(minimal_report: Report) -> None:
    verdict = judge(minimal_report)
    assert verdict.headline == "FP32 kept: no saving shown; accuracy was not checked."
    assert verdict.details[0] == "FP32 was kept (int8-minmax: measured 1.4x slower than fp32)."
    asked = replace(minimal_report, budget=Budget({"precision": "fp32"}, met=True))
    assert judge(asked).details[0] == "FP32 was asked for."
    alone = replace(minimal_report, candidates=())
    assert judge(alone).details[0] == "FP32 was kept: no other form was possible."


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Interval(1.45, 1.37, 1.54), "saves 31 % [27, 35]"),
        (Interval(1.45, 0.99, 1.9), "no saving shown"),
        (Interval(1.45, 1.0, 1.9), "no saving shown"),
        (Interval(0.8, 0.7, 0.9), "costs 25 % more [11, 43]"),
    ],
)
def test_energy_claims(ratio: Interval, text: str) -> None:
    assert energy_change(ratio, "measured").startswith(text)
    assert energy_change(ratio, "estimated").endswith("estimated")


@pytest.mark.parametrize(
    ("grade", "word"), [("A", "Measured"), ("B", "Measured"), ("C", "Estimated"), ("D", "Estimated")]
)
def test_grades(full_report: Report, grade: str, word: str) -> None:
    energy = Energy(1.0, 0.9, 1.1, grade, "package-0", "RAPL", 1.5, 1.4, 1.6)
    report = replace(
        full_report,
        baseline=replace(full_report.baseline, energy_mj=energy),
        artifact=replace(full_report.artifact, energy_mj=replace(energy, grade="A")),
    )
    verdict = judge(report)
    net = ", net" if word == "Measured" else ""
    assert f"{word} energy (grade {grade}, package-0{net})" in verdict.text
    assert ("(estimated)" in verdict.headline) == (word == "Estimated")
    assert any(row.label == f"Energy, {word.lower()} ({grade}){net}" for row in figure_rows(report))


def test_losses_are_not_hidden(full_report: Report) -> None:
    slower = replace(full_report.ratio, latency=Interval(0.8, 0.75, 0.85), energy=None)
    assert judge(replace(full_report, ratio=slower)).headline.startswith(
        "INT8: 3.87× smaller, but 1.25× slower;"
    )
    worse = replace(slower, size=Interval(0.5, 0.5, 0.5))
    headline = judge(replace(full_report, ratio=worse)).headline
    assert headline.startswith("INT8: no saving shown; 1.25× slower and 2.00× larger;")


def test_a_gain_in_size_alone_is_called_that(full_report: Report) -> None:
    none = replace(full_report.ratio, latency=Interval(1.01, 0.97, 1.05), energy=None)
    assert judge(replace(full_report, ratio=none)).headline.startswith(
        "INT8: 3.87× smaller in size only, no speed-up shown; "
    )
    energy = replace(none, energy=full_report.ratio.energy)
    assert "in size only" not in judge(replace(full_report, ratio=energy)).headline
    same = replace(none, size=Interval(1.0, 1.0, 1.0))
    assert judge(replace(full_report, ratio=same)).headline.startswith("INT8: no saving shown;")


@pytest.mark.parametrize(
    ("asked", "subject"),
    [
        ({"passes": "prune:ratio=0.3,decompose:tucker,quantize"}, "Prune + decompose + quantize"),
        ({"passes": "prune"}, "Prune"),
        ({"passes": "broken\\"}, "Broken\\"),
        ({"passes": "a\x1b[31m,b"}, "A\ufffd[31m + b"),
        ({"passes": 3}, "FP32 kept"),
        ({"recipe": "mine.toml"}, "Recipe mine.toml"),
    ],
)
def test_passes_that_were_asked_for_are_named(full_report: Report, asked: dict, subject: str) -> None:
    """A pruned model in FP32 is not "FP32 kept"."""
    report = replace(full_report, precision="fp32", budget=Budget(asked, met=True))
    verdict = judge(report)
    assert verdict.headline.startswith(f"{subject}: 1.84× faster")
    assert ("FP32 was kept" in verdict.text) == (subject == "FP32 kept")


def test_what_the_graphs_hold_is_shown_where_it_changed(full_report: Report) -> None:
    def labels(params: int | None, macs: int | None) -> dict[str, tuple[str, str, str]]:
        report = replace(
            full_report,
            baseline=replace(full_report.baseline, params=2_000_000, macs=300_000_000),
            artifact=replace(full_report.artifact, params=params, macs=macs),
        )
        return {row.label: (row.baseline, row.artifact, row.change) for row in figure_rows(report)}

    rows = labels(1_250_000, 200_000_000)
    assert rows["Parameters"] == ("2.00 M", "1.25 M", "1.60× fewer")
    assert rows["MACs"] == ("300 M", "200 M", "1.50× fewer")
    rows = labels(2_500_000, None)
    assert rows["Parameters"] == ("2.00 M", "2.50 M", "1.25× more")
    assert "MACs" not in rows
    # Folding a normalisation is no change of shape worth a line, and an empty graph none at all.
    assert not {"Parameters", "MACs"} & set(labels(1_995_000, 0))


def test_uncertified_accuracy(full_report: Report) -> None:
    accuracy = replace(
        full_report.accuracy, certified=False, reason="not certifiable with n = 120: needs 299"
    )
    verdict = judge(replace(full_report, accuracy=accuracy, budget=Budget({}, met=False)))
    assert "accuracy drops by 0.13 points [−0.11, 0.38], not certified." in verdict.headline
    assert verdict.details[-2] == "Not certifiable with n = 120: needs 299."
    assert verdict.details[-1] == "The artifact does not meet what was asked of it."
    better = judge(replace(full_report, accuracy=replace(accuracy, drop=-0.001)))
    assert (
        "no drop in accuracy seen on 4,500 samples: −0.10 points [−0.11, 0.38], not certified."
        in better.headline
    )
    bare = judge(replace(full_report, accuracy=replace(accuracy, low=None, high=None)))
    assert "accuracy drops by 0.13 points, not certified." in bare.headline
    unlabelled = replace(accuracy, drop=None, baseline=None, artifact=None)
    assert (
        "99.02 % agreement on 4,500 samples, not certified."
        in judge(replace(full_report, accuracy=unlabelled)).headline
    )


def test_closeness_certificate_is_not_called_accuracy(full_report: Report) -> None:
    accuracy = replace(full_report.accuracy, drop=None, metric="outputs within 10 %")
    assert (
        "at most 1 % of samples changed certified" in judge(replace(full_report, accuracy=accuracy)).headline
    )


def test_the_original_is_not_called_fp32(minimal_report: Report) -> None:
    one = Interval(1.0, 1.0, 1.0)
    candidates = tuple(
        replace(item, name="fp16", reason="no faster") if item.name == "fp32" else item
        for item in minimal_report.candidates
    )
    report = replace(minimal_report, precision="original", candidates=candidates)
    verdict = judge(report)
    assert verdict.headline == "Original kept: no saving shown; accuracy was not checked."
    assert verdict.details[0] == "The original was kept (int8-minmax: measured 1.4x slower than fp32)."
    same = replace(report, ratio=replace(report.ratio, latency=one))
    assert judge(same).headline == "Original kept: unchanged; accuracy was not checked."
    assert "Measured latency: unchanged." in judge(same).details
    assert figure_rows(same)[0].change == "unchanged"
    assert "<small>unchanged</small>" in render_html(same)
    assert judge(replace(same, precision="fp32")).headline.startswith("FP32 kept: no saving shown;")


@pytest.mark.parametrize("ratio", [Interval(1.84, 1.79, 1.9), Interval(0.5, 0.4, 0.6)])
def test_nothing_is_claimed_of_a_busy_machine(full_report: Report, ratio: Interval) -> None:
    ratios = replace(full_report.ratio, latency=ratio, energy=ratio)
    busy = replace(full_report, ratio=ratios, conditions={"clean": False})
    verdict = judge(busy)
    assert verdict.headline == (
        "INT8: 3.87× smaller; in time and energy no saving claimed: other processes were busy while measuring; "
        "accuracy drop of at most 1 % certified to 95 %."
    )
    larger = replace(busy, ratio=replace(ratios, size=Interval(0.5, 0.5, 0.5)))
    assert judge(larger).headline.startswith(
        "INT8: no saving claimed: other processes were busy while measuring; 2.00× larger; accuracy"
    )
    rows = {row.label: row for row in figure_rows(busy)}
    assert rows["Latency, median"].change == rows["Energy, estimated (D)"].change == "no saving claimed"
    assert rows["Latency, median"].note.endswith("; other processes were busy while measuring")
    page = render_html(busy)
    assert page.count("<small>no saving claimed</small>") == 2
    for word in ("faster", "slower", "less energy", "more energy", "saves", "costs"):
        assert word not in verdict.text
        assert f">{word}<" not in page
    for conditions in ({}, {"clean": True}):
        claimed = judge(replace(busy, conditions=conditions))
        assert "claimed" not in claimed.text


@pytest.mark.parametrize(
    ("met", "sentence", "word"),
    [
        (True, None, "yes"),
        (False, "The artifact does not meet what was asked of it.", "no"),
        (None, "Whether it meets what was asked of it has not been shown.", "not shown"),
    ],
)
def test_budget(full_report: Report, met: bool | None, sentence: str | None, word: str) -> None:
    report = replace(full_report, budget=Budget({"max_drop": 0.01}, met=met))
    details = judge(report).details
    assert (details[-1] == sentence) if sentence else not any("asked of it" in text for text in details)
    assert f"<dt>met</dt><dd>{word}</dd>" in render_html(report)


def test_numbers() -> None:
    assert [number(v) for v in (0, 1.8349, 12.345, 99.96, 1234.5, -0.25, 0.00012345, 1e-9)] == [
        "0",
        "1.83",
        "12.3",
        "100",
        "1,234",
        "−0.25",
        "0.000123",
        "1.0e-09",
    ]
    assert [time_ms(v) for v in (0.0841, 0.9999, 12.4, 1500.0)] == ["84.1 µs", "1.00 ms", "12.4 ms", "1.50 s"]
    assert [bytes_text(v) for v in (0, 999, 11_184_532, 2.7e9)] == ["0 B", "999 B", "11.2 MB", "2.70 GB"]
    assert [joules(v) for v in (402.0, 1500.0, 0.25)] == ["402 mJ", "1.50 J", "250 µJ"]
    assert [points(v) for v in (0.0013, -0.0011, -0.000001)] == ["0.13", "−0.11", "0.00"]
    assert change_text(Interval(0.5, 0.4, 0.6), "faster", "slower", "none") == "2.00× slower [1.67, 2.50]"


def test_names_are_made_harmless() -> None:
    assert printable("a\x1b[31mb\n\u202ec") == "a\ufffd[31mb \ufffdc"
    assert shorten("x" * 50, 11) == "xxxxx…xxxxx"
    assert shorten("short", 11) == "short"


def test_the_verdict_names_the_limits_that_are_not_kept(planned_report: Report) -> None:
    found = judge(planned_report)
    assert found.headline.startswith("Plan 7: ")
    assert "does not meet the budget (2.5MB: 2.89 MB)." in found.text
    # Power never stands without its grade and boundary.
    plan = planned_report.plan
    assert plan is not None
    power = replace(plan.limits[0], found=9.5, met=False)
    worse = replace(planned_report, plan=replace(plan, limits=(power,)))
    assert (
        "(8W: 9.50 W [4.40 W, 8.90 W], estimated, grade D, package (model); at 30 requests/s)"
        in judge(worse).text
    )
    kept = replace(planned_report, plan=replace(plan, limits=plan.limits[:2]), budget=Budget({}, met=True))
    assert "budget" not in judge(kept).text
    unknown = replace(plan.limits[0], found=None, low=None, high=None, met=False)
    assert "has not been shown" in judge(replace(kept, plan=replace(plan, limits=(unknown,)))).text
