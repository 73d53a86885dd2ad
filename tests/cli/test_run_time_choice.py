"""A compile whose best form runs on another run time: what is shipped, and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.bundle import load
from greencc.compiler import measurement, run_times
from greencc.core.errors import ExitCode
from greencc.core.report import Interval
from greencc.targets import OpenVinoTarget, TvmCpuTarget, backends
from greencc.targets._host import HostTarget

from .conftest import Outcome

COMPILE = (
    "compile",
    "model.onnx",
    "-c",
    "calibration.npz",
    "--eval",
    "eval.npz",
    "--no-cache",
)


def scaled(ratios: Sequence[Interval]) -> tuple[Interval, ...]:
    return tuple(Interval(1e3 * r.value, 1e3 * r.low, 1e3 * r.high) for r in ratios)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured; then what is compared with the first is made a thousand times as fast as it is."""
    compare, measure = run_times.quick_compare, measurement.measure_latency

    def quick(*arguments: Any, **options: Any) -> Any:
        found = compare(*arguments, **options)
        own, *others = found.median_ms
        return replace(found, ratios=scaled(found.ratios), median_ms=(own, *(ms / 1e3 for ms in others)))

    def thorough(*arguments: Any, **options: Any) -> Any:
        found = measure(*arguments, **options)
        return replace(found, ratios=scaled(found.ratios))

    monkeypatch.setattr(run_times, "quick_compare", quick)
    monkeypatch.setattr(measurement, "measure_latency", thorough)


@pytest.mark.usefixtures("brief", "faster")
@pytest.mark.parametrize(("kind", "package"), [(OpenVinoTarget, "openvino"), (TvmCpuTarget, "apache-tvm")])
def test_what_was_measured_faster_is_shipped(
    digits: Path,
    greencc: Callable[..., Outcome],
    kind: type[HostTarget],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing := kind().missing():
        pytest.skip(missing)
    monkeypatch.setattr(backends, "OTHERS", (kind,))
    outcome = greencc(*COMPILE, "--passes", "quantize-int8", "-t", "cpu:threads=1", "-o", "out.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    with load("out.greencc") as bundle:
        report = bundle.report
        assert [(row.backend, row.chosen) for row in report.backends] == [
            ("cpu:threads=1", False),
            (f"{kind.name}:threads=1", True),
        ]
        assert report.target == bundle.manifest.target == f"{kind.name}:threads=1"
        assert report.backends[1].form in {row.name for row in report.candidates if row.chosen}
        assert package in report.versions
        assert f" on {kind.name}" in report.verdict
        with np.load("eval.npz") as data:
            pixels = data["pixels"][:5]
        assert bundle.run({"pixels": pixels})["logits"].shape == (5, 10)
    assert "Run time: " in " ".join(outcome.out.split())


@pytest.mark.usefixtures("brief", "faster", "competing")
@pytest.mark.skipif(TvmCpuTarget().missing() is not None, reason="nothing competes that generates code")
def test_a_quick_compile_generates_no_code(digits: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc(*COMPILE, "--effort", "quick", "--precision", "fp32", "-t", "cpu", "-o", "out.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    report = load("out.greencc").report
    reasons = [row.reason for row in report.backends if row.backend == "tvm-cpu"]
    assert reasons
    assert all("--effort quick waits for no code" in reason for reason in reasons)


@pytest.mark.usefixtures("brief", "faster", "competing")
def test_onnx_runtime_alone_when_asked_for(digits: Path, greencc: Callable[..., Outcome]) -> None:
    target = "cpu:threads=1,backend=onnxruntime"
    outcome = greencc(*COMPILE, "--effort", "quick", "--precision", "int8", "-t", target, "-o", "out.greencc")
    assert outcome.code == ExitCode.OK, outcome.err
    report = load("out.greencc").report
    assert report.target == target
    assert report.backends == ()
    assert "Run time: " not in outcome.out
