"""report.json: out, in again, and every way it can be wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.errors import InputError
from greencc.core.report import Interval, Report
from greencc.report import dump_report, load_report, parse_report, render_html, render_markdown, stored
from greencc.report.figures import percent


@pytest.mark.parametrize("name", ["full", "minimal", "planned"])
def test_round_trip(reports: dict[str, Report], name: str, tmp_path: Path) -> None:
    report = reports[name]
    path = tmp_path / "report.json"
    path.write_text(dump_report(report), encoding="utf-8")
    loaded = load_report(path)
    # Options come back with lists for tuples; everything else is equal, rounded figures included.
    passes = tuple(
        replace(item, options={k: list(v) if isinstance(v, tuple) else v for k, v in item.options.items()})
        for item in report.passes
    )
    assert loaded == replace(report, passes=passes)
    assert dump_report(loaded) == dump_report(report)


def test_what_is_stored_is_what_is_read(full_report: Report) -> None:
    """Six digits can round the other way where fewer are shown: 56.90 %, and 56.89 % when read again."""
    share = 0.56895004
    report = replace(full_report, accuracy=replace(full_report.accuracy, artifact=share))
    assert (percent(share), percent(0.56895)) == ("56.90 %", "56.89 %")
    kept = stored(report, "report")
    assert kept == parse_report(dump_report(report))
    assert kept == stored(kept, "report")
    assert kept.accuracy.artifact == 0.56895
    for render in (render_markdown, render_html):
        assert render(kept) != render(report)
        assert render(kept) == render(parse_report(dump_report(report)))


def test_stable_keys(full_report: Report) -> None:
    data = json.loads(dump_report(full_report))
    assert data["schema"] == "greencc.report/1"
    assert {"name", "sha256", "params", "macs"} <= set(data["model"])
    for side in ("baseline", "artifact"):
        assert {"latency_ms", "energy_mj", "size_bytes", "accuracy"} <= set(data[side])
        assert {"median", "p95"} <= set(data[side]["latency_ms"])
        assert {"value", "low", "high", "grade", "boundary"} <= set(data[side]["energy_mj"])
    assert list(data["ratio"]) == ["latency", "energy", "size"]
    assert set(data["ratio"]["latency"]) == {"value", "low", "high"}
    wanted = "metric baseline artifact drop low high agreement n certified epsilon confidence"
    assert set(wanted.split()) <= set(data["accuracy"])
    assert set(data["budget"]) == {"asked", "met"}
    assert {"name", "options", "changed", "error", "findings", "seconds"} <= set(data["passes"][0])
    assert {"source", "digest", "n"} <= set(data["calibration"])
    assert {"seconds", "peak_rss_mb", "energy_j", "break_even"} <= set(data["compile"])
    assert set(data["compile"]["break_even"]) == {"inferences", "reason"}
    assert {"baseline_mj", "artifact_mj", "grade", "boundary", "method", "rows"} == set(data["layer_energy"])
    assert {"name", "op_type", "baseline", "artifact"} == set(data["layer_energy"]["rows"][0])
    assert {"share", "mj"} == set(data["layer_energy"]["rows"][0]["baseline"])
    assert {"baseline_ug", "artifact_ug", "grid", "embodied", "grade", "boundary"} == set(data["carbon"])
    assert {"grams_per_kwh", "place", "year", "source"} == set(data["carbon"]["grid"])


def test_reports_from_before_there_was_energy_by_layer_are_read(full_report: Report) -> None:
    data = json.loads(dump_report(full_report))
    for key in ("layer_energy", "carbon"):
        del data[key]
    for key in ("energy_j", "break_even"):
        del data["compile"][key]
    old = parse_report(json.dumps(data))
    assert (old.layer_energy, old.carbon, old.compile.energy_j) == (None, None, None)
    assert "Energy by layer" not in render_markdown(old)


def test_counts_come_back_and_may_be_missing(full_report: Report) -> None:
    """Counts are exact, and reports from before there were any are still read."""
    figures = replace(full_report.artifact, params=1_234_567_891, macs=None)
    report = replace(full_report, artifact=figures)
    text = dump_report(report)
    assert parse_report(text).artifact == figures
    data = json.loads(text)
    for side in ("baseline", "artifact"):
        del data[side]["params"], data[side]["macs"]
    assert parse_report(json.dumps(data)).artifact == full_report.artifact


def test_figures_are_rounded_and_options_are_not(full_report: Report) -> None:
    report = replace(full_report, ratio=replace(full_report.ratio, latency=Interval(1.23456789, 1.1, 1.4)))
    data = json.loads(dump_report(report))
    assert data["ratio"]["latency"]["value"] == 1.23457
    assert data["passes"][3]["options"]["percentile"] == 99.99999


def test_no_nan_gets_out(full_report: Report) -> None:
    optional = replace(
        full_report, accuracy=replace(full_report.accuracy, p_value=math.nan), conditions={"x": math.inf}
    )
    data = json.loads(dump_report(optional))
    assert data["accuracy"]["p_value"] is None
    assert data["conditions"]["x"] is None
    required = replace(full_report, ratio=replace(full_report.ratio, latency=Interval(math.inf, 1, 2)))
    with pytest.raises(ValueError, match=r"report\.ratio\.latency\.value is inf"):
        dump_report(required)


def test_plain_values_of_options(full_report: Report) -> None:
    class Method(Enum):
        MINMAX = "minmax"

    facts: dict[str, Any] = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": Method.MINMAX,
        "d": Path("x/y"),
        "e": (1, 2),
    }
    data = json.loads(dump_report(replace(full_report, device=facts)))
    assert data["device"] == {"a": 0.5, "b": 3, "c": "minmax", "d": "x/y", "e": [1, 2]}
    with pytest.raises(TypeError, match=r"report\.device\.s holds a set"):
        dump_report(replace(full_report, device={"s": {1}}))


@pytest.mark.parametrize("change", [lambda d: d.pop("plan"), lambda d: d.update(plan=None)])
def test_reports_without_a_plan_are_read(
    planned_report: Report, change: Callable[[dict[str, Any]], Any]
) -> None:
    data = json.loads(dump_report(planned_report))
    change(data)
    old = parse_report(json.dumps(data))
    assert old == replace(parse_report(dump_report(planned_report)), plan=None)
    assert "The plan" not in render_markdown(old)
    assert "The plan" not in render_html(old)


def test_a_plan_of_an_earlier_version_is_read(planned_report: Report) -> None:
    """What was added later has a value that says that it is not known."""
    data = json.loads(dump_report(planned_report))
    del data["plan"]["energy_boundary"]
    for point in data["plan"]["points"]:
        del point["predicted_drop"]
    found = parse_report(json.dumps(data)).plan
    assert found is not None
    assert found.energy_boundary == ""
    assert {point.predicted_drop for point in found.points} == {None}


def test_stable_keys_of_a_plan(planned_report: Report) -> None:
    plan = json.loads(dump_report(planned_report))["plan"]
    assert {
        "objective",
        "rate",
        "limits",
        "points",
        "choices",
        "predictions",
        "solver",
        "rounds",
        "ended",
    } <= set(plan)
    assert {"limit", "unit", "allowed", "found", "low", "high", "grade", "met", "sure"} <= set(
        plan["limits"][0]
    )
    assert {"name", "latency_ms", "energy_mj", "drop", "verified", "chosen", "front", "recipe"} <= set(
        plan["points"][0]
    )
    assert {"unit", "kind", "nodes", "option", "reason", "options"} == set(plan["choices"][0])
    assert {"name", "error", "saved_us", "saved_mj", "saved_bytes", "source"} <= set(
        plan["choices"][0]["options"][0]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(limits=None), r"\.plan\.limits is None, expected a list"),
        (
            lambda p: p["limits"][0].update(grade="E"),
            r"limits\[0\]\.grade is 'E', expected one of A, B, C, D",
        ),
        (lambda p: p.update(energy_grade=""), r"\.plan\.energy_grade is '', expected one of"),
        (lambda p: p["limits"][0].update(met=1), r"limits\[0\]\.met is 1"),
        (
            lambda p: p["points"][2].update(latency_ms="fast"),
            r"points\[2\]\.latency_ms is 'fast', expected a number",
        ),
        (
            lambda p: p["points"][2].update(latency_ms=10**400),
            r"points\[2\]\.latency_ms is 1000.*, which is out of range",
        ),
        (
            lambda p: p["points"][2].update(size_bytes=1 << 63),
            r"points\[2\]\.size_bytes is 9.*, which is out of range",
        ),
        (lambda p: p["points"].append({}), r"points\[16\] has no 'name'"),
        (lambda p: p["choices"][0].update(nodes="/stem"), r"choices\[0\]\.nodes is '/stem', expected a list"),
        (
            lambda p: p["choices"][0]["options"].append(7),
            r"choices\[0\]\.options\[3\] is 7, expected a table",
        ),
        (lambda p: p["predictions"][0].update(measured=None), r"predictions\[0\]\.measured is None"),
        (lambda p: p["solver"].update(units=1.5), r"solver\.units is 1\.5, expected a whole number"),
    ],
)
def test_damaged_plans(planned_report: Report, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    damage = _edit(lambda data: change(data["plan"]))
    with pytest.raises(InputError, match=message):
        parse_report(damage(dump_report(planned_report)))


def test_numbers_that_are_none_are_refused(full_report: Report) -> None:
    """Python reads 1e999 as infinity without a word."""
    text = dump_report(full_report).replace('"peak_memory_mb": 96.4', '"peak_memory_mb": 1e999')
    with pytest.raises(InputError, match=r"peak_memory_mb is inf, which is out of range"):
        parse_report(text)


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:100], "not valid JSON"),
        (lambda text: "[" * 200_000, "not valid JSON"),
        (lambda text: "[]", "schema None"),
        (lambda text: text.replace("greencc.report/1", "greencc.report/9"), "schema 'greencc.report/9'"),
        (lambda text: text.replace('"n": 4500', '"n": NaN'), "NaN is not JSON"),
        (_edit(lambda d: d.pop("model")), "has no 'model'"),
        (
            _edit(lambda d: d["model"].update(params="many")),
            r"\.model\.params is 'many', expected a whole number",
        ),
        (_edit(lambda d: d["model"].update(params=True)), r"\.model\.params is True"),
        (_edit(lambda d: d["ratio"].update(latency=None)), r"\.ratio\.latency is None, expected a table"),
        (_edit(lambda d: d["passes"].__setitem__(1, 7)), r"\.passes\[1\] is 7"),
        (
            _edit(lambda d: d["passes"][1]["findings"][0].update(kind="odd")),
            r"findings\[0\]\.kind is 'odd', expected one",
        ),
        (
            _edit(lambda d: d["baseline"]["latency_ms"].update(samples=["x"])),
            r"samples\[0\] is 'x', expected a number",
        ),
    ],
)
def test_damaged_reports(full_report: Report, damage: Callable[[str], str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_report(damage(dump_report(full_report)))


def test_unknown_keys_are_ignored(full_report: Report) -> None:
    data = json.loads(dump_report(full_report))
    data["later"] = data["model"]["later"] = 1
    assert parse_report(json.dumps(data)) == parse_report(dump_report(full_report))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the report"):
        load_report(tmp_path / "none.json")
