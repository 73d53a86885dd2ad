"""Who uses the device: one timed job at a time, and nothing else beside it.

A lock file stands for the device, for all users where there is a common folder for locks. Builds and single runs share
it among each other; a job that takes times or watts has it for itself.

Files in a common folder are anybody's: a link, a pipe or what has a second name is refused, for what is written to it
would land elsewhere.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

from greencc.agent.machine import user
from greencc.agent.places import Places
from greencc.agent.problem import Problem

_NAME = "greencc-device.lock"
_COMMON = ("run/lock", "tmp")
_FOR_ALL = stat.S_ISVTX | stat.S_IWOTH
_LOOK_S = 0.1
_NOTE_BYTES = 200
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TRIES = 20
_TRY_S = 0.01


class InUse(Problem):
    """Another one has it; that passes."""

    def __init__(self, message: str, hint: str = "wait until that has ended, or cancel it") -> None:
        super().__init__("unavailable", message, hint)


def meeting_folder(places: Places) -> Path:
    """Where agents of all users meet: where everybody may write, and nobody remove what is another's.

    The agent's own folder where there is none.
    """
    for name in _COMMON:
        folder = places.root / name
        if folder.is_dir() and folder.stat().st_mode & _FOR_ALL == _FOR_ALL:
            return folder
    return places.home


def lock_file(places: Places) -> Path:
    """The file that stands for the device."""
    return meeting_folder(places) / _NAME


@contextlib.contextmanager
def used(
    places: Places, purpose: str, exclusive: bool, wait_s: float, waiting: Callable[[str], None]
) -> Iterator[None]:
    """Use the device.

    Args:
        purpose: Told to those who wait, such as ``job 7``.
        exclusive: Nobody else uses it meanwhile.
        wait_s: How long to wait for that.
        waiting: Told once, who is waited for.

    Raises:
        InUse: It did not become free.
        Problem: Its lock file is none.
    """
    handle = open_common(lock_file(places))
    try:
        deadline, told = time.monotonic() + wait_s, False
        while not taken(handle, exclusive):
            holder = who(places) or "another program"
            if time.monotonic() >= deadline:
                raise InUse("the device is in use by %s" % holder)
            if not told:
                waiting(holder)
                told = True
            time.sleep(_LOOK_S)
        _note(handle, "%s of %s (process %d)" % (purpose, user(), os.getpid()))
        yield
    finally:
        os.close(handle)


def who(places: Places) -> Optional[str]:
    """Who uses the device for itself now; None: nobody."""
    try:
        handle = os.open(str(lock_file(places)), os.O_RDONLY | _FLAGS)
    except OSError:
        return None
    try:
        if not _is_plain(handle) or taken(handle, exclusive=True):
            return None
        return os.read(handle, _NOTE_BYTES).decode("utf-8", "replace").strip() or None
    finally:
        os.close(handle)


def taken(handle: int, exclusive: bool) -> bool:
    """Take the lock of an open file; False: another one has it."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_common(path: Path) -> int:
    """Open a file that all users share, to lock it; it is made where it is missing.

    Another user's may be open for reading alone, which is enough for that.

    Raises:
        Problem: It is no plain file, or cannot be opened.
    """
    for _ in range(_TRIES):
        try:
            handle = _opened(path)
        except FileExistsError:
            # Another one has just made it.
            continue
        except PermissionError:
            # Likewise, and has not yet given it to all.
            time.sleep(_TRY_S)
            continue
        except OSError as error:
            told = "a link" if error.errno == errno.ELOOP else error.strerror
            raise _refused(path, str(told)) from error
        if _is_plain(handle):
            return handle
        os.close(handle)
        raise _refused(path, "no plain file")
    raise _refused(path, "closed to this user")


def _opened(path: Path) -> int:
    try:
        return os.open(str(path), os.O_RDWR | _FLAGS)
    except PermissionError:
        return os.open(str(path), os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
        # Whatever the umask: any user may wait for it.
        os.fchmod(handle, 0o666)
        return handle


def _is_plain(handle: int) -> bool:
    found = os.fstat(handle)
    return stat.S_ISREG(found.st_mode) and found.st_nlink <= 1


def _refused(path: Path, reason: str) -> Problem:
    return Problem(
        "unavailable",
        "%s, by which users of the device agree, cannot be used: %s" % (path, reason),
        "remove it on the device: sudo rm %s" % path,
    )


def _note(handle: int, text: str) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode("utf-8")[:_NOTE_BYTES], 0)
    except OSError:
        # Opened for reading alone, or a full disk: whoever waits then does not learn for whom.
        return
