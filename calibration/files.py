"""Data folders: which files count, in which order, and that they lie inside."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from greencc.core.errors import InputError


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which ``x2`` comes before ``x10``; ties are broken by the exact name."""
    pieces = re.split(r"([0-9]+)", name)
    key: list[tuple[int, int | str]] = [
        (0, int(p)) if i % 2 else (1, p.casefold()) for i, p in enumerate(pieces)
    ]
    return (*key, (2, name))


def contained_files(folder: Path, suffixes: Sequence[str], *, recursive: bool) -> list[Path]:
    """The files of `folder` with one of the suffixes (any case), in natural order; hidden ones are left out.

    Raises:
        InputError: The folder cannot be read, or a link in it leads outside.
    """
    root = folder.resolve()
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            if path.is_symlink() and not _target(path).is_relative_to(root):
                raise InputError(
                    f"{path} is a link to {_target(path)}, outside of the data folder",
                    hint="copy the file into the folder, or give the folder it lies in",
                )
            if path.is_file():
                found.append(path)
            elif path.is_symlink():
                raise InputError(f"{path} is a broken link")
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop, up to Python 3.12
        raise InputError(f"{link} is a broken link") from error
