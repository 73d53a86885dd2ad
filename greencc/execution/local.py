"""Workers that are processes of this machine.

Each is a fresh Python (nothing is forked, so no lock of another thread is inherited) that gets its tasks through a
socket pair, pickled by this process and read by no one else. It ends with its driver: when that is killed, the socket
closes. Its user's script is not imported again, as `multiprocessing` would.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO

from greencc.core.data import Array
from greencc.execution.task import Blob, Task
from greencc.execution.transport import Reply, WorkerLostError, answer

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from greencc.execution.local import serve; serve(int(sys.argv[1]))"
)
# Of the libraries that start threads of their own.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_TAIL_BYTES = 2000


class ProcessWorker:
    """A worker process with `threads` threads for linear algebra; it starts with the first task."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._errors: IO[bytes] | None = None
        self._closed = False
        # Held while a thread uses the connection, which must not be closed under it.
        self._used = threading.Lock()

    def run(self, task: Task) -> dict[str, Array]:
        """Run a task; see `Worker.run`."""
        with self._used:
            try:
                if self._connection is None:
                    self._start()
                assert self._connection is not None
                self._connection.send(task)
                reply = self._connection.recv()
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                raise WorkerLostError(self._why(error)) from error
        assert isinstance(reply, Reply)
        return reply.result()

    def close(self) -> None:
        """Kill the process; a thread that waits for it sees it gone."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def release(self) -> None:
        """Close the ends of what led to the process, which was closed: a thread that waits for it ends at once."""
        with self._used:
            for end in (self._connection, self._errors):
                if end is not None:
                    end.close()

    def _start(self) -> None:
        ours, theirs = Pipe()
        errors = tempfile.TemporaryFile(prefix="greencc-worker-")  # noqa: SIM115 - closed in `release`
        self._connection, self._errors = ours, errors
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **dict.fromkeys(_THREADS, str(self._threads))},
            )
        finally:
            # Only the process itself must hold it: its end is then ours as well.
            theirs.close()
        if self._closed:
            # Closed from another thread meanwhile.
            self._process.kill()

    def _why(self, error: Exception) -> str:
        """How the process ended."""
        if self._process is None:
            return f"could not be started: {error}"
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return f"sent what cannot be read ({type(error).__name__})"
        if code < 0:
            text = f"was ended by {signal.Signals(-code).name}"
            return f"{text}, as the system does when memory runs out" if code == -signal.SIGKILL else text
        return f"ended with exit code {code}{self._last_words()}"

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def files_here(blob: Blob) -> Path:
    """Files of the driver's machine are where they are."""
    return blob.folder


def serve(handle: int) -> None:
    """Run tasks from the socket with this file number until it closes: the life of a worker process."""
    # Ctrl-C goes to all processes of a terminal; the driver ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(handle)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        reply = answer(task, files_here)
        try:
            connection.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            return
