"""Compiling for a device that is not here: nothing is timed, and nobody can take an estimate for a measurement."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import greencc.targets
from greencc.bundle import load
from greencc.cli.main import main
from greencc.compiler import CompileOptions, Precision, compile_model
from greencc.compiler.check import measure
from greencc.compiler.data import open_splits
from greencc.compiler.session import Session, timed_target
from greencc.compiler.untimed import Estimator
from greencc.core.data import Feeds
from greencc.core.describe import input_specs
from greencc.core.engine import Engine, NodeTime
from greencc.core.errors import UsageError
from greencc.core.model import load_model
from greencc.measure import latency, memory
from greencc.report import render_html, render_markdown
from greencc.report.figures import figure_rows
from greencc.report.verdict import judge
from greencc.targets.cpu import CpuTarget

from .shared import CONV_SIZE, conv_net

PROFILE = "raspberry-pi-5"


@dataclass(frozen=True)
class FarTarget(CpuTarget):
    """A device that is emulated here: what it computes is right, how long it takes says nothing."""

    name: ClassVar[str] = "far"
    summary: ClassVar[str] = "a device that is not here"

    def estimated_on(self) -> str:
        return PROFILE

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        raise AssertionError("profiled")


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> FarTarget:
    """The target, where everything that could time or measure it fails."""
    monkeypatch.setattr(greencc.targets, "TARGETS", (CpuTarget, FarTarget))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was timed or measured")

    monkeypatch.setattr(latency, "_timer", refuse)
    monkeypatch.setattr(memory.subprocess, "run", refuse)
    return FarTarget(threads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    onnx.save(conv_net(), tmp_path / "net.onnx")
    data = rng.standard_normal((320, 3, CONV_SIZE, CONV_SIZE)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=data[:64])
    np.savez(tmp_path / "eval.npz", x=data[64:])
    return tmp_path


def options(folder: Path, **changes: object) -> CompileOptions:
    return CompileOptions(
        target="far:threads=2",
        calibration=folder / "calibration.npz",
        evaluation=folder / "eval.npz",
        max_drop=0.2,
        cache=False,
        workers=1,
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("precision", [Precision.AUTO, Precision.INT8, Precision.FP32])
def test_every_figure_of_time_and_energy_is_called_an_estimate(
    far: FarTarget, folder: Path, precision: Precision
) -> None:
    bundle = compile_model(
        folder / "net.onnx", options(folder, precision=precision), output=folder / "out.greencc"
    )
    report = bundle.report
    for figures in (report.baseline, report.artifact):
        assert figures.latency_ms.estimated
        assert figures.latency_ms.method is not None
        assert "estimated" in figures.latency_ms.method
        assert (figures.latency_ms.runs, figures.latency_ms.samples) == (0, ())
        assert (figures.latency_ms.p95, figures.latency_ms.p99) == (None, None)
        assert figures.latency_ms.low is not None
        assert figures.latency_ms.low < figures.latency_ms.median
        assert figures.energy_mj is not None
        assert figures.energy_mj.grade == "D"
        assert figures.peak_memory_mb is None
    assert report.layers == ()
    assert report.layer_energy is None
    assert PROFILE in report.conditions["estimated_on"]
    assert any("estimated, not measured" in warning for warning in report.warnings)
    assert report.accuracy.n > 0
    (row,) = (row for row in figure_rows(report) if row.label.startswith("Latency"))
    assert row.label == "Latency, estimated"
    assert row.note.startswith("not measured")
    assert "easured latency" not in judge(report).text
    assert "Estimated latency (" in judge(report).text
    for text in (render_markdown(report), render_html(report)):
        assert "Latency, estimated" in text
        assert not re.search(r"Latency, (median|p95)", text)
        assert "interleaved" not in text
    page = render_html(report)
    assert "estimated, not measured" in page
    assert "Measured quickly" not in page
    raw = json.loads((bundle.path / bundle.manifest.report).read_text(encoding="utf-8"))
    assert raw["artifact"]["latency_ms"]["method"].startswith("estimated")
    bundle.close()


def test_forms_are_chosen_by_the_central_estimate_and_it_says_so(far: FarTarget, folder: Path) -> None:
    with compile_model(folder / "net.onnx", options(folder), output=folder / "out.greencc") as bundle:
        report = bundle.report
    chosen = next(item for item in report.candidates if item.chosen)
    assert "by estimate, not measured" in chosen.reason
    others = [item for item in report.candidates if item.latency_ms is not None]
    assert len(others) >= 2
    assert chosen.latency_ms is not None
    assert chosen.latency_ms <= 1.1 * min(item.latency_ms for item in others if item.latency_ms is not None)
    assert not any("measured" in item.reason.replace("not measured", "") for item in report.candidates)


def test_the_original_is_judged_as_what_was_built_of_it(
    far: FarTarget, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    plain = FarTarget.open

    def spy(self: FarTarget, artifact: Path) -> Engine:
        opened.append(artifact)
        return plain(self, artifact)

    monkeypatch.setattr(FarTarget, "open", spy)
    compile_model(folder / "net.onnx", options(folder), output=folder / "out.greencc").close()
    assert folder / "net.onnx" not in opened
    assert any(path.parent.name == "original" for path in opened)


def test_what_needs_times_is_refused(far: FarTarget, folder: Path) -> None:
    with pytest.raises(UsageError, match=f"report BUNDLE.*estimate MODEL.onnx --device {PROFILE}"):
        timed_target("far")
    with pytest.raises(UsageError, match="nothing can be timed"):
        measure(folder / "net.onnx", target="far")
    compile_model(
        folder / "net.onnx", options(folder, precision=Precision.FP32), output=folder / "out.greencc"
    ).close()
    for arguments in (["measure", "out.greencc"], ["inspect", "net.onnx", "--profile", "-t", "far"]):
        done = CliRunner().invoke(main, [arguments[0], str(folder / arguments[1]), *arguments[2:]])
        assert isinstance(done.exception, UsageError)
        assert "nothing can be timed" in done.exception.message


def test_an_estimate_for_the_device_is_that_of_greencc_estimate(far: FarTarget, folder: Path) -> None:
    estimator = Estimator.of(far)
    assert estimator is not None
    model = load_model(folder / "net.onnx")
    feeds = {"x": np.zeros((1, 3, CONV_SIZE, CONV_SIZE), np.float32)}
    found = estimator.compare([model, model], feeds)
    assert found.latency[0].value == found.latency[0].low == found.latency[0].high == 1.0
    assert found.energy[0].low == pytest.approx(1.0)
    layers = estimator.layers(model, feeds)
    assert 0 < sum(row.microseconds for row in layers) <= found.each[0].latency_ms.value * 1e3
    done = CliRunner().invoke(
        main, ["estimate", str(folder / "net.onnx"), "-d", PROFILE, "--threads", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["latency_ms"]["value"] == found.each[0].latency_ms.value


@pytest.mark.parametrize(("macs", "expected"), [(10**12, 16), (6 * 10**7, 100), (10**3, 192)])
def test_an_emulator_gets_as_many_samples_as_it_can_take(
    far: FarTarget, folder: Path, tmp_path: Path, macs: int, expected: int
) -> None:
    session = Session(options(folder), far, tmp_path)
    splits = open_splits(session, input_specs(load_model(folder / "net.onnx")), macs)
    assert splits.certification.count == expected
    assert any("checked on" in warning for warning in session.warnings) == (expected < 192)
    session.close()


def test_a_bundle_knows_that_it_cannot_be_timed(far: FarTarget, folder: Path) -> None:
    compile_model(
        folder / "net.onnx", options(folder, precision=Precision.FP32), output=folder / "out.greencc"
    ).close()
    with load(folder / "out.greencc") as bundle:
        assert bundle.target.estimated_on() == PROFILE
        assert bundle.run({"x": np.zeros((2, 3, CONV_SIZE, CONV_SIZE), np.float32)})
