"""Processes that hold a vendor's code: started, asked, watched and ended. Whatever they do, the agent lives on."""

import collections
import os
import selectors
import signal
import subprocess
import threading
import time
from typing import IO, Any, Callable, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

from greencc.agent import wire
from greencc.agent.backends import Limits, Log
from greencc.agent.problem import Problem

START_SECONDS = 300.0
"""The longest until an engine is loaded and warm: a Jetson Nano reads its libraries for a minute."""
_KEPT_LINES = 400
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_CHUNK = 1 << 20


class Resident:
    """A process that answers messages.

    Args:
        command: Of `Backend.worker_command`.
        env: Its environment.
        log: Gets each line of its standard error; from a thread.
        limits: `seconds` until its first message, and its memory.
        what: How messages call it.

    Attributes:
        description: Its first message.

    Raises:
        Problem: It does not start, crashes, or says why it cannot serve.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Optional[Log] = None,
        limits: Optional[Limits] = None,
        what: str = "the engine",
    ) -> None:
        self.what = what
        self._limits = limits or Limits()
        self._number = 0
        self._buffer = bytearray()
        self._killed: Optional[Problem] = None
        self._lines: Deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._log = log
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=dict(env),
                start_new_session=True,
            )
        except OSError as error:
            raise Problem("unavailable", "%s cannot be started: %s" % (command[0], error.strerror)) from error
        self._to, self._from, self._said = _pipes(self._process)
        for pipe in (self._to, self._from):
            os.set_blocking(pipe.fileno(), False)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            seconds = START_SECONDS if self._limits.seconds is None else self._limits.seconds
            self.description, _ = self._answer(0, time.monotonic() + seconds, seconds)
        except BaseException:
            self.kill()
            raise

    @property
    def lines(self) -> List[str]:
        """The last lines of its log."""
        return list(self._lines)

    @property
    def pid(self) -> int:
        """Of the process, whose group is its own."""
        return self._process.pid

    def ask(
        self, op: str, args: Dict[str, Any], payload: bytes = b"", seconds: float = 600.0
    ) -> Tuple[Dict[str, Any], bytes]:
        """Ask, and wait for the answer.

        Raises:
            Problem: It says why not, or ``crashed``, ``memory`` or ``timeout``: it is gone then.
        """
        if self._killed is not None:
            raise self._killed
        self._number += 1
        deadline = time.monotonic() + seconds
        header = wire.head({"id": self._number, "op": op, "args": args}, len(payload))
        self._send(header, deadline, seconds)
        self._send(payload, deadline, seconds)
        return self._answer(self._number, deadline, seconds)

    def close(self) -> None:
        """End it in peace; by force after some seconds."""
        if self._process.poll() is None and self._killed is None:
            try:
                self.ask("quit", {}, seconds=_GRACE_SECONDS)
                self._process.wait(_GRACE_SECONDS)
            except (Problem, subprocess.TimeoutExpired):
                self.kill()
        self.kill()

    def kill(self) -> None:
        """End it and all that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.poll()
        self._process.wait()
        self._reader.join(_GRACE_SECONDS)
        self._to.close()
        self._from.close()
        if self._killed is None:
            self._killed = Problem("lost", "%s was closed" % self.what)

    def _read_log(self) -> None:
        with self._said as pipe:
            rest = b""
            while True:
                data = os.read(pipe.fileno(), 65536)
                *lines, rest = (rest + data).split(b"\n")
                if not data and rest:
                    lines.append(rest)
                for line in lines:
                    text = line.decode("utf-8", "replace").rstrip()
                    self._lines.append(text)
                    if self._log is not None:
                        self._log(text)
                if not data:
                    return

    def _send(self, data: bytes, deadline: float, seconds: float) -> None:
        view = memoryview(data)
        while view:
            try:
                sent = os.write(self._to.fileno(), view[:_CHUNK])
            except BlockingIOError:
                self._wait(self._to, selectors.EVENT_WRITE, deadline, seconds)
                continue
            except BrokenPipeError:
                raise self._ended() from None
            view = view[sent:]

    def _answer(self, number: int, deadline: float, seconds: float) -> Tuple[Dict[str, Any], bytes]:
        while b"\n" not in self._buffer:
            self._receive(deadline, seconds)
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        header = wire.parse(line)
        size = wire.size_of(header)
        while len(self._buffer) < size:
            self._receive(deadline, seconds)
        payload = bytes(self._buffer[:size])
        del self._buffer[:size]
        if header.get("id") != number:
            self.kill()
            raise Problem("internal", "%s answered something else" % self.what)
        if "error" in header:
            raise Problem.from_json(header["error"])
        return header["result"], payload

    def _receive(self, deadline: float, seconds: float) -> None:
        try:
            data = os.read(self._from.fileno(), _CHUNK)
        except BlockingIOError:
            self._wait(self._from, selectors.EVENT_READ, deadline, seconds)
            return
        if not data:
            raise self._ended()
        self._buffer += data

    def _wait(self, pipe: IO[bytes], event: int, deadline: float, seconds: float) -> None:
        """Until a pipe is ready; look at the clock and at the memory meanwhile."""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            while not selector.select(max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic()))):
                problem = None
                if time.monotonic() >= deadline:
                    problem = Problem("timeout", "%s took longer than %g seconds" % (self.what, seconds))
                elif self._limits.memory_bytes is not None:
                    used = resident_bytes(self._process.pid)
                    if used > self._limits.memory_bytes:
                        problem = Problem(
                            "memory",
                            "%s used %d MB of memory, and %d MB were allowed"
                            % (self.what, used >> 20, self._limits.memory_bytes >> 20),
                        )
                if problem is not None:
                    self._killed = problem
                    self.kill()
                    raise problem

    def _ended(self) -> Problem:
        """Why it is gone."""
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.returncode
        self._reader.join(_GRACE_SECONDS)
        self._killed = _post_mortem(self.what, code, self.lines)
        self.kill()
        return self._killed


def _pipes(process: "subprocess.Popen[bytes]") -> Tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr


def _post_mortem(what: str, code: int, lines: List[str]) -> Problem:
    last = "; ".join(line.strip() for line in lines[-3:] if line.strip())
    said = "; its last words: " + last if last else ""
    if code == -signal.SIGKILL:
        return Problem(
            "memory",
            "%s was killed, as the system does when memory runs out%s" % (what, said),
            "close other programs, add swap, or compile a smaller model",
        )
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "signal %d" % -code
        return Problem("crashed", "%s crashed (%s)%s" % (what, name, said), "the log has more")
    return Problem("crashed", "%s ended with exit code %d%s" % (what, code, said), "the log has more")


def resident_bytes(pid: int) -> int:
    """Memory that a process and its children hold; 0 where there is none of that number."""
    total = 0
    page = os.sysconf("SC_PAGE_SIZE")
    for each in [pid, *_children(pid)]:
        try:
            with open("/proc/%d/statm" % each) as file:
                total += int(file.read().split()[1]) * page
        except (OSError, IndexError, ValueError):
            continue
    return total


def _children(pid: int) -> List[int]:
    """Direct children, where the kernel tells."""
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return [int(each) for each in file.read().split()]
    except (OSError, ValueError):
        return []


def once(
    command: Sequence[str],
    env: Mapping[str, str],
    log: Optional[Callable[[str], None]],
    limits: Limits,
    what: str,
) -> Dict[str, Any]:
    """Start a process that has one message to give, such as a build, and return its result.

    Raises:
        Problem: As `Resident`.
    """
    resident = Resident(command, env, log, limits, what)
    resident.kill()
    return resident.description
