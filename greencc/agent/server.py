"""Answers the host's requests over the standard streams, one after another."""

import os
import signal
import sys
import traceback
from typing import IO, Any, Callable, Dict, Optional, Set, Tuple

from greencc.agent import VERSION, clean, disk, framing, power, store, wire
from greencc.agent.device import used
from greencc.agent.engine import Engine
from greencc.agent.jobs import Job
from greencc.agent.places import Places, check_count, check_name, check_sha256
from greencc.agent.probe import Backends, known_backends, probe
from greencc.agent.problem import Problem

_MOST_FETCHED = 64 << 20
_MOST_EVENTS = 1 << 40
_WAIT_S = 60.0

Answer = Tuple[Dict[str, Any], bytes]
Operation = Callable[[Dict[str, Any], bytes], Answer]


class Server:
    """The operations of one connection.

    Args:
        places: The agent's folders.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.operations: Dict[str, Operation] = {
            "probe": self.probe,
            "has": self.has,
            "put": self.put,
            "start": self.start,
            "poll": self.poll,
            "fetch": self.fetch,
            "cancel": self.cancel,
            "open": self.open,
            "run": self.run,
            "close": self.close,
            "power-mode": self.power_mode,
            "clean": self.clean,
            "bye": self.bye,
        }
        self._jobs: Set[str] = set()
        self._token = ""
        self._backends: Optional[Backends] = None

    def answer(self, request: Dict[str, Any], payload: bytes) -> Answer:
        """The reply to a request, and its bytes; whatever goes wrong becomes part of it."""
        name, arguments = request.get("op"), request.get("args", {})
        number = request.get("id")
        try:
            power.heard(self.places)
            operation = self.operations.get(name) if isinstance(name, str) else None
            if operation is None:
                raise Problem(
                    "usage", "%.60r is no operation" % (name,), "host and agent do not fit together"
                )
            if not isinstance(arguments, dict):
                raise Problem("usage", "args of %s is no object" % name)
            if "session" in arguments:
                self._token = check_name(arguments["session"], "a session")
            result, data = operation(arguments, payload)
            return {"id": number, "result": result}, data
        except Problem as problem:
            return {"id": number, "error": problem.as_json()}, b""
        except OSError as error:
            told = disk.full(error, str(error.filename or "a file"))
            return {"id": number, "error": told.as_json()}, b""
        except Exception as error:  # noqa: BLE001 - the agent stays, and says what happened
            traceback.print_exc()
            message = "the agent failed at %s: %s: %s" % (name, type(error).__name__, error)
            return {"id": number, "error": Problem("internal", message, "please report it").as_json()}, b""

    def probe(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        if self._backends is None:
            # They are asked in processes of their own, which takes seconds, and do not come and go.
            self._backends = known_backends(self.places)
        return probe(self.places, self._backends), b""

    def has(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        return store.has(self.places, check_sha256(arguments.get("sha256"))), b""

    def put(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        sha256 = check_sha256(arguments.get("sha256"))
        total = check_count(arguments.get("total"), "total", 0, store.MOST_BYTES)
        offset = check_count(arguments.get("offset", 0), "offset", 0, store.MOST_BYTES)
        if not store.has(self.places, sha256)["size"]:
            clean.room(self.places, total)
        return store.put(self.places, sha256, total, offset, payload), b""

    def start(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        spec = arguments.get("spec")
        if not isinstance(spec, dict):
            raise Problem("usage", "a job's spec is %.60r" % (spec,), "an object")
        forgotten = arguments.get("forget", [])
        if not isinstance(forgotten, list):
            raise Problem("usage", "jobs to forget are %.60r" % (forgotten,), "a list of names")
        clean.leave(self.places, [check_name(each, "a job") for each in forgotten], self._token)
        job = self._job(arguments)
        if spec.get("kind") == "build" and not job.exists:
            # An engine is about as large as what it is built from.
            clean.room(self.places, store.size(self.places, spec.get("files")))
        told = job.start(spec)
        job.use()
        return told, b""

    def poll(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        since = check_count(arguments.get("since", 0), "since", 0, _MOST_EVENTS)
        return self._job(arguments).poll(since), b""

    def fetch(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        offset = check_count(arguments.get("offset", 0), "offset", 0, store.MOST_BYTES)
        most = check_count(arguments.get("most", _MOST_FETCHED), "most", 0, store.MOST_BYTES)
        size, data = self._job(arguments).read(arguments.get("file"), offset, min(most, _MOST_FETCHED))
        return {"size": size}, data

    def cancel(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        self._job(arguments).cancel()
        return {}, b""

    def open(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        job = self._job(arguments)
        with used(self.places, "loading an engine", False, _WAIT_S, lambda holder: None):
            description = Engine(self.places, job.name).open()
        return dict(description, engine=job.name), b""

    def run(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        engine = Engine(self.places, self._known(arguments.get("engine")).name)
        wanted = {"inputs": arguments.get("inputs", [])}
        with used(self.places, "a single run", False, _WAIT_S, lambda holder: None):
            # It may have ended for want of requests, and is what it was when it is loaded anew.
            engine.open()
            return engine.ask("run", wanted, payload)

    def close(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        engine = Engine(self.places, arguments.get("engine"))
        # One that another session uses ends by itself when nobody does any more.
        if not Job(self.places, engine.job.name, self._token).shared():
            engine.close()
        return {}, b""

    def power_mode(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        owner = arguments.get("owner", "")
        if owner != "":
            check_name(owner, "an owner")
        if arguments.get("restore") is True and "set" not in arguments:
            return power.restore(self.places, owner), b""
        return power.change(self.places, arguments.get("set"), owner), b""

    def clean(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        remove = clean.everything if arguments.get("all") is True else clean.outdated
        freed = remove(self.places)
        return {"freed": freed, "kept": clean.kept(self.places)}, b""

    def bye(self, arguments: Dict[str, Any], payload: bytes) -> Answer:
        clean.session(self.places, self._jobs, self._token)
        self._jobs.clear()
        clean.outdated(self.places)
        if power.mine(self.places):
            power.restore(self.places)
        return {}, b""

    def _job(self, arguments: Dict[str, Any]) -> Job:
        return self._known(arguments.get("job"))

    def _known(self, name: Any) -> Job:
        """A job that this session has to do with: it goes when the session says goodbye."""
        job = Job(self.places, name, self._token)
        self._jobs.add(job.name)
        job.use()
        return job


def serve() -> int:
    """``serve``: answer until the host is gone. What jobs it started go on."""
    stdin, stdout = sys.stdin.buffer, _own_output()
    signal.signal(signal.SIGHUP, _hung_up)
    signal.signal(signal.SIGTERM, _hung_up)
    try:
        places = Places.find()
        power.look_after(places)
        server = Server(places)
        hello = {
            "greencc-agent": VERSION,
            "python": "%d.%d.%d" % sys.version_info[:3],
            "pid": os.getpid(),
            "home": str(places.home),
        }
        wire.write(stdout, hello)
        while True:
            request = framing.read(stdin)
            if request is None:
                return 0
            header, data = server.answer(*request)
            wire.write(stdout, header, data)
    except BrokenPipeError:
        return 0
    except Problem as problem:
        wire.write(stdout, {"id": None, "error": problem.as_json()})
        return 2


def _own_output() -> IO[bytes]:
    """The stream for replies. Whatever else this process or a library prints goes to standard error."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def _hung_up(number: int, frame: Any) -> None:
    """The connection is gone: nobody reads what would be flushed on the way out."""
    os._exit(0)
