"""A copy of a bundle's files that nobody else can write: what runs is, byte for byte, what was checked.

Files that are checked in place could be changed between the check and the moment they are loaded, or, being mapped,
while they run. So code is copied first, and the hash is taken of the bytes that were copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from greencc.bundle.manifest import FileEntry
from greencc.core.errors import InputError, UnavailableError
from greencc.core.files import translated_os_errors

_CHUNK = 1 << 20


def private_copy(source: Path, files: Mapping[str, FileEntry]) -> Path:
    """Copy files into a new temporary folder of this user alone, and check them there.

    Args:
        source: The bundle.
        files: Which, relative to it.

    Returns:
        The folder, in which they have the same relative names. Whoever asked for it removes it.

    Raises:
        InputError: A file does not match its hash, or cannot be copied.
        UnavailableError: Code in the folder for temporary files could not be run.
    """
    folder = Path(tempfile.mkdtemp(prefix="greencc-run-"))
    try:
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            raise UnavailableError(
                f"code cannot be run from {folder.parent}: it is mounted with noexec",
                hint="set TMPDIR to a folder on another file system",
            )
        for name, entry in sorted(files.items()):
            copy = folder / name
            with translated_os_errors(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
            if _copied(source / name, copy, entry.size) != entry.sha256:
                raise InputError(
                    f"{source / name} does not match its SHA-256",
                    hint="the bundle was changed after it was made; copy it again",
                )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _copied(source: Path, copy: Path, size: int) -> str:
    """Copy a file of so many bytes, or what is left of it; return the hash of the copy."""
    digest = hashlib.sha256()
    try:
        # A file that was replaced by a link or a pipe is not followed, and nothing waits for it.
        stream = os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    with stream, translated_os_errors(copy), copy.open("xb") as written:
        # Programs of a bundle are started from the copy, by emulators too, which ask for the bit.
        executable = os.fstat(stream.fileno()).st_mode & stat.S_IXUSR
        os.fchmod(written.fileno(), 0o700 if executable else 0o600)
        left = size + 1
        while left and (chunk := stream.read(min(_CHUNK, left))):
            digest.update(chunk)
            written.write(chunk)
            left -= len(chunk)
    return digest.hexdigest()
