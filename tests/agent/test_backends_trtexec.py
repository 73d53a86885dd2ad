"""TensorRT by trtexec alone: what it is asked, and how its log and files are read, release by release."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.agent.backends import find
from greencc.agent.backends.resident import Resident
from greencc.agent.backends.trtexec_tool import named, read_json, read_profile, read_times, version_text
from greencc.agent.problem import Problem
from tests.devices import trtexec_options

from . import backend_support as support

VERSIONS = (
    "8.2.1",
    *(pytest.param(version, marks=pytest.mark.full) for version in ("8.5.2", "8.6.2", "11.4.1")),
    "10.3.0",
)


@pytest.fixture
def started() -> Iterator[list[Resident]]:
    engines: list[Resident] = []
    yield engines
    for engine in engines:
        engine.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    support.install_trtexec(folder)
    return folder


def backend(root: Path, version: str = "10.3.0", **more: str) -> Any:
    """With no bindings in sight."""
    asked = {"TRTEXEC_DOUBLE_VERSION": version, "TRTEXEC_DOUBLE_LINT": "0", **more}
    env = support.environment(PYTHONPATH=str(support.REPOSITORY), **asked)
    return find("tensorrt", str(root), env, str(root.parent / "home"))


def header(folder: Path) -> dict[str, Any]:
    """What the double's plan says of how it was built."""
    data = (folder / "engine.plan").read_bytes()
    begin = data.index(b"\n") + 1
    (size,) = struct.unpack_from("<Q", data, begin)
    found: dict[str, Any] = json.loads(data[begin + 8 : begin + 8 + size])
    return found


