"""Jobs of kind ``build``: an engine from files that the host sent."""

import os
import shutil
import time
from pathlib import Path
from typing import Any, Dict

from greencc.agent import backends, store
from greencc.agent.device import used
from greencc.agent.places import Places, check_number, check_path, check_sha256, write_json
from greencc.agent.problem import Problem
from greencc.agent.supervisor import Run

WAIT_S = 3600.0
"""How long jobs wait for a device that is in use, unless their spec has `wait` in seconds."""
_LONGEST_WAIT_S = 7 * 24 * 3600.0
_MOST_FILES = 10000
_MOST_LINES = 2000
_TAIL = 4000


def backend_of(places: Places, spec: Dict[str, Any]) -> backends.Backend:
    """The backend that a build's spec names.

    Raises:
        Problem: There is none of that name.
    """
    name = spec.get("backend")
    if not isinstance(name, str):
        raise Problem("usage", "a build's backend is %.60r" % (name,), "there are tensorrt, ort and tvm")
    return backends.find(name, str(places.root), os.environ, str(places.cache))


def waiting_time(spec: Dict[str, Any]) -> float:
    """Seconds for which a job may wait for the device."""
    return check_number(spec.get("wait", WAIT_S), "wait", 0.0, _LONGEST_WAIT_S)


def build(run: Run) -> Dict[str, Any]:
    """Write the engine to the job's folder ``engine``, and what the builder said to ``build.log``.

    Raises:
        Problem: A file is missing, or the builder refuses, crashes, or is not there.
    """
    backend = backend_of(run.places, run.spec)
    files, options = run.spec.get("files"), run.spec.get("options", {})
    if not isinstance(files, dict) or not isinstance(options, dict) or len(files) > _MOST_FILES:
        raise Problem("usage", "a build's files and options must be objects")
    main = check_path(run.spec.get("main"), "the main file")
    if main not in files:
        raise Problem("usage", "the main file %s is not among the files" % main)
    model, engine = run.job.folder / "model", run.job.folder / "engine"
    for name, digest in files.items():
        store.place(run.places, check_sha256(digest), model / check_path(name, "a file"))
    missing = backend.missing()
    if missing is not None:
        raise Problem("unavailable", missing)
    # An earlier start of this job may have been killed.
    shutil.rmtree(str(engine), ignore_errors=True)
    fresh = run.job.folder / "engine.new"
    shutil.rmtree(str(fresh), ignore_errors=True)
    fresh.mkdir()

    def waiting(holder: str) -> None:
        run.event(text="the device is in use by %s: waiting" % holder)

    log = _Log(run)
    run.waiting(True)
    with used(run.places, "job %s" % run.job.name, False, waiting_time(run.spec), waiting):
        run.waiting(False)
        limits = backends.Limits(run.limits.seconds, run.limits.bytes)
        began = time.monotonic()
        built = backend.build(str(model / main), str(fresh), options, log.line, limits)
        seconds = time.monotonic() - began
    fresh.rename(engine)
    # The engine holds what the model did.
    shutil.rmtree(str(model), ignore_errors=True)
    write_json(run.job.folder / "built.json", built, lasting=True)
    return dict(built, log=log.tail(), seconds=seconds)


class _Log:
    """What a builder says: all of it in a file, and the first lines as events."""

    def __init__(self, run: Run) -> None:
        self._run, self._count = run, 0
        self._path: Path = run.job.folder / "build.log"

    def line(self, text: str) -> None:
        with self._path.open("ab") as file:
            file.write(text.encode("utf-8", "replace") + b"\n")
        self._count += 1
        if self._count <= _MOST_LINES:
            self._run.event(text=text[:500])

    def tail(self) -> str:
        try:
            return self._path.read_bytes()[-_TAIL:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
