"""One device has one journal, however its address is written."""

from __future__ import annotations

import getpass
import shutil
from pathlib import Path

import pytest

from greencc.devices.address import parse_address
from greencc.devices.ssh import SshOptions, SshTransport

_CONFIG = """\
Host orin
  HostName 192.0.2.7
  User anna
Host far
  HostName 192.0.2.7
  User anna
  ProxyJump gate
Host *
  Port 22
"""


@pytest.fixture
def options(tmp_path: Path) -> SshOptions:
    if shutil.which("ssh") is None:
        pytest.skip("there is no ssh: install openssh-client")
    config = tmp_path / "ssh_config"
    config.write_text(_CONFIG)
    return SshOptions(config=config)


def _identity(text: str, options: SshOptions) -> str:
    return SshTransport(parse_address(text), options).identity


def test_what_the_configuration_adds_makes_no_other_device(options: SshOptions) -> None:
    written = (
        "ssh://orin",
        "ssh://anna@orin",
        "ssh://orin:22",
        "ssh://anna@192.0.2.7",
        "ssh://anna@192.0.2.7:22",
    )
    assert len({_identity(text, options) for text in written}) == 1
    assert _identity("ssh://host", options) == _identity(f"ssh://{getpass.getuser()}@host:22", options)


def test_other_users_ports_and_networks_are_other_devices(options: SshOptions) -> None:
    written = ("ssh://orin", "ssh://otto@orin", "ssh://orin:2222", "ssh://far", "ssh://anna@192.0.2.8")
    assert len({_identity(text, options) for text in written}) == len(written)


def test_a_client_that_cannot_tell_leaves_the_address_as_it_is(options: SshOptions) -> None:
    assert options.config is not None
    options.config.write_text("NoSuchOption yes\n")
    assert _identity("ssh://orin", options) == "ssh://orin"
    assert _identity("ssh://orin", SshOptions(program="no-such-program")) == "ssh://orin"
