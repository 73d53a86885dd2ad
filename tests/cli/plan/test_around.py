"""What goes wrong around a plan: little time, odd caches, workers, missing packages."""

from __future__ import annotations

import builtins
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from greencc.core.cache_entries import EntryHeader, encode
from greencc.core.engine import NodeTime
from greencc.core.errors import ExitCode
from greencc.targets import CpuTarget
from tests.cli.conftest import Outcome, listing

from .conftest import COMPILE, Plan, entries

NO_TIME = ("--time-budget", "0.001")


def without(*names: str) -> tuple[str, ...]:
    """The usual arguments without some options and their values."""
    kept = list(COMPILE)
    for name in names:
        place = kept.index(name)
        del kept[place : place + 2]
    return tuple(kept)


# Time.


def test_no_time_at_all_gives_the_best_whole_model(small: Path, plan: Plan) -> None:
    report, found = plan("--minimize", "latency", *NO_TIME)
    assert found.ended == "the time budget was over before the first plan"
    assert "the time budget was over before the first plan (raise --time-budget)" in report.warnings
    assert report.precision in ("original", "fp32")
    assert found.rounds == 0
    assert found.solver is None
    assert report.accuracy.drop == 0.0


def test_no_time_for_a_budget_that_the_model_does_not_keep(small: Path, refused: Callable[..., None]) -> None:
    refused((*COMPILE, "--budget", "8KB", *NO_TIME), ExitCode.LIMIT, "keeps 8KB", "--time-budget")


# Caches.


