"""What keeps a connection from being made, over a real OpenSSH server: one clear message each, with the remedy."""

from __future__ import annotations

import os
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.core.errors import ExitCode
from greencc.devices.address import SshAddress
from greencc.devices.client import AgentClient, ClientOptions
from greencc.devices.package import agent_package
from greencc.devices.ssh import SshOptions, SshTransport
from greencc.devices.transport import ConnectionLostError

from .sshd import Sshd, make_key


def _refused(transport: SshTransport, seconds: float = 20.0) -> ConnectionLostError:
    client = AgentClient(
        transport, ClientOptions(connect_seconds=seconds, patience_seconds=60.0, sleep=_never)
    )
    with pytest.raises(ConnectionLostError) as caught, client:
        client.probe()
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    return caught.value


def _never(seconds: float) -> None:
    raise AssertionError("the first connection is made at once, or not at all")


def _hint(error: ConnectionLostError) -> str:
    assert error.hint is not None
    return error.hint


def test_an_unknown_host_key_is_not_accepted(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "host key that is not known yet" in error.message
    assert f"ssh -p {sshd.port} {sshd.address.destination}" in _hint(error)
    assert "ssh-keyscan" in _hint(error)
    assert sshd.known_hosts.read_text() == ""


def test_a_changed_host_key_is_refused_with_its_line(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    sshd.trust(tmp_path / "other.pub")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert f"line 1 of {sshd.known_hosts}" in error.message
    assert "another host key" in error.message
    assert not error.passing


def test_a_key_that_is_not_let_in(sshd: Sshd) -> None:
    (sshd.folder / "authorized_keys").write_text("")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "refuses the login" in error.message
    assert "ssh-copy-id" in _hint(error)
    assert "passwords are never used" in _hint(error)


def test_a_key_that_others_can_read(sshd: Sshd) -> None:
    (sshd.folder / "user_key").chmod(0o644)
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert f"the key {sshd.folder / 'user_key'} cannot be used: bad permissions" in error.message


def test_a_key_that_is_not_there(sshd: Sshd, tmp_path: Path) -> None:
    options = replace(sshd.options, identity=tmp_path / "none")
    error = _refused(SshTransport(sshd.address, options))
    assert "none is not there" in error.message
    assert "--identity" in _hint(error)


def test_a_port_where_nobody_listens(sshd: Sshd) -> None:
    sshd.stop()
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "does not answer: Connection refused" in error.message
    assert "switched on" in _hint(error)


def test_a_server_that_says_nothing(sshd: Sshd) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = SshAddress("127.0.0.1", "somebody", silent.getsockname()[1])
        error = _refused(SshTransport(address, replace(sshd.options, connect_seconds=1)))
    assert "does not answer" in error.message


def test_a_server_that_is_none_of_ssh(sshd: Sshd) -> None:
    sshd.client_config.write_text(sshd.client_config.read_text() + "  ProxyCommand echo hello\n")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert str(sshd.address) in error.message


def test_a_name_that_nobody_knows(sshd: Sshd) -> None:
    error = _refused(SshTransport(SshAddress("no-such-host.invalid", "somebody"), sshd.options))
    assert "the name no-such-host.invalid is not known" in error.message
    assert "spelling" in _hint(error)


def test_no_ssh_on_this_machine() -> None:
    transport = SshTransport(SshAddress("orin"), SshOptions(program="no-such-ssh"))
    error = _refused(transport)
    assert "there is no program 'no-such-ssh'" in error.message
    assert "openssh-client" in _hint(error)


def test_a_configuration_that_ssh_refuses(sshd: Sshd) -> None:
    sshd.client_config.write_text("NoSuchOption yes\n")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "configuration" in error.message
    assert "nosuchoption" in error.message.lower()


def test_no_python_on_the_device(sshd: Sshd, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    sshd.login(python=folder)
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "has no python3" in error.message
    assert "apt install python3" in _hint(error)


def _python_after(sshd: Sshd, folder: Path, statement: str) -> None:
    """The device's python3 runs a statement before what it is told to run."""
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\ncode="$2"; shift 2\nexec {sys.executable} -c "{statement}; $code" "$@"\n')
    python.chmod(0o755)
    sshd.login(python=folder)


def test_a_python_that_is_too_old(sshd: Sshd, tmp_path: Path) -> None:
    _python_after(sshd, tmp_path / "bin", "import sys; sys.version_info = (3, 5, 2)")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "has Python 3.5.2; the agent needs 3.6 or later" in error.message
    assert "newer python3" in _hint(error)


def test_a_disk_that_is_full_for_the_agent_itself(sshd: Sshd, tmp_path: Path, agent_home: Path) -> None:
    full = "import os; os.fsync = lambda _: os.write(os.open('/dev/full', os.O_WRONLY), b'0')"
    _python_after(sshd, tmp_path / "bin", full)
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "No space left on device" in error.message
    assert "free some space there" in _hint(error)
    assert not list(agent_home.iterdir())


def test_a_login_that_may_run_nothing(sshd: Sshd) -> None:
    sshd.login(before="echo only backups here >&2; exit 1")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "only backups here" in error.message


def test_login_scripts_may_print(sshd: Sshd) -> None:
    sshd.login(before="echo '{\"not\": \"ours\"}'; printf 'Welcome! '")
    with AgentClient(SshTransport(sshd.address, sshd.options)) as client:
        assert client.hello().pid > 0


def test_login_scripts_that_never_end(sshd: Sshd) -> None:
    sshd.login(before="exec yes")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "lines, and the agent was not among them" in error.message


def test_the_agent_is_stored_once_and_for_its_owner_alone(sshd: Sshd, agent_home: Path) -> None:
    file = agent_home / agent_package().name
    with AgentClient(SshTransport(sshd.address, sshd.options)) as client:
        assert client.hello().home == str(agent_home)
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(agent_home.stat().st_mode) & 0o077 == 0
    before = file.stat()
    with AgentClient(SshTransport(sshd.address, sshd.options)) as client:
        client.hello()
    assert file.stat().st_ino == before.st_ino


def test_agents_of_other_versions_go_when_they_are_old(sshd: Sshd, agent_home: Path) -> None:
    agent_home.mkdir(mode=0o700)
    old, new = agent_home / "agent-000000000000.pyz", agent_home / "agent-111111111111.pyz"
    for file in (old, new):
        file.write_bytes(b"")
    os.utime(old, (0, 0))
    with AgentClient(SshTransport(sshd.address, sshd.options)) as client:
        client.hello()
    assert {path.name for path in agent_home.glob("*.pyz")} == {new.name, agent_package().name}


def test_a_damaged_agent_is_sent_again(sshd: Sshd, agent_home: Path) -> None:
    agent_home.mkdir(mode=0o700)
    file = agent_home / agent_package().name
    file.write_bytes(b"print('something else')")
    with AgentClient(SshTransport(sshd.address, sshd.options)) as client:
        client.hello()
    assert file.read_bytes() == agent_package().content


def test_a_folder_that_others_may_write_to_is_not_used(sshd: Sshd, agent_home: Path) -> None:
    agent_home.mkdir()
    agent_home.chmod(0o777)
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert "can be written by others" in error.message
    assert f"chmod go-w {agent_home}" in _hint(error)


def test_a_home_that_cannot_be_written(sshd: Sshd, agent_home: Path) -> None:
    agent_home.write_text("a file where the folder should be")
    error = _refused(SshTransport(sshd.address, sshd.options))
    assert f"the agent cannot be stored in {agent_home}" in error.message
    assert "GREENCC_AGENT_HOME" in _hint(error)
