"""Removing what the agent keeps.

What stays after a connection has said goodbye: files by their digests (so that a model is not sent again), builders'
timing caches, and engines, which the next run, or another host with the same model, finds again. They go when they have
not been used for long, when engines hold more than ``GREENCC_AGENT_BUILDS`` bytes (default 4 GiB; those that were used
within a day stay), or when room is needed: the longest unused first; and all at once with `everything`. All else that
jobs leave goes with the connection that asked for them, or a day after they ended.
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
BUILDS_S = 7 * 24 * 3600.0
FILES_S = 14 * 24 * 3600.0
_BUILDS_BYTES = 4 << 30
_ENDING_S = 5.0


def outdated(places: Places) -> int:
    """Remove what has not been used for long; the bytes that this frees."""
    before = disk.used_bytes(places.home)
    now = time.time()
    for folder in _entries(places.jobs):
        if now - _newest(folder) > (BUILDS_S if _is_build(places, folder) else JOBS_S):
            forget(places, folder.name)
    _fewer_builds(places)
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


def kept(places: Places) -> int:
    """Bytes of models, engines and timing caches that are here for the next run."""
    folders = [places.store, places.partial, places.cache]
    folders += [each for each in _entries(places.jobs) if _is_build(places, each)]
    return sum(disk.used_bytes(folder) for folder in folders)


def forget(places: Places, name: str, token: str = "") -> bool:
    """End the engine of a job and remove its folder; False: it runs or is another connection's too, and stays.

    Args:
        token: Of the session that wants it; its connections are no others.
    """
    folder = places.jobs / name
    if not name.startswith(".") and Job(places, name, token).shared():
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


def session(places: Places, names: Iterable[str], token: str = "") -> None:
    """Remove the jobs of a session that says goodbye, and end its engines; what was built stays.

    Args:
        names: Of the jobs of this connection.
        token: Of the session, whose other connections may have broken; empty: it had none.
    """
    entries = (each.name for each in _entries(places.jobs) if token and not each.name.startswith("."))
    others = [name for name in entries if Job(places, name, token).of_session()]
    leave(places, {*names, *others}, token)


def leave(places: Places, names: Iterable[str], token: str = "") -> None:
    """Remove jobs that their session needs no more; as `session`."""
    for name in names:
        job = Job(places, name, token)
        if not job.exists:
            continue
        job.leave()
        if not job.built:
            forget(places, name, token)
        elif not job.shared():
            Engine(places, name).close()


def _is_build(places: Places, folder: Path) -> bool:
    return not folder.name.startswith(".") and Job(places, folder.name).built


def _unused_builds(places: Places) -> List[Path]:
    """Folders of engines that no connection has to do with, the longest unused first."""
    builds = [folder for folder in _entries(places.jobs) if _is_build(places, folder)]
    return sorted((each for each in builds if not Job(places, each.name).in_use()), key=_newest)


def _fewer_builds(places: Places) -> None:
    """Remove engines until the rest holds no more than it may; what was used within a day stays."""
    most = disk.setting("GREENCC_AGENT_BUILDS", _BUILDS_BYTES)
    held_bytes = sum(disk.used_bytes(each) for each in _entries(places.jobs) if _is_build(places, each))
    for folder in _unused_builds(places):
        if held_bytes <= most or time.time() - _newest(folder) < JOBS_S:
            return
        size = disk.used_bytes(folder)
        if forget(places, folder.name):
            held_bytes -= size


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
    """Where `wanted` bytes do not fit, remove stored files and engines that nobody uses, the longest unused first."""
    if disk.shortage(places, wanted) is None:
        return
    outdated(places)
    for path in sorted(_entries(places.store), key=_newest):
        if time.time() - _newest(path) < JOBS_S:
            break
        if disk.shortage(places, wanted) is None:
            return
        # Links of jobs keep what they use.
        remove(path)
    for folder in _unused_builds(places):
        if disk.shortage(places, wanted) is None:
            return
        forget(places, folder.name)
