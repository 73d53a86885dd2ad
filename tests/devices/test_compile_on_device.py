"""Compile and measure on a device: a Jetson played by doubles, through the real agent and the real protocol.

Its rails follow the processor time that its engines use, so figures are checked for what must hold of any of them, and
not for a value.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.bundle import load
from greencc.cli.main import _run
from greencc.compiler import measurement
from greencc.compiler.campaign import MeasurePlan
from greencc.compiler.check import measure
from greencc.compiler.on_device import device_target, opened_target
from greencc.compiler.options import CompileOptions, Effort
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.devices.client import AgentClient, Reply
from greencc.devices.local import LocalTransport
from greencc.devices.ssh import CONFIG_VARIABLE
from greencc.measure.blocks import Discard
from greencc.measure.profiles import Profile
from greencc.measure.protocols import EnergyProtocol
from greencc.meters.opening import open_meter
from tests.agent.backend_support import bindings, cudart, net

from .fake_jetpack import FakeJetPack, make_jetpack
from .sshd import Sshd
from .sshd import missing as missing_sshd

TINY = Profile("quick", seconds=0.2, rounds=2, min_rounds=2, min_runs=2, warm_up_seconds=0.1)
PROTOCOL = EnergyProtocol("quick", 1.0, 0.4, 2, None, 60.0, periods=4, warm_up_seconds=0.0, clears_gate=False)


@dataclass
class Bench:
    """A device, and what is compiled for it."""

    jetson: FakeJetPack
    model: Path
    calibration: Path
    evaluation: Path
    out: Path

    def compile(self, device: str, *options: str) -> int:
        data = ("--calibration", str(self.calibration), "--eval", str(self.evaluation))
        fixed = ("--effort", "quick", "--no-cache", "-o", str(self.out), "--device", device)
        return int(_run(["compile", str(self.model), *data, *fixed, *options]))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of tenths of seconds: the protocol is the real one, its windows are not long enough for real figures."""
    monkeypatch.setitem(measurement.PROFILES, Effort.QUICK, TINY)
    monkeypatch.setitem(measurement.PLANS, Effort.QUICK, MeasurePlan(PROTOCOL, drive=False))


@pytest.fixture
def bench(tmp_path: Path, short: None) -> Iterator[Bench]:
    model = net(tmp_path / "net.onnx", batch="batch")
    rng = np.random.default_rng(1)
    files = []
    for name, count in (("calibration", 64), ("evaluation", 160)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, x=rng.normal(size=(count, 3, 8, 8)).astype(np.float32))
        files.append(path)
    jetson = make_jetpack(tmp_path / "jetson")
    with jetson.rails():
        yield Bench(jetson, model, files[0], files[1], tmp_path / "net.greencc")
        jetson.kill()


@pytest.fixture
def with_bindings(bench: Bench, tmp_path: Path) -> Mapping[str, str]:
    """The environment of the device: TensorRT with its bindings for Python, whose engines stay loaded."""
    (tmp_path / "lib").mkdir()
    found = bindings(cudart(tmp_path / "lib"))
    names = ("PYTHONPATH", "LD_LIBRARY_PATH", "FAKE_TRT_VERSION", "OMP_NUM_THREADS")
    return {**{name: found[name] for name in names}, **bench.jetson.environment}


