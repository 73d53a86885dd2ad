"""A channel over the standard streams of a subprocess: `ssh`, or the agent on this machine."""

from __future__ import annotations

import errno
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from greencc.devices.transport import ConnectionLostError, SlowReplyError

_READ = 1 << 16
_MOST_STDERR = 1 << 14
_MOST_UNREAD = 1 << 20
_FAREWELL_SECONDS = 2.0

Explain = Callable[[int | None, str, bool], ConnectionLostError]
"""Why a process ended: from its exit status (None: it runs on without its output), its standard error, and whether the
agent had greeted by then."""


class ProcessChannel:
    """A `Channel` to a process that this makes.

    Args:
        command: Program and arguments.
        name: Of the device, for messages.
        explain: As above.
        environment: Of the process; None: this one's.

    Raises:
        OSError: The program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        explain: Explain,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name, self._explain = name, explain
        # A session of its own: Ctrl-C must reach greencc alone, which then has words to say to the agent.
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._input, self._output, self._errors = (
            self._process.stdin,
            self._process.stdout,
            self._process.stderr,
        )
        for stream in (self._input, self._output, self._errors):
            os.set_blocking(stream.fileno(), False)
        self._unread, self._complaints = bytearray(), bytearray()
        self._ended = self._complaints_ended = self._established = False

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, data: bytes | memoryview, deadline: float) -> None:
        """As `Channel.send`."""
        left = memoryview(data)
        while left:
            # What it says meanwhile is kept, so that neither side waits for the other for ever.
            self._wait(deadline, reading=len(self._unread) < _MOST_UNREAD, writing=True)
            try:
                left = left[os.write(self._input.fileno(), left[: 1 << 20]) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                raise self._gone() from None

    def read_line(self, most: int, deadline: float) -> bytes:
        """As `Channel.read_line`."""
        seen = 0
        while (end := self._unread.find(b"\n", seen)) < 0:
            seen = len(self._unread)
            if seen > most:
                break
            self._more(deadline)
        if end < 0 or end > most:
            raise ConnectionLostError(
                f"{self._name} sent a line of more than {most:,} bytes, which no agent of greencc does",
                hint="its login scripts must print nothing where no terminal is; see 'greencc devices probe'",
                passing=False,
            )
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def read(self, size: int, deadline: float) -> bytes:
        """As `Channel.read`."""
        while len(self._unread) < size:
            self._more(deadline)
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def established(self) -> None:
        """As `Channel.established`."""
        self._established = True
        self._complaints.clear()

    def close(self) -> None:
        """As `Channel.close`: its input ends, which ends the agent; what does not end is killed."""
        for stream in (self._input, self._output, self._errors):
            stream.close()
        try:
            self._process.wait(_FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _more(self, deadline: float) -> None:
        if self._ended:
            raise self._gone()
        self._wait(deadline, reading=True, writing=False)

    def _wait(self, deadline: float, *, reading: bool, writing: bool) -> None:
        """Wait until something can be written or was read."""
        with selectors.DefaultSelector() as selector:
            if reading and not self._ended:
                selector.register(self._output, selectors.EVENT_READ)
            if not self._complaints_ended:
                selector.register(self._errors, selectors.EVENT_READ)
            if writing:
                selector.register(self._input, selectors.EVENT_WRITE)
            while True:
                left = deadline - time.monotonic()
                ready = selector.select(max(0.0, left))
                if not ready:
                    if left > 0:
                        continue
                    raise SlowReplyError(
                        f"{self._name} did not answer in time{self._said()}",
                        hint="look at its load and at the network; what was begun there goes on",
                    )
                streams = {key.fileobj for key, _ in ready}
                if self._errors in streams:
                    self._read_complaints()
                    if self._complaints_ended:
                        selector.unregister(self._errors)
                if self._output in streams:
                    self._read_output()
                if streams - {self._errors}:
                    return

    def _read_output(self) -> None:
        data = _read(self._output.fileno())
        if data == b"":
            self._ended = True
        elif data:
            self._unread += data

    def _read_complaints(self) -> None:
        data = _read(self._errors.fileno())
        if data == b"":
            self._complaints_ended = True
        elif data:
            self._complaints += data
            del self._complaints[:-_MOST_STDERR]

    def _gone(self) -> ConnectionLostError:
        """Why the other end is no longer there."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        with selectors.DefaultSelector() as selector:
            if not self._complaints_ended:
                selector.register(self._errors, selectors.EVENT_READ)
            while not self._complaints_ended and selector.select(max(0.0, deadline - time.monotonic())):
                self._read_complaints()
        try:
            status: int | None = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        return self._explain(status, self._text(), self._established)

    def _text(self) -> str:
        return self._complaints.decode("utf-8", "replace").strip()

    def _said(self) -> str:
        lines = self._text().splitlines()
        return f" (it last said: {printable(lines[-1])})" if lines else ""


def printable(text: str, most: int = 300) -> str:
    """A text from elsewhere, without what could move the cursor, and not too long."""
    plain = "".join(mark if mark.isprintable() else "?" for mark in text[:most])
    return plain + ("..." if len(text) > most else "")


def _read(descriptor: int) -> bytes | None:
    """What is there: nothing yet is None, the end is empty."""
    try:
        return os.read(descriptor, _READ)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.EIO, errno.ECONNRESET):
            return b""
        raise
