"""A budget for a device that is not here: forms x power modes by estimate, and nobody can take it for a measurement."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

import greencc.targets
from greencc.bundle import Bundle, load
from greencc.cli.main import main
from greencc.compiler import CompileOptions, Effort, compile_model
from greencc.core.errors import LimitError, UsageError
from greencc.core.report_plan import PlanInfo
from greencc.planner.budget import Objective
from greencc.report import render_html, render_markdown
from greencc.report.plan import limit_rows, plan_sentences
from greencc.report.verdict import judge
from greencc.targets.cpu import CpuTarget
from tests.compiler.shared import write_conv_inputs


@dataclass(frozen=True)
class ModuleTarget(CpuTarget):
    """A Jetson module that is not here: what it computes is right, nothing is timed."""

    profile_name: str = "jetson-orin-nano"

    name: ClassVar[str] = "module"
    summary: ClassVar[str] = "a module that is not here"

    def estimated_on(self) -> str:
        return self.profile_name

    def emulated(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greencc.targets, "TARGETS", (CpuTarget, ModuleTarget))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimated")
    write_conv_inputs(folder, 320)
    return folder


def compiled(folder: Path, output: Path, **changes: object) -> Bundle:
    options = {
        "target": "module:threads=2",
        "cache": False,
        "workers": 1,
        "max_drop": 0.2,
        "effort": Effort.QUICK,
    }
    options |= changes
    return compile_model(folder / "net.onnx", CompileOptions(**options), output=output)  # type: ignore[arg-type]


def data_of(folder: Path) -> dict[str, object]:
    return {"calibration": folder / "calibration.npz", "evaluation": folder / "eval.npz"}


@pytest.fixture(scope="module")
def planned(folder: Path) -> Iterator[Bundle]:
    """What ``--budget 5W,33ms,30KB --rate 30/s`` gives, with data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greencc.targets, "TARGETS", (CpuTarget, ModuleTarget))
        output = folder / "planned.greencc"
        with compiled(folder, output, budget="5W,33ms,30KB", rate=30.0, **data_of(folder)) as bundle:
            yield bundle


def plan_of(bundle: Bundle) -> PlanInfo:
    assert bundle.report.plan is not None
    return bundle.report.plan


def test_forms_are_compared_in_every_power_mode_and_watts_choose_the_mode(planned: Bundle) -> None:
    plan = plan_of(planned)
    forms = {point.name for point in plan.points}
    assert "original" in forms
    assert any(name.startswith("int8") for name in forms)
    assert {"pruned-25-int8", "pruned-50-int8"} <= forms
    assert len(plan.points) == 4 * len(forms)
    (chosen,) = (point for point in plan.points if point.chosen)
    assert (chosen.mode, plan.power_mode) == ("7W", "7W")
    assert planned.report.conditions["power_mode"] == "7W"
    assert chosen.energy_mj == planned.report.artifact.energy_mj.value  # type: ignore[union-attr]
    others = [point for point in plan.points if point.mode != "7W"]
    assert all("7W, if at all" in point.place for point in others)
    assert all(point.verified and point.latency_p95_ms is None and point.watts for point in plan.points)


def test_nothing_of_it_reads_like_a_measurement(planned: Bundle) -> None:
    report, plan = planned.report, plan_of(planned)
    power, latency, size = plan.limits
    assert (power.met, power.sure, power.estimated, power.grade) == (None, False, True, "D")
    assert (latency.met, latency.estimated) == (None, True)
    assert (size.met, size.sure, size.estimated) == (True, True, False)
    assert report.budget.met is None
    assert [row.verdict for row in limit_rows(report)][:3] == ["may be kept", "may be kept", "met"]
    text = " ".join(plan_sentences(report))
    assert (
        "5W may be kept: the average of VDD_IN at 30 requests/s in the 7W mode (nvpmodel), estimated" in text
    )
    assert "Only a measurement on the device tells whether the budget is kept." in text
    assert "even the smallest mode, 7W, allows more than 5W" in text.replace("Even", "even")
    assert "an estimate has no p95" in text
    assert "the budget may be kept, and only a measurement on the device tells" in judge(report).text
    (page,) = re.findall(r'<section id="the-plan">(.*?)</section>', render_html(report), re.DOTALL)
    (markdown,) = re.findall(r"\n## The plan\n(.*?)\n## ", render_markdown(report), re.DOTALL)
    for shown in (text, markdown, re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))):
        assert "may be kept" in shown.lower()
        assert "in the 7W mode" in shown
        assert "grade D" in shown
        assert not re.search(r"(?<!not )measured|verified|timed quickly|p95: ", shown), shown
    assert re.search(r"<title>original in the 25W mode: [^<]*\(estimated", page)


