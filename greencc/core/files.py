"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Turn the errors of a failed write to `path` into one clear `InputError`."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space or choose another output folder",
            errno.EDQUOT: "free some space or choose another output folder",
            errno.EACCES: "choose an output folder you may write to",
            errno.EPERM: "choose an output folder you may write to",
            errno.EROFS: "choose an output folder on a writable file system",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"cannot write {path}: {reason}", hint=hints.get(error.errno or 0)) from error


@contextmanager
def atomic_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `final`; rename it to `final` when the block ends well.

    On any error, or Ctrl-C, the temporary folder is removed and `final` is left as it was.

    Raises:
        InputError: `final` exists and `overwrite` is false, or cannot be written.
    """
    if final.exists() and not overwrite:
        raise InputError(f"{final} already exists", hint="choose another name or pass --force")
    with translated_os_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
    try:
        with translated_os_errors(final):
            yield work
            work.chmod(0o755)
            if final.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
                final.rename(old / final.name)
                work.rename(final)
                shutil.rmtree(old)
            else:
                work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Yield a temporary sibling path; rename it over `final` when the block ends well."""
    with translated_os_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
        os.close(handle)
    work = Path(name)
    try:
        with translated_os_errors(final):
            yield work
            work.chmod(0o644)
            work.replace(final)
    finally:
        work.unlink(missing_ok=True)
