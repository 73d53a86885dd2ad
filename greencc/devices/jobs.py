"""Jobs on a device: their IDs, and waiting for their end across broken connections and reboots.

A build's ID is made of its spec alone, so a compile that was killed finds what it had built; what is measured gets an
ID that never was, for a measurement is not repeated by finding it.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from greencc.core.errors import GreenccError, UnavailableError
from greencc.core.progress import Progress
from greencc.devices.journal import Journal
from greencc.devices.protocol import DeviceLostError, ProtocolError, error_of
from greencc.devices.transfer import Ask
from greencc.devices.transport import ConnectionLostError

_STATES = ("running", "done", "failed", "cancelled", "lost")
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0
_QUIET_STEP = 0.5
_MOST_ATTEMPTS = 50
_CANCEL_SECONDS = 15.0
_PERCENT = 100
BUILD = "build-"
"""How the IDs of builds begin."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class JobResult:
    """A job that was done.

    Attributes:
        job: Its ID, by which files of it are fetched and engines opened.
        result: As the agent's docstring says for its kind; untrusted.
        found: A build that an earlier run had finished.
    """

    job: str
    result: Mapping[str, Any]
    found: bool = False


@dataclass(frozen=True)
class Waiting:
    """How to wait for a job, as `AgentClient.run_job` has it."""

    label: str
    limit: float
    quiet: float = 0.0
    on_event: Callable[[Event], None] | None = None
    restarts: int = 2


