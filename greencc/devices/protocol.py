"""Requests and replies on the wire (`greencc.agent`), and the errors that replies tell.

Replies are untrusted: sizes are limited before anything is read or kept, and the shape of what is said is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from greencc.core.elsewhere import LostError
from greencc.core.errors import GreenccError, InputError, UnavailableError, UsageError
from greencc.devices.process import printable
from greencc.devices.transport import Channel, ConnectionLostError

_MOST_HEADER = 32 << 20
"""The samples of a long stretch are in headers."""
_MOST_TEXT = 4000


class ProtocolError(ConnectionLostError):
    """What came is not the agent's protocol."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(
            message, hint=hint or "what answers there is not this greencc's agent", passing=False
        )


class DeviceLostError(LostError):
    """The device was restarted, or the agent's work killed, in the middle of what cannot go on from there."""


class CrashedError(UnavailableError):
    """A process of the vendor's code died there: a builder, or an engine that was loaded."""


@dataclass(frozen=True)
class Reply:
    """What came back: JSON of unknown content, and bytes."""

    result: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes = b""


_KINDS: Mapping[str, type[GreenccError]] = {
    "usage": UsageError,
    "input": InputError,
    "unavailable": UnavailableError,
    "disk": UnavailableError,
    "memory": InputError,
    "timeout": UnavailableError,
    "crashed": CrashedError,
    "lost": DeviceLostError,
    "permission": UnavailableError,
    "internal": GreenccError,
}
_HINTS = {
    "disk": "free some space on the device; 'greencc devices clean' removes what greencc left there",
    "memory": "use a smaller model or batch, or close what else runs there",
    "timeout": "allow more time, or use a smaller model",
    "crashed": "the log above is the vendor's; another precision or version may get further",
    "permission": "see what the user may do there with 'greencc devices probe'",
    "internal": "this is a bug in greencc's agent; report it with the message",
}


def request_line(number: int, op: str, args: Mapping[str, Any], size: int) -> bytes:
    """A request, before its payload of `size` bytes."""
    words = {"id": number, "op": op, "args": dict(args), "bytes": size}
    return json.dumps(words, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def read_reply(channel: Channel, number: int, name: str, deadline: float, most: int) -> Reply | GreenccError:
    """The reply to a request, or the error that it tells.

    Args:
        channel: Where from.
        number: The request's.
        name: The device's, for messages.
        deadline: Of it all.
        most: Bytes that may come with it.

    Raises:
        ConnectionLostError: The connection broke, or what came is no reply to it (`ProtocolError`).
    """
    words = _json(channel.read_line(_MOST_HEADER, deadline), name)
    if words.get("id") != number or isinstance(words.get("id"), bool):
        raise ProtocolError(f"{name} answered another question than was asked")
    size = words.get("bytes", 0)
    if not _is_count(size):
        raise ProtocolError(f"{name} announced a payload of no valid size")
    if size > most:
        raise ProtocolError(f"{name} announced {size:,} bytes where at most {most:,} can be right")
    payload = channel.read(size, deadline) if size else b""
    if "error" in words:
        return error_of(words["error"], name)
    result = words.get("result")
    if not isinstance(result, dict):
        raise ProtocolError(f"{name} sent a reply with neither a result nor an error")
    return Reply(result, payload)


def error_of(words: Any, name: str) -> GreenccError:
    """The error that a reply or a failed job tells.

    Raises:
        ProtocolError: It tells none.
    """
    match words:
        case {"kind": str(kind), "message": str(message)} if kind in _KINDS:
            told = words.get("hint")
            hint = _told(told) if isinstance(told, str) and told else _HINTS.get(kind)
            return _KINDS[kind](f"{name}: {_told(message)}", hint=hint)
    raise ProtocolError(f"{name} reported an error that cannot be read")


def _told(text: str) -> str:
    """A text of the device's, with its lines but without control characters."""
    return "\n".join(printable(line, _MOST_TEXT) for line in text[:_MOST_TEXT].splitlines())


def _json(line: bytes, name: str) -> dict[str, Any]:
    try:
        words = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{name} sent a line that is no reply: {printable(repr(line[:60]))}") from error
    if not isinstance(words, dict):
        raise ProtocolError(f"{name} sent a line that is no reply: {printable(repr(line[:60]))}")
    return words


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