def test_damaged_entries_are_computed_again(small: Path, cache: Path, plan: Plan) -> None:
    _, first = plan("--minimize", "latency")
    for path in cache.glob("*/*.cache"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    _, second = plan("--minimize", "latency")
    assert [each.option for each in second.choices] == [each.option for each in first.choices]
    assert second.points == first.points
    assert second.rounds == first.rounds


def test_entries_of_another_version_are_left_alone(small: Path, cache: Path, plan: Plan) -> None:
    _, first = plan("--minimize", "latency")
    for path in cache.glob("*/*.cache"):
        header = EntryHeader(path.parent.name, path.stem, "0.0.1", 0.0, "", "")
        path.write_bytes(encode(header, {"point": np.array("what"), "error": np.asarray(0.5)}))
    _, second = plan("--minimize", "latency")
    assert second.points == first.points
    assert second.rounds == first.rounds


def test_entries_that_hold_something_else_are_no_points(small: Path, cache: Path, plan: Plan) -> None:
    """Whole files with the right names, and nonsense in them."""
    from greencc.core.version import __version__

    _, first = plan("--minimize", "latency")
    for path in cache.glob("plan-*/*.cache"):
        header = EntryHeader(path.parent.name, path.stem, __version__, 0.0, "", "")
        path.write_bytes(encode(header, {"what": np.array("else")}))
    _, second = plan("--minimize", "latency")
    assert second.rounds == first.rounds
    assert [each.option for each in second.choices] == [each.option for each in first.choices]


@pytest.mark.parametrize("kind", ["plan-point", "plan-error"])
def test_a_folder_in_the_place_of_an_entry(small: Path, cache: Path, plan: Plan, kind: str) -> None:
    _, first = plan("--minimize", "latency")
    for path in cache.glob(f"{kind}*/*.cache"):
        path.unlink()
        path.mkdir()
    report, second = plan("--minimize", "latency")
    assert [each.option for each in second.choices] == [each.option for each in first.choices]
    assert any("nothing was kept for the next compile" in warning for warning in report.warnings)


def test_a_cache_folder_that_cannot_be_made(small: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "file").write_text("not a folder")
    monkeypatch.setenv("GREENCC_CACHE", str(small / "file" / "cache"))
    report, found = plan("--minimize", "latency")
    assert found.rounds
    assert any("nothing was kept for the next compile" in warning for warning in report.warnings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_without_write_permission(small: Path, cache: Path, plan: Plan) -> None:
    cache.chmod(0o555)
    report, found = plan("--minimize", "latency")
    cache.chmod(0o755)
    assert found.rounds
    assert any("nothing was kept for the next compile" in warning for warning in report.warnings)


def test_without_a_cache_the_plan_is_the_same(small: Path, cache: Path, plan: Plan) -> None:
    _, first = plan("--minimize", "latency", "--no-cache")
    assert not entries(cache, "")
    _, second = plan("--minimize", "latency")
    assert entries(cache, "plan-point")
    assert first.points == second.points
    assert first.choices == second.choices


# Workers.


def test_two_workers_make_the_same_plan(small: Path, plan: Plan) -> None:
    one, first = plan("--minimize", "size", "--no-cache")
    two, second = plan("--minimize", "size", "--no-cache", "--workers", "2")
    assert [each.option for each in second.choices] == [each.option for each in first.choices]
    assert second.points == first.points
    assert two.artifact.size_bytes == one.artifact.size_bytes


def test_ray_that_is_not_installed(
    small: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine_find, genuine_import = importlib.util.find_spec, builtins.__import__

    def find(name: str, *rest: Any) -> Any:
        return None if name.split(".")[0] == "ray" else genuine_find(name, *rest)

    def load(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return genuine_import(name, *rest, **options)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(builtins, "__import__", load)
    refused(
        (*COMPILE, "--minimize", "latency", "--engine", "ray"), ExitCode.UNAVAILABLE, "ray", "greencc[ray]"
    )


# Data and models.


def test_data_that_are_no_numbers(small: Path, refused: Callable[..., None]) -> None:
    with np.load("calibration.npz") as archive:
        np.savez("calibration.npz", pixels=np.full_like(archive["pixels"], np.nan))
    refused((*COMPILE, "--budget", "10KB"), ExitCode.BAD_INPUT, "calibration.npz")


@pytest.mark.parametrize("data", [(), ("-c", "synthetic")], ids=["none", "synthetic"])
def test_without_real_data_weights_are_still_made_smaller(
    small: Path, plan: Plan, data: tuple[str, ...]
) -> None:
    report, found = plan("--budget", "10KB", *data, base=without("-c", "--eval"))
    assert report.artifact.size_bytes <= 10_000
    assert not report.accuracy.certified
    assert all(verdict.met for verdict in found.limits)
    assert {choice.option for choice in found.choices} <= {"float", "int8-weights", "int4-weights"}
    assert any("judged on synthetic data" in warning for warning in report.warnings)


def test_without_real_data_nothing_is_made_faster(small: Path, plan: Plan) -> None:
    report, found = plan("--minimize", "latency", base=without("-c", "--eval"))
    assert report.precision in ("original", "fp32")
    assert found.ended == "no plan can be verified on synthetic data"
    assert any("nothing was planned: without real data" in warning for warning in report.warnings)


def test_without_real_data_nothing_is_certified(small: Path, refused: Callable[..., None]) -> None:
    arguments = (*without("-c", "--eval"), "--budget", "10KB", "--require-certified")
    refused(arguments, ExitCode.LIMIT, "certified")


def test_evaluation_data_alone_are_enough_for_weights(small: Path, greencc: Callable[..., Outcome]) -> None:
    from greencc.bundle import load

    outcome = greencc(*without("-c"), "--budget", "10KB")
    assert outcome.code == ExitCode.OK, outcome.err
    with load(Path("out.greencc")) as bundle:
        report = bundle.report
    assert report.artifact.size_bytes <= 10_000
    assert report.plan is not None
    assert all(verdict.met for verdict in report.plan.limits)


def test_a_model_with_an_operator_that_nobody_knows(small: Path, refused: Callable[..., None]) -> None:
    model = onnx.load("model.onnx")
    model.graph.node[1].op_type, model.graph.node[1].domain = "Magic", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, "model.onnx")
    refused((*COMPILE, "--budget", "10KB"), ExitCode.BAD_INPUT, "com.example:Magic")


@pytest.fixture
def bare(small: Path) -> Path:
    """A model without weights."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["pixels"], ["positive"], name="relu"),
            helper.make_node("Softmax", ["positive"], ["logits"], name="softmax"),
        ],
        "bare",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 64])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx"
    )
    for name in ("calibration.npz", "eval.npz"):
        with np.load(name) as archive:
            np.savez(name, pixels=archive["pixels"])
    return small


def test_a_model_without_weights(bare: Path, plan: Plan) -> None:
    report, found = plan("--minimize", "latency")
    assert report.accuracy.drop is None or report.accuracy.drop == 0.0
    assert found.ended
    assert not [choice for choice in found.choices if choice.option not in ("float", "whole")]


def test_a_model_without_weights_and_a_budget(bare: Path, refused: Callable[..., None]) -> None:
    refused((*COMPILE, "--budget", "100B"), ExitCode.LIMIT, "100B")


def test_profiles_whose_names_say_nothing(small: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = CpuTarget.profile

    def profile(self: CpuTarget, *arguments: Any) -> list[NodeTime]:
        rows = genuine(self, *arguments)
        return [NodeTime(f"kernel_{place}", row.op_type, row.microseconds) for place, row in enumerate(rows)]

    monkeypatch.setattr(CpuTarget, "profile", profile)
    report, found = plan("--minimize", "size")
    assert any("belongs to nodes that the runtime named itself" in warning for warning in report.warnings)
    assert report.artifact.size_bytes < report.baseline.size_bytes
    assert any(point.verified and point.origin == "plan" for point in found.points)


def test_profiles_without_any_rows(small: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuTarget, "profile", lambda self, *arguments: [])
    report, found = plan("--minimize", "latency")
    assert found.ended
    assert report.artifact.latency_ms.median <= report.baseline.latency_ms.median


def test_one_sample(small: Path, greencc: Callable[..., Outcome]) -> None:
    """Too few to hold any out: one clear line, or a bundle that says what it rests on."""
    for name in ("calibration.npz", "eval.npz"):
        with np.load(name) as archive:
            np.savez(name, **{key: archive[key][:1] for key in archive.files})
    before = listing(small)
    outcome = greencc(*COMPILE, "--budget", "10KB")
    assert outcome.code in (ExitCode.BAD_INPUT, ExitCode.LIMIT), outcome.err
    assert "Traceback" not in outcome.err
    assert listing(small) == before
