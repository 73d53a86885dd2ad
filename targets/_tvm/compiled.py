"""Models compiled when they are opened, kept so that each is compiled once.

A baseline is opened as the ONNX file that it is, again and again, in this process and in later ones. Libraries are kept
in the user's cache, under a key of all that decides what they are, and taken from it into a private folder of this
process. They are code: a cache that others may write to is not read.
"""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from greencc.core.cache import Cache, cache_key, default_folder
from greencc.core.data import Array
from greencc.core.files import translated_os_errors
from greencc.core.ownership import exposed_parent, make_private

KIND = "library"
# What is read whole, and would push most else out of the cache.
_MOST_BYTES = 256 << 20

_folders: dict[str, tuple[tempfile.TemporaryDirectory[str], Path]] = {}
_turn = threading.Lock()


def compiled(
    parts: tuple[str, ...], build: Callable[[Path], Path], *, label: str, folder: Path | None = None
) -> Path:
    """The main file of a library, built unless this process or an earlier one has built it.

    Args:
        parts: All that decides what the library is.
        build: Writes its files into an empty folder, and returns the main one.
        label: What it is, for `greencc cache list`.
        folder: Of the cache; default: the user's.

    Raises:
        InputError: The temporary folder cannot be written; and what `build` raises.
    """
    key = cache_key(KIND, list(parts))
    with _turn:
        if key not in _folders:
            _folders[key] = _made(key, build, label, default_folder() if folder is None else folder)
        return _folders[key][1]


def forget() -> None:
    """Remove the folders of this process."""
    with _turn:
        for kept, _ in _folders.values():
            kept.cleanup()
        _folders.clear()


def _made(
    key: str, build: Callable[[Path], Path], label: str, folder: Path | None
) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    cache = private_cache(folder, KIND)
    with translated_os_errors(Path(tempfile.gettempdir()) / "greencc-library"):
        # Readable for its owner alone; removed when the process ends.
        work = tempfile.TemporaryDirectory(prefix="greencc-library-", ignore_cleanup_errors=True)
    place = Path(work.name) / KIND
    try:
        found = cache.get(KIND, key) if cache is not None else None
        with translated_os_errors(place):
            place.mkdir()
        if found is not None and (main := _unpack(found, place)) is not None:
            return work, main
        main = build(place)
        if cache is not None and sum(file.stat().st_size for file in place.iterdir()) <= _MOST_BYTES:
            cache.put(KIND, key, _pack(main), label=label)
    except BaseException:
        work.cleanup()
        raise
    return work, main


def _pack(main: Path) -> dict[str, Array]:
    """All files beside the main one, by name; that of the main one under an empty name as well."""
    files = {file.name: np.frombuffer(file.read_bytes(), np.uint8) for file in sorted(main.parent.iterdir())}
    return {"main:": np.frombuffer(main.name.encode(), np.uint8)} | {
        f"file:{name}": content for name, content in files.items()
    }


def _unpack(arrays: dict[str, Array], place: Path) -> Path | None:
    """Write the files of an entry; None, and nothing written, where it does not have a main one."""
    names = {key: Path(key.removeprefix("file:")).name for key in arrays if key.startswith("file:")}
    main = arrays["main:"].tobytes().decode(errors="replace") if "main:" in arrays else ""
    if main not in names.values():
        return None
    with translated_os_errors(place):
        for key, name in names.items():
            (place / name).write_bytes(arrays[key].tobytes())
    return place / main


def private_cache(folder: Path | None, kind: str) -> Cache | None:
    """A cache for code: None without a folder, and where another user could put some there."""
    return Cache(folder) if folder is not None and _is_private(folder, kind) else None


def _is_private(folder: Path, kind: str) -> bool:
    """Make the folder of the entries, for this user alone; False where another one could put code there."""
    place = folder / kind
    try:
        make_private(place)
        if exposed_parent(folder) is not None:
            return False
        facts = [path.lstat() for path in (folder, place)]
    except OSError:
        # A cache that cannot be written costs time, never the result.
        return False
    writable = stat.S_IWGRP | stat.S_IWOTH
    return all(
        stat.S_ISDIR(fact.st_mode) and fact.st_uid == os.getuid() and not fact.st_mode & writable
        for fact in facts
    )
