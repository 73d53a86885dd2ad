"""What the compiler asks of calibration and evaluation data.

A source streams: it is never held in memory whole, and it can be iterated any number of times, each time
in the same order. `greencc.calibration` has the implementations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a model input or output.

    `shape` has an int for a fixed dimension, a str for a named dynamic one, None for an unknown one;
    it is None itself when the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    @property
    def batch(self) -> int | None:
        """The fixed batch size (first axis), or None where it is dynamic."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None


@dataclass(frozen=True)
class Batch:
    """Samples stacked on the first axis of each array; `labels` has one row per sample."""

    feeds: dict[str, Array]
    labels: Array | None = None

    @property
    def count(self) -> int:
        return len(next(iter(self.feeds.values())))


class DataSource(Protocol):
    """A re-iterable stream of samples."""

    @property
    def name(self) -> str:
        """How the user named it, for messages and reports."""

    @property
    def count(self) -> int:
        """Number of samples."""

    @property
    def has_labels(self) -> bool: ...

    @property
    def synthetic(self) -> bool:
        """True for made-up data: nothing can be certified on it."""

    def digest(self) -> str:
        """Hexadecimal SHA-256 over the content, independent of the container where possible."""

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all samples in order, `size` at a time; the last batch may be smaller."""


def feeds_key(feeds: Feeds, outputs: Sequence[str] | None = None) -> bytes:
    """16 bytes that tell one run from another: a digest over the inputs and the names of what is wanted."""
    digest = hashlib.blake2b(repr(outputs).encode(), digest_size=16)
    for name in sorted(feeds):
        array = np.asarray(feeds[name])
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.digest()
