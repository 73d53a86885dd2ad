"""From what the user wrote to a device: ``ssh://user@host``, a name of `greencc devices add`, or ``local``."""

from __future__ import annotations

from pathlib import Path

from greencc.core.errors import UsageError, did_you_mean
from greencc.devices.address import LOCAL, SCHEME, parse_address, shown
from greencc.devices.local import LocalTransport
from greencc.devices.registry import Registered, registered
from greencc.devices.ssh import SshOptions, SshTransport
from greencc.devices.transport import Transport


def find_device(text: str) -> Registered | None:
    """What is written down of the device that a text names; None for addresses that have no name.

    Raises:
        UsageError: It is neither an address nor a known name.
        InputError: The list of devices is damaged.
    """
    if text == LOCAL:
        return None
    if text.startswith(SCHEME):
        parse_address(text)
        return None
    known = registered()
    if text in known:
        return known[text]
    if ":" in text or "@" in text or "/" in text:
        raise UsageError(
            f"{shown(text)} is not the address of a device",
            hint="write it as ssh://user@host or ssh://user@host:2222",
        )
    hint = did_you_mean(text, known) if known else "add it first: greencc devices add NAME ssh://user@host"
    raise UsageError(f"no device is called {text[:80]!r}", hint=hint)


def open_transport(text: str, identity: Path | None = None) -> Transport:
    """The way to the device that a text names; nothing is connected yet.

    Args:
        text: As above.
        identity: A file with a private key, before the one that is written down.

    Raises:
        UsageError: As `find_device`.
        InputError: Likewise.
    """
    device = find_device(text)
    if text == LOCAL:
        return LocalTransport()
    if device is None:
        return SshTransport(parse_address(text), SshOptions.from_environment(identity))
    kept = Path(device.identity).expanduser() if device.identity else None
    return SshTransport(parse_address(device.address), SshOptions.from_environment(identity or kept))
