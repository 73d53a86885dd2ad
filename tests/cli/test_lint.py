"""`greencc lint`: exit codes, tables and JSON, on models, bundles and files that are neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from greencc.core.errors import ExitCode

from .conftest import Outcome


def save(folder: Path, op_type: str, batch: object = 4, name: str = "net.onnx") -> Path:
    node = helper.make_node(op_type, ["x"], ["y"], name="odd")
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
    )
    path = folder / name
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_clean_model(tmp_path: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("lint", save(tmp_path, "Relu"), "--strict")
    assert outcome.code == ExitCode.OK
    assert "checked against Jetson Orin Nano, JetPack 6.2, TensorRT 10.3" in outcome.out
    assert "no errors, no warnings" in outcome.out


def test_errors_give_the_code_of_bad_input(tmp_path: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("lint", save(tmp_path, "Shrink"), "-t", "tensorrt:8.2")
    assert outcome.code == ExitCode.BAD_INPUT
    assert "has no Shrink" in " ".join(outcome.out.split())
    assert "Rules that depend on the GPU were left out" in outcome.out
    assert "2 errors, no warnings (1 opset, 1 operator)" in outcome.out


def test_warnings_count_when_strict(tmp_path: Path, greencc: Callable[..., Outcome]) -> None:
    model = save(tmp_path, "Relu", batch="N")
    assert greencc("lint", model).code == ExitCode.OK
    outcome = greencc("lint", model, "--strict")
    assert outcome.code == ExitCode.BAD_INPUT
    assert "no errors, 1 warning (1 dynamic-shape)" in outcome.out


def test_json(tmp_path: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("lint", save(tmp_path, "Shrink", batch="N"), "-t", "jetson-nano", "--json")
    assert outcome.code == ExitCode.BAD_INPUT
    data = json.loads(outcome.out)
    assert (data["errors"], data["warnings"], data["gpu_known"]) == (2, 1, True)
    assert [(fault["rule"], fault["severity"], fault["node"]) for fault in data["faults"]] == [
        ("opset", "error", ""),
        ("operator", "error", "odd"),
        ("dynamic-shape", "warning", "x"),
    ]
    assert all(fault["message"] and fault["hint"] for fault in data["faults"])


def test_a_bundle_and_external_data(bundle: Path, digits: Path, greencc: Callable[..., Outcome]) -> None:
    outcome = greencc("lint", bundle, "-t", "tensorrt:10.3", "--json")
    assert outcome.code in (ExitCode.OK, ExitCode.BAD_INPUT)
    assert json.loads(outcome.out)["path"].endswith("artifact/model.onnx")
    model = onnx.load(digits / "model.onnx")
    onnx.save(model, "far.onnx", save_as_external_data=True, location="far.bin", size_threshold=0)
    assert greencc("lint", "far.onnx", "-t", "tensorrt:10.3").code == ExitCode.OK
    Path("far.bin").write_bytes(b"short")
    assert greencc("lint", "far.onnx").code == ExitCode.BAD_INPUT


def test_a_bundle_is_checked_against_its_own_target(bundle: Path, greencc: Callable[..., Outcome]) -> None:
    manifest = bundle / "manifest.json"
    data = json.loads(manifest.read_text(encoding="utf-8"))
    assert data["target"].startswith("cpu")
    assert "Jetson Orin Nano" in json.loads(greencc("lint", bundle, "--json").out)["checked_against"]
    manifest.write_text(json.dumps({**data, "target": "jetson:preset=jetson-thor,batch=2"}), encoding="utf-8")
    told = json.loads(greencc("lint", bundle, "--json").out)
    assert told["target"] == "jetson:preset=jetson-thor,batch=2"
    assert told["checked_against"].startswith("Jetson AGX Thor, JetPack 7.1")
    # What is asked for counts before it.
    assert "TensorRT 8.6" in greencc("lint", bundle, "-t", "tensorrt:8.6").out


def test_inputs_with_defaults_are_seen_in_the_file(digits: Path, greencc: Callable[..., Outcome]) -> None:
    model = onnx.load("model.onnx")
    model.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [64, 48]))
    onnx.save(model, "defaults.onnx")
    data = json.loads(greencc("lint", "defaults.onnx", "--json").out)
    assert [fault["node"] for fault in data["faults"] if fault["rule"] == "input-default"] == ["w0"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("lint", "nothing.onnx"), ExitCode.BAD_INPUT, "cannot read the model nothing.onnx"),
        (("lint", "eval.npz"), ExitCode.BAD_INPUT, "not an ONNX model but a ZIP archive"),
        (("lint", "."), ExitCode.BAD_INPUT, "manifest"),
        (("lint", "model.onnx", "-t", "cpu"), ExitCode.USAGE, "'cpu' is no TensorRT target"),
        (("lint", "model.onnx", "-t", "jetson:jetson-nono"), ExitCode.USAGE, "did you mean 'jetson-nano'"),
    ],
)
def test_bad_input(
    digits: Path, greencc: Callable[..., Outcome], arguments: tuple[str, ...], code: ExitCode, message: str
) -> None:
    outcome = greencc(*arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""