def test_explain_lists_forms_and_modes(planned: Bundle) -> None:
    done = CliRunner().invoke(main, ["explain", str(planned.path)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "original in the MAXN_SUPER mode" in done.output
    assert "nothing ran on the device" in done.output
    layer = planned.report.layer_errors[0].name
    done = CliRunner().invoke(main, ["explain", str(planned.path), layer], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "chose among forms of the whole model by estimate" in done.output


def test_what_was_chosen_is_in_the_report_file(planned: Bundle) -> None:
    raw = json.loads((planned.path / planned.manifest.report).read_text(encoding="utf-8"))
    assert raw["plan"]["power_mode"] == "7W"
    assert raw["plan"]["limits"][0]["met"] is None
    assert raw["budget"]["met"] is None
    with load(planned.path) as again:
        assert again.report.plan == planned.report.plan


def test_without_data_the_original_is_kept_and_int8_is_missed(folder: Path, tmp_path: Path) -> None:
    with compiled(folder, tmp_path / "out.greencc", budget="5W") as bundle:
        report = bundle.report
    assert {point.name for point in plan_of(bundle).points} <= {"original", "fp32", "fp16"}
    assert any("INT8 was not considered" in warning for warning in report.warnings)
    assert any("5W without --rate" in warning for warning in report.warnings)
    assert "flat out" in plan_of(bundle).limits[0].note


def test_a_budget_that_even_the_best_end_breaks_names_the_nearest_points(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LimitError) as caught:
        compiled(folder, tmp_path / "no.greencc", budget="0.5W", rate=30.0)
    message = caught.value.message
    assert "0.5W is out of reach: any form takes at least 2." in message
    assert re.search(
        r"original in the 7W mode: .* all estimated \(grade D\).*misses 0.5W \(at least 2.", message
    )
    assert caught.value.hint is not None
    assert "lower --rate" in caught.value.hint
    assert not (tmp_path / "no.greencc").exists()


def test_a_rate_that_is_out_of_reach_is_never_shown_as_reached(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitError) as caught:
        compiled(folder, tmp_path / "no.greencc", budget="5W", rate=100000.0)
    assert "W at 100000/s" not in caught.value.message
    assert "W flat out, which does not keep up with 100000/s, all estimated" in caught.value.message


def test_without_watts_the_objective_chooses_the_mode(folder: Path, tmp_path: Path) -> None:
    with compiled(folder, tmp_path / "fast.greencc", minimize=Objective.LATENCY) as fast:
        (chosen,) = (point for point in plan_of(fast).points if point.chosen)
        assert chosen.mode in ("25W", "MAXN_SUPER")
        slow = [point for point in plan_of(fast).points if point.mode == "15W"]
        assert chosen.latency_ms is not None
        assert all(chosen.latency_ms < (point.latency_ms or 0.0) for point in slow)
    with compiled(folder, tmp_path / "frugal.greencc", budget="1s p50") as frugal:
        plan = plan_of(frugal)
        (chosen,) = (point for point in plan.points if point.chosen)
        same = [point.energy_mj for point in plan.points if point.name == chosen.name]
        assert chosen.energy_mj is not None
        assert chosen.energy_mj <= 1.05 * min(value for value in same if value is not None)
        assert next(row.verdict for row in limit_rows(frugal.report)) == "kept by estimate"
        assert "the estimates keep the budget" in judge(frugal.report).text


def test_modes_of_another_device_are_refused_before_anything_is_built(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="power mode of another device"):
        compiled(folder, tmp_path / "no.greencc", budget="jetson-nano:5W")
    spec = "module:profile_name=jetson-nano"
    with compiled(folder, tmp_path / "nano.greencc", target=spec, budget="jetson-nano:5W") as bundle:
        assert plan_of(bundle).power_mode == "5W"
        assert "POM_5V_IN flat out in the 5W mode" in plan_of(bundle).limits[0].note


def test_a_device_without_modes_is_planned_for_as_it_is(folder: Path, tmp_path: Path) -> None:
    spec = "module:profile_name=raspberry-pi-5"
    with compiled(folder, tmp_path / "pi.greencc", target=spec, budget="12W", rate=1.0) as bundle:
        plan = plan_of(bundle)
        assert plan.power_mode == ""
        assert {point.mode for point in plan.points} == {""}
        assert "power_mode" not in bundle.report.conditions


def test_cuts_that_would_take_too_long_are_left_out(folder: Path, tmp_path: Path) -> None:
    given = {"time_budget": 1e-6, **data_of(folder)}
    with compiled(folder, tmp_path / "out.greencc", budget="5W", rate=30.0, **given) as bundle:
        warnings = bundle.report.warnings
    assert not any(point.name.startswith("pruned") for point in plan_of(bundle).points)
    assert any("pruned-25 was not considered: it would take too long" in warning for warning in warnings)


def test_cuts_need_samples_that_can_show_what_they_lose(folder: Path, tmp_path: Path) -> None:
    with compiled(
        folder, tmp_path / "out.greencc", minimize=Objective.SIZE, max_drop=0.01, **data_of(folder)
    ) as bundle:
        report = bundle.report
    assert not any(point.name.startswith("pruned") for point in plan_of(bundle).points)
    assert any("64 samples to plan on cannot show a loss of 0.01" in warning for warning in report.warnings)
