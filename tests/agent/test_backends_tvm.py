"""Compiled models behind their runner: on this computer, and for ARM under QEMU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.agent.backends import find
from greencc.agent.backends.resident import Resident
from greencc.agent.problem import Problem
from greencc.targets._tvm.emulator import Emulator, missing_emulator
from greencc.targets._tvm.link import RUNTIME, find_toolchain
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.presets import ArmPreset, arm_machine
from greencc.targets._tvm.runner import build_runner, missing_compiler

from . import backend_support as support

FAKE_MODEL = support.REPOSITORY / "tests/targets/tvm/fake_model.c"
HOST = Machine("x86_64-linux-gnu", "x86-64", frozenset())


def compiled(folder: Path, machine: Machine) -> Path:
    """An artifact of the test's model, which gives twice its input or the trouble that is asked for."""
    folder.mkdir()
    arguments = ["-shared", "-fPIC", "-O1", f"-I{RUNTIME}", str(FAKE_MODEL), "-o", "model.so"]
    find_toolchain(machine.triple).run(arguments, folder, "building a test's model")
    (folder / "weights.bin").write_bytes(b"")
    build_runner(folder / "runner", machine.triple, machine.features)
    described = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 4]}],
        "kernels": [{"node": "twice", "op_type": "Mul", "arithmetic": "INT8"}],
        "triple": machine.triple,
        "cpu": "a test's",
        "tvm": "0.27",
    }
    (folder / "model.json").write_text(json.dumps(described), encoding="utf-8")
    return folder / "model.json"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.uname().machine != "x86_64":
        pytest.skip("the test's own processor is x86-64")
    return compiled(tmp_path_factory.mktemp("here") / "model", HOST)


@pytest.fixture
def started() -> Iterator[list[Resident]]:
    engines: list[Resident] = []
    yield engines
    for engine in engines:
        engine.close()


def backend(folder: Path, **more: str) -> Any:
    return find("tvm", "/", support.environment(**more), str(folder / "home"))


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((2, 4), number + 1, np.float32)} for number in range(count)]


def test_runs_and_drives(here: Path, tmp_path: Path, started: list[Resident]) -> None:
    found = backend(tmp_path)
    assert found.missing() is None
    result, _ = support.build(found, here, tmp_path / "engine", {})
    assert result["versions"] == {"tvm": "0.27"}
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    for feed in feeds():
        np.testing.assert_array_equal(support.run(engine, feed)[0], 2.0 * feed["x"])
    folder = tmp_path / "drive"
    answer, _ = engine.ask("drive", support.stretch(folder, feeds(), runs=9, first=1))
    services, latencies = support.times(folder)
    assert answer["count"] == len(services) == len(latencies) == 9
    assert answer["facts"].keys() == {"timed"}
    answer, _ = engine.ask("drive", support.stretch(folder, feeds(), seconds=0.1, rate=100.0))
    assert answer["count"] == 10
    assert answer["seconds"] >= 0.1
    answer, _ = engine.ask("drive", support.stretch(folder, feeds(), seconds=0.1, due=[0.02, 0.05, 0.3]))
    assert answer["count"] == 2
    answer, _ = engine.ask("drive", support.stretch(folder, feeds(), runs=5, due=[0.0, 0.01]))
    assert answer["count"] == 2
    # The first may be due after the end: there is one all the same.
    answer, _ = engine.ask("drive", support.stretch(folder, feeds(), seconds=0.05, due=[7.0]))
    assert answer["count"] == 1
    services, latencies = support.times(folder)
    assert np.all(latencies >= services)
    answer, _ = engine.ask("profile", support.stretch(folder, feeds(), runs=3))
    assert answer == {"nodes": [{"name": "twice", "op_type": "Mul:int8", "us": 5.0}]}


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        (1001.0, "crashed", "signal 6"),
        (1003.0, "input", "a kernel failed"),
        (1004.0, "input", r"ended \(7\)"),
    ],
)
def test_trouble(
    asked: float, kind: str, text: str, here: Path, tmp_path: Path, started: list[Resident]
) -> None:
    found = backend(tmp_path)
    support.build(found, here, tmp_path / "engine", {})
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    feed = {"x": np.full((1, 4), asked, np.float32)}
    with pytest.raises(Problem, match=text) as caught:
        support.run(engine, feed)
    assert caught.value.kind == kind
    with pytest.raises(Problem, match=text):
        engine.ask("drive", support.stretch(tmp_path / "drive", [feed], runs=2))


