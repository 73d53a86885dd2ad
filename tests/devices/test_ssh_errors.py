"""Messages of OpenSSH that need another network, or another version of it, to be seen."""

from __future__ import annotations

import pytest

from greencc.devices.address import SshAddress
from greencc.devices.ssh_errors import Explainer

_EXPLAINER = Explainer(SshAddress("orin", "user", 2222))
_CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Offending ED25519 key in /home/u/.ssh/known_hosts:17
Host key for [orin]:2222 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "message", "passing"),
    [
        ("ssh: connect to host orin port 2222: No route to host", "does not answer: No route to host", True),
        ("ssh: connect to host orin port 2222: Network is unreachable", "Network is unreachable", True),
        ("ssh: connect to host orin port 2222: Connection timed out", "Connection timed out", True),
        ("Connection timed out during banner exchange", "timed out during banner exchange", True),
        ("kex_exchange_identification: Connection closed by remote host", "Connection closed", True),
        ("Connection closed by 10.0.0.7 port 2222", "Connection closed by 10.0.0.7", True),
        (
            "ssh: Could not resolve hostname orin: Name or service not known",
            "the name orin is not known",
            False,
        ),
        (
            "Received disconnect from 10.0.0.7 port 22:2: Too many authentication failures",
            "too many keys",
            False,
        ),
        (
            "Unable to negotiate with 10.0.0.7 port 22: no matching host key type found. Their offer: ssh-rsa",
            "no method in common",
            False,
        ),
        ("Bad owner or permissions on /home/u/.ssh/config", "does not start with this configuration", False),
        ("/home/u/.ssh/config: line 3: Bad configuration option: foo", "Bad configuration option", False),
        (_CHANGED, "line 17 of /home/u/.ssh/known_hosts", False),
        ("user@orin: Permission denied (publickey,password).", "refuses the login", False),
        (
            "No ED25519 host key is known for [orin]:2222 and you have requested strict checking.",
            "not known yet",
            False,
        ),
        ("something new", "cannot connect to ssh://user@orin:2222: something new", True),
        ("", "cannot connect to ssh://user@orin:2222", True),
    ],
)
def test_what_ssh_says(said: str, message: str, passing: bool) -> None:
    error = _EXPLAINER(255, said, False)
    assert message in error.message
    assert "ssh://user@orin:2222" in error.message
    assert error.passing is passing
    assert error.hint


def test_a_changed_key_has_one_way_to_go_on() -> None:
    error = _EXPLAINER(255, _CHANGED, False)
    assert str(error.hint).endswith("remove that line and connect once by hand with 'ssh -p 2222 user@orin'")


def test_what_comes_after_the_greeting_may_be_the_devices_own_words() -> None:
    error = _EXPLAINER(255, _CHANGED, True)
    assert "the connection to ssh://user@orin:2222 broke" in error.message
    assert error.passing


def test_a_command_that_shows_the_same() -> None:
    error = _EXPLAINER(255, "Host key verification failed.", False)
    assert "ssh -p 2222 user@orin" in str(error.hint)
    assert "ssh-keyscan -p 2222 orin" in str(error.hint)
