"""Results that are dear to compute, kept between runs: calibration statistics, rounding decisions, cost tables.

An entry is a set of arrays under a key that covers everything it depends on (`cache_key`), so an entry is never
stale, only unused. Files carry the SHA-256 of what they hold (`cache_entries`); one that is damaged, or that another
version of greencc wrote, counts as absent. Reading never unpickles. A compile that was interrupted finds what it had
finished.

Several compiles may share a folder: files are written beside their place and renamed, so a reader gets a whole entry
or none, and one that is removed meanwhile by another's `_trim` is absent and computed again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.cache_entries import (
    SUFFIX,
    DamagedEntryError,
    EntryHeader,
    OtherVersionError,
    decode,
    encode,
)
from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.files import atomic_file, translated_os_errors
from greencc.core.ownership import make_private
from greencc.core.version import __version__

VARIABLE = "GREENCC_CACHE"
LIMIT_BYTES = 1 << 30
# A temporary file older than this belongs to a process that was killed: writing one takes seconds.
_ABANDONED_SECONDS = 3600.0


def default_folder() -> Path | None:
    """Where entries are kept: ``$GREENCC_CACHE`` (empty: nowhere), else ``greencc`` in the user's cache folder."""
    if (chosen := os.environ.get(VARIABLE)) is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "greencc"


