"""Look after a folder of cache entries: list, verify, prune. Safe while compiles use the same folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from greencc.core.cache_entries import (
    SUFFIX,
    DamagedEntryError,
    EntryHeader,
    OtherVersionError,
    check,
    read_header,
)
from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.version import __version__


class State(Enum):
    """Whether an entry is of use; the value is its name in reports."""

    USABLE = "usable"
    OTHER_VERSION = "other version"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class StoredEntry:
    """One file.

    Attributes:
        path: Of the file.
        kind: The folder it lies in.
        size: Bytes.
        used: When it was last read or written, seconds since 1970.
        state: What is known of it so far: listing looks at the header alone.
        header: What it is for; None where it cannot be told.
    """

    path: Path
    kind: str
    size: int
    used: float
    state: State
    header: EntryHeader | None


@dataclass(frozen=True)
class Limits:
    """Which entries go; those of all the limits that are given.

    Attributes:
        kind: Only entries of this kind; alone: all of them.
        older_than: Not used for so many seconds.
        larger_than: The least recently used, until the rest takes no more than so many bytes.
        everything: All.
    """

    kind: str | None = None
    older_than: float | None = None
    larger_than: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        limited = self.older_than is not None or self.larger_than is not None
        if self.everything and limited:
            raise UsageError("--all removes every entry: it goes with no other limit than --kind")
        if not (self.everything or limited or self.kind is not None):
            raise UsageError(
                "nothing says which entries to remove",
                hint="give --older-than 30d, --larger-than 500MB, --kind KIND or --all; --dry-run shows what would go",
            )


def stored_entries(folder: Path) -> list[StoredEntry]:
    """Every entry, sorted by kind and last use; none where the folder is missing.

    Raises:
        InputError: The folder is no folder, or cannot be read.
    """
    found: list[StoredEntry] = []
    for kind, path in _files(folder):
        try:
            facts = path.stat()
        except FileNotFoundError:
            # A compile has trimmed it meanwhile.
            continue
        state, header = State.USABLE, None
        try:
            header = read_header(path)
            state = State.USABLE if header.version == __version__ else State.OTHER_VERSION
        except FileNotFoundError:
            continue
        except OtherVersionError:
            state = State.OTHER_VERSION
        except DamagedEntryError:
            state = State.DAMAGED
        except OSError:
            state = State.UNREADABLE
        found.append(StoredEntry(path, kind, facts.st_size, facts.st_mtime, state, header))
    return sorted(found, key=lambda entry: (entry.kind, entry.used, entry.path.name))


def verified(entry: StoredEntry) -> StoredEntry | None:
    """The entry after its hash was checked; None where it is gone."""
    try:
        content = entry.path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return replace(entry, state=State.UNREADABLE)
    try:
        check(content)
    except DamagedEntryError:
        return replace(entry, state=State.DAMAGED)
    except OtherVersionError:
        return replace(entry, state=State.OTHER_VERSION)
    header = entry.header
    named = header is not None and (header.kind, header.key) == (entry.kind, entry.path.stem)
    return replace(entry, state=State.USABLE if named else State.DAMAGED)


def chosen(entries: Sequence[StoredEntry], limits: Limits, now: float) -> list[StoredEntry]:
    """The entries that have to go.

    Args:
        entries: All there are.
        limits: Which.
        now: Seconds since 1970.

    Raises:
        UsageError: There are no entries of the kind.
    """
    kinds = sorted({entry.kind for entry in entries})
    if limits.kind is not None and limits.kind not in kinds:
        hint = did_you_mean(limits.kind, kinds) if kinds else "the cache is empty"
        raise UsageError(f"the cache has no entries of kind {limits.kind!r}", hint=hint)
    rest = [entry for entry in entries if limits.kind in (None, entry.kind)]
    if limits.older_than is None and limits.larger_than is None:
        return rest
    rest.sort(key=lambda entry: (entry.used, entry.path.name))
    total = sum(entry.size for entry in rest)
    gone: list[StoredEntry] = []
    for entry in rest:
        old = limits.older_than is not None and now - entry.used > limits.older_than
        if not old and (limits.larger_than is None or total <= limits.larger_than):
            continue
        gone.append(entry)
        total -= entry.size
    return gone


def remove(entries: Sequence[StoredEntry]) -> None:
    """Remove files; one that is gone already is no error.

    Raises:
        InputError: Some could not be removed; the others are.
    """
    problems: list[tuple[Path, str]] = []
    for entry in entries:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            problems.append((entry.path, error.strerror or str(error)))
    if problems:
        path, reason = problems[0]
        raise InputError(
            f"{len(problems)} of {len(entries)} entries could not be removed, first {path}: {reason}",
            hint="make the folder writable, or choose another with $GREENCC_CACHE",
        )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Kind and path of every file."""
    if not os.path.lexists(folder):
        return
    try:
        kinds = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise InputError(
            f"cannot read the cache {folder}: {error.strerror or error}",
            hint="choose a folder with $GREENCC_CACHE, or make this one readable",
        ) from error
    for kind in kinds:
        paths: list[Path] = []
        # Of another user, or removed meanwhile.
        with suppress(OSError):
            paths = [path for path in kind.iterdir() if path.suffix == SUFFIX]
        for path in sorted(paths):
            yield kind.name, path
