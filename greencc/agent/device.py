"""Who uses the device: one timed job at a time, and nothing else beside it.

A lock file stands for the device, for all users where there is a common folder for locks. Builds and single runs share
it among each other; a job that takes times or watts has it for itself.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

from greencc.agent.machine import user
from greencc.agent.places import Places
from greencc.agent.problem import Problem

_NAME = "greencc-device.lock"
_LOOK_S = 0.1
_NOTE_BYTES = 200


def lock_file(places: Places) -> Path:
    """The file that stands for the device."""
    common = places.root / "run/lock"
    usable = common.is_dir() and os.access(str(common), os.W_OK)
    return (common if usable else places.home) / _NAME


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
        Problem: It did not become free.
    """
    path = lock_file(places)
    handle = _open(path)
    try:
        deadline, told = time.monotonic() + wait_s, False
        while not _taken(handle, exclusive):
            holder = who(places) or "another program"
            if time.monotonic() >= deadline:
                raise Problem(
                    "unavailable",
                    "the device is in use by %s" % holder,
                    "wait until that has ended, or cancel it",
                )
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
    path = lock_file(places)
    try:
        handle = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _taken(handle, exclusive=True):
            return None
        return os.read(handle, _NOTE_BYTES).decode("utf-8", "replace").strip() or None
    finally:
        os.close(handle)


def _taken(handle: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    try:
        # The file of another user can be locked, but not written.
        return os.open(str(path), os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(PermissionError):
            # Another user may have made it in the meantime.
            os.chmod(str(path), 0o666)  # noqa: PTH101, S103 - any user may wait for it
        return handle


def _note(handle: int, text: str) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode("utf-8")[:_NOTE_BYTES], 0)
    except OSError:
        # Opened for reading alone, or a full disk: whoever waits then does not learn for whom.
        return
