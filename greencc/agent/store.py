"""Files that the host sent, by their SHA-256 digests. They come in pieces, and count only once they are whole.

What has arrived stays when the connection breaks, so that the host goes on from there. A file is complete when its
digest is right: before, it is nowhere to be seen by jobs.
"""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, Dict

from greencc.agent import disk
from greencc.agent.places import Places, check_sha256, remove
from greencc.agent.problem import Problem

MOST_BYTES = 64 << 30
_PIECE = 1 << 20


def has(places: Places, sha256: str) -> Dict[str, Any]:
    """How much of a file is here."""
    try:
        size = (places.store / sha256).stat().st_size
        # Used just now: it is not what is cleaned away first.
        os.utime(str(places.store / sha256))
        return {"size": size, "complete": True}
    except FileNotFoundError:
        return {"size": _size(places.partial / sha256), "complete": False}


def size(places: Places, files: Any) -> int:
    """Bytes of the files that a job names, as far as they are here."""
    digests = set(files.values()) if isinstance(files, dict) else ()
    return sum(_size(places.store / check_sha256(each)) for each in digests)


def put(places: Places, sha256: str, total: int, offset: int, data: bytes) -> Dict[str, Any]:
    """Take a piece of a file.

    Args:
        total: Bytes of the whole file.
        offset: Where the piece belongs; pieces that came already may come again.

    Raises:
        Problem: There is no room for the file (before anything of it is written), a piece is missing before this
            one, or the whole is not what it should be (then it starts over).
    """
    if offset + len(data) > total:
        raise Problem("usage", "a piece of file %s goes beyond its end" % sha256[:12])
    known = has(places, sha256)
    if known["complete"]:
        return known
    path = places.partial / sha256
    disk.require(places, total - min(known["size"], total), "a file")
    try:
        with path.open("ab") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if (places.store / sha256).exists():
                # Another connection was faster.
                remove(path)
                return has(places, sha256)
            _write(path, sha256, offset, data)
            size = _size(path)
            if size < total:
                return {"size": size, "complete": False}
            _finish(places, path, sha256, total)
    except OSError as error:
        raise disk.full(error, "file %s" % sha256[:12]) from error
    return {"size": total, "complete": True}


def place(places: Places, sha256: str, path: Path) -> None:
    """Put a stored file where a job wants it: a link where the file system has them, else a copy.

    Raises:
        Problem: It has not been sent, or cannot be written.
    """
    source = places.store / sha256
    if not source.exists():
        raise Problem(
            "input", "file %s (%s) is not on the device" % (path.name, sha256[:12]), "send it again"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.utime(str(source))
        try:
            os.link(str(source), str(path))
        except FileExistsError:
            return
        except OSError:
            disk.require(places, source.stat().st_size, "a copy of %s" % path.name)
            shutil.copyfile(str(source), str(path))
    except OSError as error:
        raise disk.full(error, path.name) from error


def _write(path: Path, sha256: str, offset: int, data: bytes) -> None:
    size = _size(path)
    if offset > size:
        raise Problem(
            "input",
            "%d bytes of file %s are here, and the next piece begins at %d" % (size, sha256[:12], offset),
            "ask 'has', and go on from there",
        )
    with path.open("r+b") as file:
        file.seek(offset)
        try:
            file.write(data)
            file.flush()
        except OSError:
            # What is there of this piece may be anything.
            os.truncate(str(path), min(size, offset))
            raise


def _finish(places: Places, path: Path, sha256: str, total: int) -> None:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(_PIECE), b""):
            digest.update(piece)
            size += len(piece)
        if digest.hexdigest() == sha256 and size == total:
            # A file that a loss of power emptied must not count as complete.
            os.fsync(file.fileno())
    if digest.hexdigest() != sha256 or size != total:
        remove(path)
        raise Problem(
            "input", "file %s was damaged on the way" % sha256[:12], "send it again from its beginning"
        )
    path.chmod(0o444)
    path.replace(places.store / sha256)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
