"""Bundles for a Jetson, compiled on a machine without a GPU: nobody can take what is estimated for measured."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from greencc.bundle import load
from greencc.compiler import CompileOptions, Effort, Precision, compile_model
from greencc.compiler.check import measure, verify_accuracy
from greencc.core.errors import InputError, UsageError
from greencc.core.report import Report
from greencc.measure import latency, memory
from greencc.report import parse_report, render_html, render_markdown, summary
from greencc.targets._tensorrt import rtx

from .shared import CONV_SIZE, conv_net

NOTICE = "Not built on the device. Latency and energy are estimates (grade D): nothing ran on the device"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and data; everything that could time or measure something fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was timed or measured")

    monkeypatch.setattr(latency, "_timer", refuse)
    monkeypatch.setattr(memory.subprocess, "run", refuse)
    write_inputs(tmp_path)
    return tmp_path


def write_inputs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    onnx.save(conv_net(), folder / "net.onnx")
    data = rng.standard_normal((800, 3, CONV_SIZE, CONV_SIZE)).astype(np.float32)
    np.savez(folder / "calibration.npz", x=data[:64])
    np.savez(folder / "eval.npz", x=data[64:])


@pytest.fixture(scope="module", autouse=True)
def no_rtx() -> Iterator[None]:
    """What is checked must not depend on what is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtx, "missing_rtx", lambda: "not installed: pip install 'greencc[rtx]'")
        yield


def compiled(folder: Path, target: str, precision: Precision) -> Report:
    options = CompileOptions(
        target=target,
        calibration=folder / "calibration.npz",
        evaluation=folder / "eval.npz",
        precision=precision,
        max_drop=0.3,
        effort=Effort.QUICK,
        cache=False,
        workers=1,
    )
    with compile_model(folder / "net.onnx", options, output=folder / "net.greencc", force=True) as bundle:
        return bundle.report


@pytest.mark.parametrize(("spec", "precision"), [("jetson", Precision.INT8), ("jetson-nano", Precision.FP16)])
def test_a_bundle_for_a_jetson(folder: Path, spec: str, precision: Precision) -> None:
    report = compiled(folder, spec, precision)
    artifact = folder / "net.greencc" / "artifact"
    files = {path.name for path in artifact.iterdir()}
    assert files == {"README.txt", "build.py", "build.sh", "check.py", "device.json", "model.onnx", "samples"}
    # Not emulated, so all held-out samples count.
    assert report.accuracy.n > 512
    assert report.artifact.latency_ms.estimated
    assert report.artifact.energy_mj is not None
    assert report.artifact.energy_mj.grade == "D"
    assert report.artifact.peak_memory_mb is None
    assert report.build is not None
    assert not report.build.built
    settings = json.loads((artifact / "device.json").read_text())
    assert settings["power_mode"] == report.build.power_mode
    assert report.layers == ()
    if precision is Precision.INT8:
        kinds = {node.op_type for node in onnx.load(artifact / "model.onnx").graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    listing = json.loads((artifact / "samples" / "samples.json").read_text())
    assert len(listing["samples"]) == 4
    with load(folder / "net.greencc") as bundle:
        for sample in listing["samples"]:
            (given,), (expected,) = sample["inputs"], sample["outputs"]
            x = np.frombuffer((artifact / "samples" / given["file"]).read_bytes(), "<f4").reshape(
                given["shape"]
            )
            y = np.frombuffer((artifact / "samples" / expected["file"]).read_bytes(), "<f4")
            np.testing.assert_array_equal(bundle.run({"x": x})["y"].ravel(), y)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that no test changes."""
    folder = tmp_path_factory.mktemp("made")
    write_inputs(folder)
    compiled(folder, "jetson", Precision.FP32)
    return folder


def test_no_page_can_be_taken_for_a_measurement(made: Path) -> None:
    with load(made / "net.greencc") as bundle:
        report = bundle.report
    stream = io.StringIO()
    Console(width=400, file=stream).print(summary(report))
    text = stream.getvalue()
    assert NOTICE in text.splitlines()[1]
    page = render_html(report)
    assert page.index(NOTICE) < page.index("<h1>")
    written = render_markdown(report)
    assert written.index("Not built on the device") < written.index("## Figures")
    assert NOTICE in report.verdict
    assert "measured" not in report.verdict.replace("not measured", "")
    for shown in (page, written, text):
        assert "sh artifact/build.sh" in shown


def test_a_report_from_before_there_was_a_build_is_read(made: Path) -> None:
    data = json.loads((made / "net.greencc" / "report.json").read_text())
    assert data["build"]["built"] is False
    new = parse_report(json.dumps(data))
    assert new.build is not None
    assert [check.name for check in new.build.checks] == ["greencc lint", "TensorRT-RTX parser"]
    del data["build"]
    old = parse_report(json.dumps(data))
    assert old.build is None
    assert NOTICE not in render_html(old)


def test_nothing_measures_a_bundle_for_another_machine(made: Path) -> None:
    with pytest.raises(UsageError, match="nothing can be timed or measured for jetson here"):
        measure(made / "net.greencc", target="jetson")
    fresh = np.random.default_rng(9).standard_normal((64, 3, CONV_SIZE, CONV_SIZE)).astype(np.float32)
    np.savez(made / "fresh.npz", x=fresh)
    with load(made / "net.greencc") as bundle:
        assert verify_accuracy(bundle, made / "net.onnx", made / "fresh.npz").n == 64


def test_a_model_that_tensorrt_lacks_an_operator_for_leaves_nothing_behind(folder: Path) -> None:
    proto = conv_net()
    node = onnx.helper.make_node("NonZero", ["y"], ["where"], name="culprit")
    proto.graph.node.append(node)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("where", onnx.TensorProto.INT64, [2, None]))
    onnx.save(proto, folder / "net.onnx")
    with pytest.raises(
        InputError, match=r"TensorRT 8\.2\.1 on the Jetson Nano cannot take this model.*culprit"
    ):
        compiled(folder, "jetson-nano", Precision.FP32)
    assert not (folder / "net.greencc").exists()
