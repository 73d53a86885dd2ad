"""The folder of a test campaign: what is measured stays measured, whatever kills the process.

`state.json` says what the campaign depends on, `cells.jsonl` has a line for each finished cell, `blocks.csv` a row for
each block. A cell's blocks are appended first, its line last, each flushed to the disk: a cell counts when its line is
whole. On opening, a torn last line is dropped, and so are blocks of a cell that has no line. A cell whose meter failed
is measured again; what takes its place drops its blocks.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from greencc.core.errors import InputError
from greencc.core.files import atomic_file, translated_os_errors
from greencc.lab.campaign_record import BLOCK_COLUMNS, CellRecord, dump_record, line_text, parse_record
from greencc.lab.campaign_spec import Cell

STATE, CELLS, BLOCKS, BUNDLES, LOCK = "state.json", "cells.jsonl", "blocks.csv", "bundles", ".lock"
SCHEMA = "greencc.campaign-run/1"
_FRESH = "--fresh begins anew and removes what was measured, or choose another folder with -o"
_HEADER = ",".join(BLOCK_COLUMNS) + "\n"
_KEY = ("model", "variant", "device", "repetition")


class CampaignStore:
    """An open campaign folder; make one with `open_store`."""

    def __init__(self, folder: Path, state: Mapping[str, Any], records: Sequence[CellRecord]) -> None:
        self.folder = folder
        self.state = state
        self.records = list(records)

    @property
    def bundles(self) -> Path:
        return self.folder / BUNDLES

    def measured(self) -> frozenset[Cell]:
        """Cells that are done. Those that could not be measured, or only in part, are worth another try."""
        return frozenset(record.cell for record in self.records if record.status == "measured")

    def latest(self) -> list[CellRecord]:
        """The last record of each cell: a cell that failed may have been measured later."""
        return list({record.cell: record for record in self.records}.values())

    def add(self, record: CellRecord, blocks: Sequence[Mapping[str, Any]]) -> None:
        """Keep a finished cell.

        Raises:
            InputError: The folder cannot be written.
        """
        if any(old.cell == record.cell and old.figures is not None for old in self.records):
            self._drop_blocks(record.cell)
        if blocks:
            _append(self.folder / BLOCKS, _rows(blocks))
        _append(self.folder / CELLS, dump_record(record) + "\n")
        self.records.append(record)

    def _drop_blocks(self, cell: Cell) -> None:
        path = self.folder / BLOCKS
        with translated_os_errors(path):
            rows = _read_rows(path, path.read_text(encoding="utf-8") if path.exists() else "")
        with atomic_file(path) as file:
            _write(file, _HEADER + _rows([row for row in rows if _owner(row) != _names(cell)]))


@contextmanager
def open_store(folder: Path, state: Mapping[str, Any], *, fresh: bool = False) -> Iterator[CampaignStore]:
    """Open the folder for one run, which no other can open meanwhile.

    Args:
        folder: Made where it is not there.
        state: What the results depend on, as plain JSON: a name with a text, or texts by name.
        fresh: Remove earlier results (bundles stay: their names tell what they were made from).

    Raises:
        InputError: It is the folder of something else or of another campaign, another run uses it, it is damaged, or it
            cannot be written.
    """
    with translated_os_errors(folder / STATE):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{folder} is not a folder", hint="choose another one with -o")
        known = (folder / STATE).exists() or (folder / LOCK).exists()
        if folder.exists() and not known and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and no campaign's folder", hint="choose another one with -o"
            )
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        if fresh:
            with translated_os_errors(folder / STATE):
                # The state goes last: without it, results would belong to nothing.
                for name in (CELLS, BLOCKS, STATE):
                    (folder / name).unlink(missing_ok=True)
        records: list[CellRecord] = []
        if (found := read_state(folder)) is None:
            with atomic_file(folder / STATE) as file:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                found = {"schema": SCHEMA, "created": now, **state}
                _write(file, json.dumps(found, indent=2) + "\n")
            with atomic_file(folder / BLOCKS) as file:
                _write(file, _HEADER)
        else:
            check_same(found, state, folder)
            records = read_records(folder)
            _repair(folder, records)
        with translated_os_errors(folder / STATE):
            (folder / BUNDLES).mkdir(exist_ok=True)
        yield CampaignStore(folder, found, records)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What the results in a folder depend on; None: there are none.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / STATE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}", hint=_FRESH) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f"{path} is of another version of greencc", hint=_FRESH)
    return data


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Make sure that results in the folder and those to come belong together.

    Raises:
        InputError: Something has changed; the message says what.
    """
    changed = []
    for key, value in wanted.items():
        old = found.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            names = [name for name in {**old, **value} if old.get(name) != value.get(name)]
            changed += [f"{key} {name}" for name in names]
        elif old != value:
            changed.append(key)
    if changed:
        raise InputError(
            f"{folder} holds results of another campaign: since then changed {', '.join(changed)}",
            hint=_FRESH,
        )


def read_records(folder: Path) -> list[CellRecord]:
    """The finished cells; a torn last line is left out.

    Raises:
        InputError: A line is damaged.
    """
    path = folder / CELLS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    lines = content.split(b"\n")[:-1]
    try:
        return [
            parse_record(line.decode("utf-8"), f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
        ]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8", hint=_FRESH) from error
    except InputError as error:
        raise InputError(error.message, hint=_FRESH) from error


def _repair(folder: Path, records: Sequence[CellRecord]) -> None:
    """Drop what a kill has left of the cell that was in progress."""
    path = folder / CELLS
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with atomic_file(path) as file:
            _write(file, "".join(dump_record(record) + "\n" for record in records))
    path = folder / BLOCKS
    latest = {record.cell: record for record in records}
    done = {_names(cell) for cell, record in latest.items() if record.figures is not None}
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", hint=_FRESH) from error
    whole = text[: text.rfind("\n") + 1]
    rows = _read_rows(path, whole)
    kept = [row for row in rows if _owner(row) in done]
    if not whole.startswith(_HEADER) or whole != text or len(kept) < len(rows):
        with atomic_file(path) as file:
            _write(file, _HEADER + _rows(kept))


def _read_rows(path: Path, text: str) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise InputError(f"{path} is damaged: {error}", hint=_FRESH) from error


def _owner(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in _KEY)


def _names(cell: Cell) -> tuple[str, ...]:
    """The cell as its rows name it."""
    return (cell.model, cell.variant, cell.device, str(cell.repetition))


def _rows(blocks: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, BLOCK_COLUMNS, lineterminator="\n", extrasaction="ignore")
    for block in blocks:
        writer.writerow({key: line_text(value) for key, value in block.items()})
    return stream.getvalue()


def _append(path: Path, text: str) -> None:
    with translated_os_errors(path):
        new = not path.exists()
        with path.open("ab") as stream:
            stream.write(text.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            _sync_folder(path.parent)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """So that a new file's name is on the disk as well."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel lets go of however the process ends."""
    path = folder / LOCK
    with translated_os_errors(path):
        stream = path.open("a+", encoding="utf-8")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            who = stream.read(20).strip()
            raise InputError(
                f"another run uses {folder}{f' (process {who})' if who.isdecimal() else ''}",
                hint="wait for it, or choose another folder with -o",
            ) from error
        with translated_os_errors(path):
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
        yield
