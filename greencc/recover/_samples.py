"""Training batches: a source streamed in shuffled order, changed a little each time.

The order is random within chunks of bounded size, which hold a whole small data set, so that memory does not grow with
the number of samples. What is drawn depends on the seed and the epoch alone: an epoch can be repeated after an
interruption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from greencc.core.data import Array, Batch, DataSource
from greencc.core.errors import InputError
from greencc.recover.options import RecoverOptions

CHUNK_BYTES = 512 << 20


@dataclass(frozen=True)
class Sample:
    """A training batch.

    Attributes:
        feeds: The inputs, already mixed.
        labels: One class per sample, or None.
        others: The classes of the samples that were mixed in.
        share: What part of each sample is its own: 1 where nothing was mixed in.
    """

    feeds: dict[str, Array]
    labels: Array | None = None
    others: Array | None = None
    share: float = 1.0


def steps_per_epoch(source: DataSource, batch: int, whole: bool) -> int:
    """Batches in an epoch; with `whole`, only full ones.

    Raises:
        InputError: There is not one.
    """
    steps = source.count // batch if whole else math.ceil(source.count / batch)
    if steps == 0:
        raise InputError(
            f"{source.name} has {source.count} samples and the model takes batches of {batch}",
            hint="give more samples",
        )
    return steps


def training_batches(
    source: DataSource, batch: int, epoch: int, options: RecoverOptions, *, whole: bool = False
) -> Iterator[Sample]:
    """One epoch.

    Args:
        source: The samples.
        batch: How many at once.
        epoch: Its number, from 0.
        options: What to do to them.
        whole: Leave out what does not fill a batch.
    """
    rng = np.random.default_rng((options.seed, epoch))
    left: Batch | None = None
    for chunk in _chunks(source, batch):
        joined = chunk if left is None else _join(left, chunk)
        order = rng.permutation(joined.count)
        full = len(order) // batch * batch
        for start in range(0, full, batch):
            yield _changed(_rows(joined, order[start : start + batch]), rng, options)
        left = _rows(joined, order[full:]) if full < len(order) else None
    if left is not None and not whole:
        yield _changed(left, rng, options)


def _chunks(source: DataSource, batch: int) -> Iterator[Batch]:
    held: list[Batch] = []
    size = 0
    for item in source.batches(max(batch, 256)):
        held.append(item)
        size += sum(array.nbytes for array in item.feeds.values())
        if size >= CHUNK_BYTES:
            yield _stack(held)
            held, size = [], 0
    if held:
        yield _stack(held)


def _stack(items: list[Batch]) -> Batch:
    feeds = {name: np.concatenate([item.feeds[name] for item in items]) for name in items[0].feeds}
    labels = [item.labels for item in items if item.labels is not None]
    return Batch(feeds, np.concatenate(labels) if labels else None)


def _join(first: Batch, second: Batch) -> Batch:
    return _stack([first, second])


def _rows(item: Batch, index: Array) -> Batch:
    return Batch(
        {name: values[index] for name, values in item.feeds.items()},
        None if item.labels is None else item.labels[index],
    )


def _changed(item: Batch, rng: np.random.Generator, options: RecoverOptions) -> Sample:
    feeds = {
        name: _moved(values, rng, options) if values.ndim == 4 and values.dtype.kind == "f" else values
        for name, values in item.feeds.items()
    }
    labels = item.labels if options.labels else None
    if not options.mixup or any(values.dtype.kind != "f" for values in feeds.values()):
        return Sample(feeds, labels)
    share = float(rng.uniform(0.5, 1.0))
    other = rng.permutation(item.count)
    mixed = {
        name: (share * values + (1.0 - share) * values[other]).astype(values.dtype)
        for name, values in feeds.items()
    }
    return Sample(mixed, labels, None if labels is None else labels[other], share)


def _moved(images: Array, rng: np.random.Generator, options: RecoverOptions) -> Array:
    """Shift and mirror images; rows and columns are the two longest of the last three axes."""
    axes = (2, 3) if images.shape[1] <= images.shape[3] else (1, 2)
    result = images
    if options.flip:
        chosen = rng.random(len(images)) < 0.5
        result = result.copy()
        result[chosen] = np.flip(result[chosen], axes[1])
    if options.shift:
        for axis in axes:
            pad = [(0, 0)] * images.ndim
            pad[axis] = (options.shift, options.shift)
            # What comes in at the edge is the edge: zero need not be black.
            wide = np.pad(result, pad, mode="edge")
            starts = rng.integers(0, 2 * options.shift + 1, len(images))
            index = starts[:, None] + np.arange(images.shape[axis])
            shape = [1] * images.ndim
            shape[0], shape[axis] = index.shape
            result = np.take_along_axis(wide, index.reshape(shape), axis=axis)
    return result
