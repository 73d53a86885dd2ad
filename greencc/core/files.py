"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from greencc.core.errors import InputError

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def translated_os_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a failed write to `path`, or of other file access meanwhile, into one clear `InputError`."""
    try:
        yield
    except OSError as error:
        elsewhere = _elsewhere(error, path)
        if elsewhere is not None:
            raise InputError(f"cannot access {elsewhere}: {error.strerror or error}") from error
        hints = {
            errno.ENOSPC: "free some space or choose another output folder",
            errno.EDQUOT: "free some space or choose another output folder",
            errno.EACCES: "choose an output folder you may write to",
            errno.EPERM: "choose an output folder you may write to",
            errno.EROFS: "choose an output folder on a writable file system",
            errno.EEXIST: "a file stands where a folder is needed; choose another output folder",
            errno.ENOTDIR: "a file stands where a folder is needed; choose another output folder",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path}: {reason}", hint=hints.get(error.errno or 0)) from error


def _elsewhere(error: OSError, path: Path) -> Path | None:
    """The file an error is about, when that is neither in the folder `path` is written to nor above it."""
    if not isinstance(error.filename, str):
        return None
    file, folder = Path(error.filename).absolute(), path.absolute().parent
    return None if file.is_relative_to(folder) or folder.is_relative_to(file) else file


@contextmanager
def _parent_folder(final: Path) -> Iterator[Path]:
    """Make the folder that `final` goes into; when the block fails, remove what had to be made for it."""
    folder = final.parent
    with translated_os_errors(final):
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for parent in made:
            # Not empty: someone else uses it by now.
            with suppress(OSError):
                parent.rmdir()
        raise


def check_can_write(final: Path) -> None:
    """Make a temporary sibling of `final`, as `atomic_folder` does, and remove it: to know before the work is done.

    Raises:
        InputError: It cannot be made.
    """
    with suppress(_TrialEndedError), _parent_folder(final) as parent:
        with translated_os_errors(final):
            Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=parent)).rmdir()
        # An error, so that folders made for the trial go as well.
        raise _TrialEndedError


class _TrialEndedError(Exception):
    """What was tried worked, and is to be undone."""


@contextmanager
def atomic_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `final`; rename it to `final` when the block ends well.

    On any error, or Ctrl-C, the temporary folder is removed and `final` is left as it was.

    Raises:
        InputError: `final` exists and `overwrite` is false, or cannot be written.
    """
    if os.path.lexists(final) and not overwrite:
        raise InputError(f"{final} already exists", hint="choose another name or pass --force")
    with _parent_folder(final) as parent:
        with translated_os_errors(final):
            work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=parent))
        try:
            with translated_os_errors(final):
                yield work
                work.chmod(0o755)
                _move_into_place(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _move_into_place(work: Path, final: Path) -> None:
    """Rename `work` to `final`; what was there is removed afterwards, or put back when the renaming fails.

    Raises:
        InputError: Neither could be moved into place; the message says where the old one is kept.
    """
    if not os.path.lexists(final):
        work.rename(final)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
    kept = old / final.name
    try:
        final.rename(kept)
        work.rename(final)
    except BaseException as error:
        # `work` still there: the new one is not in place. An interrupt may also come after either renaming.
        if os.path.lexists(kept) and os.path.lexists(work):
            _put_back(kept, final, error)
        raise
    finally:
        if not os.path.lexists(kept) or not os.path.lexists(work):
            shutil.rmtree(old, ignore_errors=True)


def _put_back(kept: Path, final: Path, error: BaseException) -> None:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    try:
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        kept.rename(final)
    except OSError as second:
        raise InputError(
            f"cannot write {final}: {reason}; what was there could not be put back ({second.strerror or second}) "
            f"and is kept at {kept}",
            hint=f"move {kept} to {final}",
        ) from error


@contextmanager
def atomic_file(final: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary sibling path, readable by its owner alone; rename it over `final` with `mode` when the block
    ends well.
    """
    with _parent_folder(final) as parent:
        with translated_os_errors(final):
            handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=parent)
            os.close(handle)
        work = Path(name)
        try:
            with translated_os_errors(final):
                yield work
                work.chmod(mode)
                work.replace(final)
        finally:
            work.unlink(missing_ok=True)
