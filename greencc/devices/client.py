"""The host's end of the agent's protocol (`greencc.agent`): one device, over whatever carries the words.

A connection may break at any time: it is made again, and what was asked is asked again, for all requests may be. Jobs
go on meanwhile. An `AgentClient` belongs to one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from greencc.core.errors import UnavailableError
from greencc.core.progress import Progress, silent
from greencc.devices.transport import Transport


class DeviceLostError(UnavailableError):
    """The device was restarted, or its agent's work was killed, in the middle of a job that cannot go on from there."""


@dataclass(frozen=True)
class ClientOptions:
    """How patient a client is.

    Attributes:
        connect_seconds: For one attempt to connect, bootstrap and greeting included.
        patience_seconds: To get a broken connection back, a reboot included; then the device is unavailable.
        chunk_bytes: Of uploads and downloads, per request.
        restarts: Of builds that a reboot ended.
        sleep: How to wait; tests do not.
    """

    connect_seconds: float = 30.0
    patience_seconds: float = 180.0
    chunk_bytes: int = 1 << 20
    restarts: int = 2
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Hello:
    """The agent's first words: its Python, process and home folder, and the machine's boot where it says so."""

    python: str
    pid: int
    home: str


@dataclass(frozen=True)
class Reply:
    """What came back: validated JSON of unknown content, and bytes."""

    result: Mapping[str, Any]
    payload: bytes = b""


@dataclass(frozen=True)
class JobResult:
    """A job that was done.

    Attributes:
        job: Its ID, by which files of it are fetched; a build's is made of its spec alone.
        result: As the agent's docstring says for its kind.
        found: A build that an earlier run had finished.
    """

    job: str
    result: Mapping[str, Any]
    found: bool = False


@dataclass(frozen=True)
class Port:
    """An input or output of an engine over there: name, numpy's name of its type, shape (-1: varies)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class OpenedEngine:
    """A resident engine, or, after a broken connection, what is needed to make it resident again."""

    job: str
    handle: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    connection: int = field(default=0, repr=False)


class AgentClient:
    """One device. Connects at the first request, or with `hello`.

    Args:
        transport: The way there.
        options: Its patience.
        progress: Shows uploads and jobs.

    All methods raise:
        UnavailableError: The device cannot be reached (`ConnectionLostError`), or lacks what is asked for.
        InputError: It refuses what was sent, or is too small for it.
        DeviceLostError: A job was lost to a reboot, and is no build.
        GreenccError: What it says is not the protocol, or a bug in the agent.
    """

    def __init__(
        self, transport: Transport, options: ClientOptions | None = None, progress: Progress = silent
    ) -> None: ...

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Of the device, for people."""
        raise NotImplementedError

    def hello(self) -> Hello:
        """Connect, if that was not done, and tell who answered."""
        raise NotImplementedError

    def request(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        payload: bytes | memoryview = b"",
        *,
        timeout: float | None = None,
        most: int = 0,
    ) -> Reply:
        """One request of the protocol, asked again on a new connection where the old one broke.

        Args:
            op: The operation.
            args: Its arguments, as JSON.
            payload: Bytes that go with it.
            timeout: Seconds for one try; None: what suits the operation.
            most: Bytes that may come back.
        """
        raise NotImplementedError

    def probe(self) -> Mapping[str, Any]:
        """The facts of the machine as the agent tells them; `greencc.devices.facts.DeviceFacts.parse` validates."""
        raise NotImplementedError

    def upload(self, content: bytes | Path, label: str = "") -> str:
        """Send a file, from where an earlier try ended; nothing where the device has it. Returns its SHA-256."""
        raise NotImplementedError

    def run_job(
        self,
        spec: Mapping[str, Any],
        *,
        label: str,
        limit: float,
        quiet: float = 0.0,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> JobResult:
        """Start a job and wait for its end; a build that is done is only found.

        Ctrl-C, or any error here, cancels it.

        Args:
            spec: As the agent's docstring says; ``"kind": "build"`` gets an ID of its content.
            label: For the progress bar.
            limit: Seconds until it is cancelled, counted here (its own limits are in the spec).
            quiet: Seconds in which it is not asked how it is, because that would disturb what it measures.
            on_event: Called with each event.
        """
        raise NotImplementedError

    def fetch(self, job: str, file: str, *, most: int) -> bytes:
        """A file of a job, of at most so many bytes."""
        raise NotImplementedError

    def open_engine(self, job: str, *, timeout: float | None = None) -> OpenedEngine:
        """Make the engine of a finished build resident."""
        raise NotImplementedError

    def run_engine(
        self,
        engine: OpenedEngine,
        inputs: Sequence[tuple[Port, bytes | memoryview]],
        *,
        timeout: float | None = None,
    ) -> tuple[list[tuple[Port, bytes]], float]:
        """Run once: outputs as raw little-endian bytes, whose number fits their types and shapes, and milliseconds.

        The engine is opened again where the connection broke since it was.
        """
        raise NotImplementedError

    def close_engine(self, engine: OpenedEngine) -> None:
        """Let it go."""
        raise NotImplementedError

    def set_power_mode(self, mode: str) -> str:
        """Change the power mode until `close`, or the end of this process; returns the mode before."""
        raise NotImplementedError

    def restore_power_mode(self) -> None:
        """Put back the mode that was before `set_power_mode`; nothing where it was not called."""
        raise NotImplementedError

    def clean(self, *, everything: bool = False) -> int:
        """Remove files of finished jobs there, or all but running jobs'; returns the bytes that were freed."""
        raise NotImplementedError

    def close(self) -> None:
        """Put the power mode back, take leave and end the connection; may be called twice, and raises nothing."""
