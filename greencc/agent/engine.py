"""Resident engines: a process per build that keeps its engine loaded, so that none is loaded anew for every block.

``engine FOLDER OPTIONS`` starts the backend's worker, and relays what is asked at the socket ``engine.sock`` in the
job's folder, one request after another. It ends itself when nobody has asked for ``GREENCC_AGENT_ENGINE_IDLE`` seconds
(default 120), and when the device's memory gets short. ``keeper.json`` tells its process, options and description;
``keeper-problem.json``, why it could not start.
"""

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from greencc.agent import backends, wire
from greencc.agent.backends.resident import Resident
from greencc.agent.build import backend_of
from greencc.agent.jobs import Job, held, hold
from greencc.agent.places import Places, again, read_json, remove, write_json
from greencc.agent.problem import Problem
from greencc.agent.processes import detach, end_family, start_detached, started_at
from greencc.agent.supervisor import scarcity

_SOCKET = "engine.sock"
_LOCK = "engine.lock"
_STATE = "keeper.json"
_PROBLEM = "keeper-problem.json"
_LOG = "engine.log"
_IDLE_S = 120.0
_LOOK_S = 0.5
_START_S = 600.0
_ANSWER_S = 600.0


class Engine:
    """The resident engine of a build, which need not run yet.

    Args:
        places: The agent's folders.
        job: The build's name.
    """

    def __init__(self, places: Places, job: Any) -> None:
        self.places = places
        self.job = Job(places, job)
        self.folder = self.job.folder

    def open(self, threads: Optional[int] = None) -> Dict[str, Any]:
        """Load it unless it is; its description.

        Args:
            threads: Its processor threads; default: those of the build, and what it was opened with before.

        Raises:
            Problem: There is no such engine, or it cannot be loaded.
        """
        spec = self.job.spec
        if spec.get("kind") != "build" or self.job.state()[0] != "done":
            raise Problem("input", "job %s has no engine: it is %s" % (self.job.name, self.job.state()[0]))
        known = self._running()
        options = dict(spec.get("options") or {})
        if threads is not None:
            options["threads"] = threads
        if known is not None and (threads is None or known["options"] == options):
            return dict(known["description"])
        if known is not None:
            self.close()
        try:
            return self._start(options)
        except Problem as problem:
            if problem.kind != "memory" or not close_all(self.places):
                raise
            # Others that nobody uses just now were in its way.
            return self._start(options)

    def ask(
        self, op: str, args: Dict[str, Any], payload: bytes = b"", seconds: float = _ANSWER_S
    ) -> Tuple[Dict[str, Any], bytes]:
        """Ask the backend's worker; see `greencc.agent.backends`.

        Raises:
            Problem: It says no, does not answer, or has died.
        """
        with contextlib.closing(self._connect()) as connection:
            connection.settimeout(seconds)
            try:
                wire.write(connection.makefile("wb"), {"id": 1, "op": op, "args": args}, payload)
                answer = wire.read(connection.makefile("rb"))
            except socket.timeout as error:
                raise Problem("timeout", "the engine gave no answer for %g s" % seconds) from error
            except OSError as error:
                raise Problem("crashed", "the process of the engine is gone: %s" % error.strerror) from error
        if answer is None:
            raise Problem(
                "crashed", "the process of the engine is gone", "it was killed, perhaps for want of memory"
            )
        header, data = answer
        if "error" in header:
            raise Problem.from_json(header["error"])
        return header["result"], data

    def pid(self) -> Optional[int]:
        """Of the process that keeps it; None: it does not run."""
        known = self._running()
        return None if known is None else int(known["pid"])

    def close(self) -> None:
        """End it, with what it computes; it need not run."""
        pid = self.pid()
        if pid is not None:
            end_family(pid)
            for name in (_STATE, _SOCKET):
                remove(self.folder / name)

    def _running(self) -> Optional[Dict[str, Any]]:
        known = read_json(self.folder / _STATE)
        if known is None or not held(self.folder / _LOCK) or started_at(known["pid"]) != known["started"]:
            return None
        return known

    def _start(self, options: Dict[str, Any]) -> Dict[str, Any]:
        remove(self.folder / _PROBLEM)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            start_detached(again("engine", str(self.folder), json.dumps(options)), self.folder / _LOG)
            known = self._running()
            if known is not None:
                return dict(known["description"])
            told = read_json(self.folder / _PROBLEM)
            if told is not None:
                raise Problem.from_json(told)
            if not held(self.folder / _LOCK):
                raise Problem(
                    "crashed", "the process of the engine ended at its start", "see engine.log of the job"
                )
            # Another connection is starting it.
            time.sleep(_LOOK_S)
        raise Problem("timeout", "the engine of job %s does not start" % self.job.name)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _near(self.folder) as path:
                connection.connect(path)
        except OSError as error:
            connection.close()
            raise Problem(
                "lost", "the engine of job %s does not run" % self.job.name, "open it again"
            ) from error
        return connection


