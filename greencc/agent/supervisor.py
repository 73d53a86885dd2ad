"""The process of a job: it does the work or has it done, writes events and the result, and ends it at its limits.

Limits (``limits`` of a spec): ``seconds`` from when the device is free for the job, ``bytes`` of memory that it and
what it started hold, and the disk: what the agent may use and must leave free (`greencc.agent.disk`). A watching thread
looks several times a second. On a machine whose memory runs out, the job ends before the kernel has to kill something.
"""

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from greencc.agent import disk
from greencc.agent.jobs import Job, hold
from greencc.agent.places import Places, check_count, check_number, write_json
from greencc.agent.problem import Problem
from greencc.agent.processes import detach, end_family, family, resident_bytes, started_at

_LOOK_S = 0.2
_DISK_EVERY = 5
_LONGEST_S = 7 * 24 * 3600.0
_DEFAULT_S = 3600.0
_MOST_BYTES = 1 << 42
_TRIES = 50
# Below this share of the memory a machine is about to kill processes.
_SCARCE = 0.02
_OOM_SCORE = "500"


class Limits:
    """What a job may use; None: as much as there is.

    Args:
        spec: A job's.

    Raises:
        Problem: They are no numbers.
    """

    def __init__(self, spec: Dict[str, Any]) -> None:
        told = spec.get("limits")
        if told is None:
            told = {}
        if not isinstance(told, dict):
            raise Problem("usage", "a job's limits are %.60r" % (told,), "an object with seconds and bytes")
        self.seconds = check_number(told.get("seconds", _DEFAULT_S), "limits.seconds", 0.001, _LONGEST_S)
        most = told.get("bytes")
        self.bytes = None if most is None else check_count(most, "limits.bytes", 1 << 20, _MOST_BYTES)


class Run:
    """What the work of a job is given.

    Attributes:
        places: The agent's folders.
        job: The job.
        spec: What it is to do.
        limits: What it may use.
    """

    def __init__(self, places: Places, job: Job) -> None:
        self.places, self.job, self.spec = places, job, job.spec
        self.limits = Limits(self.spec)
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._finished = False
        self._paused = False
        self._since = self._began
        self.watched: List[int] = []

    def event(self, **facts: Any) -> None:
        """Tell the host something: ``text``, or ``done`` in [0, 1]."""
        line = json.dumps(dict(facts, t=round(time.monotonic() - self._began, 3)), separators=(",", ":"))
        with (self.job.folder / "events.jsonl").open("ab") as file:
            file.write(line.encode("utf-8") + b"\n")

    def waiting(self, waits: bool) -> None:
        """Time during which the job waits for the device does not count."""
        self._paused, self._since = waits, time.monotonic()

    def watch(self, pid: int) -> None:
        """Count the memory of a process that is none of the job's children as the job's; it ends with it."""
        self.watched.append(pid)
        rows = [[each, started_at(each)] for each in self.watched]
        write_json(self.job.folder / "watched.json", {"processes": rows})

    def finish(self, told: Dict[str, Any]) -> bool:
        """Write the result, unless there is one already; False: there is."""
        with self._lock:
            if self._finished:
                return False
            self._finished = True
            write_json(self.job.folder / "result.json", told, lasting=True)
            return True

    def fail(self, problem: Problem) -> bool:
        """`finish` with what went wrong."""
        return self.finish({"state": "failed", "error": problem.as_json()})

    def over(self, look: int) -> Optional[Problem]:
        """Which limit is exceeded now."""
        if not self._paused and time.monotonic() - self._since > self.limits.seconds:
            return Problem(
                "timeout",
                "job %s took longer than its %g s" % (self.job.name, self.limits.seconds),
                "allow more time, or a faster build (a lower builder level)",
            )
        if self.limits.bytes is not None:
            held = resident_bytes({each for pid in (os.getpid(), *self.watched) for each in family(pid)})
            if held > self.limits.bytes:
                return Problem(
                    "memory",
                    "job %s holds %.0f MB of memory; %.0f MB are allowed"
                    % (self.job.name, held / 1e6, self.limits.bytes / 1e6),
                    "a smaller model or batch, less workspace, or allow more memory",
                )
        scarce = scarcity(self.places)
        if scarce is not None:
            return Problem(
                "memory", "job %s: %s" % (self.job.name, scarce), "end other programs on the device"
            )
        if look % _DISK_EVERY == 0:
            # To add up what is in the agent's folder takes longer than a timed job should be disturbed for.
            shortage = disk.shortage(self.places, counted=self.spec.get("kind") == "build")
            if shortage is not None:
                return Problem("disk", "job %s: %s" % (self.job.name, shortage), "free space on the device")
        return None


