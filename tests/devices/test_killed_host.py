"""A run of greencc that is killed: the next one puts the device in order, and finds what was built."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from greencc.agent.device import used
from greencc.agent.places import Places
from greencc.devices import client as clients
from greencc.devices.advice import warnings
from greencc.devices.client import AgentClient, ClientOptions
from greencc.devices.journal import Journal, state_folder
from greencc.devices.local import LocalTransport

from .fake_jetpack import FakeJetPack
from .stub import asked, client_of, program

_HOST = """
import sys
from greencc.devices.client import AgentClient
from greencc.devices.local import LocalTransport

with AgentClient(LocalTransport()) as client:
    spec = {"kind": "idle", "seconds": 600.0, "processor": "cpu"}
    client.run_job(spec, label="waiting", limit=900.0, on_event=lambda event: (print("begun"), sys.stdout.flush()))
"""


def test_measurements_of_a_killed_run_are_cancelled(
    tmp_path: Path, agent_home: Path, device_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENCC_AGENT_HOME", str(agent_home))
    monkeypatch.setenv("GREENCC_AGENT_ROOT", str(device_root))
    host = subprocess.Popen([sys.executable, "-c", _HOST], cwd=Path(__file__).parents[2])
    state = agent_home / "jobs"
    try:
        while not [path for path in state.glob("*/state.json") if path.stat().st_size]:
            assert host.poll() is None
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait()
    (journal,) = state_folder().glob("*/*.jsonl")
    assert "idle-" in journal.read_text()
    with AgentClient(LocalTransport()) as client:
        client.hello()
        (folder,) = state.iterdir()
        assert json.loads((folder / "result.json").read_text())["state"] == "cancelled"
    assert not list(state_folder().glob("*/*"))


_AGENT = """
hello()
for number, op, args, payload in requests():
    results = {"power-mode": {"mode": "7W", "before": "15W"}, "start": {"state": "running"}}
    if op == "cancel" and "gone" in args["job"]:
        say({"id": number, "error": {"kind": "lost", "message": "no such job"}})
    else:
        say({"id": number, "result": results.get(op, {})})