def running(places: Places) -> List[Engine]:
    """The engines that are loaded."""
    engines = [Engine(places, path.parent.name) for path in sorted(places.jobs.glob("*/" + _STATE))]
    return [engine for engine in engines if engine.pid() is not None]


def close_all(places: Places) -> int:
    """End the engines that nobody uses at the moment; how many these were."""
    idle = [engine for engine in running(places) if not (read_json(engine.folder / _STATE) or {}).get("busy")]
    for engine in idle:
        engine.close()
    return len(idle)


def main(folder: str, options: str) -> int:
    """``engine FOLDER OPTIONS``: keep an engine in a process of its own."""
    places = Places.find()
    job = Job(places, Path(folder).name)
    lock = hold(job.folder / _LOCK)
    if lock is None:
        return 0
    keeper = Keeper(places, job, json.loads(options))
    if detach(keeper.start):
        keeper.serve()
    return 0


class Keeper:
    """The process of an engine.

    Args:
        places: The agent's folders.
        job: The build.
        options: Of the worker.
    """

    def __init__(self, places: Places, job: Job, options: Dict[str, Any]) -> None:
        self._places, self._job, self._options = places, job, options
        self._idle_s = float(os.environ.get("GREENCC_AGENT_ENGINE_IDLE") or _IDLE_S)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._resident: Optional[Resident] = None

    def start(self) -> None:
        """Load the engine and listen, or say why not."""
        try:
            backend = backend_of(self._places, self._job.spec)
            command = backend.worker_command(str(self._job.folder / "engine"), self._options)
            limits = backends.Limits(None, (self._job.spec.get("limits") or {}).get("bytes"))
            self._resident = Resident(command, backend.env, _log, limits)
        except Problem as problem:
            write_json(self._job.folder / _PROBLEM, problem.as_json())
            return
        remove(self._job.folder / _SOCKET)
        with _near(self._job.folder) as path:
            self._listener.bind(path)
        self._listener.listen(8)
        self._tell(False)

    def serve(self) -> None:
        """Answer until nobody asks any more."""
        if self._resident is None:
            return
        self._listener.settimeout(_LOOK_S)
        used = time.monotonic()
        try:
            while time.monotonic() - used < self._idle_s and scarcity(self._places) is None:
                try:
                    connection, _ = self._listener.accept()
                except socket.timeout:
                    continue
                with contextlib.closing(connection):
                    connection.settimeout(_ANSWER_S)
                    self._tell(True)
                    alive = self._answer(connection)
                    self._tell(False)
                if not alive:
                    return
                used = time.monotonic()
        finally:
            for name in (_STATE, _SOCKET):
                remove(self._job.folder / name)
            self._resident.close()

    def _answer(self, connection: socket.socket) -> bool:
        """Relay one request; False: the worker is gone."""
        stream = connection.makefile("wb")
        resident = self._resident
        if resident is None:
            return False
        try:
            message = wire.read(connection.makefile("rb"))
            if message is None:
                return True
            header, payload = message
            seconds = header.get("args", {}).get("limit_s") or _ANSWER_S
            try:
                result, data = resident.ask(header["op"], header.get("args", {}), payload, seconds)
            except Problem as problem:
                wire.write(stream, {"id": 1, "error": problem.as_json()})
            else:
                wire.write(stream, {"id": 1, "result": result}, data)
        except OSError as error:
            # Whoever asked is gone.
            _log("an answer found nobody: %s" % error)
        return started_at(resident.pid) is not None

    def _tell(self, busy: bool) -> None:
        resident = self._resident
        if resident is None:
            return
        told = {
            "pid": os.getpid(),
            "started": started_at(os.getpid()),
            "options": self._options,
            "description": resident.description,
            "busy": busy,
        }
        write_json(self._job.folder / _STATE, told)


@contextlib.contextmanager
def _near(folder: Path) -> Iterator[str]:
    """The socket's path in a form that is short enough for the kernel, however deep the folder is."""
    handle = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield "/proc/self/fd/%d/%s" % (handle, _SOCKET)
    finally:
        os.close(handle)


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