def options(version: str) -> dict[str, Any]:
    strong = version.startswith("1")
    return {"typing": "strong"} if strong else {"typing": "weak", "precisions": ["fp16"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_release_builds_runs_drives_and_profiles(
    version: str, root: Path, tmp_path: Path, started: list[Resident]
) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(root, version)
    assert found.missing() is None
    assert found.facts() == {"tensorrt": version, "implementation": "trtexec"}
    result, lines = support.build(
        found, model, tmp_path / "engine", {**options(version), "workspace_bytes": 1 << 28}
    )
    assert result["facts"]["gpu"] == "Orin"
    assert result["facts"]["compute_capability"] == "8.7"
    asked = result["facts"]["builder"]
    assert ("--workspace=256" in asked) is (version == "8.2.1")
    assert ("--memPoolSize=workspace:256" in asked) is (version != "8.2.1")
    assert ("--buildOnly" in asked) is (version in ("8.2.1", "8.5.2"))
    assert any(line.startswith("&&&& PASSED") for line in lines)
    engine = support.start(found, tmp_path / "engine", warm_up=version != "10.3.0")
    started.append(engine)
    feeds = support.images(2)
    (output,) = support.run(engine, feeds[1])
    # Six digits are what it writes.
    np.testing.assert_allclose(output, support.expected(model, feeds[1])[0], rtol=2e-5, atol=2e-6)
    answer, _ = engine.ask("drive", support.stretch(tmp_path / "drive", feeds, runs=5, first=1))
    services, latencies = support.times(tmp_path / "drive")
    assert answer["count"] == len(services) == len(latencies) == 5
    assert services.min() > 0.0
    assert answer["facts"]["feeds"] == "1 of 2"
    assert "six" in answer["facts"]["digits"]


@pytest.mark.parametrize(
    ("version", "held", "text"),
    [
        ("8.2.1", [], "0 of 4 nodes are held to float32; trtexec 8.2.1 has no --layerPrecisions"),
        (
            "8.6.2",
            ["conv", "scope:mean", "places"],
            "3 of 4 nodes are held to float32; trtexec 8.6.2 cannot read their names",
        ),
    ],
)
def test_nodes_that_must_stay_float32(
    version: str, held: list[str], text: str, root: Path, tmp_path: Path
) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    asked = {
        "typing": "weak",
        "precisions": ["fp16"],
        "float32_nodes": ["conv", "scope:mean", "places", "scope:relu,1"],
        "float32_outputs": ["conv", "scope:mean", "scope:relu,1"],
        "tf32": False,
    }
    result, _ = support.build(backend(root, version), model, tmp_path / "engine", asked)
    told = header(tmp_path / "engine")
    assert told["held"] == held
    assert told["held_outputs"] == [name for name in held if name != "places"]
    assert not told["tf32"]
    assert result["facts"]["float32_layers"].startswith(text)
    assert ("--layerPrecisions=(3 layers):fp32" in result["facts"]["builder"]) is bool(held)
    assert ("--layerOutputTypes=(2 layers):fp32" in result["facts"]["builder"]) is bool(held)


@pytest.mark.full
def test_a_rate_by_pauses(root: Path, tmp_path: Path, started: list[Resident]) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(root, TRTEXEC_DOUBLE_PACE="2")
    support.build(found, model, tmp_path / "engine", options("10.3.0"))
    engine = support.start(found, tmp_path / "engine", warm_up=False)
    started.append(engine)
    feeds = support.images()
    arguments = support.stretch(tmp_path / "drive", feeds, seconds=0.5, rate=20.0)
    answer, _ = engine.ask("drive", arguments)
    assert "--idleTime" in answer["facts"]["pacing"]
    services, _ = support.times(tmp_path / "drive")
    assert services.min() >= 2.0
    # Never more than was asked for, pauses being at least what is asked.
    assert 1 <= answer["count"] <= 0.5 * 20.0 + 2
    with pytest.raises(Problem, match="random arrivals") as caught:
        engine.ask("drive", {**arguments, "due": [0.1, 0.2], "rate": None})
    assert caught.value.kind == "unavailable"
    profile, _ = engine.ask("profile", {**arguments, "runs": 3})
    assert {node["op_type"] for node in profile["nodes"]} >= {"GlobalAveragePool", "Flatten"}
    assert all(node["us"] > 0.0 for node in profile["nodes"])


@pytest.mark.parametrize("version", ["8.5.2", pytest.param("10.3.0", marks=pytest.mark.full)])
def test_whole_numbers_and_several_outputs(
    version: str, root: Path, tmp_path: Path, started: list[Resident]
) -> None:
    model = support.lookup(tmp_path / "model" / "lookup.onnx")
    found = backend(root, version)
    support.build(found, model, tmp_path / "engine", options(version))
    engine = support.start(found, tmp_path / "engine", warm_up=False)
    started.append(engine)
    feed = {"ids": np.array([4, 0, 3], np.int64)}
    for output, wanted in zip(support.run(engine, feed), support.expected(model, feed), strict=True):
        assert output.dtype == wanted.dtype
        np.testing.assert_array_equal(output, wanted)


def test_shape_profiles(root: Path, tmp_path: Path, started: list[Resident]) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", batch="n")
    found = backend(root)
    with pytest.raises(Problem, match="no shape profile was given"):
        support.build(found, model, tmp_path / "none", options("10.3.0"))
    shapes = {"x": {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [4, 3, 8, 8]}}
    result, _ = support.build(found, model, tmp_path / "engine", {**options("10.3.0"), "shapes": shapes})
    assert "--optShapes=x:2x3x8x8" in result["facts"]["builder"]
    engine = support.start(found, tmp_path / "engine", warm_up=False)
    started.append(engine)
    (feed,) = support.images(1, 3)
    (output,) = support.run(engine, feed)
    np.testing.assert_allclose(output, support.expected(model, feed)[0], rtol=2e-5, atol=2e-6)
    with pytest.raises(Problem, match="a shape that the engine was not built for"):
        support.run(engine, support.images(1, 5)[0])


@pytest.mark.parametrize(
    ("more", "asked", "kind", "text"),
    [
        ({"TRTEXEC_DOUBLE_FAULT": "segfault"}, {}, "crashed", r"crashed \(signal 11\)"),
        ({"TRTEXEC_DOUBLE_FAULT": "kill"}, {}, "memory", "memory runs out"),
        pytest.param({"TRTEXEC_DOUBLE_FAULT": "garbage"}, {}, "internal", "Platform", marks=pytest.mark.full),
        ({"TRTEXEC_DOUBLE_MEMORY": "10"}, {}, "memory", "memory does not suffice"),
        ({}, {"dla": 0}, "unavailable", "no DLA that this TensorRT builds for"),
    ],
)
def test_builds_that_fail(
    more: dict[str, str], asked: dict[str, Any], kind: str, text: str, root: Path, tmp_path: Path
) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    with pytest.raises(Problem, match=text) as caught:
        support.build(
            backend(root, **more), model, tmp_path / "engine", {**options("10.3.0"), **asked}, seconds=90.0
        )
    assert caught.value.kind == kind
    assert list((tmp_path / "engine").iterdir()) == []


def test_nothing_stays_behind_a_build_that_hangs(root: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    marked = backend(root, TRTEXEC_DOUBLE_FAULT="hang", GREENCC_TEST_MARK=str(tmp_path))
    with pytest.raises(Problem, match="longer than 3 seconds") as caught:
        support.build(marked, model, tmp_path / "engine", options("10.3.0"), seconds=3.0)
    assert caught.value.kind == "timeout"
    mine = f"GREENCC_TEST_MARK={tmp_path}".encode()
    # The kernel takes its time to end what was killed.
    deadline = time.monotonic() + 30.0
    while (left := _with_environment(mine)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def _with_environment(mine: bytes) -> list[bytes]:
    """Command lines of processes that have a certain variable."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and os.access(each / "environ", os.R_OK):
            try:
                if mine in (each / "environ").read_bytes():
                    found.append((each / "cmdline").read_bytes())
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def test_an_operator_that_tensorrt_does_not_know(root: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", op_type="Shrug")
    with pytest.raises(Problem, match="does not know the operator Shrug"):
        support.build(backend(root), model, tmp_path / "engine", options("10.3.0"))


def test_a_graph_that_the_linter_refuses(root: Path, tmp_path: Path) -> None:
    """TensorRT takes UINT8 for INT8, silently; its double does not."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
    ]
    weights = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    with pytest.raises(Problem, match=r"refuses a node of the model: .*(?i:uint8|zero)") as caught:
        support.build(
            backend(root, "8.6.2", TRTEXEC_DOUBLE_LINT="1"), path, tmp_path / "engine", options("8.6.2")
        )
    assert caught.value.kind == "input"


@pytest.mark.parametrize(
    ("version", "sm", "text"),
    [("10.7.0", "87", "another version of TensorRT"), ("10.3.0", "53", "another GPU")],
)
def test_an_engine_of_elsewhere(version: str, sm: str, text: str, root: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    support.build(backend(root), model, tmp_path / "engine", options("10.3.0"))
    with pytest.raises(Problem, match=text) as caught:
        support.start(backend(root, version, TRTEXEC_DOUBLE_SM=sm), tmp_path / "engine")
    assert caught.value.kind == "input"


@pytest.mark.parametrize(
    ("number", "text"), [(8201, "8.2.1"), (8502, "8.5.2"), (100300, "10.3.0"), (110401, "11.4.1")]
)
def test_versions(number: int, text: str) -> None:
    assert version_text(number) == text


def test_names_of_inputs() -> None:
    """Colons need no quotes, which 8.2 would take for a part of the name; commas cannot be told."""
    assert named([("x", "1x3"), ("in:0", "a.bin")]) == "x:1x3,in:0:a.bin"
    with pytest.raises(Problem, match="cannot read the name of the input 'a,b'"):
        named([("a,b", "1x3")])


@pytest.mark.parametrize("version", ["8.2.1", "8.6.2"])
def test_a_name_with_a_colon_is_loaded(
    version: str, root: Path, tmp_path: Path, started: list[Resident]
) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", name="scope/x:0")
    found = backend(root, version)
    support.build(found, model, tmp_path / "engine", options(version))
    engine = support.start(found, tmp_path / "engine", warm_up=False)
    started.append(engine)
    feed = {"scope/x:0": support.images()[0]["x"]}
    (output,) = support.run(engine, feed)
    np.testing.assert_allclose(output, support.expected(model, feed)[0], rtol=2e-5, atol=2e-6)


def test_options_that_are_unknown_or_given_twice_are_refused() -> None:
    """As trtexec does: what is left over when each is taken once is unknown."""
    known = trtexec_options.trtexec((8, 5, 2))
    assert (
        trtexec_options.parse(known, ["--fp16", "--noTF32", "--timingCacheFile=t"])["timingCacheFile"] == "t"
    )
    for wrong in (["--fp16", "--fp16"], ["--skipInference"], ["--timingCacheFile=a", "--timingCacheFile=a"]):
        with pytest.raises(trtexec_options.Refused, match="Unknown option"):
            trtexec_options.parse(known, wrong)


def test_files_of_other_releases(tmp_path: Path) -> None:
    """Older ones say "in" and "out"; C++ writes what JSON does not have."""
    path = tmp_path / "times.json"
    path.write_text(
        '[\n  { "startInMs" : 0.5, "endInMs" : 0.6, "startComputeMs" : 0.6, "endComputeMs" : 2.5, '
        '"startOutMs" : 2.5, "endOutMs" : 2.75, "inMs" : 0.1, "computeMs" : 1.9, "outMs" : 0.25, '
        '"latencyMs" : 2.25, "endToEndMs" : 2.25 }\n]\n',
        encoding="utf-8",
    )
    (row,) = read_times(str(path))
    assert (row.start, row.compute, row.end, row.latency) == (0.5, 0.6, 2.75, 2.25)
    path.write_text('[ { "name" : "inf", "values" : [ nan, -nan, inf, -inf, 1e+30 ] } ]', encoding="utf-8")
    (found,) = read_json(str(path), "a test")
    assert found["name"] == "inf"
    np.testing.assert_array_equal(found["values"], [np.nan, np.nan, np.inf, -np.inf, 1e30])
    path.write_text(
        '[ { "count" : 3 }\n, { "name" : "a", "timeMs" : 3, "averageMs" : 1 } ]', encoding="utf-8"
    )
    assert read_profile(str(path)) == [("a", 1.0)]


@pytest.mark.parametrize("text", ["", "[", "{}", '[ { "latencyMs" : 1 } ]', "[ 7 ]"])
def test_files_that_are_cut_off(text: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Problem) as caught:
        read_times(str(path))
    assert caught.value.kind == "internal"
