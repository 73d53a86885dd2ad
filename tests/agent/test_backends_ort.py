"""ONNX Runtime on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from greencc.agent.backends import find
from greencc.agent.backends.resident import Resident
from greencc.agent.problem import Problem

from . import backend_support as support


@pytest.fixture
def started() -> Iterator[list[Resident]]:
    engines: list[Resident] = []
    yield engines
    for engine in engines:
        engine.close()


def test_builds_runs_drives_and_profiles(tmp_path: Path, started: list[Resident]) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", batch="n")
    found = find("ort", "/", support.environment(), str(tmp_path / "home"))
    assert found.missing() is None
    result, _ = support.build(found, model, tmp_path / "engine", {"threads": 1})
    assert set(result["versions"]) == {"onnxruntime", "numpy"}
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    assert engine.description["inputs"][0]["shape"] == [-1, 3, 8, 8]
    for batch in (1, 3):
        (feed,) = support.images(1, batch)
        (output,) = support.run(engine, feed)
        np.testing.assert_array_equal(output, support.expected(model, feed)[0])
    feeds = support.images(3)
    answer, _ = engine.ask(
        "drive", support.stretch(tmp_path / "drive", feeds, seconds=0.2, due=[0.01, 0.02, 9.0])
    )
    services, latencies = support.times(tmp_path / "drive")
    assert answer["count"] == len(services) == len(latencies) == 2
    # To the end of the stretch, as at a rate.
    assert answer["seconds"] >= 0.2
    profile, _ = engine.ask("profile", support.stretch(tmp_path / "profile", feeds, runs=2))
    assert {node["op_type"] for node in profile["nodes"]} >= {"GlobalAveragePool", "Flatten"}


def test_data_beside_the_model_comes_along(tmp_path: Path, started: list[Resident]) -> None:
    plain = support.net(tmp_path / "plain.onnx")
    path = tmp_path / "model" / "net.onnx"
    path.parent.mkdir()
    onnx.save(
        onnx.load(str(plain)), str(path), save_as_external_data=True, location="net.data", size_threshold=0
    )
    assert (tmp_path / "model/net.data").exists()
    found = find("ort", "/", support.environment(), str(tmp_path / "home"))
    support.build(found, path, tmp_path / "engine", {})
    for each in (tmp_path / "model").iterdir():
        each.unlink()
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    (feed,) = support.images()
    np.testing.assert_array_equal(support.run(engine, feed)[0], support.expected(plain, feed)[0])


def test_a_model_that_is_refused(tmp_path: Path) -> None:
    model = support.net(tmp_path / "model" / "net.onnx", op_type="Shrug")
    found = find("ort", "/", support.environment(), str(tmp_path / "home"))
    with pytest.raises(Problem, match=r"ONNX Runtime refuses the model: .*Shrug") as caught:
        support.build(found, model, tmp_path / "engine", {})
    assert caught.value.kind == "input"
    assert list((tmp_path / "engine").iterdir()) == []


def test_without_the_packages(tmp_path: Path) -> None:
    """A Python that has neither."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such thing')", encoding="utf-8")
    found = find("ort", "/", support.environment(PYTHONPATH=str(tmp_path)), str(tmp_path / "home"))
    missing = found.missing()
    assert missing is not None
    assert "pip install onnxruntime" in missing
    assert found.facts() == {}


def test_memory_is_watched(tmp_path: Path) -> None:
    """A worker that holds more than it may is ended, and why is told."""
    model = support.net(tmp_path / "model" / "net.onnx")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\nif sys.argv[1:2] == ['build'] or 'build' in sys.argv:\n"
        "    held = bytearray(b'x') * (200 << 20)\n    time.sleep(60)\n",
        encoding="utf-8",
    )
    found = find("ort", "/", support.environment(PYTHONPATH=str(tmp_path)), str(tmp_path / "home"))
    with pytest.raises(Problem, match="100 MB were allowed") as caught:
        support.build(found, model, tmp_path / "engine", {}, memory_bytes=100 << 20, seconds=30.0)
    assert caught.value.kind == "memory"


def test_there_is_no_such_backend() -> None:
    with pytest.raises(Problem, match="no backend 'abacus'") as caught:
        find("abacus", "/", {}, "")
    assert caught.value.kind == "usage"
