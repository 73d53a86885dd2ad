"""A device as a machine that is measured on: what its jobs say to the host, and what that makes of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from greencc.compiler.measurement import _conditions
from greencc.core.elsewhere import LostError, Stretch
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError, UnavailableError
from greencc.devices import site as sites
from greencc.devices.client import AgentClient
from greencc.devices.engine import DeviceEngine
from greencc.devices.engines import Port
from greencc.devices.facts import DeviceFacts
from greencc.devices.local import LocalTransport
from greencc.devices.protocol import error_of
from greencc.devices.site import Built, DeviceSite

BUILT = Built("build-1", (Port("x", "float32", (1,)),), (), {}, {}, None, 0, True)


class _Client:
    """Stands for a client whose jobs fail in one way."""

    name = "ssh://user@orin"

    def __init__(self, error: GreenccError) -> None:
        self._error = error
        self.specs: list[Mapping[str, Any]] = []

    def upload(self, content: bytes, *, label: str) -> str:
        return "0" * 64

    def run_job(self, spec: Mapping[str, Any], **given: Any) -> None:
        self.specs.append({**spec, "host_limit": given["limit"]})
        raise self._error


def _site(kind: str) -> tuple[DeviceSite, _Client]:
    error = error_of({"kind": kind, "message": "the process of the engine is gone"}, "ssh://user@orin")
    client = _Client(error)
    return DeviceSite(client, "gpu", DeviceFacts()), client  # type: ignore[arg-type]


def test_a_dead_engine_costs_the_stretch_alone() -> None:
    site, client = _site("crashed")
    with pytest.raises(
        LostError, match=r"the engine died: ssh://user@orin: the process of the engine is gone"
    ):
        site.drive(BUILT, [{"x": np.zeros(1, np.float32)}], Stretch(seconds=1.0))
    # The host gives up after the device, which waits for others for as long as it was told.
    (spec,) = client.specs
    assert spec["wait"] + spec["limits"]["seconds"] < spec["host_limit"]


def test_a_builder_that_crashes_does_so_again() -> None:
    site, _ = _site("crashed")
    with pytest.raises(UnavailableError) as raised:
        site.profile(BUILT, {"x": np.zeros(1, np.float32)}, 3)
    assert not isinstance(raised.value, LostError)


def test_a_device_that_runs_one_input_to_a_block_says_so() -> None:
    site, _ = _site("crashed")
    resident, alone = (DeviceEngine(site, replace(BUILT, resident=each), _unopened) for each in (True, False))
    assert resident.notes == ()
    (note,) = alone.notes
    assert note.startswith("ssh://user@orin has trtexec alone: every block")
    conditions = _conditions_of(alone)
    assert note in conditions
    assert note not in _conditions_of(resident)


def _unopened() -> Engine:
    raise AssertionError("nothing is run here")


def _conditions_of(engine: DeviceEngine) -> tuple[str, ...]:
    """What a measurement of an engine warns of beforehand."""
    engine.site.client.facts = lambda: DeviceFacts()  # type: ignore[method-assign]
    engine.site.client.untidied = "what was left is not put in order"
    found = _conditions(None, None, engine)  # type: ignore[arg-type]
    assert "what was left is not put in order" in found.warnings
    return found.warnings


@pytest.fixture
def local(agent_home: Path, device_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCC_AGENT_HOME", str(agent_home))
    monkeypatch.setenv("GREENCC_AGENT_ROOT", str(device_root))


def _used(root: Path) -> IO[str]:
    """The device's lock, with a note of who holds it."""
    stream = (root / "run/lock/greencc-device.lock").open("w")
    fcntl.flock(stream, fcntl.LOCK_EX)
    os.pwrite(stream.fileno(), b"job [7] of anna (process 42)", 0)
    return stream


def test_who_uses_the_device_is_shown_while_a_job_waits(local: None, device_root: Path) -> None:
    held, shown, ended = _used(device_root), [], []

    def progress(items: Iterable[Any], *, label: str, total: int | None = None) -> Iterator[Any]:
        shown.append(label)
        if "in use by" in label:
            held.close()
        try:
            yield from items
        finally:
            ended.append(label)

    with AgentClient(LocalTransport()) as client:
        driven = DeviceSite(client, "cpu", progress=progress).idle(0.05)
    assert driven.seconds >= 0.05
    label = "this machine: the device is in use by job (7) of anna (process 42): waiting"
    assert shown == [label]
    assert ended == [label]


def test_who_uses_the_device_is_named_when_it_is_given_up(
    local: None, device_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "WAIT_SECONDS", 0.2)
    held = _used(device_root)
    with (
        AgentClient(LocalTransport()) as client,
        pytest.raises(UnavailableError, match=r"in use by job \[7\] of anna"),
    ):
        DeviceSite(client, "cpu").idle(0.05)
    held.close()
