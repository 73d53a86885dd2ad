"""The file of tuned schedules in the user's cache folder, shared by models and by processes.

Writers take turns (a lock that the kernel lets go of however a process ends): each reads what is there, merges its
record and renames a whole new file into place, so that a kill at any moment leaves the old file or the new one. A file
that is damaged all the same is set aside, never removed, and what could be read of it is kept.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from greencc.core.cache import cache_key, default_folder
from greencc.core.errors import InputError
from greencc.core.files import atomic_file, check_can_write, translated_os_errors
from greencc.targets._tvm.records import HEADER, DamagedRecordError, Place, Record, from_line, merged, to_line

FILE_NAME = "schedules-1.jsonl"
_FOLDER = "tvm"
_Key = tuple[str, Place]


def default_path() -> Path | None:
    """Where the schedules of this user are kept; None: nowhere, because ``$GREENCC_CACHE`` is set to nothing."""
    folder = default_folder()
    return None if folder is None else folder / _FOLDER / FILE_NAME


@dataclass(frozen=True)
class _Content:
    """What could be read of a file, and what was wrong with the rest (line numbers from 1)."""

    records: dict[_Key, Record] = field(default_factory=dict)
    damaged: tuple[tuple[int, str], ...] = ()

    @property
    def problem(self) -> str:
        number, why = self.damaged[0]
        more = f", and {len(self.damaged) - 1} more" if len(self.damaged) > 1 else ""
        return f"line {number}: {why}{more}"


class Database:
    """Records by workload and place. Without a path they are kept in memory only.

    Args:
        path: The file; it need not exist.
        warn: Is told, once, what is wrong with the file.

    Attributes:
        problem: Why nothing could be kept, or None. That costs the next run time, never this one.
    """

    def __init__(self, path: Path | None, warn: Callable[[str], None]) -> None:
        self.path, self.problem = path, None if path is not None else "$GREENCC_CACHE is set to nothing"
        self._warn = warn
        self._records: dict[_Key, Record] = {}
        if path is None:
            return
        try:
            found = _read(path)
        except InputError as error:
            self.problem = error.message
            warn(f"tuned schedules are not used: {error.message}")
            return
        self._records = found.records
        if found.damaged:
            self._write(())

    def check(self) -> None:
        """Make sure that records can be kept.

        Raises:
            InputError: They cannot.
        """
        problem = self.problem
        if problem is None and self.path is not None:
            try:
                with _locked(self.path):
                    check_can_write(self.path)
            except InputError as error:
                problem = error.message
        if problem is not None:
            raise InputError(
                f"tuned schedules could not be kept: {problem}",
                hint="make the cache folder writable, or choose another with $GREENCC_CACHE",
            )

    def get(self, workload: str, place: Place) -> Record | None:
        """What is known of a workload (`key_of`) there, or None."""
        return self._records.get((workload, place))

    def records(self) -> list[Record]:
        """All of them, by place and label."""
        return sorted(self._records.values(), key=lambda item: (item.place.text, item.label, item.workload))

    def digest(self, place: Place) -> str:
        """SHA-256 of the best schedules there: with a model and a machine, it decides what code is built."""
        chosen = {key: asdict(each.best) for (key, at), each in self._records.items() if at == place}
        return cache_key(chosen)

    def put(self, records: Iterable[Record]) -> None:
        """Keep records, merged with what is there by now."""
        records = list(records)
        _merge(self._records, records)
        if self.path is not None and self.problem is None and records:
            self._write(records)

    def export(self, path: Path) -> int:
        """Write all records to a file for another machine or user; how many there are.

        Raises:
            InputError: It cannot be written.
        """
        with atomic_file(path) as work:
            work.write_text(_text(self._records), encoding="utf-8")
        return len(self._records)

    def take(self, path: Path) -> tuple[list[Record], int]:
        """Merge the records of a file that `export` wrote; return them, and how many of them told something new.

        Raises:
            InputError: It cannot be read or is damaged; nothing was taken. Or nothing can be kept here.
        """
        if not path.is_file():
            raise InputError(f"{path} is not a file", hint="give what 'greencc tune --export FILE' wrote")
        found = _read(path)
        if found.damaged:
            raise InputError(
                f"{path} is not what 'greencc tune --export' wrote: {found.problem}",
                hint="export it again; nothing was taken from it",
            )
        before = dict(self._records)
        self.put(found.records.values())
        if self.problem is not None:
            raise InputError(f"the schedules could not be kept: {self.problem}")
        new = sum(self._records[key] != before.get(key) for key in found.records)
        return list(found.records.values()), new

    def _write(self, records: Iterable[Record]) -> None:
        assert self.path is not None
        try:
            with _locked(self.path):
                found = _read(self.path)
                if found.damaged:
                    aside = _set_aside(self.path)
                    self._warn(
                        f"{self.path} was damaged ({found.problem}): {len(found.records)} tuned schedules could "
                        f"be read and are kept, the file is set aside as {aside.name}"
                    )
                _merge(found.records, records)
                with atomic_file(self.path) as work:
                    work.write_text(_text(found.records), encoding="utf-8")
                self._records = found.records
        except InputError as error:
            self.problem = error.message
            self._warn(f"tuned schedules are not kept: {error.message}")


def _merge(records: dict[_Key, Record], more: Iterable[Record]) -> None:
    for record in more:
        there = records.get(record.key)
        records[record.key] = record if there is None else merged(there, record)


def _text(records: dict[_Key, Record]) -> str:
    lines = sorted(map(to_line, records.values()), key=lambda line: line.partition(" ")[2])
    return "".join(f"{line}\n" for line in (HEADER, *lines))


def _read(path: Path) -> _Content:
    """What a file has; nothing where there is none.

    Raises:
        InputError: It is there and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return _Content()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    lines = content.decode("utf-8", errors="replace").split("\n")
    damaged: list[tuple[int, str]] = []
    if lines[0] != HEADER:
        damaged.append((1, f"it is not {HEADER!r}"))
    if lines[-1]:
        damaged.append((len(lines), "it has no end"))
    records: dict[_Key, Record] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            _merge(records, [from_line(line)])
        except DamagedRecordError as error:
            damaged.append((number, str(error)))
    return _Content(records, tuple(sorted(damaged)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which stays when the file is replaced; and remove what killed writers left.

    Raises:
        InputError: The folder cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    with translated_os_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("a")
    with stream:
        with translated_os_errors(lock):
            fcntl.flock(stream, fcntl.LOCK_EX)
        # Whoever holds the lock is the only writer: these belong to none that lives.
        for part in path.parent.glob(f".{path.name}.*.part"):
            with suppress(OSError):
                part.unlink()
        yield


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    with translated_os_errors(aside):
        path.rename(aside)
    return aside
