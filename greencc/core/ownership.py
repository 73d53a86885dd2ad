"""Whether another user could change what lies at a path: what decides that code may run must be out of their reach."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_MOST_LINKS = 40
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone whatever the umask is.

    Raises:
        OSError: It cannot be made.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=stat.S_IRWXU, exist_ok=True)


def exposed_parent(path: Path) -> Path | None:
    """The first folder or link on the way to a path that another user could put something else in place of.

    Every one must belong to this user or to root; folders that others may write to must be sticky, as ``/tmp`` is. A
    group that is the user's own, without other members, is no other. A folder at the path itself
    is not looked at.

    Raises:
        OSError: A part of the way cannot be read, or there are too many links.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - links are followed below, one by one
    for step in _way(absolute):
        facts = step.lstat()
        link = stat.S_ISLNK(facts.st_mode)
        if step == absolute and not link:
            continue
        if facts.st_uid not in (os.geteuid(), 0):
            return step
        if not link and _writable(facts) and not facts.st_mode & stat.S_ISVTX:
            return step
    return None


def _way(path: Path) -> Iterator[Path]:
    """All that is passed from the root on, links before what they lead to."""
    current, left, links = Path(path.anchor), list(reversed(path.parts[1:])), 0
    yield current
    while left:
        part = left.pop()
        if part == "..":
            current = current.parent
            continue
        step = current / part
        if not os.path.lexists(step):
            return
        yield step
        if not step.is_symlink():
            current = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step.readlink()
        if target.is_absolute():
            current = Path(target.anchor)
        left += [name for name in reversed(target.parts) if name != target.anchor]


def _writable(facts: os.stat_result) -> bool:
    """Whether someone else may write."""
    writable = facts.st_mode & _OTHERS
    return bool(writable) and not (writable == stat.S_IWGRP and _own_group(facts.st_gid))


def _own_group(number: int) -> bool:
    """Whether a group has this user's name and nobody else in it, as most systems make one for every user."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return user.pw_gid == number and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
