"""Devices that tests reach: over a real SSH server on loopback, or as a subprocess."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from greencc.devices.client import AgentClient, ClientOptions
from greencc.devices.ssh import CONFIG_VARIABLE, SshTransport

from . import sshd as servers
from .fake_jetpack import FakeJetPack, make_jetpack
from .sshd import Sshd


@pytest.fixture(autouse=True)
def own_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is read from or written to the user's own lists and journals."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("GREENCC_DEVICES", str(tmp_path / "config" / "devices.toml"))
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)


@pytest.fixture
def agent_home(tmp_path: Path) -> Path:
    """Where the device's agent keeps its files."""
    return tmp_path / "agent-home"


@pytest.fixture
def device_root(tmp_path: Path) -> Path:
    """The root of a device's file system: an unknown board that has just been started."""
    root = tmp_path / "root"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "run/lock").mkdir(parents=True)
    (root / "run/lock").chmod(0o1777)
    (root / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n")
    (root / "proc/sys/kernel/random/boot_id").write_text("first-boot\n")
    return root


@pytest.fixture
def sshd(tmp_path: Path, agent_home: Path, device_root: Path) -> Iterator[Sshd]:
    """A running server whose sessions find the agent's folders."""
    environment = {"GREENCC_AGENT_HOME": str(agent_home), "GREENCC_AGENT_ROOT": str(device_root)}
    with serving(tmp_path / "sshd", environment) as server:
        yield server


@pytest.fixture
def jetson(tmp_path: Path) -> FakeJetPack:
    """A Jetson Orin Nano with JetPack 6.2, played in a folder."""
    return make_jetpack(tmp_path / "jetson")


@pytest.fixture
def jetson_sshd(tmp_path: Path, jetson: FakeJetPack) -> Iterator[Sshd]:
    """A running server on it."""
    with serving(tmp_path / "sshd", jetson.environment) as server:
        yield server
        jetson.kill()


@contextmanager
def serving(folder: Path, environment: Mapping[str, str]) -> Iterator[Sshd]:
    """A running server with its files in a new folder; the test is skipped where that is not possible."""
    if (reason := servers.missing()) is not None:
        pytest.skip(reason)
    folder.mkdir()
    server = Sshd(folder, environment)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(sshd: Sshd) -> Iterator[AgentClient]:
    """A client of the agent behind the server; it waits a little between tries, as tests can afford."""
    options = ClientOptions(connect_seconds=20.0, patience_seconds=8.0)
    with AgentClient(SshTransport(sshd.address, sshd.options), options) as found:
        yield found
