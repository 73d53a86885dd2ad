"""Peak memory in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.measure.memory import _parse, _save, peak_memory
from greencc.targets import CpuTarget
from greencc.targets import _child as child


def heavy(path: Path, megabytes: int) -> Path:
    """One MatMul with a weight of the given size; the input is called "file" on purpose."""
    columns = megabytes * 1_000_000 // (4 * 1000)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["file", "w"], ["y"])],
        "heavy",
        [helper.make_tensor_value_info("file", TensorProto.FLOAT, ["N", 1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        [numpy_helper.from_array(np.ones((1000, columns), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


FEEDS = {"file": np.ones((1, 1000), np.float32)}


def test_a_large_weight_shows(tmp_path: Path) -> None:
    small = peak_memory(CpuTarget(threads=1), heavy(tmp_path / "small.onnx", 1), FEEDS)
    large = peak_memory(CpuTarget(threads=1), heavy(tmp_path / "large.onnx", 80), FEEDS)
    assert small.reason is None
    assert small.megabytes is not None
    assert large.megabytes is not None
    assert large.megabytes - small.megabytes > 70


def test_a_model_that_does_not_load_gives_none_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    memory = peak_memory(CpuTarget(threads=1), tmp_path / "bad.onnx", FEEDS)
    assert memory.megabytes is None
    assert memory.reason is not None
    assert "bad.onnx" in memory.reason


class Played(CpuTarget):
    """A target whose memory command is something else."""

    command: Sequence[str] | None = None

    def memory_command(self, artifact: Path, feeds: Path, runs: int) -> Sequence[str] | None:
        return self.command


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (None, "cannot measure memory"),
        ([sys.executable, "-c", "import sys; sys.exit(3)"], "status 3"),
        ([sys.executable, "-c", "print('hello')"], "printed 'hello"),
        ([sys.executable, "-c", "print('[1]')"], "printed"),
        (["/nonexistent/program"], "could not be started"),
    ],
)
def test_what_goes_wrong_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Sequence[str] | None, reason: str
) -> None:
    monkeypatch.setattr(Played, "command", command)
    memory = peak_memory(Played(), tmp_path / "m.onnx", FEEDS)
    assert memory.megabytes is None
    assert reason in str(memory.reason)


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Played, "command", [sys.executable, "-c", "import time; time.sleep(60)"])
    memory = peak_memory(Played(), tmp_path / "m.onnx", FEEDS, timeout_seconds=0.2)
    assert memory.reason == "the process did not finish within 0.2 s"


def test_bytes_become_megabytes_above_the_baseline() -> None:
    finished = subprocess.CompletedProcess([], 0, '{"baseline_bytes": 1000000, "peak_bytes": 3500000}\n', "")
    assert _parse(finished).megabytes == 2.5


def test_the_feeds_survive_the_file(tmp_path: Path) -> None:
    feeds = {"file": np.arange(3.0), "a/b": np.array([["x"]])}
    _save(tmp_path / "f.npz", feeds)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["a/b", "file"]
        np.testing.assert_array_equal(archive["file"], feeds["file"])


def test_the_child_without_a_proc_tree_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path / "f.npz", FEEDS)
    monkeypatch.setattr(child, "_STATUS", tmp_path / "none")
    assert child.main(["cpu", "m.onnx", str(tmp_path / "f.npz"), "1"]) == 5
    assert "cannot read" in capsys.readouterr().err
