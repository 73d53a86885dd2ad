"""What tests of the agent's backends share: models, environments with doubles, and ways to ask a worker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.agent.backends import Backend, Limits
from greencc.agent.backends.resident import Resident

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SHAPE = (1, 3, 8, 8)


def net(path: Path, *, batch: int | str = 1, op_type: str = "Relu", name: str = "x") -> Path:
    """conv, an activation, a mean over the pixels: x [batch, 3, 8, 8] -> y [batch, 4]; `name` is that of the input."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.normal(size=4).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Conv", [name, "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(op_type, ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="mean"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    x = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *SHAPE[1:]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])
    return _save(path, nodes, [x], [y], weights)


def lookup(path: Path) -> Path:
    """Whole numbers of 64 bits: ids [3] -> the rows of a table [3, 2], and twice the ids."""
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32).reshape(5, 2), "table")
    two = numpy_helper.from_array(np.array(2, np.int64), "two")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="gather"),
        helper.make_node("Mul", ["ids", "two"], ["twice"], name="mul"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [3])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [3, 2])
    twice = helper.make_tensor_value_info("twice", TensorProto.INT64, [3])
    return _save(path, nodes, [ids], [rows, twice], [table, two])


def _save(path: Path, nodes: Any, inputs: Any, outputs: Any, weights: Any) -> Path:
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def expected(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """By ONNX Runtime, here."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]).run(None, feeds)


def environment(**more: str) -> dict[str, str]:
    """Of processes: this one's, without what would point them elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FAKE_", "TRTEXEC_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def cudart(folder: Path) -> Path:
    """The double of CUDA's runtime, in a folder for LD_LIBRARY_PATH."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which makes the double of CUDA's runtime, is not installed")
    source = HERE / "fake_cudart.c"
    target = folder / "libcudart.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def bindings(libraries: Path, version: str = "10.3.0", **more: str) -> dict[str, str]:
    """An environment with TensorRT's bindings of a version."""
    return environment(
        PYTHONPATH=str(HERE / "fake_tensorrt"),
        LD_LIBRARY_PATH=str(libraries),
        FAKE_TRT_VERSION=version,
        **more,
    )


def install_trtexec(root: Path) -> Path:
    """The double of trtexec, where JetPack has it."""
    target = root / "usr/src/tensorrt/bin/trtexec"
    target.parent.mkdir(parents=True)
    program = REPOSITORY / "tests/devices/trtexec_double.py"
    target.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n', encoding="utf-8")
    target.chmod(0o755)
    return target


def build(backend: Backend, model: Path, folder: Path, options: dict[str, Any], **limits: float) -> Any:
    """A build whose log is kept; returns its result and the log."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    seconds, memory = limits.get("seconds"), limits.get("memory_bytes")
    found = backend.build(
        str(model),
        str(folder),
        options,
        lines.append,
        Limits(seconds, None if memory is None else int(memory)),
    )
    return found, lines


def start(backend: Backend, folder: Path, **options: Any) -> Resident:
    """A resident engine."""
    return Resident(backend.worker_command(str(folder), options), backend.env)


def headers(feeds: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """As messages describe inputs."""
    return [
        {"name": name, "dtype": str(value.dtype), "shape": list(value.shape)} for name, value in feeds.items()
    ]


def run(engine: Resident, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of one run."""
    payload = b"".join(value.tobytes() for value in feeds.values())
    result, data = engine.ask("run", {"inputs": headers(feeds)}, payload, 60.0)
    assert result["ms"] > 0.0
    found, offset = [], 0
    for row in result["outputs"]:
        dtype = np.dtype(row["dtype"])
        size = dtype.itemsize * int(np.prod(row["shape"]))
        found.append(np.frombuffer(data[offset : offset + size], dtype).reshape(row["shape"]))
        offset += size
    assert offset == len(data)
    return found


def stretch(folder: Path, feeds: list[dict[str, np.ndarray]], **arguments: Any) -> dict[str, Any]:
    """Arguments of ``drive`` and ``profile``, with the feeds in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "feeds.bin"
    file.write_bytes(b"".join(value.tobytes() for feed in feeds for value in feed.values()))
    return {
        "feeds": str(file),
        "inputs": headers(feeds[0]),
        "count": len(feeds),
        "into": str(folder),
        **arguments,
    }


def times(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of services and latencies."""
    return np.fromfile(folder / "services.f64"), np.fromfile(folder / "latencies.f64")


def images(count: int = 1, batch: int = 1) -> list[dict[str, np.ndarray]]:
    """Inputs of `net`."""
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(batch, *SHAPE[1:])).astype(np.float32)} for _ in range(count)]
