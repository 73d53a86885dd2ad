"""Jobs: processes that outlive the connection, and keep their state in files.

A job's folder holds ``spec.json``; ``lock``, which its process holds for as long as it lives, so that no number of a
process needs to be believed; ``state.json`` (process, boot); ``events.jsonl``; ``log.txt``; and at last
``result.json``, which is written once and as a whole. A job without a result whose lock is free, or that began before
the last boot, is lost.
"""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from greencc.agent import disk
from greencc.agent.places import (
    Places,
    again,
    check_name,
    check_path,
    read_json,
    read_text,
    remove,
    write_json,
)
from greencc.agent.problem import Problem
from greencc.agent.processes import end_family, start_detached, started_at

KINDS = ("build", "drive", "idle", "profile")
_MOST_EVENTS = 1000


class Job:
    """One job by its name; it need not exist.

    Args:
        places: The agent's folders.
        name: As the host calls it.
        session: Token of the host's run, whose connections count as one; empty: this one stands alone.
    """

    def __init__(self, places: Places, name: Any, session: str = "") -> None:
        self.places, self.session = places, session
        self.name = check_name(name, "a job")
        self.folder = places.jobs / self.name

    @property
    def _user(self) -> Path:
        return self.folder / "users" / ("%d.%s" % (os.getpid(), started_at(os.getpid())))

    @property
    def exists(self) -> bool:
        return (self.folder / "spec.json").exists()

    @property
    def spec(self) -> Dict[str, Any]:
        """What it was asked to do.

        Raises:
            Problem: There is no such job.
        """
        found = read_json(self.folder / "spec.json")
        if found is None:
            raise Problem("lost", "there is no job %s on the device" % self.name, "start it again")
        return found

    def create(self, spec: Dict[str, Any]) -> bool:
        """Make the folder, at once or not at all; False: it is there already."""
        if self.exists:
            return False
        disk.require(self.places, 1 << 20, "a job")
        fresh = self.places.jobs / (".new-%s-%d" % (self.name, os.getpid()))
        try:
            shutil.rmtree(str(fresh), ignore_errors=True)
            fresh.mkdir(mode=0o700)
            write_json(fresh / "spec.json", spec, lasting=True)
            fresh.rename(self.folder)
        except FileExistsError:
            return False
        except OSError as error:
            if self.exists:
                return False
            raise disk.full(error, "job %s" % self.name) from error
        finally:
            shutil.rmtree(str(fresh), ignore_errors=True)
        return True

    def start(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        """Start it, unless it is known: then only its state is told.

        Raises:
            Problem: There is no room on the disk, or a job of this name was asked to do something else.
        """
        if not self.create(spec) and self.spec != spec:
            raise Problem(
                "usage", "job %s is known, and does something else" % self.name, "choose another name"
            )
        # A job whose starter was killed in between has a folder, and has never run.
        if not (self.folder / "state.json").exists() and not (self.folder / "result.json").exists():
            start_detached(again("job", str(self.folder)), self.folder / "log.txt")
        return {"state": self.state()[0]}

    def state(self) -> Tuple[str, Dict[str, Any]]:
        """``running``, ``done``, ``failed``, ``cancelled`` or ``lost``, and what is to be told with it."""
        running = held(self.folder / "lock")
        # In this order: a job that ends in between has its result.
        told = read_json(self.folder / "result.json")
        if told is not None:
            return str(told.get("state", "failed")), told
        if running:
            return "running", {}
        began = read_json(self.folder / "state.json")
        if began is None:
            problem = Problem(
                "lost", "job %s was never begun%s" % (self.name, self._last_words()), "start it again"
            )
        elif began.get("boot") != self.places.boot_id:
            problem = Problem(
                "lost", "the device was started anew while job %s ran" % self.name, "start it again"
            )
        else:
            problem = Problem(
                "lost",
                "the process of job %s is gone without a result%s" % (self.name, self._last_words()),
                "it was killed, perhaps for want of memory; start it again",
            )
        return "lost", {"error": problem.as_json()}

    def poll(self, since: int) -> Dict[str, Any]:
        """State, the events from number `since` on, and at the end the result or what went wrong.

        Raises:
            Problem: There is no such job.
        """
        if not self.exists:
            raise Problem("lost", "there is no job %s on the device" % self.name, "start it again")
        state, told = self.state()
        events, following = self.events(since)
        return dict(told, state=state, events=events, next=following)

    def events(self, since: int) -> Tuple[List[Dict[str, Any]], int]:
        """Events from number `since` on, some at a time, and the number to go on from."""
        try:
            with (self.folder / "events.jsonl").open("rb") as file:
                # A last line without an end is still being written.
                lines = [line for line in file if line.endswith(b"\n")]
        except FileNotFoundError:
            return [], since
        chosen = lines[since : since + _MOST_EVENTS]
        return [json.loads(line.decode("utf-8")) for line in chosen], since + len(chosen)

    def cancel(self) -> None:
        """End it with all that it started; it may have ended already.

        Raises:
            Problem: There is no such job, or it does not end.
        """
        self.spec  # noqa: B018 - it raises where there is none
        began = read_json(self.folder / "state.json") or {}
        pid, lock = began.get("pid"), self.folder / "lock"
        if isinstance(pid, int) and held(lock) and started_at(pid) == began.get("started"):
            watched = (read_json(self.folder / "watched.json") or {}).get("processes", [])
            # Itself first: it must not tell of the end of what it uses as a failure.
            for each, started in [(pid, began.get("started")), *watched]:
                if started_at(each) == started:
                    end_family(each)
        if held(lock):
            time.sleep(0.1)
        if held(lock):
            raise Problem("internal", "job %s does not end" % self.name, "restart the device")
        if not (self.folder / "result.json").exists():
            write_json(self.folder / "result.json", {"state": "cancelled"}, lasting=True)

    def use(self) -> None:
        """Note that this process has to do with the job, which is then not removed by others."""
        if self.exists:
            self._user.parent.mkdir(exist_ok=True)
            if self.session and read_text(self._user) != self.session:
                self._user.write_text(self.session, encoding="ascii")
            self._user.touch()

    def leave(self) -> None:
        """This process, and what else is of its session, has no more to do with the job."""
        remove(self._user)
        for path in self._marks():
            if self._is_of_session(path):
                remove(path)

    def shared(self) -> bool:
        """Whether another session, or a process of none, has to do with it: equal builds have equal names."""
        return any(path != self._user and not self._is_of_session(path) for path in self._users())

    def of_session(self) -> bool:
        """Whether any process of the session had to do with it, be it that it has ended."""
        return any(self._is_of_session(path) for path in self._marks())

    def in_use(self) -> bool:
        """Whether any process that lives has to do with it, be it this one."""
        return bool(self._users())

    @property
    def built(self) -> bool:
        """It is a build that is done: its engine is of use to others as well."""
        return (read_json(self.folder / "spec.json") or {}).get("kind") == "build" and self.state()[
            0
        ] == "done"

    def _marks(self) -> List[Path]:
        """A file for each process that had to do with it, with the token of its session."""
        folder = self.folder / "users"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _users(self) -> List[Path]:
        """Those of processes that live."""
        named = [(path, *path.name.partition(".")[::2]) for path in self._marks()]
        return [path for path, pid, started in named if str(started_at(int(pid))) == started]

    def _is_of_session(self, mark: Path) -> bool:
        return bool(self.session) and read_text(mark) == self.session

    def read(self, file: Any, offset: int, most: int) -> Tuple[int, bytes]:
        """Part of a file that the job wrote, and the size of the whole.

        Raises:
            Problem: There is none of that name.
        """
        path = self.folder / check_path(file, "a file")
        inside = self.folder.resolve()
        try:
            found = path.resolve()
            if inside not in found.parents or not found.is_file():
                raise FileNotFoundError(2, "No such file", str(path))
            with found.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                stream.seek(offset)
                return size, stream.read(most)
        except OSError as error:
            raise Problem("input", "job %s has no file %s" % (self.name, file)) from error

    def _last_words(self) -> str:
        try:
            lines = (
                (self.folder / "log.txt").read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
            )
        except OSError:
            return ""
        return ": %s" % lines[-1][:200] if lines else ""


def running(places: Places) -> List[str]:
    """Names of the jobs whose processes live."""
    return [path.parent.name for path in sorted(places.jobs.glob("*/lock")) if held(path)]


def held(path: Path) -> bool:
    """Whether a process holds the lock that a file stands for."""
    try:
        handle = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def hold(path: Path) -> Optional[int]:
    """Take the lock for as long as this process or a fork of it lives; None: another one holds it."""
    handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
