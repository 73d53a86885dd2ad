"""Where a device is: ``ssh://user@host:port``, or ``local`` for this machine.

An address becomes arguments of `ssh`, so everything that could be taken for an option or by a shell is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from greencc.core.errors import UsageError

LOCAL = "local"
"""The agent on this machine, without SSH."""
SCHEME = "ssh://"
_EXAMPLE = "write it as ssh://user@host or ssh://user@host:2222"
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_MOST_PORT = 65535


@dataclass(frozen=True)
class SshAddress:
    """A machine that is reached by SSH.

    Attributes:
        host: Name, alias of the user's SSH configuration, or IP address without brackets.
        user: Empty: as the SSH configuration says.
        port: None: likewise.
    """

    host: str
    user: str = ""
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}{user}{host}" + (f":{self.port}" if self.port is not None else "")

    @property
    def destination(self) -> str:
        """``user@host``, as `ssh` takes it."""
        return f"{self.user}@{self.host}" if self.user else self.host


def parse_address(text: str) -> SshAddress:
    """The address that a text names.

    Raises:
        UsageError: It is none, or holds a password.
    """
    if not text.startswith(SCHEME):
        raise UsageError(f"{shown(text)} is not the address of a device", hint=_EXAMPLE)
    rest = text.removeprefix(SCHEME)
    user, at, place = rest.rpartition("@")
    if ":" in user or (not at and rest.count(":") > 1 and not rest.startswith("[")):
        # Not shown: it may be a secret. Without an `@` it may also be an IPv6 address without brackets.
        if at:
            raise UsageError(
                "the address of a device holds a password, which anybody on this machine could read",
                hint="let the device know your key (ssh-copy-id USER@HOST), and leave the password out",
            )
        raise UsageError(f"{text[:80]!r}: an IPv6 address stands in brackets", hint="ssh://user@[fe80::1]:22")
    if at and not _USER.fullmatch(user):
        raise UsageError(f"{user[:80]!r} is no user name for SSH", hint=_EXAMPLE)
    host, port = _place(place, text)
    return SshAddress(host, user, port)


def shown(text: str) -> str:
    """What the user wrote, as messages show it: without what may be a password."""
    return repr(f"...@{text.rpartition('@')[2][:80]}" if "@" in text else text[:80])


def _place(place: str, text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(.*))?", place.removesuffix("/"), re.DOTALL)
    if match is None:
        raise UsageError(f"{text[:80]!r} is not the address of a device", hint=_EXAMPLE)
    host, port = match[1], match[2]
    if host.startswith("["):
        host = _ipv6(host[1:-1], text)
    elif not _HOST.fullmatch(host):
        raise UsageError(f"{host[:80]!r} is no host name", hint=_EXAMPLE)
    if port is None:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= _MOST_PORT:
        raise UsageError(f"{port[:20]!r} is no port", hint=f"a number from 1 to {_MOST_PORT}")
    return host, int(port)


def _ipv6(host: str, text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise UsageError(
            f"{text[:80]!r} holds no IPv6 address in its brackets", hint="ssh://user@[fe80::1]:22"
        ) from error


def check_name(name: str) -> str:
    """A name that devices may have.

    Raises:
        UsageError: It is none.
    """
    if not _NAME.fullmatch(name) or name == LOCAL:
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a device",
            hint=f"small letters, digits, '-', '_' and '.', beginning with a letter or digit; not '{LOCAL}'",
        )
    return name