@pytest.fixture
def local(with_bindings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The device as this machine's agent shows it."""
    for name, value in with_bindings.items():
        monkeypatch.setenv(name, value)
    return "local"


@pytest.fixture
def over_ssh(
    with_bindings: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sshd]:
    """The device behind a real SSH server."""
    if (reason := missing_sshd()) is not None:
        pytest.skip(reason)
    folder = tmp_path / "sshd"
    folder.mkdir()
    server = Sshd(folder, dict(with_bindings))
    server.start()
    monkeypatch.setenv(CONFIG_VARIABLE, str(server.client_config))
    yield server
    server.stop()


def address(server: Sshd) -> str:
    return str(server.address)


def at_a_poll(
    monkeypatch: pytest.MonkeyPatch, kind: str, number: int, happens: Callable[[], object]
) -> list[str]:
    """Let something happen once, when the `number`-th job of a kind is asked how it is; returns the jobs seen."""
    jobs: list[str] = []
    real = AgentClient.request

    def request(self: AgentClient, op: str, args: Any = None, *rest: Any, **more: Any) -> Reply:
        if op == "poll" and args["job"].startswith(kind) and args["job"] not in jobs:
            jobs.append(args["job"])
            if len(jobs) == number:
                happens()
        return real(self, op, args, *rest, **more)

    monkeypatch.setattr(AgentClient, "request", request)
    return jobs


def at_a_start(
    monkeypatch: pytest.MonkeyPatch, kind: str, number: int, happens: Callable[[], object]
) -> None:
    """Let something happen once, when the `number`-th job of a kind has been started."""
    jobs: list[str] = []
    real = AgentClient.request

    def request(self: AgentClient, op: str, args: Any = None, *rest: Any, **more: Any) -> Reply:
        reply = real(self, op, args, *rest, **more)
        if op == "start" and args["job"].startswith(kind):
            jobs.append(args["job"])
            if len(jobs) == number:
                happens()
        return reply

    monkeypatch.setattr(AgentClient, "request", request)


def test_compile_on_a_device_measures_there(
    bench: Bench, local: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.compile(local, "--precision", "fp32") == 0
    with load(bench.out) as bundle:
        report, manifest = bundle.report, bundle.manifest
    assert manifest.target == "jetson:jetpack=6.2"
    # What was measured is of the device's own rail, and is called so.
    for figures in (report.baseline, report.artifact):
        energy = figures.energy_mj
        assert energy is not None
        assert (energy.grade, energy.boundary.split()[0]) == ("B", "VDD_IN")
        assert figures.latency_ms.method is None
        assert figures.latency_ms.runs >= 2
        # Between the idle power of the module and that of all its cores.
        watts = energy.gross_interval().value / figures.latency_ms.median
        assert bench.jetson.module.idle_w < watts
    assert report.conditions["power_mode"] == "25W"
    assert report.conditions["idle_watts"] >= bench.jetson.module.idle_w - 0.1
    assert report.device["jetpack"] == "6.2"
    assert report.device["name"].startswith("NVIDIA Jetson Orin Nano")
    assert report.versions["tensorrt"] == "10.3.0"
    assert report.build is not None
    assert (report.build.status, report.build.built) == ("built on this machine", True)
    (check,) = report.build.checks
    assert check.passed is True
    assert "4 samples" in check.note
    assert report.accuracy.n == 120
    # The bundle is what any compile for that device gives.
    files = {path.name for path in (bench.out / "artifact").iterdir()}
    assert files >= {"model.onnx", "device.json", "build.sh", "check.py", "samples"}
    out = capsys.readouterr()
    assert "Built on this machine" in out.out
    assert "estimated" not in report.verdict
    assert not [warning for warning in report.warnings if "estimated" in warning]


@pytest.mark.full
def test_a_budget_is_measured_in_its_power_mode_which_is_put_back(bench: Bench, local: str) -> None:
    assert bench.jetson.mode == "25W"
    given = ("-t", "jetson", "--budget", "24W", "--rate", "2/s", "--max-drop", "20%")
    assert bench.compile(local, *given, "--set-power-mode") == 0
    assert bench.jetson.mode == "25W"
    with load(bench.out) as bundle:
        report = bundle.report
    plan = report.plan
    assert plan is not None
    assert (plan.power_mode, plan.estimated_on) == ("15W", "")
    (limit,) = plan.limits
    assert (limit.met, limit.estimated, limit.grade) == (True, False, "B")
    assert "the average of VDD_IN at 2 requests/s in the 15W mode (nvpmodel)" in limit.note
    assert report.build is not None
    assert report.build.power_mode == "15W"
    assert all(point.latency_p95_ms is not None for point in plan.points if point.verified)


@pytest.mark.full
def test_over_ssh_the_power_mode_is_changed_and_put_back(
    bench: Bench, over_ssh: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops: list[int] = []
    # The connection breaks while a block runs: the block goes on, and its figures come over the next connection.
    at_a_poll(monkeypatch, "drive", 8, lambda: drops.append(over_ssh.kill_sessions()))
    assert bench.compile(address(over_ssh), "--precision", "fp32", "--set-power-mode", "15W") == 0
    assert drops == [1]
    with load(bench.out) as bundle:
        report = bundle.report
    assert report.build is not None
    assert report.build.status == f"built on {address(over_ssh)}"
    assert (report.build.power_mode, report.conditions["power_mode"]) == ("15W", "15W")
    assert report.conditions["blocks_discarded"] == "none"
    assert report.artifact.energy_mj is not None
    assert report.artifact.energy_mj.grade == "B"
    assert bench.jetson.mode == "25W"


def test_a_restart_in_a_block_discards_that_block_alone(
    bench: Bench, over_ssh: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two stretches of warm-up and two rounds of latency, and then the second block of the energy's first round.
    at_a_poll(monkeypatch, "drive", 8, bench.jetson.reboot)
    found, warnings = measure(
        bench.model,
        data=bench.evaluation,
        target="jetson:jetpack=6.2",
        device=address(over_ssh),
        plan=MeasurePlan(PROTOCOL),
    )
    assert found.campaign is not None
    result = found.campaign.result
    assert result.discarded == {Discard.LOST.value: 1, Discard.COMPANION.value: 1}
    assert (result.rounds, result.problem) == (2, None)
    assert result.comparison is not None
    assert found.campaign.meter is not None
    assert found.campaign.meter.title.startswith("jetson: measured, grade B, boundary VDD_IN")
    assert any("discarded blocks" in warning for warning in warnings)
    # The trace is in order though the device's clock is its own.
    seconds = [point.seconds for point in found.campaign.trace]
    assert seconds == sorted(seconds)


@pytest.mark.full
def test_an_engine_that_is_killed_in_a_block_discards_that_block_alone(
    bench: Bench, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_the_busy_one() -> None:
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            for keeper in bench.jetson.home.glob("jobs/*/keeper.json"):
                told = json.loads(keeper.read_text())
                if told["busy"]:
                    os.kill(told["pid"], signal.SIGKILL)
                    return
            time.sleep(0.01)

    # Two stretches of warm-up and two rounds of latency come before, and the first block of the energy's first round.
    at_a_start(monkeypatch, "drive", 8, kill_the_busy_one)
    found, warnings = measure(
        bench.model,
        data=bench.evaluation,
        target="jetson:jetpack=6.2",
        device=local,
        plan=MeasurePlan(replace(PROTOCOL, block_seconds=2.0)),
    )
    assert found.campaign is not None
    result = found.campaign.result
    assert result.discarded == {Discard.LOST.value: 1, Discard.COMPANION.value: 1}
    assert (result.rounds, result.problem) == (2, None)
    (lost,) = [block for block in result.blocks if block.discarded is Discard.LOST]
    assert "the engine died" in lost.note
    assert any("discarded blocks" in warning for warning in warnings)


@pytest.mark.full
def test_bundles_of_a_device_are_measured_run_and_verified_there(
    bench: Bench, local: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.compile(local, "--precision", "fp32") == 0
    capsys.readouterr()
    there = ("--device", local)
    saved = tmp_path / "saved"
    assert _run(["measure", str(bench.out), "--protocol", "quick", *there, "--save", str(saved)]) == 0
    told = json.loads((saved / "measurement.json").read_text())
    assert told["campaign"]["meter"]["grade"] == "B"
    assert told["conditions"]["hostname"]
    assert (saved / "trace.csv").read_text().count("\n") > 20
    outputs = tmp_path / "outputs.npz"
    assert _run(["run", str(bench.out), "-i", str(bench.evaluation), "-o", str(outputs), *there]) == 0
    with np.load(outputs) as given:
        assert given["y"].shape == (160, 4)
    data = ("--model", str(bench.model), "--eval", str(bench.evaluation))
    assert _run(["verify", str(bench.out), *data, *there]) == 0


def test_a_device_of_another_kind_is_refused_with_what_fits(bench: Bench, local: str) -> None:
    assert bench.compile(local, "--target", "jetson-agx-orin") == InputError.exit_code
    assert not bench.out.exists()
    with (
        pytest.raises(InputError, match="jetson-orin-nano") as raised,
        opened_target("jetson-agx-orin", local),
    ):
        pass
    assert raised.value.hint == "compile for it: --target jetson:preset=jetson-orin-nano,jetpack=6.2"
    with pytest.raises(UsageError, match="this computer alone"), opened_target("openvino", local):
        pass


def test_a_model_larger_than_the_memory_there_is_refused_before_it_is_sent(
    bench: Bench, local: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The preset says 8 GB; this board has less than its system takes.
    (bench.jetson.root / "proc/meminfo").write_text("MemTotal: 262144 kB\nMemAvailable: 262144 kB\n")
    assert bench.compile(local, "--precision", "fp32") == InputError.exit_code
    assert "estimated before anything is copied" in " ".join(capsys.readouterr().err.split())
    assert not [path for path in bench.jetson.home.rglob("store/*") if path.is_file()]
    assert not bench.out.exists()


def test_power_modes_are_changed_where_that_is_allowed(bench: Bench, local: str) -> None:
    with AgentClient(LocalTransport()) as client:
        target = device_target(client)
        assert target.power_modes() == (("15W", 15.0), ("25W", 25.0), ("MAXN_SUPER", None), ("7W", 7.0))
        with pytest.raises(UnavailableError, match="may not be changed"), target.with_power_mode("7W"):
            pass
        allowed = device_target(client, may_change_mode=True)
        with allowed.with_power_mode("7W"):
            assert (allowed.power_mode(), bench.jetson.mode) == ("7W", "7W")
            with allowed.with_power_mode("15W"):
                assert (allowed.power_mode(), bench.jetson.mode) == ("15W", "15W")
            assert (allowed.power_mode(), bench.jetson.mode) == ("7W", "7W")
        assert (allowed.power_mode(), bench.jetson.mode) == ("25W", "25W")


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    recording = tmp_path / "power.csv"
    recording.write_text("seconds,watts\n0,1\n1,1\n")
    meter = open_meter(f"csv:{recording}?grade=A")
    with pytest.raises(UsageError, match="measured with its own meter"):
        measure(tmp_path / "net.onnx", device="local", plan=MeasurePlan(meter=meter))
    with pytest.raises(UsageError, match="power mode is changed on a device"):
        CompileOptions(set_power_mode="15W")
    with pytest.raises(UsageError, match="evaluated on the device"):
        CompileOptions(device="local", workers=2)
    with pytest.raises(UsageError, match="tuned on a device"):
        CompileOptions(device="local", tune=10.0)
    assert (CompileOptions().target, CompileOptions(device="local").target) == ("cpu", "")


@pytest.mark.full
def test_with_trtexec_alone_accuracy_is_judged_here_and_samples_are_checked_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bench.jetson.environment.items():
        monkeypatch.setenv(name, value)
    assert bench.compile("local", "--precision", "fp32") == 0
    with load(bench.out) as bundle:
        report = bundle.report
    assert report.build is not None
    samples, accuracy = report.build.checks
    assert samples.passed is True
    assert accuracy.passed is None
    assert "trtexec alone" in accuracy.note
    assert report.build.facts["feeds"].startswith("1 of")
    assert report.artifact.energy_mj is not None
    assert report.artifact.energy_mj.grade == "B"
