"""Files that `model.json` lists: opened once, and used through what was opened, so that what runs is what was checked.

A path that is checked and then opened again may lead to another file by then.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from greencc.core.errors import InputError
from greencc.targets._tvm.description import FILE_NAME, FileFacts


@contextmanager
def opened(path: Path, facts: FileFacts) -> Iterator[int]:
    """A file descriptor of a file that is as described, open within the block.

    Raises:
        InputError: It is missing, cannot be read, or is another one.
    """
    file = _open(path)
    try:
        with _told(path), os.fdopen(file, "rb", closefd=False) as stream:
            _check_size(path, file, facts)
            if hashlib.file_digest(stream, "sha256").hexdigest() != facts.sha256:
                raise _changed(path)
        yield file
    finally:
        os.close(file)


def contents(path: Path, facts: FileFacts) -> bytes:
    """The bytes of a file that is as described.

    Raises:
        InputError: As `opened`.
    """
    file = _open(path)
    with _told(path), os.fdopen(file, "rb") as stream:
        _check_size(path, file, facts)
        data = stream.read(facts.size + 1)
    if len(data) != facts.size or hashlib.sha256(data).hexdigest() != facts.sha256:
        raise _changed(path)
    return data


def path_of(file: int) -> str:
    """A path under which this process, and those that it gives the descriptor, open the same file again."""
    return f"/proc/self/fd/{file}"


def _open(path: Path) -> int:
    with _told(path):
        # Nothing waits for a pipe.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _check_size(path: Path, file: int, facts: FileFacts) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size != facts.size:
        raise _changed(path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}", hint="copy the whole folder again"
        ) from error


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} is not the file that {FILE_NAME} describes: it was changed or damaged",
        hint="compile the model again, or copy the whole folder again",
    )
