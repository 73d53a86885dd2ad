"""Devices that are no Jetson: an ARM board whose programs QEMU runs, and a PC with ONNX Runtime.

The board's figures are those of an emulator and say nothing: what is checked is that all of the way there works.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from greencc.bundle import load
from greencc.cli.main import _run
from greencc.compiler import measurement, on_device
from greencc.compiler.campaign import MeasurePlan
from greencc.compiler.options import Effort
from greencc.devices.local import LocalTransport
from greencc.measure.profiles import Profile
from greencc.measure.protocols import EnergyProtocol
from greencc.targets import make_target
from greencc.targets._tvm.emulator import Emulator
from tests.agent.arm64 import arm_python
from tests.agent.backend_support import environment, net

TINY = Profile("quick", seconds=0.2, rounds=2, min_rounds=2, min_runs=2, warm_up_seconds=0.1)
PROTOCOL = EnergyProtocol("quick", 1.0, 0.4, 2, None, 60.0, periods=4, warm_up_seconds=0.0, clears_gate=False)
# What an ARM machine says of itself, and what its kernel does with its programs.
_BOARD = """
import platform, shutil, subprocess

platform.machine = lambda: "aarch64"
_start = subprocess.Popen.__init__


def start(self, args, *rest, **more):
    path = shutil.which(args[0])
    with open(path or "/dev/null", "rb") as file:
        head = file.read(20)
    if head[:4] == b"\\x7fELF" and head[18:20] == b"\\xb7\\x00":
        args = [{qemu!r}, "-L", {libraries!r}, *args]
    _start(self, args, *rest, **more)


subprocess.Popen.__init__ = start
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of tenths of seconds, as in test_compile_on_device."""
    monkeypatch.setitem(measurement.PROFILES, Effort.QUICK, TINY)
    monkeypatch.setitem(measurement.PLANS, Effort.QUICK, MeasurePlan(PROTOCOL, drive=False))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for name, count in (("calibration", 64), ("evaluation", 160)):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(count, 3, 8, 8)).astype(np.float32))
    return net(tmp_path / "net.onnx", batch="batch")


def compiled(model: Path, *options: str) -> Path:
    """The bundle of a compile on ``--device local``."""
    out = model.with_name("net.greencc")
    data = [f"--{name}={model.with_name(file)}" for name, file in DATA]
    fixed = ("--effort", "quick", "--no-cache", "-o", str(out), "--device", "local")
    assert _run(["compile", str(model), *data, *fixed, *options]) == 0
    return out


DATA = (("calibration", "calibration.npz"), ("eval", "evaluation.npz"))


@pytest.fixture
def board(device_root: Path, agent_home: Path, tmp_path: Path) -> Mapping[str, str]:
    """A Raspberry Pi 4, as files and environment variables of the agent."""
    (device_root / "proc/device-tree").mkdir(parents=True)
    (device_root / "proc/device-tree/model").write_text("Raspberry Pi 4 Model B Rev 1.4\0")
    core = "processor: {}\nFeatures: fp asimd crc32\nCPU implementer: 0x41\nCPU part: 0xd08\n"
    (device_root / "proc/cpuinfo").write_text("\n".join(core.format(number) for number in range(2)))
    if missing := make_target("tvm-arm").missing():
        pytest.skip(missing)
    folder = tmp_path / "python"
    folder.mkdir()
    emulator = Emulator.find()
    text = _BOARD.format(qemu=emulator.program, libraries=str(emulator.libraries))
    (folder / "sitecustomize.py").write_text(text)
    return environment(
        PYTHONPATH=str(folder),
        GREENCC_AGENT_HOME=str(agent_home),
        GREENCC_AGENT_ROOT=str(device_root),
        GREENCC_AGENT_EMULATED="1",
    )


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_arm_board_runs_generated_code(
    precision: str, model: Path, board: Mapping[str, str], short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_device, "open_transport", lambda text: LocalTransport(board))
    bundle = compiled(model, "--precision", precision, "--max-drop", "30%")
    check_board(bundle, "tvm-arm:preset=rpi4")
    outputs = model.with_name("outputs.npz")
    given = ("-i", str(model.with_name("evaluation.npz")), "-o", str(outputs))
    assert _run(["run", str(bundle), *given, "--device", "local"]) == 0
    with load(bundle) as found, np.load(model.with_name("evaluation.npz")) as inputs, np.load(outputs) as y:
        here = found.run({"x": inputs["x"]})["y"]
        # The very code that was checked here, in the same emulator.
        np.testing.assert_array_equal(y["y"], here)


@pytest.mark.full
def test_the_agent_of_an_arm_board_is_an_arm_process(
    model: Path, board: Mapping[str, str], short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = arm_python(tmp_path)
    monkeypatch.setattr(on_device, "open_transport", lambda text: LocalTransport(board, python=python))
    check_board(
        compiled(model, "--precision", "fp32", "--target", "tvm-arm:preset=generic-aarch64"), "tvm-arm"
    )


def check_board(bundle: Path, target: str) -> None:
    """What a compile for the board has given."""
    with load(bundle) as found:
        report, manifest = found.report, found.manifest
        files = {path.name for path in found.artifact.parent.iterdir()}
    assert manifest.target == target
    assert files == {"model.json", "model.so", "runner", "weights.bin"}
    assert report.device["machine"] == "aarch64"
    assert report.device["name"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert report.device["cpu"] == "Cortex-A72"
    assert report.build is not None
    assert (report.build.status, report.build.built) == ("built on this machine", True)
    assert "emulator" in report.build.facts["emulated"]
    (check,) = report.build.checks
    assert check.passed is True
    # Timed there, by the runner, and metered by nothing.
    assert report.artifact.latency_ms.method is None
    assert report.artifact.latency_ms.runs >= 2
    assert report.artifact.energy_mj is None
    assert report.accuracy.n == 120


@pytest.mark.full
def test_a_pc_runs_onnx_runtime(
    model: Path, agent_home: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENCC_AGENT_HOME", str(agent_home))
    with load(compiled(model, "--precision", "int8", "--target", "cpu", "--max-drop", "30%")) as bundle:
        report, manifest = bundle.report, bundle.manifest
    assert manifest.target == "cpu"
    assert report.versions["onnxruntime"]
    assert report.build is not None
    assert (report.build.status, report.build.built) == ("built on this machine", True)
    assert report.build.facts["provider"] == "CPUExecutionProvider"
    assert "emulated" not in report.build.facts
    (check,) = report.build.checks
    assert check.passed is True
    assert report.artifact.latency_ms.method is None
    assert report.artifact.latency_ms.runs >= 2
    assert report.accuracy.n == 120
