"""Models for another processor, run by its emulator: a process that answers one run after the other.

The runner (`runtime/runner.c`) is started once for each engine, so that the emulator's start and its translation of the
code are paid once. Only what comes out counts; how long it takes says nothing about the processor.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import struct
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from greencc.core.checked_engine import CheckedEngine
from greencc.core.data import Array, TensorSpec
from greencc.core.errors import GreenccError, InputError, UnavailableError

RUN_SECONDS = 600.0
"""The longest that one run may take."""
START_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_MAGIC = b"GCR1"
_OK = 0
_CLOSED = "it was closed"
_MOST_TEXT = 4096
_MOST_DIMS, _MOST_BYTES = 64, 1 << 40
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Deadline:
    """A moment of the monotonic clock, and how many seconds there were until then."""

    time: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> _Deadline:
        return cls(time.monotonic() + seconds, seconds)


class EmulatedEngine(CheckedEngine):
    """A runner behind two pipes.

    Args:
        command: What starts the runner of the model with ``--serve``.
        name: How messages call the model.
        inputs: In the model's order.
        outputs: Likewise.
        run_seconds: The longest that one run may take.
        start_seconds: The longest until the runner says what the model is.
        files: Descriptors that the process gets as well.

    Raises:
        UnavailableError: The emulator cannot be started.
        InputError: The runner refuses the model, or is not one of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        run_seconds: float = RUN_SECONDS,
        start_seconds: float = START_SECONDS,
        files: Sequence[int] = (),
    ) -> None:
        super().__init__(name, inputs, outputs)
        self._limit = run_seconds
        self._turn = threading.Lock()
        self._ended: str | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                start_new_session=True,
                pass_fds=files,
            )
        except OSError as error:
            self._log.close()
            raise UnavailableError(f"{command[0]} cannot be started: {error.strerror}") from error
        # An engine that nobody closes takes its process with it.
        self._release = weakref.finalize(self, _release, self._process, self._log)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        for pipe in (self._to, self._from):
            os.set_blocking(pipe.fileno(), False)
        try:
            self._check_hello(_Deadline.after(start_seconds))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process, and wait until it is gone."""
        with self._turn:
            self._end(_CLOSED)

    def _run(self, feeds: dict[str, Array], outputs: list[str]) -> dict[str, Array]:  # type: ignore[override]
        with self._turn:
            if self._ended == _CLOSED:
                raise RuntimeError(f"the engine of {self._name} was closed")
            if self._ended is not None:
                raise UnavailableError(f"{self._name} cannot be run any more: {self._ended}")
            request = bytearray()
            for spec in self._inputs:
                array = np.ascontiguousarray(feeds[spec.name])
                request += struct.pack(f"<{array.ndim}qQ", *array.shape, array.nbytes)
                request += array.tobytes()
            deadline = _Deadline.after(self._limit)
            try:
                self._send(request, deadline)
                (status,) = struct.unpack("<I", self._receive(4, deadline))
                if status != _OK:
                    raise InputError(f"{self._name}: {self._text(deadline)}")
                found = {spec.name: self._output(spec, deadline) for spec in self._outputs}
            except InputError:
                raise
            except BaseException:
                # What is still in the pipes belongs to this run: no other may read it.
                self._process.kill()
                self._end("an earlier run did not end well")
                raise
        return {name: found[name] for name in outputs}

    def _check_hello(self, deadline: _Deadline) -> None:
        if self._receive(4, deadline) != _MAGIC:
            raise InputError(f"{self._name}: what was started is not a runner of greencc")
        counts = struct.unpack("<II", self._receive(8, deadline))
        for specs, count, role in zip(
            (self._inputs, self._outputs), counts, ("input", "output"), strict=True
        ):
            if count != len(specs):
                raise InputError(f"{self._name}: its code has {count} {role}s, its description {len(specs)}")
            for spec in specs:
                size, dims = struct.unpack("<II", self._receive(8, deadline))
                if spec.shape is None or (size, dims) != (spec.dtype.itemsize, len(spec.shape)):
                    raise InputError(f"{self._name}: {role} {spec.name!r} is not what its description says")

    def _output(self, spec: TensorSpec, deadline: _Deadline) -> Array:
        rank = len(spec.shape or ())
        *shape, size = struct.unpack(f"<{rank}qQ", self._receive(8 * rank + 8, deadline))
        if (
            any(dim < 0 for dim in shape)
            or math.prod(shape) * spec.dtype.itemsize != size
            or size > _MOST_BYTES
        ):
            raise UnavailableError(f"{self._name}: output {spec.name!r} came back with a shape that is none")
        data = self._receive(size, deadline)
        return np.frombuffer(data, spec.dtype).reshape(shape)

    def _text(self, deadline: _Deadline) -> str:
        (length,) = struct.unpack("<I", self._receive(4, deadline))
        return self._receive(min(length, _MOST_TEXT), deadline).decode("utf-8", "replace")

    def _send(self, data: bytes | bytearray, deadline: _Deadline) -> None:
        rest = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._to, selectors.EVENT_WRITE)
            while rest:
                self._wait(selector, deadline)
                try:
                    rest = rest[os.write(self._to.fileno(), rest[:_CHUNK]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError as error:
                    raise self._died() from error

    def _receive(self, size: int, deadline: _Deadline) -> bytearray:
        found = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            while len(found) < size:
                self._wait(selector, deadline)
                try:
                    piece = os.read(self._from.fileno(), min(_CHUNK, size - len(found)))
                except BlockingIOError:
                    continue
                if not piece:
                    raise self._died()
                found += piece
        return found

    def _wait(self, selector: selectors.BaseSelector, deadline: _Deadline) -> None:
        if not selector.select(max(0.0, deadline.time - time.monotonic())):
            raise UnavailableError(
                f"{self._name} did not answer within {deadline.seconds:g} s under emulation",
                hint="give fewer samples, or run it on the device",
            )

    def _died(self) -> GreenccError:
        """What to say of a runner that has ended: a signal by name, else what it wrote."""
        try:
            code = self._process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return UnavailableError(f"{self._name}: the emulated process closed its output")
        self._log.seek(0)
        lines = self._log.read(_MOST_TEXT).decode("utf-8", "replace").strip().splitlines()
        said = f": {lines[0].strip()}" if lines else ""
        if code < 0:
            return UnavailableError(
                f"{self._name}: the emulated process was ended by {_signal(-code)}{said}",
                hint=_HINTS.get(-code),
            )
        return InputError(f"{self._name} was refused by its runner (exit code {code}){said}")

    def _end(self, why: str) -> None:
        if self._ended is not None:
            return
        self._ended = why
        self._to.close()
        # It is killed below where it does not end by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GRACE_SECONDS)
        self._release()


def _release(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """End a process, wait until it is gone, and close everything that belongs to it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, log):
        if stream is not None:
            stream.close()


_HINTS: dict[int, str] = {
    signal.SIGILL: "the code uses an instruction that this processor does not have: compile for the right preset",
    signal.SIGKILL: "someone ended it, or memory ran out",
}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