def test_files_that_are_missing(here: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_bytes(here.read_bytes())
    with pytest.raises(Problem, match=r"model\.so is missing"):
        support.build(backend(tmp_path), model / "model.json", tmp_path / "engine", {})
    (model / "model.json").write_text("[]", encoding="utf-8")
    with pytest.raises(Problem, match="does not describe a compiled model"):
        support.build(backend(tmp_path), model / "model.json", tmp_path / "again", {})


def test_a_runner_that_cannot_be_driven(here: Path, tmp_path: Path, started: list[Resident]) -> None:
    """Artifacts of before have one that knows nothing of it: it ends with a line on its use."""
    model = tmp_path / "model"
    model.mkdir()
    for each in here.parent.iterdir():
        (model / each.name).write_bytes(each.read_bytes())
    (model / "new").write_bytes((model / "runner").read_bytes())
    (model / "runner").write_text(
        '#!/bin/sh\nfor each; do [ "$each" = --drive ] && { echo "usage" >&2; exit 2; }; done\n'
        f'exec "{here.parent / "runner"}" "$@"\n',
        encoding="utf-8",
    )
    (here.parent / "runner").chmod(0o755)
    found = backend(tmp_path)
    support.build(found, model / "model.json", tmp_path / "engine", {})
    engine = support.start(found, tmp_path / "engine")
    started.append(engine)
    np.testing.assert_array_equal(support.run(engine, feeds()[0])[0], 2.0 * feeds()[0]["x"])
    with pytest.raises(Problem, match="older version") as caught:
        engine.ask("drive", support.stretch(tmp_path / "drive", feeds(), runs=2))
    assert caught.value.kind == "unavailable"


def test_another_processor(tmp_path: Path) -> None:
    if reason := missing_compiler():
        pytest.skip(reason)
    machine = arm_machine(ArmPreset.GENERIC).machine
    model = compiled(tmp_path / "model", machine)
    if os.uname().machine == "aarch64" or Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        pytest.skip("programs for aarch64 are run here")
    with pytest.raises(Problem, match="runner") as caught:
        support.build(backend(tmp_path), model, tmp_path / "engine", {})
    assert caught.value.kind == "unavailable"


def test_under_emulation_no_time_is_taken(tmp_path: Path, started: list[Resident]) -> None:
    """The runner finds out by itself; what a test may ask for says so in its facts."""
    if reason := missing_compiler() or missing_emulator():
        pytest.skip(reason)
    model = compiled(tmp_path / "model", arm_machine(ArmPreset.GENERIC).machine)
    program = (model.parent / "runner").rename(tmp_path / "arm-runner")
    program.chmod(0o755)
    command = Emulator.find().command("cortex-a53", program)
    (model.parent / "runner").write_text(
        "#!/bin/sh\nexec " + " ".join(f"'{part}'" for part in command) + ' "$@"\n', encoding="utf-8"
    )
    support.build(backend(tmp_path), model, tmp_path / "engine", {})
    engine = support.start(backend(tmp_path), tmp_path / "engine")
    started.append(engine)
    np.testing.assert_array_equal(support.run(engine, feeds()[0])[0], 2.0 * feeds()[0]["x"])
    with pytest.raises(Problem, match="emulation"):
        engine.ask("drive", support.stretch(tmp_path / "drive", feeds(), runs=2))
    allowed = support.start(backend(tmp_path, GREENCC_AGENT_EMULATED="1"), tmp_path / "engine")
    started.append(allowed)
    answer, _ = allowed.ask("drive", support.stretch(tmp_path / "drive", feeds(), runs=2))
    assert answer["count"] == 2
    assert "emulator" in answer["facts"]["emulated"]
