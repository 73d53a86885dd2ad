"""Messages from the host, which are limited in size: whoever sends more is not understood, and the connection ends.

Their form is that of `greencc.agent.wire`, which agent and workers use among themselves.
"""

import json
from typing import IO, Any, Dict, Optional, Tuple

from greencc.agent.problem import Problem

MOST_HEADER = 8 << 20
"""Bytes of a line of JSON."""
MOST_PAYLOAD = 256 << 20
"""Bytes after it: inputs of one inference, or a piece of a file."""
_PIECE = 1 << 20
_HINT = "host and agent do not fit together: connect again"


def read(stream: IO[bytes]) -> Optional[Tuple[Dict[str, Any], bytes]]:
    """The next message and its bytes; None where the stream ends before one or within one: the host is gone.

    Raises:
        Problem: It is no message, or too large a one; nothing after it can be understood.
    """
    line = stream.readline(MOST_HEADER + 1)
    if not line.endswith(b"\n"):
        if len(line) > MOST_HEADER:
            raise Problem("usage", "a message's header exceeds %d bytes" % MOST_HEADER, _HINT)
        return None
    header = _parse(line)
    size = header.get("bytes", 0)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MOST_PAYLOAD:
        raise Problem(
            "usage", "a message has %.40r bytes; 0 to %d are possible" % (size, MOST_PAYLOAD), _HINT
        )
    pieces = []
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return header, b"".join(pieces)


def _parse(line: bytes) -> Dict[str, Any]:
    """An object of JSON, strictly: UTF-8, no NaN and no infinity."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Problem("usage", "a message is not JSON: %s" % str(error)[:200], _HINT) from error
    if not isinstance(value, dict):
        raise Problem("usage", "a message is no object of JSON", _HINT)
    return value


def _refuse(name: str) -> None:
    raise ValueError("%s is no number of JSON" % name)
