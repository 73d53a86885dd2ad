"""Agents of a few lines, for what greencc's own agent never says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from greencc.devices.client import AgentClient, ClientOptions
from greencc.devices.local import LocalTransport
from greencc.devices.package import AgentPackage, pack

_PROGRAM = '''
import json, os, sys, time
from pathlib import Path

HOME = Path(os.environ["GREENCC_AGENT_HOME"])
OUT = sys.stdout.buffer


def say(data):
    OUT.write(data if isinstance(data, bytes) else json.dumps(data).encode() + b"\\n")
    OUT.flush()


def count(name):
    """How often this was called, in all processes of this agent."""
    file = HOME / name
    number = int(file.read_text()) if file.exists() else 0
    file.write_text(str(number + 1))
    return number


def hello(**changes):
    say(dict({"greencc-agent": 1, "python": "3.10.12", "pid": os.getpid(), "home": str(HOME)}, **changes))


def requests():
    """Number, operation, arguments and payload of each."""
    for line in iter(sys.stdin.buffer.readline, b""):
        words = json.loads(line)
        with (HOME / "asked").open("a") as file:
            file.write(words["op"] + "\\n")
        yield words["id"], words["op"], words["args"], sys.stdin.buffer.read(words["bytes"])


'''


def program(body: str) -> AgentPackage:
    """An agent that does this; it has `say`, `hello`, `count`, `requests`, `HOME` and `OUT`."""
    return pack({"__main__.py": (_PROGRAM + body).encode()})


def replying(reply: str) -> AgentPackage:
    """An agent that greets, and answers each request by one expression of `number`, `op`, `args` and `payload`."""
    return program(f"hello()\nfor number, op, args, payload in requests():\n    say({reply})\n")


def client_of(package: AgentPackage, home: Path, options: ClientOptions | None = None) -> AgentClient:
    """A client of such an agent, as a subprocess here."""
    transport = LocalTransport({**os.environ, "GREENCC_AGENT_HOME": str(home)}, package, sys.executable)
    return AgentClient(transport, options or ClientOptions(connect_seconds=20.0, sleep=lambda _: None))


def asked(home: Path) -> list[str]:
    """The operations that were asked for, by all connections."""
    file = home / "asked"
    return file.read_text().split() if file.exists() else []
