"""Addresses become arguments of `ssh`: what could be anything else is refused."""

from __future__ import annotations

import pytest

from greencc.core.errors import UsageError
from greencc.devices.address import SshAddress, check_name, parse_address
from greencc.devices.ssh import SshOptions, SshTransport


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://orin", SshAddress("orin")),
        ("ssh://user@orin", SshAddress("orin", "user")),
        ("ssh://user@orin:2222", SshAddress("orin", "user", 2222)),
        ("ssh://user@orin/", SshAddress("orin", "user")),
        ("ssh://u.s-e_r@10.0.0.7:22", SshAddress("10.0.0.7", "u.s-e_r", 22)),
        ("ssh://user@[fe80::1]", SshAddress("fe80::1", "user")),
        ("ssh://[FE80:0::1]:22", SshAddress("fe80::1", "", 22)),
    ],
)
def test_addresses(text: str, address: SshAddress) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "orin",
        "http://orin",
        "ssh://",
        "ssh://user@",
        "ssh://@orin",
        "ssh://-oProxyCommand=id",
        "ssh://-oProxyCommand=id@orin",
        "ssh://user@-orin",
        "ssh://user name@orin",
        "ssh://user@orin;id",
        "ssh://user@$(id)",
        "ssh://user@orin:0",
        "ssh://user@orin:65536",
        "ssh://user@orin:22a",
        "ssh://user@orin:",
        "ssh://user@orin:-1",
        "ssh://user@orin:²",
        "ssh://user@orin/path",
        "ssh://user@orin?x",
        "ssh://user@orin\n",
        "ssh://user@orin:22\n",
        "ssh://user@[::1",
        "ssh://user@[orin]",
        "ssh://user@[]",
        "ssh://fe80::1",
        "ssh://user@o[r]in",
        "ssh://a@b@c",
        f"ssh://{'h' * 300}",
        f"ssh://{'u' * 100}@orin",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["ssh://user:hunter2@orin", "ssh://:hunter2@orin:22", "http://user:hunter2@orin"]
)
def test_passwords_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value)


def test_the_reason_for_refusing_a_password_is_told() -> None:
    with pytest.raises(UsageError, match="holds a password") as caught:
        parse_address("ssh://user:hunter2@orin")
    assert "ssh-copy-id" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", "-x", "local", "Orin", "a b", "a/b", "..", "x" * 64, "ssh://x", "é"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        check_name(name)


def test_the_command_line_never_asks_and_never_trusts() -> None:
    command = SshTransport(SshAddress("orin", "user", 2222), SshOptions()).command()
    assert command[:2] == ["ssh", "-T"]
    options = [command[index + 1] for index, word in enumerate(command) if word == "-o"]
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "PasswordAuthentication=no",
        "ForwardAgent=no",
    ):
        assert option in options
    assert command[command.index("-p") + 1] == "2222"
    assert command[-3:-1] == ["--", "user@orin"]
    # One word for the login shell, whatever shell that is.
    assert command[-1].startswith("exec sh -c '")
    assert command[-1].count("'") == 2
    assert not set(command[-1]) & set("\n$`!\\")
