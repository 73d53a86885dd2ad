"""The base of every data source: streaming, content digests and the helpers sources share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array, Batch, DataSource
from greencc.core.errors import UsageError

Indices = NDArray[np.int64]
Keys = NDArray[np.uint8]
Batches = Generator[Batch, None, None]

KEY_BYTES = 32
SCAN_BATCH = 8


@dataclass(frozen=True)
class Scan:
    """Content keys of a whole source, 32 bytes a sample each: (n, 32) of the feeds and, if any, of the labels."""

    feeds: Keys
    labels: Keys | None

    def at(self, indices: Indices) -> Scan:
        """The keys of some of the samples."""
        return Scan(self.feeds[indices], None if self.labels is None else self.labels[indices])

    def digest(self) -> str:
        """SHA-256 over the keys in order; it does not depend on batch sizes or containers."""
        digest = hashlib.sha256(b"greencc.data/1")
        digest.update(len(self.feeds).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(self.feeds).data)
        if self.labels is not None:
            digest.update(b"labels")
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


class Source(ABC):
    """A re-iterable stream of samples (`greencc.core.data.DataSource`).

    Arrays may be read-only views of what was read. A batch never mixes sample shapes: where they change (ragged
    data on dynamic axes), a batch is cut short.

    Args:
        name: How the user named it.
        count: Number of samples.
        has_labels: Batches carry labels.
        synthetic: The data are made up.
        notes: Remarks about the data for the report, e.g. that all samples are equal.
    """

    def __init__(
        self,
        name: str,
        count: int,
        *,
        has_labels: bool = False,
        synthetic: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self._count = count
        self._has_labels = has_labels
        self._synthetic = synthetic
        self.notes = notes

    @property
    def name(self) -> str:
        """How the user named it, for messages and reports."""
        return self._name

    @property
    def count(self) -> int:
        """Number of samples."""
        return self._count

    @property
    def has_labels(self) -> bool:
        """True when every batch has labels."""
        return self._has_labels

    @property
    def synthetic(self) -> bool:
        """True for made-up data: nothing can be certified on it."""
        return self._synthetic

    def digest(self) -> str:
        """Hexadecimal SHA-256 over names, dtypes, shapes and values of all samples, as the model is fed them.

        The first call reads all the data (and so validates them); later calls are free.
        """
        return self.scan.digest()

    def batches(self, size: int) -> Batches:
        """Yield all samples in order, `size` at a time; see the class about ragged data.

        Raises:
            UsageError: `size` is not positive.
            InputError: The data are corrupt, not finite, or do not fit the model; raised when reached.
        """
        if size < 1:
            raise UsageError(f"a batch size of {size} is not positive")
        return self.read(size)

    @abstractmethod
    def read(self, size: int, wanted: Indices | None = None) -> Batches:
        """Yield batches of all samples, or of those at `wanted` (ascending indices), without reading the
        others where the container allows."""

    @cached_property
    def scan(self) -> Scan:
        """Content keys of all samples; computed on first use, 32 or 64 bytes a sample."""
        return scan(self)


def scan(source: DataSource) -> Scan:
    """Read all samples of a source and return their content keys."""
    feeds = bytearray()
    labels = bytearray()
    for batch in source.batches(SCAN_BATCH):
        for row in range(batch.count):
            key = hashlib.blake2b(digest_size=KEY_BYTES)
            for name in sorted(batch.feeds):
                _absorb(key, name, batch.feeds[name][row])
            feeds += key.digest()
            if batch.labels is not None:
                key = hashlib.blake2b(digest_size=KEY_BYTES)
                _absorb(key, "", label_key(np.asarray(batch.labels[row])))
                labels += key.digest()
    keys = np.frombuffer(feeds, np.uint8).reshape(-1, KEY_BYTES)
    return Scan(keys, np.frombuffer(labels, np.uint8).reshape(-1, KEY_BYTES) if labels else None)


def label_key(row: Array) -> Array:
    """A label row in the form its key is taken of: the padding of sets of acceptable classes does not count."""
    if row.ndim == 1 and row.dtype.kind == "i":
        kept = row[row >= 0]
        return kept.reshape(()) if kept.size == 1 else kept
    return row


def _absorb(key: hashlib.blake2b, name: str, value: Array) -> None:
    # Byte order is the machine's in dtype.str; sources convert to it before.
    key.update(repr((name, value.dtype.name, value.shape)).encode())
    key.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def rebatch(pieces: Iterable[Batch], size: int) -> Batches:
    """Regroup batches of any size into batches of `size`, in order; shapes are never mixed."""
    pending: list[Batch] = []
    held = 0
    for whole in pieces:
        piece = whole
        if pending and _shapes(pending[0]) != _shapes(piece):
            yield _join(pending)
            pending, held = [], 0
        while held + piece.count >= size:
            head = _slice(piece, 0, size - held)
            rest = piece.count - head.count
            yield _join([*pending, head])
            pending, held = [], 0
            if rest == 0:
                break
            piece = _slice(piece, head.count, head.count + rest)
        else:
            if piece.count:
                pending.append(piece)
                held += piece.count
    if pending:
        yield _join(pending)


def pick(pieces: Iterable[Batch], wanted: Indices) -> Batches:
    """Keep the samples at `wanted` (ascending) of a stream of batches; stops reading after the last one."""
    start = done = 0
    for piece in pieces:
        if done == len(wanted):
            return
        stop = int(np.searchsorted(wanted, start + piece.count))
        if stop > done:
            yield select(piece, wanted[done:stop] - start)
        start, done = start + piece.count, stop


def select(batch: Batch, rows: Indices) -> Batch:
    """The samples of a batch at `rows`."""
    feeds = {name: array[rows] for name, array in batch.feeds.items()}
    return Batch(feeds, None if batch.labels is None else batch.labels[rows])


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    if start == 0 and stop >= batch.count:
        return batch
    feeds = {name: array[start:stop] for name, array in batch.feeds.items()}
    return Batch(feeds, None if batch.labels is None else batch.labels[start:stop])


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    shapes = [array.shape[1:] for array in batch.feeds.values()]
    return shapes if batch.labels is None else [*shapes, batch.labels.shape[1:]]


def _join(pieces: list[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    feeds = {name: np.concatenate([p.feeds[name] for p in pieces]) for name in pieces[0].feeds}
    labels = [p.labels for p in pieces if p.labels is not None]
    return Batch(feeds, np.concatenate(labels) if labels else None)
