"""TensorRT by its Python bindings, of four generations of their API, in processes that may die."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.agent.backends import find, manifest
from greencc.agent.backends.resident import Resident
from greencc.agent.problem import Problem

from . import backend_support as support

VERSIONS = (
    "8.2.1",
    pytest.param("8.5.2", marks=pytest.mark.full),
    "10.3.0",
    pytest.param("11.0.0", marks=pytest.mark.full),
)
TYPING: dict[str, dict[str, Any]] = {
    "8.2.1": {"typing": "weak", "precisions": ["int8", "fp16"]},
    "8.5.2": {"typing": "weak", "precisions": ["int8", "fp16"]},
    "10.3.0": {"typing": "strong"},
    "11.0.0": {"typing": "strong"},
}
Start = Callable[..., Resident]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.cudart(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def started() -> Iterator[list[Resident]]:
    engines: list[Resident] = []
    yield engines
    for engine in engines:
        engine.close()


def backend(libraries: Path, folder: Path, version: str = "10.3.0", **more: str) -> Any:
    env = support.bindings(libraries, version, **more)
    return find("tensorrt", str(folder / "root"), env, str(folder / "home"))


def header(folder: Path) -> dict[str, Any]:
    """What the double's plan says of how it was built."""
    data = (folder / "engine.plan").read_bytes()
    (size,) = struct.unpack_from("<Q", data, 8)
    found: dict[str, Any] = json.loads(data[16 : 16 + size])
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_generation_builds_runs_drives_and_profiles(
    version: str, libraries: Path, tmp_path: Path, started: list[Resident]
) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(libraries, tmp_path, version)
    assert found.missing() is None
    assert found.facts()["tensorrt"] == version
    result, _ = support.build(found, model, tmp_path / "engine", TYPING[version])
    assert result["versions"] == {"tensorrt": version, "cuda_runtime": "12.6"}
    assert result["engine_bytes"] == (tmp_path / "engine/engine.plan").stat().st_size
    assert result["facts"]["compute_capability"] == "8.7"
    flags = header(tmp_path / "engine")["flags"]
    assert flags == (
        ["BuilderFlag.TF32"]
        if TYPING[version]["typing"] == "strong"
        else ["BuilderFlag.TF32", "BuilderFlag.INT8", "BuilderFlag.FP16"]
    )
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    assert engine.description["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    feeds = support.images(3)
    for feed in feeds:
        (output,) = support.run(engine, feed)
        np.testing.assert_array_equal(output, support.expected(model, feed)[0])
    answer, _ = engine.ask("drive", support.stretch(tmp_path / "drive", feeds, runs=7, first=2))
    services, latencies = support.times(tmp_path / "drive")
    assert answer["count"] == len(services) == len(latencies) == 7
    assert services.min() > 0.0
    assert answer["seconds"] * 1e3 >= services.sum() * 0.999
    assert "device to host" in answer["facts"]["timed"]
    profile, _ = engine.ask("profile", support.stretch(tmp_path / "profile", feeds, runs=4))
    assert [(node["name"], node["op_type"]) for node in profile["nodes"]] == [("conv + relu", "Conv+Relu")]
    assert profile["nodes"][0]["us"] > 0.0
    # The context that was profiled is not the one that runs.
    (output,) = support.run(engine, feeds[0])
    np.testing.assert_array_equal(output, support.expected(model, feeds[0])[0])


@pytest.mark.parametrize("version", ["8.5.2", pytest.param("10.3.0", marks=pytest.mark.full)])
def test_whole_numbers_of_64_bits(
    version: str, libraries: Path, tmp_path: Path, started: list[Resident]
) -> None:
    """TensorRT before 10 takes 32 bits: the model's own type is kept towards the host."""
    model = support.lookup(tmp_path / "model" / "lookup.onnx")
    found = backend(libraries, tmp_path, version)
    support.build(found, model, tmp_path / "engine", TYPING[version])
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    feed = {"ids": np.array([4, 0, 3], np.int64)}
    for output, wanted in zip(support.run(engine, feed), support.expected(model, feed), strict=True):
        assert output.dtype == wanted.dtype
        np.testing.assert_array_equal(output, wanted)
    if version == "8.5.2":
        with pytest.raises(Problem, match="32 bits do not hold"):
            support.run(engine, {"ids": np.array([1 << 40, 0, 3], np.int64)})


@pytest.mark.parametrize("version", ["8.2.1", pytest.param("10.3.0", marks=pytest.mark.full)])
def test_shape_profiles(version: str, libraries: Path, tmp_path: Path, started: list[Resident]) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", batch="n")
    found = backend(libraries, tmp_path, version)
    shapes = {"x": {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [4, 3, 8, 8]}}
    support.build(found, model, tmp_path / "engine", {**TYPING[version], "shapes": shapes})
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    assert engine.description["inputs"][0]["shape"] == [-1, 3, 8, 8]
    for batch in (1, 4, 2):
        (feed,) = support.images(1, batch)
        (output,) = support.run(engine, feed)
        np.testing.assert_array_equal(output, support.expected(model, feed)[0])
    with pytest.raises(Problem, match="not built for the shape") as caught:
        support.run(engine, support.images(1, 5)[0])
    assert caught.value.kind == "input"
    # It is still there.
    support.run(engine, support.images(1, 3)[0])


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({}, "no shape profile was given"),
        ({"x": {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8]}}, "max"),
        ({"x": {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [2, 3, 9, 8]}}, "does not fit"),
    ],
)
def test_bad_profiles(shapes: Any, text: str, libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", batch="n")
    with pytest.raises(Problem, match=text) as caught:
        support.build(
            backend(libraries, tmp_path), model, tmp_path / "engine", {"typing": "strong", "shapes": shapes}
        )
    assert caught.value.kind == "input"
    assert list((tmp_path / "engine").iterdir()) == []


def test_the_timing_cache_is_kept_per_version_and_gpu(libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    caches = tmp_path / "home/timing"
    for number, version in enumerate(("8.5.2", "10.3.0")):
        support.build(
            backend(libraries, tmp_path, version), model, tmp_path / f"engine{number}", TYPING[version]
        )
    assert sorted(each.name for each in caches.iterdir()) == ["trt-10.3.0-sm87.cache", "trt-8.5.2-sm87.cache"]
    # One that does not fit is left aside, and replaced.
    stale = caches / "trt-10.3.0-sm87.cache"
    whole = stale.read_bytes()
    stale.write_bytes(b"something else")
    support.build(backend(libraries, tmp_path), model, tmp_path / "again", {"typing": "strong"})
    assert stale.read_bytes() == whole
    support.build(
        backend(libraries, tmp_path, FAKE_CUDA_SM="53"),
        model,
        tmp_path / "nano",
        {"typing": "strong", "timing_cache": False},
    )
    assert len(list(caches.iterdir())) == 2


@pytest.mark.parametrize("version", ["8.2.1", pytest.param("8.5.2", marks=pytest.mark.full), "10.3.0"])
def test_options_of_the_builder(version: str, libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    options = {**TYPING[version], "sparsity": True, "dla": 0, "workspace_bytes": 1 << 28, "level": 4}
    found = backend(libraries, tmp_path, version, FAKE_TRT_DLA="2")
    support.build(found, model, tmp_path / "engine", options)
    told = header(tmp_path / "engine")
    assert {"BuilderFlag.SPARSE_WEIGHTS", "BuilderFlag.GPU_FALLBACK"} <= set(told["flags"])
    assert told["device"] == "DeviceType.DLA"
    assert told["workspace"] == (1 << 28 if version == "8.2.1" else {"MemoryPoolType.WORKSPACE": 1 << 28})
    assert told["strong"] is (version == "10.3.0")


@pytest.mark.parametrize("version", ["8.2.1", pytest.param("11.0.0", marks=pytest.mark.full)])
def test_tf32_is_off_where_it_is_asked_for(version: str, libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    options = {**TYPING[version], "tf32": False}
    support.build(backend(libraries, tmp_path, version), model, tmp_path / "engine", options)
    assert "BuilderFlag.TF32" not in header(tmp_path / "engine")["flags"]


def test_nodes_that_must_stay_float32(libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    options = {**TYPING["8.2.1"], "float32_nodes": ["conv", "mean", "folded"]}
    result, _ = support.build(backend(libraries, tmp_path, "8.2.1"), model, tmp_path / "engine", options)
    told = header(tmp_path / "engine")
    assert told["held"] == ["conv", "mean"]
    assert told["flags"][-1] == "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"
    assert result["facts"]["float32_layers"] == "2 of 3 nodes are held to float32"


@pytest.mark.parametrize(
    ("version", "options", "text"),
    [
        ("10.3.0", {"typing": "strong", "dla": 0}, "DLA core 0 was asked for"),
        ("8.5.2", {"typing": "strong"}, "has no strong typing"),
        ("11.0.0", {"typing": "weak", "precisions": ["int8"]}, "has strong typing alone"),
        ("8.5.2", {"precisions": ["bf16"]}, "does not know bf16"),
        ("8.5.2", {"precisions": ["int3"]}, "does not know int3"),
    ],
)
def test_what_a_version_lacks(
    version: str, options: dict[str, Any], text: str, libraries: Path, tmp_path: Path
) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    with pytest.raises(Problem, match=text) as caught:
        support.build(backend(libraries, tmp_path, version), model, tmp_path / "engine", options)
    assert caught.value.kind == "unavailable"


def test_an_operator_that_tensorrt_does_not_know(libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", op_type="Shrug")
    with pytest.raises(Problem, match="does not know the operator Shrug") as caught:
        support.build(backend(libraries, tmp_path), model, tmp_path / "engine", {"typing": "strong"})
    assert caught.value.kind == "input"
    assert "lint" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not a model at all, and not short either", b"\x0a\xff"])
def test_a_file_that_is_no_model(content: bytes, libraries: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(Problem, match=r"net\.onnx") as caught:
        support.build(backend(libraries, tmp_path), path, tmp_path / "engine", {"typing": "strong"})
    assert caught.value.kind == "input"


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("segfault", "crashed", "SIGSEGV"),
        ("kill", "memory", "memory runs out"),
        pytest.param("hang", "timeout", "longer than 3 seconds", marks=pytest.mark.full),
        ("memory", "memory", "memory does not suffice"),
    ],
)
def test_a_builder_that_goes_wrong(fault: str, kind: str, text: str, libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(libraries, tmp_path, FAKE_TRT_FAULT=fault)
    with pytest.raises(Problem, match=text) as caught:
        support.build(
            found, model, tmp_path / "engine", {"typing": "strong"}, seconds=3.0 if fault == "hang" else 90.0
        )
    assert caught.value.kind == kind
    assert list((tmp_path / "engine").iterdir()) == []
    with pytest.raises(Problem, match="no engine was built"):
        found.worker_command(str(tmp_path / "engine"), {})


def test_what_the_builder_prints_is_no_message(libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(libraries, tmp_path, FAKE_TRT_FAULT="noise")
    result, lines = support.build(found, model, tmp_path / "engine", {"typing": "strong"})
    assert result["implementation"] == "bindings"
    assert lines.count("{this is no message}") == 3


@pytest.mark.parametrize(
    ("fault", "kind"), [("segfault", "crashed"), pytest.param("kill", "memory", marks=pytest.mark.full)]
)
def test_an_engine_that_dies(
    fault: str, kind: str, libraries: Path, tmp_path: Path, started: list[Resident]
) -> None:
    """While it loads, and in the middle of a run; the one who asks lives on, and is told."""
    model = support.net(tmp_path / "model" / "net.onnx")
    support.build(backend(libraries, tmp_path), model, tmp_path / "engine", {"typing": "strong"})
    with pytest.raises(Problem) as caught:
        support.start(
            backend(libraries, tmp_path, FAKE_TRT_FAULT=fault, FAKE_TRT_WHERE="load"), tmp_path / "engine"
        )
    assert caught.value.kind == kind
    dying = backend(libraries, tmp_path, FAKE_TRT_FAULT=fault, FAKE_TRT_WHERE="run")
    engine = support.start(dying, tmp_path / "engine", warm_up=False)
    started.append(engine)
    for _ in range(2):
        with pytest.raises(Problem) as caught:
            support.run(engine, support.images()[0])
        assert caught.value.kind == kind


def test_a_run_that_hangs_is_ended(libraries: Path, tmp_path: Path, started: list[Resident]) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    support.build(backend(libraries, tmp_path), model, tmp_path / "engine", {"typing": "strong"})
    hanging = backend(libraries, tmp_path, FAKE_TRT_FAULT="hang", FAKE_TRT_WHERE="run")
    engine = support.start(hanging, tmp_path / "engine", warm_up=False)
    started.append(engine)
    (feed,) = support.images()
    with pytest.raises(Problem, match=r"longer than 0\.5 seconds") as caught:
        engine.ask("run", {"inputs": support.headers(feed)}, feed["x"].tobytes(), 0.5)
    assert caught.value.kind == "timeout"
    assert not Path(f"/proc/{engine.pid}").exists()


@pytest.mark.parametrize(
    ("version", "sm", "text"),
    [
        ("10.7.0", "87", r"another version of TensorRT \(10.7.0.30 here, and not 10.3.0.6\)"),
        ("10.3.0", "53", r"another GPU \(5.3 here, and not 8.7\)"),
    ],
)
def test_an_engine_of_elsewhere(version: str, sm: str, text: str, libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    support.build(backend(libraries, tmp_path), model, tmp_path / "engine", {"typing": "strong"})
    with pytest.raises(Problem, match=text) as caught:
        support.start(backend(libraries, tmp_path, version, FAKE_CUDA_SM=sm), tmp_path / "engine")
    assert caught.value.kind == "input"
    assert "build it again" in caught.value.hint


def test_a_damaged_engine(libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(libraries, tmp_path)
    support.build(found, model, tmp_path / "engine", {"typing": "strong"})
    (tmp_path / "engine/engine.plan").write_bytes(b"nothing of the kind")
    with pytest.raises(Problem, match="damaged"):
        support.start(found, tmp_path / "engine")
    (tmp_path / "engine" / manifest.NAME).write_text("{", encoding="utf-8")
    with pytest.raises(Problem, match="no engine was built"):
        found.worker_command(str(tmp_path / "engine"), {})


def test_memory_of_the_gpu_that_cannot_be_had(libraries: Path, tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx")
    support.build(backend(libraries, tmp_path), model, tmp_path / "engine", {"typing": "strong"})
    with pytest.raises(Problem, match="cannot be had") as caught:
        support.start(backend(libraries, tmp_path, FAKE_CUDA_MEMORY="64"), tmp_path / "engine")
    assert caught.value.kind == "memory"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"FAKE_CUDA_DEVICES": "0"}, "no CUDA-capable device"),
        ({"FAKE_TRT_FAULT": "segfault", "FAKE_TRT_WHERE": "import"}, "SIGSEGV"),
        pytest.param({"LD_LIBRARY_PATH": "/nowhere"}, "CUDA", marks=pytest.mark.full),
        ({"PYTHONPATH": ""}, "cannot be imported"),
    ],
)
def test_why_it_is_missing(more: dict[str, str], text: str, libraries: Path, tmp_path: Path) -> None:
    env = {**support.bindings(libraries), **more, "PATH": ""}
    found = find("tensorrt", str(tmp_path / "root"), env, str(tmp_path / "home"))
    missing = found.missing()
    assert missing is not None
    assert text in missing
    assert "trtexec" in missing
    assert found.facts() == {}
    with pytest.raises(Problem, match="cannot be used here") as caught:
        support.build(found, tmp_path / "net.onnx", tmp_path / "engine", {})
    assert caught.value.kind == "unavailable"


def test_requests_that_make_no_sense(libraries: Path, tmp_path: Path, started: list[Resident]) -> None:
    """Each is refused by a message, and the engine goes on."""
    model = support.net(tmp_path / "model" / "net.onnx")
    found = backend(libraries, tmp_path)
    support.build(found, model, tmp_path / "engine", {"typing": "strong"})
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    (feed,) = support.images()
    good = support.headers(feed)
    asked: list[tuple[str, dict[str, Any], bytes, str]] = [
        ("dance", {}, b"", "no operation 'dance'"),
        ("run", {"inputs": []}, b"", "input 'x' is missing"),
        ("run", {"inputs": [{"name": "x"}]}, b"", "no description of a tensor"),
        ("run", {"inputs": [{**good[0], "dtype": "float99"}]}, b"", "is not known"),
        ("run", {"inputs": [{**good[0], "dtype": "int8"}]}, b"", "is int8, and not float32"),
        ("run", {"inputs": [*good, {**good[0], "name": "z"}]}, b"", "no input 'z'"),
        ("run", {"inputs": [{**good[0], "shape": [1, 3, 8]}]}, b"", "has the shape"),
        ("run", {"inputs": [{**good[0], "shape": [-1, 3, 8, 8]}]}, b"", "has the shape"),
        ("run", {"inputs": good}, b"short", "768 bytes, and 5 came"),
        ("drive", support.stretch(tmp_path / "d", [feed]), b"", "either seconds or a number of runs"),
        ("drive", support.stretch(tmp_path / "d", [feed], runs=0), b"", "one run at least"),
        ("drive", support.stretch(tmp_path / "d", [feed], seconds=-1), b"", "not below 0"),
        ("drive", support.stretch(tmp_path / "d", [feed], seconds=1, rate=0), b"", "more than 0"),
        ("drive", {**support.stretch(tmp_path / "d", [feed], runs=1), "count": 2}, b"", "the file has"),
        (
            "drive",
            {**support.stretch(tmp_path / "d", [feed], runs=1), "feeds": "/none"},
            b"",
            "cannot be read",
        ),
        ("profile", support.stretch(tmp_path / "d", [feed], runs=0), b"", "one run at least"),
    ]
    for op, args, payload, text in asked:
        with pytest.raises(Problem, match=text):
            engine.ask(op, args, payload, 30.0)
    support.run(engine, feed)
