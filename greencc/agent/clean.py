"""Removing what the agent keeps.

What stays after a connection has said goodbye: files by their digests (so that a model is not sent again) and builders'
timing caches. They go when they have not been used for long, or when room is needed, and all at once with `everything`.
Jobs go with the connection that asked for them, or a day after they ended.
"""

import shutil
import time
from pathlib import Path
from typing import Iterable, List

from greencc.agent import disk
from greencc.agent.engine import Engine
from greencc.agent.jobs import Job, held
from greencc.agent.places import Places, own_file, remove

JOBS_S = 24 * 3600.0
FILES_S = 14 * 24 * 3600.0
_ENDING_S = 5.0


def outdated(places: Places) -> int:
    """Remove what has not been used for long; the bytes that this frees."""
    before = disk.used_bytes(places.home)
    now = time.time()
    for folder in _entries(places.jobs):
        if now - _newest(folder) > JOBS_S:
            forget(places, folder.name)
    for path in [*_entries(places.partial), *_entries(places.store), *_entries(places.cache)]:
        age = JOBS_S if path.parent == places.partial else FILES_S
        if now - _newest(path) > age:
            _delete(path)
    return max(0, before - disk.used_bytes(places.home))


def everything(places: Places) -> int:
    """Remove all but jobs that run or others use, and what it takes to put a power mode back; the bytes freed."""
    before = disk.used_bytes(places.home)
    for folder in _entries(places.jobs):
        forget(places, folder.name)
    for path in [*_entries(places.partial), *_entries(places.store), *_entries(places.cache)]:
        _delete(path)
    for path in places.home.glob("agent-*.pyz*"):
        # Agents of other versions; one that runs still imports from its file.
        if not path.name.startswith(own_file().name) and time.time() - _newest(path) > JOBS_S:
            _delete(path)
    return max(0, before - disk.used_bytes(places.home))


def forget(places: Places, name: str) -> bool:
    """End the engine of a job and remove its folder; False: it runs or is another connection's too, and stays."""
    folder = places.jobs / name
    if not name.startswith(".") and Job(places, name).shared():
        return False
    deadline = time.monotonic() + _ENDING_S
    while held(folder / "lock"):
        # One that has a result is about to end.
        if not (folder / "result.json").exists() or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    if not name.startswith("."):
        Engine(places, name).close()
    shutil.rmtree(str(folder), ignore_errors=True)
    return True


def session(places: Places, names: Iterable[str]) -> None:
    """Remove the jobs of a connection that says goodbye."""
    for name in names:
        job = Job(places, name)
        if job.exists:
            job.leave()
            forget(places, name)


def _entries(folder: Path) -> List[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _newest(path: Path) -> float:
    """When something was last written there, or a stored file was last wanted."""
    times = [0.0]
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            times.append(each.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path), ignore_errors=True)
    else:
        remove(path)


def room(places: Places, wanted: int) -> None:
    """Where `wanted` bytes do not fit, remove stored files that nobody uses, the longest unused first."""
    if disk.shortage(places, wanted) is None:
        return
    outdated(places)
    for path in sorted(_entries(places.store), key=_newest):
        if time.time() - _newest(path) < JOBS_S or disk.shortage(places, wanted) is None:
            return
        # Links of jobs keep what they use.
        remove(path)
