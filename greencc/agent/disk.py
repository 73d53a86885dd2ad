"""Room on the device's disk: what the agent may use, and what must stay free for everything else.

Environment: ``GREENCC_AGENT_QUOTA`` (bytes that the agent's folder may hold, default 16 GiB) and
``GREENCC_AGENT_KEEP_FREE`` (bytes that stay free, default 256 MiB); ``GREENCC_AGENT_FREE_FILE``, for tests, names a
file that tells the bytes that are free.
"""

import errno
import os
from pathlib import Path
from typing import Optional

from greencc.agent.places import Places, read_text
from greencc.agent.problem import Problem

_QUOTA = 16 << 30
_KEEP_FREE = 256 << 20
_MIB = float(1 << 20)
_HINT = "free space there, or remove what the agent keeps: greencc devices clean"


def free_bytes(places: Places) -> int:
    """Bytes that this user can still write where the agent keeps its files."""
    told = os.environ.get("GREENCC_AGENT_FREE_FILE")
    if told:
        return int(read_text(Path(told)) or "0")
    found = os.statvfs(str(places.home))
    return found.f_bavail * found.f_frsize


def used_bytes(folder: Path) -> int:
    """Bytes in a folder; files that are in it twice by links count once, and what vanishes meanwhile does not."""
    total, seen = 0, set()
    for parent, _, names in os.walk(str(folder)):
        for name in names:
            try:
                found = (Path(parent) / name).lstat()
            except FileNotFoundError:
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


def require(places: Places, wanted: int, what: str) -> None:
    """Refuse what does not fit.

    Args:
        wanted: Bytes about to be written.
        what: Names them in the message.

    Raises:
        Problem: Too little would stay free, or the agent's folder would hold too much.
    """
    problem = shortage(places, wanted)
    if problem is not None:
        raise Problem("disk", "%s of %.1f MB does not fit: %s" % (what, wanted / _MIB, problem), _HINT)


def shortage(places: Places, wanted: int = 0, counted: bool = True) -> Optional[str]:
    """Why `wanted` more bytes cannot be written, or None.

    Args:
        counted: Look at what the agent's folder holds, too.
    """
    free, keep = free_bytes(places), setting("GREENCC_AGENT_KEEP_FREE", _KEEP_FREE)
    if free - wanted < keep:
        return "%.1f MB are free on the device's disk, of which %.1f MB must stay so" % (
            free / _MIB,
            keep / _MIB,
        )
    if not counted:
        return None
    quota = setting("GREENCC_AGENT_QUOTA", _QUOTA)
    used = used_bytes(places.home)
    if used + wanted > quota:
        return "the agent's folder %s holds %.1f of at most %.1f MB" % (
            places.home,
            used / _MIB,
            quota / _MIB,
        )
    return None


def full(error: OSError, what: str) -> Problem:
    """The agent's word for an error of writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Problem("disk", "the device's disk became full while %s was written" % what, _HINT)
    return Problem("disk", "%s cannot be written: %s" % (what, error.strerror), _HINT)


def setting(name: str, default: int) -> int:
    """A number of bytes that the environment may tell."""
    told = os.environ.get(name, "")
    return int(told) if told.isdigit() else default
