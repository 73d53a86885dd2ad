"""How a connection begins: the agent is started, sent first where it is missing, and says who it is."""

from __future__ import annotations

import base64
import errno
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from greencc.devices.package import AgentPackage
from greencc.devices.process import printable
from greencc.devices.protocol import ProtocolError, error_of
from greencc.devices.transport import Channel, ConnectionLostError

VERSION = 1
"""Of the protocol (`greencc.agent.VERSION`)."""
OLDEST_PYTHON = "3.6"
_MOST_LINE = 1 << 16
_MOST_LINES = 1000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Hello:
    """The agent's first words: its Python, process and home folder."""

    python: str
    pid: int
    home: str


def bootstrap_arguments(package: AgentPackage) -> Sequence[str]:
    """Arguments of a ``python3`` that becomes the agent: no shell finds anything in them to expand."""
    run = "import base64,sys,zlib;exec(zlib.decompress(base64.b64decode(sys.argv[1])))"
    return "-c", run, _source(), package.sha256, str(len(package.content))


@cache
def _source() -> str:
    source = (resources.files("greencc.devices") / "bootstrap.py").read_bytes()
    return base64.b64encode(zlib.compress(source, 9)).decode("ascii")


def greet(channel: Channel, package: AgentPackage, name: str, deadline: float) -> Hello:
    """Wait for the agent, and send it first where the device asks for it.

    Args:
        channel: To a process of `bootstrap_arguments`.
        package: The agent.
        name: Of the device, for messages.
        deadline: Of it all.

    Raises:
        ConnectionLostError: The device cannot run the agent, or the connection ended.
        ProtocolError: Something else answers.
    """
    sent = False
    for _ in range(_MOST_LINES):
        words = _words(channel.read_line(_MOST_LINE, deadline))
        if "greencc-agent" in words:
            return _hello(words, name)
        if "error" in words:
            # The agent runs, and cannot serve.
            error = error_of(words["error"], name)
            raise _lasting(error.message, error.hint)
        match words.get("greencc-bootstrap"):
            case "send" if not sent:
                channel.send(package.content, deadline)
                sent = True
            case str(kind):
                raise _refusal(kind, words, name)
    raise ProtocolError(
        f"{name} printed more than {_MOST_LINES:,} lines, and the agent was not among them",
        hint="its login scripts must print nothing where no terminal is",
    )


def _words(line: bytes) -> Mapping[str, Any]:
    """What a line says, if it is one of ours: others are a banner's."""
    begin = line.find(b'{"')
    if begin < 0:
        return {}
    try:
        words = json.loads(line[begin:])
    except (ValueError, RecursionError):
        return {}
    return words if isinstance(words, dict) else {}


def _hello(words: Mapping[str, Any], name: str) -> Hello:
    if words["greencc-agent"] != VERSION:
        raise ProtocolError(
            f"{name}: the agent speaks version {printable(repr(words['greencc-agent']), 20)} of the protocol, "
            f"and this greencc speaks {VERSION}",
            hint="stop what runs there under this name, and run 'greencc devices clean NAME'",
        )
    match words:
        case {"python": str(python), "pid": int(pid), "home": str(home)}:
            return Hello(printable(python, 20), pid, printable(home))
    raise ProtocolError(f"{name}: the agent's greeting lacks its Python, process or home folder")


def _refusal(kind: str, words: Mapping[str, Any], name: str) -> ConnectionLostError:
    path = printable(str(words.get("path", "its cache folder")))
    if kind == "old":
        found = printable(str(words.get("python")), 20)
        return _lasting(
            f"{name} has Python {found}; the agent needs {OLDEST_PYTHON} or later",
            "install a newer python3 there, first in the PATH of a login without a terminal",
        )
    if kind == "unsafe":
        return _lasting(
            f"{name}: {path} belongs to another user or can be written by others, who could change the agent",
            f"run there: chmod go-w {path}, or set GREENCC_AGENT_HOME to another folder",
        )
    if kind == "damaged":
        return ConnectionLostError(f"{name}: the agent was damaged on the way", hint="try again")
    if kind == "failed":
        reason = printable(str(words.get("reason")), 100)
        full = words.get("errno") in _NO_SPACE
        hint = (
            f"free some space there; 'df {path}' shows what is used"
            if full
            else "make the folder writable for this user, or set GREENCC_AGENT_HOME there to one that is"
        )
        return _lasting(f"{name}: the agent cannot be stored in {path}: {reason}", hint)
    return ProtocolError(f"{name}: unknown answer {printable(repr(kind), 40)} while the agent was started")


def _lasting(message: str, hint: str | None) -> ConnectionLostError:
    return ConnectionLostError(message, hint=hint, passing=False)