def scarcity(places: Places) -> Optional[str]:
    """Whether the machine's memory is about to run out; None: it is not, or that is not known."""
    figures = memory(places)
    total, available = figures.get("MemTotal"), figures.get("MemAvailable")
    if not total or available is None or available >= _SCARCE * total:
        return None
    return "%.0f of %.0f MB of the device's memory are left" % (available / 1e6, total / 1e6)


def memory(places: Places) -> Dict[str, int]:
    """Figures of /proc/meminfo, in bytes."""
    try:
        text = (places.root / "proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    rows = [line.split() for line in text.splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdigit()}


Work = Callable[[Run], Dict[str, Any]]


def main(folder: str) -> int:
    """``job FOLDER``: go on as a process of its own, and do what the folder's spec says."""
    places = Places.find()
    job = Job(places, Path(folder).name)
    lock = next((each for each in (_hold(job) for _ in range(_TRIES)) if each is not None), None)
    if lock is None or (job.folder / "result.json").exists():
        return 0

    def prepare() -> None:
        write_json(
            job.folder / "state.json",
            {
                "pid": os.getpid(),
                "started": started_at(os.getpid()),
                "boot": places.boot_id,
                "time": time.time(),
            },
            lasting=True,
        )

    if detach(prepare):
        supervise(places, job)
    return 0


def _hold(job: Job) -> Optional[int]:
    """Someone who asks whether the lock is held has it for an instant."""
    lock = hold(job.folder / "lock")
    if lock is None:
        time.sleep(0.01)
    return lock


def supervise(places: Places, job: Job) -> None:
    """Do the work of a job to its end."""
    try:
        run = Run(places, job)
    except Problem as problem:
        write_json(job.folder / "result.json", {"state": "failed", "error": problem.as_json()}, lasting=True)
        return
    _prefer_as_victim()
    threading.Thread(target=_guard, args=(run,), daemon=True).start()
    try:
        told: Dict[str, Any] = {"state": "done", "result": work_of(run.spec)(run)}
    except Problem as problem:
        told = {"state": "failed", "error": problem.as_json()}
    except OSError as error:
        told = {"state": "failed", "error": disk.full(error, error.filename or "a file").as_json()}
    except Exception as error:  # noqa: BLE001 - whatever it is, the host is told, and the log has the rest
        traceback.print_exc()
        message = "the agent failed: %s: %s" % (type(error).__name__, error)
        told = {"state": "failed", "error": Problem("internal", message, "please report it").as_json()}
    try:
        run.finish(told)
    except OSError as error:
        sys.stderr.write("the result cannot be written: %s\n" % error)
    sys.stderr.flush()


def work_of(spec: Dict[str, Any]) -> Work:
    """What does a job's kind of work.

    Raises:
        Problem: There is no such kind.
    """
    kind = spec.get("kind")
    if kind == "build":
        from greencc.agent.build import build

        return build
    if kind in ("drive", "idle", "profile"):
        from greencc.agent import drive

        return {"drive": drive.drive, "idle": drive.idle, "profile": drive.profile}[str(kind)]
    raise Problem("usage", "%.60r is no kind of job" % (kind,), "there are build, drive, idle and profile")


def _guard(run: Run) -> None:
    """End the job at its limits, with all that it started."""
    look = 0
    while True:
        time.sleep(_LOOK_S)
        look += 1
        problem = run.over(look)
        if problem is None:
            continue
        try:
            told = run.fail(problem)
        except OSError as error:
            # A disk that is quite full: the job counts as lost, and its log has the reason if there is room.
            sys.stderr.write("%s; that cannot be written: %s\n" % (problem.message, error))
            told = True
        if told:
            sys.stderr.flush()
            _end_all(run)
        return


def _end_all(run: Run) -> None:
    for pid in run.watched:
        end_family(pid)
    end_family(os.getpid())


def _prefer_as_victim() -> None:
    """Where memory runs out all the same, the kernel should rather end this than a service of the device."""
    try:
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    except OSError as error:
        sys.stderr.write("oom_score_adj: %s\n" % error)
