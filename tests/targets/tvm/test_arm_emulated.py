"""Engines behind an emulator: answers, trouble of every kind, and no process that stays."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from greencc.core.data import TensorSpec
from greencc.core.errors import InputError, UnavailableError
from greencc.targets._tvm import emulator
from greencc.targets._tvm.elf import needs_of
from greencc.targets._tvm.emulated import EmulatedEngine
from greencc.targets._tvm.emulator import Emulator, missing_emulator
from greencc.targets._tvm.link import RUNTIME, find_toolchain
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.presets import TRIPLE, ArmPreset, arm_machine
from greencc.targets._tvm.runner import build_runner, missing_compiler

X, Y = TensorSpec("x", np.dtype(np.float32), ("n", 4)), TensorSpec("y", np.dtype(np.float32), ("n", 4))
HOST = Machine("x86_64-linux-gnu", "x86-64", frozenset())
Start = Callable[..., EmulatedEngine]


def build(folder: Path, machine: Machine) -> None:
    """The runner and a model that does what it is asked to."""
    arguments = ["-shared", "-fPIC", "-O1", f"-I{RUNTIME}", str(Path(__file__).parent / "fake_model.c")]
    find_toolchain(machine.triple).run([*arguments, "-o", "model.so"], folder, "building a test's model")
    (folder / "weights.bin").write_bytes(b"")
    build_runner(folder / "runner", machine.triple, machine.features)
    (folder / "runner").chmod(0o755)


def program(folder: Path) -> list[str]:
    return [str(folder / name) for name in ("runner", "model.so", "weights.bin")]


@pytest.fixture(scope="module", params=["here", "qemu"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What serves the model: built for this computer, and for ARM under QEMU."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "here":
        if os.uname().machine != "x86_64":
            pytest.skip("the test's own processor is x86-64")
        build(folder, HOST)
        return [*program(folder), "--serve"]
    if reason := missing_compiler() or missing_emulator():
        pytest.skip(reason)
    build(folder, arm_machine(ArmPreset.GENERIC).machine)
    return Emulator.find().command("cortex-a53", folder / "runner", *program(folder)[1:], "--serve")


@pytest.fixture
def start(command: list[str]) -> Iterator[Start]:
    engines: list[EmulatedEngine] = []

    def make(**options: float) -> EmulatedEngine:
        engines.append(EmulatedEngine(command, "net", [X], [Y], **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    assert not [child for child in psutil.Process().children() if "runner" in " ".join(child.cmdline())]


def asking(number: float) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 4), number, np.float32)}


def test_many_runs_of_one_process(start: Start) -> None:
    engine = start()
    rng = np.random.default_rng(0)
    for count in (1, 3, 0, 70_000, 2):
        x = rng.standard_normal((count, 4)).astype(np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)
    np.testing.assert_array_equal(engine.run({"x": x[:, ::-1]})["y"], 2 * x[:, ::-1])


def test_an_error_of_the_model_is_told_and_the_next_run_works(start: Start) -> None:
    engine = start()
    with pytest.raises(InputError, match="net: a kernel failed"):
        engine.run(asking(1003))
    assert engine.run(asking(1))["y"][0, 0] == 2


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [(1001, UnavailableError, "ended by SIGABRT"), (1004, InputError, r"exit code 7")],
)
def test_a_crash_is_named_and_ends_the_engine(
    start: Start, number: float, kind: type[Exception], message: str
) -> None:
    engine = start()
    with pytest.raises(kind, match=message):
        engine.run(asking(number))
    with pytest.raises((UnavailableError, InputError), match="net"):
        engine.run(asking(1))


def test_a_run_that_does_not_end_is_ended(start: Start) -> None:
    engine = start(run_seconds=0.5)
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.5 s"):
        engine.run(asking(1002))
    with pytest.raises(UnavailableError, match="cannot be run any more"):
        engine.run(asking(1))


def test_a_start_that_does_not_end_is_ended_with_its_own_limit() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.25 s"):
        EmulatedEngine(command, "net", [X], [Y], start_seconds=0.25)


def test_an_emulator_that_was_killed_is_noticed(start: Start) -> None:
    engine = start()
    assert engine.run(asking(1))["y"][0, 0] == 2
    (child,) = (child for child in psutil.Process().children() if "runner" in " ".join(child.cmdline()))
    child.kill()
    large = {"x": np.zeros((1_000_000, 4), np.float32)}
    with pytest.raises(UnavailableError, match="ended by SIGKILL"):
        engine.run(large)


def test_closing_ends_the_process_even_twice(start: Start) -> None:
    engine = start()
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="was closed"):
        engine.run(asking(1))


def test_a_description_that_does_not_fit_is_refused(command: list[str]) -> None:
    wide = TensorSpec("y", np.dtype(np.float64), ("n", 4))
    with pytest.raises(InputError, match="output 'y' is not what its description says"):
        EmulatedEngine(command, "net", [X], [wide])
    with pytest.raises(InputError, match="its code has 1 inputs"):
        EmulatedEngine(command, "net", [X, X], [Y])


def test_what_is_no_runner_is_refused(tmp_path: Path) -> None:
    for code in ("print('hello, world')", "raise SystemExit('it does not fit')"):
        with pytest.raises(InputError, match=r"not a runner|exit code 1\): it does not fit"):
            EmulatedEngine([sys.executable, "-c", code], "net", [X], [Y])
    with pytest.raises(UnavailableError, match="cannot be started"):
        EmulatedEngine([str(tmp_path / "missing")], "net", [X], [Y])


def test_by_hand(command: list[str], tmp_path: Path) -> None:
    base = command[: command.index("--serve")]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"

    def run(content: bytes, *more: str) -> subprocess.CompletedProcess[str]:
        source.write_bytes(content)
        return subprocess.run(
            [*base, str(source), str(target), *more], capture_output=True, text=True, check=False
        )

    whole = struct.pack("<2qQ", 2, 4, x.nbytes) + x.tobytes()
    done = run(whole)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.read_bytes() == struct.pack("<2qQ", 2, 4, x.nbytes) + (2 * x).tobytes()
    done = run(whole, "--repeat", "5", "--threads", "2")
    assert done.returncode == 0
    assert ("milliseconds" in done.stdout) != ("no times are taken under emulation" in done.stderr)
    assert ("milliseconds" in done.stdout) == ("qemu" not in command[0])
    for content, message in (
        (whole[:-1], "ends within an input"),
        (whole + b"x", "more in it than the inputs"),
        (b"", "it is empty"),
        (struct.pack("<2qQ", 2, 4, 9) + x.tobytes(), "do not fit its dimensions"),
        (struct.pack("<2qQ", -2, 4, 0), "do not fit its dimensions"),
    ):
        done = run(content)
        assert (done.returncode, done.stdout) == (3, "")
        assert message in done.stderr
    done = run(struct.pack("<2qQ", 4, 2, x.nbytes) + x.tobytes())
    assert done.returncode == 1
    assert "four columns are taken" in done.stderr
    assert run(whole, "--threads", "0").returncode == 2
    assert run(whole, "--nonsense").returncode == 2


def test_what_a_file_needs(command: list[str]) -> None:
    runner = next(Path(part) for part in command if part.endswith("runner"))
    found = needs_of(runner)
    assert found.architecture == ("aarch64" if "qemu" in command[0] else "x86_64")
    assert found.libraries == ("libc.so.6",)
    assert found.glibc is not None
    assert (2, 17) <= tuple(map(int, found.glibc.split("."))) < (3, 0)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + b"\xff" * 200):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(InputError, match="no program or library"):
            needs_of(path)


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "qemu-user-static" in (missing_emulator() or "")
    assert "gcc-aarch64-linux-gnu libc6-dev-arm64-cross" in (missing_compiler() or "")
    with pytest.raises(UnavailableError, match="qemu-user-static"):
        Emulator.find()
    monkeypatch.undo()
    monkeypatch.setattr(emulator, "LIBRARIES", tmp_path)
    if missing_emulator() != f"{emulator.PROGRAMS[0]} is not installed: {emulator.PACKAGES}":
        assert "libc6-dev-arm64-cross" in (missing_emulator() or "")


def test_find_toolchain_is_that_of_the_triple() -> None:
    if missing_compiler() is None:
        assert find_toolchain(TRIPLE).architecture == "aarch64"
