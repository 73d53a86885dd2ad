"""An agent as a subprocess, and what to say to it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greencc.devices.package import agent_package

_PATIENCE_S = 60.0


class Refused(Exception):
    """The agent answered with an error."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(f"{told['kind']}: {told['message']}")
        self.kind: str = told["kind"]
        self.message: str = told["message"]
        self.hint: str = told.get("hint", "")


def package(folder: Path) -> Path:
    """The agent's zip file."""
    path = folder / "agent.pyz"
    path.write_bytes(agent_package().content)
    return path


class Agent:
    """A connection to an agent; `environment` says which machine it is on."""

    def __init__(
        self, file: Path, environment: Mapping[str, str], command: tuple[str, ...] = (sys.executable,)
    ) -> None:
        # Runs are short: a file that is full of what tests print says nothing.
        self._process = subprocess.Popen(
            [*command, str(file), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self._number = 0
        assert self._process.stdout is not None
        self.hello: dict[str, Any] = json.loads(self._process.stdout.readline() or b"{}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, op: str, payload: bytes = b"", **args: Any) -> dict[str, Any]:
        """The result of an operation."""
        return self.both(op, payload, **args)[0]

    def both(self, op: str, payload: bytes = b"", **args: Any) -> tuple[dict[str, Any], bytes]:
        """The result of an operation, and its bytes."""
        self._number += 1
        header = {"id": self._number, "op": op, "args": args, "bytes": len(payload)}
        self.send(json.dumps(header).encode() + b"\n" + payload)
        reply, data = self.receive()
        assert reply["id"] == self._number
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["result"], data

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply, self._process.stdout.read(reply.get("bytes", 0))

    def put(self, data: bytes) -> str:
        """Send a file whole; its digest."""
        digest = hashlib.sha256(data).hexdigest()
        told = self.ask("put", data, sha256=digest, total=len(data), offset=0)
        assert told == {"size": len(data), "complete": True}
        return digest

    def wait(self, job: str) -> dict[str, Any]:
        """What a job has come to."""
        deadline = time.monotonic() + _PATIENCE_S
        while (told := self.ask("poll", job=job))["state"] == "running":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{job} does not end: {told}")
            time.sleep(0.02)
        return told

    def result(self, job: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Start a job, and what it gives."""
        self.ask("start", job=job, spec=dict(spec))
        told = self.wait(job)
        if told["state"] != "done":
            raise Refused(told["error"])
        found: dict[str, Any] = told["result"]
        return found

    def close(self) -> int:
        """Break the connection in peace; its exit code."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        return self._process.wait(_PATIENCE_S)

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal; its exit code."""
        self._process.send_signal(number)
        code = self._process.wait(_PATIENCE_S)
        self.close()
        return code


def until(what: str, true: Any) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