def cache_key(*parts: Any) -> str:
    """SHA-256 over numbers, texts, bytes, enums' values, arrays, and sequences and mappings of those."""
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        digest.update(f"a{part.dtype.str}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, bytes):
        digest.update(b"b%d:" % len(part) + part)
    elif isinstance(part, Mapping):
        digest.update(b"m%d:" % len(part))
        for key in sorted(part):
            _feed(digest, key)
            _feed(digest, part[key])
    elif isinstance(part, list | tuple):
        digest.update(b"l%d:" % len(part))
        for item in part:
            _feed(digest, item)
    elif part is None or isinstance(part, str | bool | int | float):
        text = repr(part).encode()
        digest.update(b"v%d:" % len(text) + text)
    else:
        raise TypeError(f"{type(part).__name__} cannot be part of a cache key")


@dataclass
class Ledger:
    """What entries took to compute in this process, and which of them were found again later.

    An entry took from when it was looked for and absent, or from when the one before it was kept, to when it was kept.
    """

    _seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    _absent: dict[tuple[str, str], float] = field(default_factory=dict)
    _found: set[tuple[str, str]] = field(default_factory=set)
    _last: float = 0.0
    _earlier: frozenset[tuple[str, str]] = frozenset()

    def begin(self) -> None:
        """Count from here on: what was kept until now is what may be found again."""
        self._earlier = frozenset(self._seconds)
        self._found.clear()

    @property
    def count(self) -> int:
        """How many entries of before `begin` were found again since."""
        return len(self._found)

    @property
    def seconds(self) -> float:
        """What computing those had taken."""
        return sum(self._seconds[entry] for entry in self._found)

    def looked(self, kind: str, key: str, *, found: bool) -> None:
        """An entry was looked for."""
        if not found:
            self._absent[kind, key] = time.perf_counter()
        elif (kind, key) in self._earlier:
            self._found.add((kind, key))

    def kept(self, kind: str, key: str) -> None:
        """An entry was computed and kept."""
        now = time.perf_counter()
        since = max(self._absent.pop((kind, key), now), self._last)
        self._seconds[kind, key] = max(now - since, 0.0)
        self._last = now


@dataclass
class Cache:
    """Entries in `folder`, or in memory only when it is None.

    A folder that cannot be written costs time, never the compile: `problem` then says why.

    Attributes:
        folder: Where the files lie.
        limit: Total bytes of the files; the least recently used go first.
        problem: Why nothing could be kept, or None.
        hits: How many entries that earlier runs left were of use.
        damaged: How many were not what was written, and were ignored.
        other_versions: How many were written by another version of greencc, and were ignored.
        ledger: What entries took to compute in this process, and how much of that was of use again.
    """

    folder: Path | None = None
    limit: int = LIMIT_BYTES
    problem: str | None = None
    hits: int = 0
    damaged: int = 0
    other_versions: int = 0
    ledger: Ledger = field(default_factory=Ledger, repr=False)
    _written: int = field(default=0, repr=False)
    _known: set[tuple[str, str]] = field(default_factory=set, repr=False)
    _memory: dict[tuple[str, str], dict[str, Array]] = field(default_factory=dict, repr=False)

    def sibling(self) -> Cache:
        """The same entries and ledger for another run, with counts of its own."""
        return Cache(self.folder, self.limit, ledger=self.ledger, _memory=self._memory)

    def get(self, kind: str, key: str) -> dict[str, Array] | None:
        """The entry of a kind (a plain word) under a key, or None."""
        found = self._read(kind, key)
        self.ledger.looked(kind, key, found=found is not None)
        return found

    def _read(self, kind: str, key: str) -> dict[str, Array] | None:
        if self.folder is None:
            return self._memory.get((kind, key))
        path = self._path(kind, key)
        try:
            if path.stat().st_size > self.limit:
                return None
            content = path.read_bytes()
        except OSError:
            return None
        try:
            header, found = decode(content)
        except DamagedEntryError:
            self.damaged += 1
            return None
        except OtherVersionError:
            self.other_versions += 1
            return None
        if (header.kind, header.key) != (kind, key):
            self.damaged += 1
            return None
        # It was read, even if another process has removed it since, or the folder belongs to somebody else.
        with suppress(OSError):
            os.utime(path)
        self.hits += (kind, key) not in self._known
        self._known.add((kind, key))
        return found

    def put(
        self, kind: str, key: str, arrays: Mapping[str, Array], *, label: str = "", device: str = ""
    ) -> None:
        """Keep an entry.

        Args:
            kind: A plain word.
            key: Of `cache_key`.
            arrays: Without objects.
            label: What it is, for `greencc cache list`.
            device: Where it was measured, likewise.
        """
        self.ledger.kept(kind, key)
        if self.folder is None:
            self._memory[kind, key] = dict(arrays)
            return
        if self.problem is not None:
            return
        content = encode(EntryHeader(kind, key, __version__, time.time(), label, device), arrays)
        try:
            # Compiled code is only kept in a folder that nobody else can write to, whatever the umask is.
            with translated_os_errors(self.folder):
                make_private(self.folder)
            with atomic_file(self._path(kind, key)) as path:
                path.write_bytes(content)
        except InputError as error:
            self.problem = error.message
            return
        self._known.add((kind, key))
        # Looking at all files takes time, and a little too much does no harm.
        self._written += len(content)
        if self._written > self.limit // 64:
            self._written = 0
            self._trim()

    def remove(self, kind: str, key: str) -> None:
        """Forget an entry that is of no more use, as parts are once their sum is kept; it need not be there."""
        if self.folder is None:
            self._memory.pop((kind, key), None)
            return
        # The folder may belong to somebody else: the entry then goes when the cache is trimmed.
        with suppress(OSError):
            self._path(kind, key).unlink(missing_ok=True)

    def keys(self, kind: str) -> list[str]:
        """The keys of all entries of a kind, sorted."""
        if self.folder is None:
            return sorted(key for other, key in self._memory if other == kind)
        return sorted(path.name.removesuffix(SUFFIX) for path in (self.folder / kind).glob(f"[!.]*{SUFFIX}"))

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / kind / f"{key}{SUFFIX}"

    def _trim(self) -> None:
        """Remove the least recently used entries beyond the limit, and what killed processes left half-written."""
        assert self.folder is not None
        remove_abandoned(self.folder)
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            # Another process may have removed it meanwhile, or another user own it.
            with suppress(OSError):
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size


def remove_abandoned(folder: Path) -> int:
    """Remove temporary files that killed processes left in a cache; how many there were."""
    removed = 0
    for path in folder.glob(f"*/.*{SUFFIX}.*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
                removed += 1
    return removed
