"""Labels from files, and sources that carry them."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath

import numpy as np

from greencc.calibration.arrays import plain_labels
from greencc.calibration.fit import LABELS
from greencc.calibration.npy import Column, NpyColumn, open_npz
from greencc.calibration.source import Batches, Indices, Source
from greencc.core.data import Array, Batch
from greencc.core.errors import InputError

Row = tuple[float, ...]
PADDING = -1
"""Fills the rows of an (n, k) label array beyond a sample's own acceptable classes."""

_TEXT = (".csv", ".tsv", ".txt")
_ARRAYS = (".npy", ".npz")


class Labelled(Source):
    """A source with labels of its own: `labels[i]` belongs to sample i."""

    def __init__(self, source: Source, labels: Array) -> None:
        if len(labels) != source.count:
            raise InputError(
                f"{source.name} has {source.count} samples, but there are {len(labels)} labels",
                hint="give one label for each sample, in the same order",
            )
        super().__init__(
            source.name, source.count, has_labels=True, synthetic=source.synthetic, notes=source.notes
        )
        self._source = source
        self._labels = labels

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Yield the source's batches with their labels."""
        start = 0
        for batch in self._source.read(size, wanted):
            stop = start + batch.count
            rows = self._labels[start:stop] if wanted is None else self._labels[wanted[start:stop]]
            yield Batch(batch.feeds, rows)
            start = stop


def load_labels(path: Path) -> Array:
    """Read labels in sample order: `.npy`, `.npz` (array "labels"), or text with one sample a line.

    Returns:
        int64 (n,), or (n, k) padded with -1 when a sample has several acceptable classes; floats (n,) when
        the labels are no whole numbers.

    Raises:
        InputError: The file is unreadable, or holds something else than numbers.
    """
    kind = path.suffix.lower()
    if kind in _ARRAYS:
        return _array_labels(path)
    if kind not in _TEXT:
        raise InputError(f"{path}: labels cannot be read from {kind or 'this'} files", hint=_known())
    rows = list(_text_rows(path))
    if rows and _numbers(rows[0][1]) is None and len(rows[0][1]) == 1 and rows[0][1][0].isidentifier():
        del rows[0]
    parsed: list[Row] = []
    for line, cells in rows:
        if len(cells) > 1:
            raise InputError(
                f"{path}, line {line}: {len(cells)} columns; the samples have no file names here",
                hint="one column, one line for each sample; several acceptable classes separated by spaces",
            )
        parsed.append(_required(cells, path, line))
    return pack_labels(parsed, str(path))


def load_file_labels(
    path: Path, folder: str, names: Sequence[str], *, strict: bool = True
) -> Mapping[int, Row]:
    """Read a CSV of ``file,labels`` for an image folder.

    Args:
        path: The CSV (or TSV); a header line is optional.
        folder: Name of the image folder; the file may write it in front of the names.
        names: Names of the images relative to the folder, with forward slashes.
        strict: Names that are no image of the folder are an error, otherwise left out.

    Returns:
        The acceptable classes of each labelled image, keyed by its index in `names`.

    Raises:
        InputError: Malformed lines, unknown or repeated files, paths that lead outside of the folder.
    """
    if path.suffix.lower() not in _TEXT:
        raise InputError(f"{path}: labels of images are a CSV of file,labels")
    index = {name: i for i, name in enumerate(names)}
    found: dict[int, Row] = {}
    for number, (line, cells) in enumerate(_text_rows(path)):
        name = cells[0].replace("\\", "/").removeprefix("./")
        if number == 0 and name not in index and _numbers(cells[1:]) is None:
            continue
        if name not in index:
            name = name.removeprefix(f"{folder}/")
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(f"{path}, line {line}: '{name}' leads outside of the image folder")
        if len(cells) < 2:
            raise InputError(f"{path}, line {line}: there is no label", hint="write file,label")
        row = _required(cells[1:], path, line)
        if name not in index:
            if strict:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{close[0]}'?" if close else "names are relative to the image folder"
                raise InputError(f"{path}, line {line}: there is no image '{name}'", hint=hint)
            continue
        if index[name] in found:
            raise InputError(f"{path}, line {line}: '{name}' has two lines")
        found[index[name]] = row
    return found


def pack_labels(rows: Sequence[Row], where: str) -> Array:
    """Stack label rows: (n,), or (n, k) padded with -1 where samples have several acceptable classes.

    Raises:
        InputError: There are no labels, or sets of classes that are no non-negative whole numbers.
    """
    if not rows:
        raise InputError(f"{where} holds no labels")
    width = max(len(row) for row in rows)
    whole = all(isinstance(value, int) for row in rows for value in row)
    if width == 1:
        return np.array([row[0] for row in rows], np.int64 if whole else np.float64)
    if not whole or any(value < 0 for row in rows for value in row):
        raise InputError(f"{where}: several labels for one sample must be class numbers, 0 or more")
    packed = np.full((len(rows), width), PADDING, np.int64)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed


def _array_labels(path: Path) -> Array:
    columns: Sequence[Column]
    if path.suffix.lower() == ".npy":
        columns = [NpyColumn.open(LABELS, path)]
    else:
        columns = [column for column in open_npz(path) if column.name == LABELS]
    if not columns:
        raise InputError(f"{path} has no array '{LABELS}'")
    with closing(columns[0].blocks(1 << 16)) as blocks:
        parts = [plain_labels(block, str(path)) for block in blocks]
    if not parts:
        raise InputError(f"{path} holds no labels")
    return np.concatenate(parts)


def _text_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and stripped cells of the lines that are not blank."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield reader.line_num, stripped
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a text table: {error}", hint="save it as CSV in UTF-8") from error


def _numbers(cells: Sequence[str]) -> Row | None:
    """The numbers in the cells, separated by spaces or semicolons; None when there is anything else."""
    values: list[float] = []
    for word in " ".join(cells).replace(";", " ").split():
        try:
            values.append(int(word))
        except ValueError:
            try:
                values.append(float(word))
            except ValueError:
                return None
            if not math.isfinite(values[-1]):
                return None
        if abs(values[-1]) >= 2**63:
            return None
    return tuple(values) or None


def _required(cells: Sequence[str], path: Path, line: int) -> Row:
    numbers = _numbers(cells)
    if numbers is None:
        text = " ".join(cells)
        raise InputError(
            f"{path}, line {line}: label '{text[:40]}' is not a number",
            hint="labels are class numbers, several acceptable ones separated by spaces",
        )
    return numbers


def _known() -> str:
    return f"known: {', '.join((*_TEXT, *_ARRAYS))}"
