"""Messages between host, agent and workers: a line of JSON, and as many bytes after it as it says."""

import json
from typing import IO, Any, Dict, Optional, Tuple

from greencc.agent.problem import Problem

MOST_LINE = 64 << 20
MOST_BYTES = 1 << 36


def write(stream: IO[bytes], header: Dict[str, Any], payload: bytes = b"") -> None:
    """Send one message."""
    stream.write(head(header, len(payload)))
    if payload:
        stream.write(payload)
    stream.flush()


def head(header: Dict[str, Any], size: int) -> bytes:
    """The line of a message that `size` bytes follow."""
    return json.dumps(dict(header, bytes=size), separators=(",", ":")).encode("utf-8") + b"\n"


def read(stream: IO[bytes]) -> Optional[Tuple[Dict[str, Any], bytes]]:
    """Receive one message; None: the stream ended before it.

    Raises:
        Problem: ``lost``: it ended within a message; ``internal``: this is no message.
    """
    line = stream.readline(MOST_LINE)
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise Problem("lost", "the stream ended within a message")
    return _payload(stream, parse(line))


def _payload(stream: IO[bytes], header: Dict[str, Any]) -> Tuple[Dict[str, Any], bytes]:
    count = size_of(header)
    parts = []
    while count > 0:
        part = stream.read(min(count, 1 << 20))
        if not part:
            raise Problem("lost", "the stream ended within a message")
        parts.append(part)
        count -= len(part)
    return header, b"".join(parts)


def parse(line: bytes) -> Dict[str, Any]:
    """The JSON of a message.

    Raises:
        Problem: ``internal``: it is none.
    """
    try:
        header = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise Problem("internal", "a message that is no JSON: %r" % line[:80]) from error
    if not isinstance(header, dict):
        raise Problem("internal", "a message that is no object: %r" % line[:80])
    return header


def size_of(header: Dict[str, Any]) -> int:
    """Bytes that follow a message's line.

    Raises:
        Problem: ``internal``: that is no number of bytes.
    """
    count = header.get("bytes", 0)
    if not isinstance(count, int) or not 0 <= count <= MOST_BYTES:
        raise Problem("internal", "a message with %r bytes" % (count,))
    return count