def spec_digest(spec: Mapping[str, Any], nonce: str = "") -> str:
    """SHA-256 of a spec and of what makes it different from others like it."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{nonce}\n{text}".encode()).hexdigest()


class JobRunner:
    """Runs jobs on one device.

    Args:
        ask: The device.
        name: Of it, for messages.
        journal: Of what is not finished there.
        progress: Shows how far jobs are.
        sleep: How to wait.
        measured: Measurements that have ended: the device removes them when the next one starts, for what was wanted
            of them was fetched. It is kept up to date here.
    """

    def __init__(
        self,
        ask: Ask,
        name: str,
        journal: Journal,
        progress: Progress,
        sleep: Callable[[float], None],
        measured: list[str],
    ) -> None:
        self._ask, self._name, self._journal = ask, name, journal
        self._progress, self._sleep, self._measured = progress, sleep, measured

    def run(self, spec: Mapping[str, Any], waiting: Waiting) -> JobResult:
        """As `AgentClient.run_job`."""
        kind = str(spec.get("kind", ""))
        if kind != "build":
            job = f"{kind}-{spec_digest(spec, secrets.token_hex(16))[:40]}"
            return self._run(job, spec, waiting)
        restarts = 0
        # One that failed, was cancelled or was lost in an earlier run keeps its ID: the next attempt has another.
        for attempt in range(_MOST_ATTEMPTS):
            job = f"{BUILD}{spec_digest(spec)[:40]}-{attempt}"
            state = self._start(job, spec)
            if state in ("done", "running"):
                try:
                    return self._run(job, spec, waiting, found=state == "done", started=True)
                except DeviceLostError:
                    restarts += 1
                    if restarts > waiting.restarts:
                        raise
        raise UnavailableError(
            f"{self._name}: this build failed there {_MOST_ATTEMPTS} times",
            hint="remove what is left of it: greencc devices clean",
        )

    def _start(self, job: str, spec: Mapping[str, Any]) -> str:
        args: dict[str, object] = {"job": job, "spec": dict(spec)}
        if not job.startswith(BUILD) and self._measured:
            args["forget"] = list(self._measured)
        state = self._ask("start", args).result.get("state")
        if state not in _STATES:
            raise ProtocolError(f"{self._name} tells no state of a job that was started")
        if not job.startswith(BUILD):
            self._measured[:] = [job]
        return str(state)

    def _run(
        self,
        job: str,
        spec: Mapping[str, Any],
        waiting: Waiting,
        *,
        found: bool = False,
        started: bool = False,
    ) -> JobResult:
        with self._journal.running(job):
            try:
                if not started:
                    self._start(job, spec)
                watch = _Watch(self._ask, self._name, job, waiting, self._sleep)
                for _ in self._progress(watch.percents(), label=waiting.label, total=_PERCENT):
                    pass
            except BaseException as error:
                self._cancel(job, error)
                raise
        return JobResult(job, watch.outcome(), found)

    def _cancel(self, job: str, reason: BaseException) -> None:
        """End what nobody waits for any more; where that fails, the reason is what is to be told."""
        if isinstance(reason, ConnectionLostError):
            # It was tried for long enough.
            return
        try:
            self._ask("cancel", {"job": job}, timeout=_CANCEL_SECONDS, patient=False)
        except GreenccError as error:
            reason.add_note(
                f"the job on {self._name} could not be cancelled ({error.message}); it ends at its limits"
            )


class _Watch:
    """Asks how a job is until it has ended.

    Args:
        ask: The device.
        name: Of it, for messages.
        job: The ID.
        waiting: How to wait.
        sleep: How to let time pass.
    """

    def __init__(
        self, ask: Ask, name: str, job: str, waiting: Waiting, sleep: Callable[[float], None]
    ) -> None:
        self._ask, self._name, self._job = ask, name, job
        self._waiting, self._sleep = waiting, sleep
        self._seen = self._shown = 0
        self._last: Mapping[str, Any] = {}

    def percents(self) -> Iterator[None]:
        """Yields once for each percent that is done; ends with the job.

        Raises:
            UnavailableError: It did not end within the limit.
            GreenccError: As `AgentClient`.
        """
        deadline = time.monotonic() + self._waiting.limit
        yield from self._quiet()
        wait = _FIRST_WAIT
        while True:
            self._last = self._ask("poll", {"job": self._job, "since": self._seen}).result
            state = self._last.get("state")
            if state not in _STATES:
                raise ProtocolError(f"{self._name} tells no state of a job")
            events = self._events()
            for event in events:
                yield from self._show(event)
            if state != "running" and not events:
                return
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{self._name}: {self._waiting.label} did not end within {self._waiting.limit:.0f} s",
                    hint="allow more time, or use a smaller model",
                )
            if not events:
                self._sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)

    def outcome(self) -> Mapping[str, Any]:
        """The result of a job that has ended.

        Raises:
            DeviceLostError: It was lost to a reboot, or killed.
            UnavailableError: It was cancelled there.
            GreenccError: It failed; what the device says.
        """
        state, name = self._last.get("state"), self._name
        if state == "done":
            result = self._last.get("result")
            if not isinstance(result, dict):
                raise ProtocolError(f"{name} tells no result of a job that was done")
            return result
        if state == "cancelled":
            raise UnavailableError(f"{name}: {self._waiting.label} was cancelled on the device")
        error = error_of(self._last.get("error"), name)
        if state == "lost" and not isinstance(error, DeviceLostError):
            raise DeviceLostError(error.message, hint=error.hint)
        raise error

    def _quiet(self) -> Iterator[None]:
        """Let what is measured alone: nothing is asked, and the bar moves by the time that passed."""
        left = total = self._waiting.quiet
        while left > 0:
            step = min(left, _QUIET_STEP)
            self._sleep(step)
            left -= step
            yield from self._show({"done": (1.0 - left / total) * (_PERCENT - 1) / _PERCENT})

    def _events(self) -> list[Event]:
        told, following = self._last.get("events", []), self._last.get("next", self._seen)
        if not isinstance(told, list) or not all(isinstance(event, dict) for event in told):
            raise ProtocolError(f"{self._name} tells no list of a job's events")
        if not isinstance(following, int) or following != self._seen + len(told):
            raise ProtocolError(f"{self._name} counts the events of a job in another way")
        self._seen = following
        return told

    def _show(self, event: Event) -> Iterator[None]:
        if self._waiting.on_event is not None and "t" in event:
            self._waiting.on_event(event)
        done = event.get("done")
        if not isinstance(done, int | float) or not math.isfinite(done):
            return
        while self._shown < min(1.0, done) * _PERCENT:
            self._shown += 1
            yield
