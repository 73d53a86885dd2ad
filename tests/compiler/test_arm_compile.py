"""Bundles for ARM machines, compiled here and run under emulation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from greencc.bundle import load
from greencc.compiler import Effort, Precision, compile_model
from greencc.targets import make_target

from .shared import CONV_SIZE, conv_options, write_conv_inputs

SPEC = "tvm-arm:preset=rpi5"

if missing := make_target(SPEC).missing():
    pytest.skip(missing, allow_module_level=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_conv_inputs(tmp_path, 160)
    return tmp_path


@pytest.mark.parametrize(
    "precision",
    [
        Precision.FP32,
        pytest.param(Precision.INT8, marks=pytest.mark.full),
        pytest.param(Precision.AUTO, marks=pytest.mark.full),
    ],
)
def test_a_bundle_for_arm_is_verified_under_emulation_and_runs(folder: Path, precision: Precision) -> None:
    options = conv_options(folder, target=SPEC, precision=precision, effort=Effort.QUICK)
    compile_model(folder / "net.onnx", options, output=folder / "net.greencc").close()
    x = np.random.default_rng(5).standard_normal((3, 3, CONV_SIZE, CONV_SIZE)).astype(np.float32)
    with load(folder / "net.greencc") as bundle:
        files = {path.name for path in bundle.artifact.parent.iterdir()}
        assert files == {"model.json", "model.so", "runner", "weights.bin"}
        assert (bundle.artifact.parent / "runner").stat().st_mode & 0o111
        report = bundle.report
        found = bundle.run({"x": x})["y"]
        described = json.loads(bundle.artifact.read_text(encoding="utf-8"))
    assert report.artifact.latency_ms.estimated
    assert report.artifact.peak_memory_mb is None
    assert report.device["preset"] == "rpi5"
    assert report.versions["glibc"].startswith("2.")
    assert report.accuracy.n > 16
    assert described["triple"] == "aarch64-linux-gnu"
    expected = make_target("cpu").open(folder / "net.onnx").run({"x": x})["y"]
    if precision is Precision.FP32:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        return
    noise = np.mean((found - expected) ** 2) / np.mean(expected**2)
    assert noise < 0.05
    if precision is Precision.INT8:
        assert noise > 0
        assert any(row["arithmetic"] == "INT8" for row in described["kernels"])
        tool = ["aarch64-linux-gnu-objdump", "-d", str(folder / "net.greencc" / "artifact" / "model.so")]
        listing = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        assert "sdot" in listing