"""


def test_only_what_dead_runs_left_is_put_in_order(tmp_path: Path) -> None:
    dead, alive = Journal("local"), Journal("local")
    for journal in (dead, alive):
        journal.power_mode(changed=True)
    with (
        pytest.raises(RuntimeError),
        dead.running("drive-1"),
        dead.running("build-1"),
        dead.running("idle-gone"),
    ):
        raise RuntimeError
    with dead.running("idle-2"):
        pass
    _kill(dead)
    with client_of(program(_AGENT), tmp_path) as client:
        client.hello()
    assert asked(tmp_path) == ["cancel", "cancel", "power-mode", "bye"]
    assert len(list(state_folder().glob("*/*.jsonl"))) == 1
    alive.close()
    assert not list(state_folder().glob("*/*"))


def _kill(journal: Journal) -> None:
    """What the end of its process does: the lock goes, and the file stays."""
    assert journal._file is not None
    journal._file.close()


def test_a_damaged_journal_says_nothing(tmp_path: Path) -> None:
    journal = Journal("local")
    journal.power_mode(changed=False)
    (file,) = state_folder().glob("*/*.jsonl")
    file.write_bytes(b'{"begin": 7}\n[1]\n\xff\n{"begin": "' + b"x" * 500 + b'"}\n{"power_mode": tr')
    _kill(journal)
    with client_of(program(_AGENT), tmp_path) as client:
        client.hello()
    assert asked(tmp_path) == ["bye"]


def test_a_journal_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    journal = Journal("local")
    with journal.running("idle-1"):
        pass
    assert journal.problem is not None
    journal.close()


def test_the_power_mode_is_put_back(tmp_path: Path) -> None:
    with client_of(program(_AGENT), tmp_path) as client:
        assert client.set_power_mode("7W") == "15W"
        client.set_power_mode("7W")
    assert asked(tmp_path) == ["power-mode", "power-mode", "power-mode", "bye"]
    assert client.farewell is None
    assert not list(state_folder().glob("*/*"))


def test_the_power_mode_is_put_back_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with client_of(program(_AGENT), tmp_path) as client:
            client.set_power_mode("7W")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert asked(tmp_path) == ["power-mode", "power-mode", "bye"]


def test_what_cannot_be_put_back_now_stops_nobody(tmp_path: Path, jetson: FakeJetPack) -> None:
    """A run was killed while its build ran on with the device in use."""
    environment = {**os.environ, **jetson.environment, "GREENCC_AGENT_LEASE": "0.3"}
    first = AgentClient(LocalTransport(environment))
    first.set_power_mode("7W")
    psutil.Process(first.hello().pid).kill()
    _kill(first._journal)
    first._drop()
    with used(Places(jetson.home, jetson.root), "job build-1", False, 0, print):
        with AgentClient(LocalTransport(environment)) as second:
            facts = second.facts()
        assert second.farewell is None
        assert facts.power is not None
        assert (facts.power.mode, facts.power.before) == ("7W", "25W")
        assert any("its power mode should be 25W again" in told for told in warnings(facts))
    while jetson.mode != "25W":
        time.sleep(0.02)
    jetson.kill()


def test_goodbye_is_said_after_the_power_mode_was_refused(tmp_path: Path) -> None:
    body = _AGENT.replace(
        "    results =",
        '    if "restore" in args:\n        error = {"kind": "unavailable", "message": "it is in use"}\n'
        '        say({"id": number, "error": error})\n        continue\n    results =',
    )
    with client_of(program(body), tmp_path) as client:
        client.set_power_mode("7W")
    assert "it is in use" in str(client.farewell)
    assert asked(tmp_path) == ["power-mode", "power-mode", "bye"]
    assert len(list(state_folder().glob("*/*.jsonl"))) == 1


def test_a_power_mode_survives_a_new_connection(tmp_path: Path) -> None:
    body = _AGENT.replace(
        "    results =", '    if op == "probe" and not count("probes"):\n        os._exit(1)\n    results ='
    )
    with client_of(program(body), tmp_path) as client:
        client.set_power_mode("7W")
        client.probe()
    assert asked(tmp_path) == ["power-mode", "probe", "power-mode", "probe", "power-mode", "bye"]


def test_a_connection_that_died_in_silence_does_not_hold_the_power_mode(
    tmp_path: Path, jetson: FakeJetPack
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("the device is there, and nothing is to be waited for")

    with AgentClient(
        LocalTransport({**os.environ, **jetson.environment}), ClientOptions(sleep=sleep)
    ) as client:
        assert client.set_power_mode("7W") == "25W"
        first, lost = client.hello().pid, client._channel
        # The agent over there waits on, and nothing that is said reaches it.
        client._channel = None
        assert client.hello().pid != first
        assert jetson.mode == "7W"
        assert client.set_power_mode("15W") == "25W"
    assert client.farewell is None
    assert jetson.mode == "25W"
    assert lost is not None
    lost.close()
    jetson.kill()


def test_what_a_dead_run_set_is_put_back_by_its_name(tmp_path: Path) -> None:
    dead = Journal("local")
    dead.power_mode(changed=True)
    _kill(dead)
    body = _AGENT.replace(
        "    results =", '    (HOME / "owner").write_text(str(args.get("owner")))\n    results ='
    )
    with client_of(program(body), tmp_path) as client:
        client.hello()
        assert (tmp_path / "owner").read_text() == dead.owner


def test_a_device_that_will_not_be_put_in_order_is_reached_all_the_same(tmp_path: Path) -> None:
    """Its user may not set modes any more, or a build that outlived the run holds the device."""
    dead = Journal("local")
    dead.power_mode(changed=True)
    _kill(dead)
    refused = (
        'say({"id": number, "error": {"kind": "permission", "message": "sudo: no"}})\n        continue\n'
    )
    body = _AGENT.replace("    results =", f'    if "restore" in args:\n        {refused}    results =')
    with client_of(program(body), tmp_path) as client:
        client.hello()
        assert client.untidied == (
            "what a greencc that was killed left on this machine is not put in order: this machine: sudo: no"
        )
    assert asked(tmp_path) == ["power-mode", "bye"]
    # The next run tries again.
    assert len(list(state_folder().glob("*/*.jsonl"))) == 1


def test_a_connection_that_ends_while_the_device_is_put_in_order_is_made_again(tmp_path: Path) -> None:
    for _ in range(2):
        dead = Journal("local")
        with pytest.raises(RuntimeError), dead.running("idle-1"):
            raise RuntimeError
        dead.power_mode(changed=True)
        _kill(dead)
    body = _AGENT.replace("    results =", '    if "restore" in args:\n        os._exit(1)\n    results =')
    with client_of(program(body), tmp_path) as client:
        client.probe()
        assert client.untidied is not None
    assert asked(tmp_path) == ["cancel", "power-mode", "probe", "bye"]
    assert len(list(state_folder().glob("*/*.jsonl"))) == 2


def test_a_device_that_takes_too_long_to_be_put_in_order_is_reached_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_RESTORE_SECONDS", 0.2)
    dead = Journal("local")
    dead.power_mode(changed=True)
    _kill(dead)
    body = _AGENT.replace("    results =", '    if "restore" in args:\n        time.sleep(60)\n    results =')
    with client_of(program(body), tmp_path) as client:
        client.probe()
        assert client.untidied is not None
        assert "did not answer in time" in client.untidied
    assert asked(tmp_path) == ["power-mode", "probe", "bye"]


def test_a_power_mode_that_cannot_be_put_back_is_told(tmp_path: Path) -> None:
    body = _AGENT.replace("    results =", '    if "restore" in args:\n        os._exit(1)\n    results =')
    with client_of(program(body), tmp_path) as client:
        client.set_power_mode("7W")
    assert client.farewell is not None
    assert "ended" in client.farewell
    # The next run tries again.
    assert len(list(state_folder().glob("*/*.jsonl"))) == 1


def test_a_new_agent_waits_for_the_end_of_the_old_one(tmp_path: Path) -> None:
    body = _AGENT.replace(
        "    results =",
        '    if op == "probe" and not count("probes"):\n        os._exit(1)\n'
        '    if "set" in args and count("sets") == 1:\n'
        '        error = {"kind": "unavailable", "message": "another connection has set it"}\n'
        '        say({"id": number, "error": error})\n        continue\n'
        "    results =",
    )
    with client_of(program(body), tmp_path) as client:
        client.set_power_mode("7W")
        client.probe()
    assert asked(tmp_path) == [
        "power-mode",
        "probe",
        "power-mode",
        "power-mode",
        "probe",
        "power-mode",
        "bye",
    ]
