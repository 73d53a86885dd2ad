"""Engines on a Jetson in a folder: built, run, driven and metered, and what happens when they die."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from greencc.agent.processes import started_at
from tests.devices.fake_jetpack import FakeJetPack, make_jetpack

from .agents import Agent, Refused, until
from .backend_support import SHAPE, net

PORT = {"name": "x", "dtype": "float32", "shape": list(SHAPE)}
FEED = np.random.default_rng(1).normal(size=SHAPE).astype("<f4")
FEEDS = FEED.tobytes() + (2 * FEED).tobytes()


def build(agent: Agent, tmp_path: Path, backend: str = "ort", job: str = "build-1") -> dict:
    path = net(tmp_path / "net.onnx")
    spec = {
        "kind": "build",
        "backend": backend,
        "files": {"net.onnx": agent.put(path.read_bytes())},
        "main": "net.onnx",
        "options": {"threads": 1},
        "limits": {"seconds": 120, "bytes": 4 << 30},
    }
    return agent.result(job, spec)


@dataclass
class Built:
    """A Jetson with an engine of ONNX Runtime, for the tests of this module."""

    agent: Agent
    jetpack: FakeJetPack
    result: dict


@pytest.fixture(scope="module")
def built(agent_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("engines")
    jetpack = make_jetpack(folder / "jetson")
    agent = Agent(agent_file, jetpack.environment)
    yield Built(agent, jetpack, build(agent, folder))
    agent.end()
    jetpack.kill()


def drive_spec(agent: Agent, **more: object) -> dict:
    return {
        "kind": "drive",
        "build": "build-1",
        "feeds": agent.put(FEEDS),
        "inputs": [PORT],
        "count": 2,
        "metered": True,
    } | more


def keeper(jetpack, job: str = "build-1") -> int | None:
    try:
        return int(json.loads((jetpack.home / "jobs" / job / "keeper.json").read_text())["pid"])
    except FileNotFoundError:
        return None


def doubles(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def test_an_engine_is_built_run_and_driven_under_the_rails(built: Built) -> None:
    agent, jetpack = built.agent, built.jetpack
    assert built.result["engine_bytes"] > 0
    assert "onnxruntime" in built.result["versions"]
    opened = agent.ask("open", job="build-1")
    assert opened["engine"] == "build-1"
    assert opened["inputs"] == [PORT]
    first = keeper(jetpack)
    told, data = agent.both("run", FEED.tobytes(), engine="build-1", inputs=[PORT])
    (port,) = told["outputs"]
    assert (port["name"], port["dtype"]) == ("y", "float32")
    values = np.frombuffer(data, "<f4")
    assert values.shape == (4,)
    _, again = agent.both("run", FEED.tobytes(), engine="build-1", inputs=[PORT])
    assert again == data
    with jetpack.rails():
        idle = agent.result("idle-1", {"kind": "idle", "seconds": 0.3, "metered": True, "processor": "gpu"})
        flat = agent.result("drive-1", drive_spec(agent, seconds=0.6))
        paced = agent.result("drive-2", drive_spec(agent, runs=5, rate=200.0, first=1))
    assert keeper(jetpack) == first, "the engine was loaded anew"
    latencies = doubles(agent.both("fetch", job="drive-1", file="latencies.f64")[1])
    services = doubles(agent.both("fetch", job="drive-1", file="services.f64")[1])
    assert flat["count"] == len(latencies) == len(services)
    assert min(services) > 0.0
    assert paced["count"] == 5
    for told in (idle, flat, paced):
        times = [row["seconds"] for row in told["samples"]]
        assert times[0] <= told["begin"]
        assert times[-1] >= told["begin"] + told["seconds"]
        assert told["meter"]["boundary"].startswith("VDD_IN (Orin")
        assert told["others"] == 0.0
        assert told["problem"] is None
        assert told["before"]["celsius"] == told["after"]["celsius"] == 47.0
        assert told["after"]["facts"]["power_mode"] == "25W"
        assert told["readings"] == []
    # A thread of the worker may wake up meanwhile.
    assert min(row["watts"]["VDD_IN"] for row in idle["samples"]) == 3.2
    # A core that computes draws up to 2 W in this machine.
    assert 3.2 < max(row["watts"]["VDD_IN"] for row in flat["samples"]) < 3.2 + 2 * 2.0
    assert flat["before"]["clock_mhz"] == 729.6
    agent.ask("close", engine="build-1")
    assert keeper(jetpack) is None


@pytest.mark.full
def test_layers_are_timed(built: Built) -> None:
    agent = built.agent
    spec = drive_spec(agent, runs=3) | {"kind": "profile"}
    nodes = agent.result("profile-1", spec)["nodes"]
    assert any(node["op_type"] == "Conv" for node in nodes)
    assert all(node["us"] >= 0 for node in nodes)


def test_an_engine_that_was_killed_is_told_and_loaded_anew(built: Built) -> None:
    agent, jetpack = built.agent, built.jetpack
    agent.ask("start", job="drive-k", spec=drive_spec(agent, seconds=30, metered=False))
    until("an engine", lambda: keeper(jetpack) is not None)
    pid = keeper(jetpack)
    until("a worker", lambda: _children(pid))
    folder = jetpack.home / "jobs/drive-k/watched.json"
    until("the drive", folder.exists)
    for child in _children(pid):
        os.kill(child, signal.SIGKILL)
    told = agent.wait("drive-k")
    assert told["error"]["kind"] in ("memory", "crashed")
    assert "killed" in told["error"]["message"]
    assert agent.ask("open", job="build-1")["engine"] == "build-1"
    assert keeper(jetpack) != pid


def test_cancelling_a_drive_ends_its_engine(built: Built) -> None:
    agent, jetpack = built.agent, built.jetpack
    agent.ask("start", job="drive-c", spec=drive_spec(agent, seconds=60, metered=False))
    until("the drive", (jetpack.home / "jobs/drive-c/watched.json").exists)
    pid = keeper(jetpack)
    assert pid is not None
    agent.ask("cancel", job="drive-c")
    # Its remains may be there until init looks.
    assert started_at(pid) is None
    assert agent.ask("poll", job="drive-c")["state"] == "cancelled"


def test_an_engine_that_nobody_asks_ends_itself_and_comes_back(built: Built, agent_file: Path) -> None:
    built.agent.ask("close", engine="build-1")
    agent = Agent(agent_file, {**built.jetpack.environment, "GREENCC_AGENT_ENGINE_IDLE": "0.2"})
    try:
        agent.ask("open", job="build-1")
        until("the engine's end", lambda: keeper(built.jetpack) is None)
        _, data = agent.both("run", FEED.tobytes(), engine="build-1", inputs=[PORT])
        assert len(data) == 16
    finally:
        agent.end()


def test_what_an_engine_does_not_take_is_told(built: Built) -> None:
    agent = built.agent
    with pytest.raises(Refused) as caught:
        agent.both("run", b"12", engine="build-1", inputs=[PORT | {"shape": [1]}])
    assert caught.value.kind in ("input", "usage")
    with pytest.raises(Refused, match="are not on the device"):
        agent.result("drive-4", drive_spec(agent, seconds=1) | {"feeds": "0" * 64})
    with pytest.raises(Refused, match="no meter of devices"):
        agent.result("drive-5", drive_spec(agent, seconds=0.01, meter="abacus"))
    with pytest.raises(Refused, match="seconds is -1"):
        agent.result("drive-6", drive_spec(agent, seconds=-1))


def test_a_meter_that_fails_is_told(agent: Agent, jetpack) -> None:
    agent.ask("start", job="idle-1", spec={"kind": "idle", "seconds": 0.5, "metered": True})
    # Before the first sample or between two of them: it is told either way.
    jetpack.write({"curr1_input": "1424 mA"}, "sys/class/hwmon/hwmon1")
    told = agent.wait("idle-1")["result"]
    assert "curr1_input reads '1424 mA', not a whole number" in told["problem"]
    jetpack.set_watts(4.0)
    told = agent.result("idle-2", {"kind": "idle", "seconds": 0, "metered": True})
    assert {row["watts"]["VDD_IN"] for row in told["samples"]} == {4.0}


def test_jobs_that_need_an_engine_which_is_not_there(agent: Agent) -> None:
    digest = agent.put(b"1234")
    with pytest.raises(Refused, match="there is no job build-9"):
        agent.result("drive-1", {"kind": "drive", "build": "build-9", "feeds": digest, "runs": 1})
    agent.result("idle-1", {"kind": "idle", "seconds": 0})
    with pytest.raises(Refused, match="job idle-1 has no engine"):
        agent.ask("open", job="idle-1")


def test_a_file_that_was_not_sent_is_named(agent: Agent) -> None:
    spec = {"kind": "build", "backend": "ort", "files": {"net.onnx": "0" * 64}, "main": "net.onnx"}
    with pytest.raises(Refused, match=r"file net\.onnx \(000000000000\) is not on the device") as caught:
        agent.result("build-1", spec)
    assert caught.value.kind == "input"
    with pytest.raises(Refused, match="the main file b is not among the files"):
        agent.result("build-2", spec | {"main": "b"})


def _children(pid: int | None) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
