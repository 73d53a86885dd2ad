"""Sources over `.npz` and `.npy` files and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from greencc.calibration.files import contained_files
from greencc.calibration.fit import LABELS, SAMPLE_LIMIT, Fit, check_names, element_kind
from greencc.calibration.npy import CHUNK, Column, Limits, NpyColumn, open_npz
from greencc.calibration.source import Batches, Indices, Source, rebatch
from greencc.core.data import Array, Batch, TensorSpec
from greencc.core.errors import InputError


class ArraySource(Source):
    """Samples in columns: one array on disk for each model input, and perhaps one of labels.

    Raises:
        InputError: Arrays are missing, unknown, of different lengths, empty, or do not fit the model.
    """

    def __init__(self, name: str, columns: Sequence[Column], inputs: Sequence[TensorSpec]) -> None:
        known = {spec.name for spec in inputs}
        labels = [c for c in columns if c.name == LABELS and LABELS not in known]
        feeds = {c.name: c for c in columns if c not in labels}
        check_names(list(feeds), inputs, name)
        self._fits = [Fit(spec, name) for spec in inputs]
        self._columns = [feeds[spec.name] for spec in inputs]
        self._labels = labels[0] if labels else None
        for fit, column in zip(self._fits, self._columns, strict=True):
            fit.check(column.header.shape, column.header.dtype)
        count = self._columns[0].header.shape[0]
        for column in [*self._columns, *labels]:
            if column.header.shape[0] != count:
                raise InputError(
                    f"{name}: '{column.name}' has {column.header.shape[0]} samples, "
                    f"'{self._columns[0].name}' has {count}"
                )
        if count == 0:
            raise InputError(f"{name} has 0 samples")
        if self._labels is not None and element_kind(self._labels.header.dtype) not in "fiub":
            raise InputError(f"{name}: the labels are {self._labels.header.dtype}, not numbers")
        if self._labels is not None and not 0 < self._labels.header.row_bytes <= SAMPLE_LIMIT:
            raise InputError(f"{name}: the labels have the shape {list(self._labels.header.shape)}")
        super().__init__(name, count, has_labels=bool(labels))

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Yield batches; blocks without a wanted sample are skipped over without conversion."""
        pieces = self._pieces(size, wanted)
        return pieces if wanted is None else rebatch(pieces, size)

    def _pieces(self, size: int, wanted: Indices | None) -> Batches:
        columns = [*self._columns, *([self._labels] if self._labels else [])]
        size = min(size, self.count)
        row_bytes = max(1, sum(column.header.row_bytes for column in columns))
        rows = size * max(1, CHUNK // (size * row_bytes))
        start = 0
        with ExitStack() as stack:
            # An abandoned iteration closes its files at once.
            streams = [stack.enter_context(closing(column.blocks(rows))) for column in columns]
            for blocks in zip(*streams, strict=True):
                stop = start + len(blocks[0])
                if wanted is None:
                    yield from self._batches(blocks, range(start, stop), size)
                else:
                    here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]
                    if len(here):
                        yield from self._batches([b[here - start] for b in blocks], here, size)
                    if stop > wanted[-1]:
                        return
                start = stop

    def _batches(self, blocks: Sequence[Array], numbers: Indices | range, size: int) -> Batches:
        feeds = {
            fit.spec.name: fit.convert(block, numbers)
            for fit, block in zip(self._fits, blocks[: len(self._fits)], strict=True)
        }
        labels = plain_labels(blocks[-1], self.name) if self._labels else None
        for at in range(0, len(numbers), size):
            part = {name: array[at : at + size] for name, array in feeds.items()}
            yield Batch(part, None if labels is None else labels[at : at + size])


class ConcatSource(Source):
    """Several sources one after the other."""

    def __init__(self, name: str, parts: Sequence[Source]) -> None:
        labelled = sum(part.has_labels for part in parts)
        if labelled not in (0, len(parts)):
            odd = next(part for part in parts if not part.has_labels)
            raise InputError(f"{name}: {labelled} of {len(parts)} files have labels, {odd.name} has none")
        super().__init__(name, sum(part.count for part in parts), has_labels=labelled > 0)
        self._parts = tuple(parts)

    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Yield batches across the borders of the parts; parts without wanted samples are not opened."""
        return rebatch(self._pieces(size, wanted), size)

    def _pieces(self, size: int, wanted: Indices | None) -> Batches:
        start = 0
        for part in self._parts:
            stop = start + part.count
            if wanted is None:
                yield from part.read(size)
            else:
                here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
                if len(here):
                    yield from part.read(size, here)
            start = stop


def plain_labels(labels: Array, where: str) -> Array:
    """Labels as int64, or floats as they are.

    Raises:
        InputError: A label is NaN or infinite, or does not fit int64.
    """
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all():
            raise InputError(f"{where}: a label is not finite")
    elif labels.dtype.kind == "u" and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{where}: a label exceeds the range of int64")
    else:
        labels = labels.astype(np.int64)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return labels


def open_arrays(path: Path, inputs: Sequence[TensorSpec], limits: Limits | None = None) -> Source:
    """Open one `.npz`, or one `.npy` for a model with a single input.

    Raises:
        InputError: See `ArraySource` and `greencc.calibration.npy`.
    """
    if path.suffix.lower() == ".npz":
        return ArraySource(str(path), open_npz(path, limits), inputs)
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(
            f"{path} is one array, the model has {len(inputs)} inputs: {names}",
            hint="save an .npz with one array for each input",
        )
    return ArraySource(str(path), [NpyColumn.open(inputs[0].name, path)], inputs)


def open_array_folder(folder: Path, inputs: Sequence[TensorSpec], limits: Limits | None = None) -> Source:
    """Open a folder of `.npz` or `.npy` files, in natural order of their names.

    `.npy` files named after the model's inputs (and `labels.npy`) are the columns of one data set; otherwise
    each file holds samples of a single-input model.

    Raises:
        InputError: Both kinds are mixed, or as for single files.
    """
    files = contained_files(folder, (".npz", ".npy"), recursive=False)
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise InputError(f"{folder} mixes .npz and .npy files", hint="give one kind, or one of the files")
    names = {spec.name for spec in inputs}
    stems = {file.stem for file in files}
    if kinds == [".npy"] and (names <= stems or len(inputs) > 1) and stems <= names | {LABELS}:
        return ArraySource(str(folder), [NpyColumn.open(file.stem, file) for file in files], inputs)
    parts = [open_arrays(file, inputs, limits) for file in files]
    return parts[0] if len(parts) == 1 else ConcatSource(str(folder), parts)
