"""The agent's zip file, unpacked: in a folder Python keeps what it has compiled, and starts faster.

The folder is called as the file is, which has another name with another content. What runs from it was compared with
the file, byte by byte, once in each process that starts others: a loss of power can leave files empty, and a full disk
half a folder. Its last file, which is written when the rest is on the disk, tells which file it was made from.
"""

import contextlib
import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Set

_STAMP = ".whole"
_checked: Set[Path] = set()


def unpacked(source: Path) -> Path:
    """The folder, made or mended where it has to be.

    The file itself where that cannot be done (a full disk), or where it is a folder already.
    """
    if not source.is_file():
        return source
    folder = source.with_name(source.name + ".d")
    if folder in _checked and (folder / _STAMP).exists():
        return folder
    data = source.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(str(source)) as archive:
        try:
            good = _is_whole(archive, folder, digest)
            if not good:
                _replace(archive, folder, digest)
                good = _is_whole(archive, folder, digest)
        except OSError:
            good = False
    if good:
        _checked.add(folder)
    return folder if good else source


def _is_whole(archive: zipfile.ZipFile, folder: Path, digest: str) -> bool:
    try:
        if (folder / _STAMP).read_bytes() != digest.encode("ascii"):
            return False
        return all((folder / name).read_bytes() == archive.read(name) for name in archive.namelist())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _replace(archive: zipfile.ZipFile, folder: Path, digest: str) -> None:
    """Unpack beside it, and put it in the place of what is there: what runs from that has its modules."""
    fresh = folder.with_name(".%s.%d" % (folder.name, os.getpid()))
    old = fresh.with_name(fresh.name + ".old")
    try:
        shutil.rmtree(str(fresh), ignore_errors=True)
        archive.extractall(str(fresh))
        for name in archive.namelist():
            _flush(fresh / name)
        (fresh / _STAMP).write_bytes(digest.encode("ascii"))
        _flush(fresh / _STAMP)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        # Where another process was faster, its folder is not empty, and this one is not needed.
        fresh.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(str(fresh), ignore_errors=True)
        shutil.rmtree(str(old), ignore_errors=True)


def _flush(path: Path) -> None:
    """What is in it is on the disk when this returns."""
    handle = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
