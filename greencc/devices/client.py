"""The host's end of the agent's protocol (`greencc.agent`): one device, over whatever carries the words.

A connection may break at any time: it is made again, and what was asked is asked again, for all requests may be. Jobs
go on meanwhile. An `AgentClient` belongs to one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from greencc.core.errors import GreenccError, UnavailableError
from greencc.core.progress import Progress, silent
from greencc.devices.engines import OpenedEngine, Port, parse_ports, split
from greencc.devices.facts import DeviceFacts
from greencc.devices.greeting import Hello, greet
from greencc.devices.jobs import BUILD, Event, JobResult, JobRunner, Waiting
from greencc.devices.journal import Journal
from greencc.devices.process import printable
from greencc.devices.protocol import DeviceLostError, ProtocolError, Reply, read_reply, request_line
from greencc.devices.transfer import download, upload
from greencc.devices.transport import Channel, ConnectionLostError, SlowReplyError, Transport

_SECONDS = {
    "probe": 120.0,
    # It waits for a device that is in use, and nvpmodel may take its time.
    "power-mode": 180.0,
    "put": 300.0,
    "fetch": 300.0,
    "open": 300.0,
    "run": 300.0,
    "clean": 300.0,
    "bye": 5.0,
}
_USUAL_SECONDS = 60.0
_RESTORE_SECONDS = 90.0
"""To put a power mode back: the device itself waits for a minute for those who use it."""
_MOST_TRIES = 3
"""Of a request on whose account the connection seems to break."""
_MOST_SLOW = 2
_LONGEST_WAIT = 10.0
_MOST_OUTPUT = 1 << 30
_OF_SESSION = frozenset(("start", "poll", "fetch", "cancel", "open", "run", "close", "bye"))
"""Operations on jobs: the device is told whose they are."""


@dataclass(frozen=True)
class ClientOptions:
    """How patient a client is.

    Attributes:
        connect_seconds: For one attempt to connect, sending the agent and its greeting included.
        patience_seconds: To get a broken connection back, a reboot included; then the device is unavailable.
        chunk_bytes: Of uploads and downloads, per request.
        restarts: Of builds that a reboot ended.
        sleep: How to wait; tests do not.
    """

    connect_seconds: float = 60.0
    patience_seconds: float = 240.0
    chunk_bytes: int = 1 << 20
    restarts: int = 2
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Cleaned:
    """What cleaning came to, in bytes: `freed`, and `kept` in models, engines and timing caches."""

    freed: int
    kept: int


class AgentClient:
    """One device. Connects at the first request, or with `hello`.

    Args:
        transport: The way there.
        options: Its patience.
        progress: Shows uploads and jobs.
        journal: What it leaves for a later run if this one is killed; default: in the user's folder of states.

    All methods raise:
        UnavailableError: The device cannot be reached (`ConnectionLostError`), what it says is not the protocol
            (`ProtocolError`), or it lacks what is asked for.
        InputError: It refuses what was sent, or is too small for it.
        DeviceLostError: A job was lost to a reboot or a kill, and is no build.
        GreenccError: A bug in the agent.
    """

    def __init__(
        self,
        transport: Transport,
        options: ClientOptions | None = None,
        progress: Progress = silent,
        journal: Journal | None = None,
    ) -> None:
        self._transport = transport
        self._options = options or ClientOptions()
        self._progress = progress
        self._journal = journal or Journal(transport.identity)
        self._channel: Channel | None = None
        self._hello: Hello | None = None
        self._connections = self._number = 0
        self._mode: str | None = None
        self._measured: list[str] = []
        self._closed = self._away = self._worked = False
        self.farewell: str | None = None
        """After `close`: why the power mode may not be what it was; None: it is."""
        self.untidied: str | None = None
        """What a run that was killed left there and could not be put in order; None: nothing."""

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Of the device, for people."""
        return self._transport.name

    def hello(self) -> Hello:
        """Connect, if that was not done, and tell who answered."""
        if self._channel is None or self._hello is None:
            self._connect(patient=True)
        assert self._hello is not None
        return self._hello

    def request(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        payload: bytes | memoryview = b"",
        *,
        timeout: float | None = None,
        most: int = 0,
        patient: bool = True,
    ) -> Reply:
        """One request of the protocol, asked again on a new connection where the old one broke.

        Args:
            op: The operation.
            args: Its arguments, as JSON.
            payload: Bytes that go with it.
            timeout: Seconds for one try; None: what suits the operation.
            most: Bytes that may come back.
            patient: Wait for a device that is away; otherwise it is tried once to get it back.
        """
        seconds = _SECONDS.get(op, _USUAL_SECONDS) if timeout is None else timeout
        slow = broken = 0
        while True:
            try:
                answer = self._try(op, args or {}, payload, seconds, most, patient)
            except SlowReplyError as error:
                slow += 1
                if not error.passing or slow >= _MOST_SLOW:
                    raise
            except ConnectionLostError as error:
                broken += 1
                if not error.passing or broken >= _MOST_TRIES:
                    raise
            else:
                if isinstance(answer, GreenccError):
                    raise answer
                return answer

    def probe(self) -> Mapping[str, Any]:
        """The facts of the machine as the agent tells them: untrusted."""
        return self.request("probe").result

    def facts(self) -> DeviceFacts:
        """The same, validated."""
        return DeviceFacts.parse(self.probe(), self.name)

    def upload(self, content: bytes | Path, label: str = "") -> str:
        """Send a file, from where an earlier try ended; nothing where the device has it. Returns its SHA-256."""
        return upload(self.request, content, label, self._options.chunk_bytes, self._progress, self.name)

    def run_job(
        self,
        spec: Mapping[str, Any],
        *,
        label: str,
        limit: float,
        quiet: float = 0.0,
        on_event: Callable[[Event], None] | None = None,
    ) -> JobResult:
        """Start a job and wait for its end; a build that is done is only found.

        Ctrl-C, or any error here, cancels it. Files of a measurement can be fetched until the next one starts.

        Args:
            spec: As the agent's docstring says; ``"kind": "build"`` gets an ID of its content.
            label: For the progress bar.
            limit: Seconds until it is cancelled, counted here (its own limits are in the spec).
            quiet: Seconds in which it is not asked how it is, because that would disturb what it measures.
            on_event: Called with each event.
        """
        runner = JobRunner(
            self.request, self.name, self._journal, self._progress, self._options.sleep, self._measured
        )
        return runner.run(spec, Waiting(label, limit, quiet, on_event, self._options.restarts))

    def fetch(self, job: str, file: str, *, most: int) -> bytes:
        """A file of a job, of at most so many bytes."""
        return download(self.request, job, file, self._options.chunk_bytes, most, self.name)

    def open_engine(self, job: str, *, timeout: float | None = None) -> OpenedEngine:
        """Make the engine of a finished build resident."""
        result = self.request("open", {"job": job}, timeout=timeout).result
        handle = result.get("engine")
        if not isinstance(handle, str):
            raise ProtocolError(f"{self.name} opened an engine without a name")
        inputs = parse_ports(result.get("inputs"), f"{self.name}, inputs of an engine", known_shape=False)
        outputs = parse_ports(result.get("outputs"), f"{self.name}, outputs of an engine", known_shape=False)
        return OpenedEngine(job, inputs, outputs, handle)

    def run_engine(
        self,
        engine: OpenedEngine,
        inputs: Sequence[tuple[Port, bytes | memoryview]],
        *,
        timeout: float | None = None,
    ) -> tuple[list[tuple[Port, bytes]], float]:
        """Run once: outputs as raw little-endian bytes, whose number fits their types and shapes, and milliseconds.

        The engine is opened again where it was lost, to a reboot or for want of memory.
        """
        payload = b"".join(data for _, data in inputs)
        ports = [port.as_json() for port, _ in inputs]

        def ask() -> Reply:
            args = {"engine": engine.handle, "inputs": ports}
            return self.request("run", args, payload, timeout=timeout, most=_MOST_OUTPUT)

        try:
            reply = ask()
        except DeviceLostError:
            engine.handle = self.open_engine(engine.job).handle
            reply = ask()
        what = f"{self.name}, outputs of a run"
        outputs = parse_ports(reply.result.get("outputs"), what, known_shape=True)
        milliseconds = reply.result.get("ms")
        if not isinstance(milliseconds, int | float) or milliseconds < 0:
            raise ProtocolError(f"{what}: without their time")
        return split(reply.payload, outputs, what), float(milliseconds)

    def close_engine(self, engine: OpenedEngine) -> None:
        """Let it go."""
        self.request("close", {"engine": engine.handle})

    def set_power_mode(self, mode: str) -> str:
        """Change the power mode until `close`, or the end of this process; returns the mode before."""
        if self._mode is None:
            self._journal.power_mode(changed=True)
        result = self.request("power-mode", {"set": mode, "owner": self._journal.owner}).result
        self._mode = mode
        before = result.get("before")
        return printable(before, 100) if isinstance(before, str) else ""

    def restore_power_mode(self, *, patient: bool = True) -> None:
        """Put back the mode that was before `set_power_mode`; nothing where it was not called."""
        if self._mode is not None:
            self._mode = None
            words = {"restore": True, "owner": self._journal.owner}
            self.request("power-mode", words, patient=patient)
            self._journal.power_mode(changed=False)

    def clean(self, *, everything: bool = False) -> Cleaned:
        """Remove what the agent keeps there, but for running jobs."""
        match self.request("clean", {"all": everything}).result:
            case {"freed": int(freed), "kept": int(kept)}:
                return Cleaned(freed, kept)
        raise ProtocolError(f"{self.name} does not tell what it removed")

    def close(self) -> None:
        """Put the power mode back and end the connection; may be called twice, and raises nothing.

        The device removes what jobs of this run left, also those of connections that broke; what was built, and what
        still runs, stays for the next run. One that is away does so in a day.
        """
        if self._closed:
            return
        try:
            try:
                self.restore_power_mode(patient=False)
            except GreenccError as error:
                # Its journal stays for the next run, and the device's own watchdog does the same without one.
                self.farewell = error.message
            self._take_leave()
            self._journal.close(in_order=self.farewell is None)
        finally:
            self._closed = True
            self._journal.close(in_order=False)
            self._drop()

    def _take_leave(self) -> None:
        """Say goodbye, on a new connection where an interrupt took the old one and jobs are left."""
        if self._away or (self._channel is None and not self._worked):
            return
        try:
            self._try("bye", {}, b"", _SECONDS["bye"], 0, False)
        except GreenccError:
            # It went away just now. Nothing depends on it: what is left there goes in a day.
            return

    def _try(
        self,
        op: str,
        args: Mapping[str, Any],
        payload: bytes | memoryview,
        seconds: float,
        most: int,
        patient: bool,
    ) -> Reply | GreenccError:
        """Ask once. What interrupts it leaves half a reply, so the connection goes with it."""
        try:
            channel = self._channel or self._connect(patient)
            answer = self._exchange(channel, op, args, payload, seconds, most)
        except BaseException as error:
            self._away = isinstance(error, ConnectionLostError)
            self._drop()
            raise
        self._away = False
        self._worked = self._worked or op == "start"
        return answer

    def _exchange(
        self,
        channel: Channel,
        op: str,
        args: Mapping[str, Any],
        payload: bytes | memoryview,
        seconds: float,
        most: int,
    ) -> Reply | GreenccError:
        self._number += 1
        if op in _OF_SESSION:
            args = {**args, "session": self._journal.owner}
        deadline = time.monotonic() + seconds
        channel.send(request_line(self._number, op, args, len(payload)), deadline)
        if payload:
            channel.send(payload, deadline)
        return read_reply(channel, self._number, self.name, deadline, most)

    def _connect(self, patient: bool) -> Channel:
        """A new connection: the first one at once or not at all, one that broke with patience."""
        if self._closed:
            raise UnavailableError(f"the connection to {self.name} was closed")
        waits = iter(()) if self._connections == 0 or not patient else _waits(self._options.patience_seconds)
        while True:
            try:
                return self._greeted()
            except ConnectionLostError as error:
                wait = next(waits, None)
                if wait is None or not error.passing:
                    error.passing = False
                    raise
                self._options.sleep(wait)

    def _greeted(self) -> Channel:
        deadline = time.monotonic() + self._options.connect_seconds
        channel = self._transport.connect()
        try:
            hello = greet(channel, self._transport.package, self.name, deadline)
            channel.established()
            if self._connections == 0 and self.untidied is None:
                if not self._tidy(channel):
                    channel.close()
                    return self._greeted()
            elif self._mode is not None:
                self._set_again(channel, self._mode)
        except BaseException:
            channel.close()
            raise
        self._channel, self._hello = channel, hello
        self._connections += 1
        return channel

    def _set_again(self, channel: Channel, mode: str) -> None:
        """A new agent answers for the power mode from now on; left alone it would put back what it was."""
        words = {"set": mode, "owner": self._journal.owner}
        answer = self._exchange(channel, "power-mode", words, b"", _SECONDS["power-mode"], 0)
        if isinstance(answer, GreenccError):
            # Another run set a mode while this one was away, or the device is just being timed: both pass.
            raise ConnectionLostError(answer.message, hint=answer.hint) from answer

    def _tidy(self, channel: Channel) -> bool:
        """End what a run that was killed on this machine left there; False: the connection is of no more use.

        What cannot be put in order now is no reason to do nothing else: it is told in `untidied`, its journal stays for
        the next run, and the device's watchdog puts the power mode back without one.
        """
        with self._journal.leftovers() as found:
            for left in list(found):
                try:
                    for job in left.jobs:
                        if not job.startswith(BUILD):
                            self._exchange(channel, "cancel", {"job": job}, b"", _USUAL_SECONDS, 0)
                    if left.power_mode:
                        words = {"restore": True, "owner": left.owner}
                        self._expect(channel, "power-mode", words, _RESTORE_SECONDS)
                except GreenccError as error:
                    found.remove(left)
                    what = f"what a greencc that was killed left on {self.name}"
                    self.untidied = f"{what} is not put in order: {error.message}"
                    if isinstance(error, ConnectionLostError):
                        # None of the others was asked about.
                        found.clear()
                        return False
        return True

    def _expect(
        self, channel: Channel, op: str, args: Mapping[str, Any], seconds: float = _USUAL_SECONDS
    ) -> None:
        answer = self._exchange(channel, op, args, b"", seconds, 0)
        if isinstance(answer, GreenccError):
            raise answer

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None


def _waits(patience: float) -> Iterator[float]:
    """Longer and longer, until their sum is all the patience."""
    wait, passed = 0.5, 0.0
    while passed < patience:
        yield wait
        passed += wait
        wait = min(2 * wait, _LONGEST_WAIT)


__all__ = [
    "AgentClient",
    "Cleaned",
    "ClientOptions",
    "DeviceLostError",
    "Event",
    "Hello",
    "JobResult",
    "OpenedEngine",
    "Port",
    "Reply",
]
