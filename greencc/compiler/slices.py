"""Slices: held-out samples with the float model's outputs for them, and their way to other processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from greencc.core.cache import cache_key
from greencc.core.data import Array, DataSource, Feeds
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.files import atomic_folder
from greencc.core.kl import is_float
from greencc.execution import Blob

_STACK = 16
_FILE = "slice.npz"
_TABLE = "table"


@dataclass(frozen=True)
class Slice:
    """Samples with the float model's outputs for them."""

    feeds: tuple[Feeds, ...]
    outputs: tuple[dict[str, Array], ...]
    digest: str

    @property
    def count(self) -> int:
        return sum(len(next(iter(feeds.values()))) for feeds in self.feeds)


def make_slice(baseline: Engine, source: DataSource, count: int) -> Slice:
    """The first `count` samples of a source, stacked as far as the model takes it.

    Raises:
        InputError: The model refuses them, or there is no whole batch.
    """
    fixed = next((spec.batch for spec in baseline.inputs if spec.batch is not None), None)
    size = fixed or min(_STACK, count)
    feeds = _whole(source, size, count, exact=fixed is not None)
    if not feeds:
        raise InputError(
            f"there is no whole batch of {size} samples to judge layers on", hint="give more samples"
        )
    try:
        outputs = tuple(baseline.run(item) for item in feeds)
    except InputError:
        if size == 1 or fixed is not None:
            raise
        feeds = _whole(source, 1, count, exact=True)
        outputs = tuple(baseline.run(item) for item in feeds)
    return Slice(feeds, outputs, cache_key([{name: item[name] for name in item} for item in feeds]))


def _whole(source: DataSource, size: int, count: int, *, exact: bool) -> tuple[Feeds, ...]:
    found: list[Feeds] = []
    seen = 0
    for batch in source.batches(size):
        if seen >= count or (exact and batch.count != size):
            break
        found.append(batch.feeds)
        seen += batch.count
    return tuple(found)


def stored(on: Slice, root: Path, *, shared: bool = True) -> Blob:
    """A slice as a blob under `root`, written there unless it is. Of the outputs only floats: nothing else diverges.

    Args:
        on: The slice.
        root: An existing folder.
        shared: Whether several tasks read it.

    Raises:
        InputError: It cannot be written.
    """
    rows: list[tuple[Array, str | None, str, int, str]] = []
    for batch, (feeds, outputs) in enumerate(zip(on.feeds, on.outputs, strict=True)):
        rows += [(*_plain(value), name, batch, "feeds") for name, value in feeds.items()]
        rows += [
            (*_plain(value), name, batch, "outputs") for name, value in outputs.items() if is_float(value)
        ]
    table = json.dumps([row[1:] for row in rows])
    arrays = {f"array{index}": row[0] for index, row in enumerate(rows)}
    folder = root / f"slice-{cache_key(table, arrays)[:32]}"
    if not folder.is_dir():
        content: dict[str, Any] = {_TABLE: np.array(table), **arrays}
        with atomic_folder(folder) as work:
            np.savez(work / _FILE, **content)
    return Blob.of(folder, shared=shared)


def restored(folder: Path) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Feeds and float outputs of the slice in a folder, batch by batch."""
    feeds: list[dict[str, Array]] = []
    outputs: list[dict[str, Array]] = []
    with np.load(folder / _FILE, allow_pickle=False) as archive:
        for index, (dtype, name, batch, role) in enumerate(json.loads(str(archive[_TABLE]))):
            into = feeds if role == "feeds" else outputs
            while len(into) <= batch:
                into.append({})
            value = archive[f"array{index}"]
            into[batch][name] = value if dtype is None else value.view(getattr(ml_dtypes, dtype))
    return feeds, outputs + [{} for _ in feeds[len(outputs) :]]


def _plain(value: Array) -> tuple[Array, str | None]:
    """An array as NumPy's own files hold it, and its type where that is none of NumPy's."""
    value = np.ascontiguousarray(value) if value.ndim else value
    if value.dtype == object:
        return value.astype(np.str_), None
    if value.dtype.kind != "V":
        return value, None
    return value.view(np.uint8 if value.dtype.itemsize == 1 else np.uint16), value.dtype.name
