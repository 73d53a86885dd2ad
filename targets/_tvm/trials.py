"""Candidates of one workload, tried in another process that may crash, hang or be killed."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, Protocol

from greencc.core import machine as host
from greencc.targets._tvm.codec import to_json
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Workload

TEMPLATES = "greencc.targets._tvm.kernels.select:template_of"
_LONGEST_SECONDS = 60.0
_FIRST_SECONDS = 120.0
_ENDING_SECONDS = 10.0


class OutError(Exception):
    """A candidate is out; the text says why."""


class Bench(Protocol):
    """Where candidates are tried, one workload at a time; tests replace it."""

    def open(self, workload: Workload, default: Schedule) -> float:
        """Begin with a workload; microseconds of the default schedule.

        Raises:
            OutError: The default itself cannot be run.
        """

    def add(self, schedule: Schedule) -> float:
        """Build a candidate and compare its output with the default's; microseconds of its best call of a few.

        Raises:
            OutError: It is not to be used.
        """

    def drop(self, schedules: Sequence[Schedule]) -> None:
        """Forget candidates."""

    def time(self, schedules: Sequence[Schedule], rounds: int) -> list[list[float]]:
        """Microseconds by schedule and round, all measured in turns.

        Raises:
            OutError: One of them crashed.
        """

    def close(self) -> None: ...


class TrialProcess:
    """`greencc.targets._tvm.trial_child`, started when it is needed and again when it crashed.

    Args:
        machine: What code is generated for: this one.
        threads: Of the kernels. With one, the process stays on one core.
        templates: Module and function, told to the process.
    """

    def __init__(self, machine: Machine, threads: int, templates: str = TEMPLATES) -> None:
        self._machine, self._threads, self._templates = machine, threads, templates
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process may be started
        self._workload: Workload | None = None
        self._present: list[Schedule] = []

    def open(self, workload: Workload, default: Schedule) -> float:
        """See `Bench`."""
        self._workload, self._present = workload, [default]
        return float(self._ask(self._opening()))

    def add(self, schedule: Schedule) -> float:
        """See `Bench`."""
        found = float(self._ask({"add": to_json(schedule)}))
        self._present.append(schedule)
        return found

    def drop(self, schedules: Sequence[Schedule]) -> None:
        """See `Bench`."""
        self._present = [schedule for schedule in self._present if schedule not in schedules]
        self._ask({"drop": [to_json(schedule) for schedule in schedules]})

    def time(self, schedules: Sequence[Schedule], rounds: int) -> list[list[float]]:
        """See `Bench`."""
        found = self._ask({"time": [to_json(schedule) for schedule in schedules], "rounds": rounds})
        return [[float(us) for us in times] for times in found]

    def close(self) -> None:
        """End the process, whatever it does."""
        self._end()
        self._log.close()

    def _opening(self) -> dict[str, Any]:
        return {
            "open": to_json(self._workload),
            "machine": to_json(self._machine),
            "schedule": to_json(self._present[0]),
        }

    def _ask(self, request: dict[str, Any]) -> Any:
        """The answer. A process that was lost is replaced, with what it had, before a request that is not the first."""
        if self._process is None:
            self._start()
            if "open" not in request:
                self._tell(self._opening())
                for schedule in self._present[1:]:
                    self._add_again(schedule)
        return self._tell(request)

    def _add_again(self, schedule: Schedule) -> None:
        try:
            self._tell({"add": to_json(schedule)})
        except OutError:
            # What is left starts afresh, without it.
            self._present.remove(schedule)
            self._end()
            raise

    def _tell(self, request: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        # A process that is gone already is found out by the missing answer.
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        line = self._answer(_FIRST_SECONDS if "open" in request else _LONGEST_SECONDS)
        reply = json.loads(line)
        if "out" in reply:
            raise OutError(reply["out"])
        return reply.get("us")

    def _answer(self, seconds: float) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self._end()
                raise OutError(f"it did not end within {seconds:.0f} s")
        # One line at a time is asked for, and is written as a whole.
        line = process.stdout.readline()
        if line.endswith("\n"):
            return line
        code = self._end(_ENDING_SECONDS)
        raise OutError(self._lost(code))

    def _start(self) -> None:
        environment = dict(os.environ)
        environment["TVM_NUM_THREADS"] = environment["OMP_NUM_THREADS"] = str(self._threads)
        self._log.seek(0)
        self._log.truncate()
        # A session of its own: Ctrl-C is for this process, which decides what is kept.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "greencc.targets._tvm.trial_child", self._templates],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        if self._threads == 1 and hasattr(os, "sched_setaffinity"):
            # The last core: interrupts go to the first. Not allowed everywhere, and then costs repeatability only.
            with suppress(OSError):
                os.sched_setaffinity(self._process.pid, {max(host.allowed_cpus())})

    def _end(self, patience: float = 0.0) -> int:
        """End the process, after waiting for it to end by itself; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        return code

    def _lost(self, code: int) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").strip().splitlines()
        how = f"ended with {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"crashed with {signal.Signals(-code).name}"
        return f"it {how}" + (f": {lines[-1][:200]}" if lines and code > 0 else "")
