"""Which calibration samples a repair learns from and which judge it: one division, by the place in the data.

Every fifth sample is kept aside. The refit of layers, the means that are carried over and the judgement on the whole
model each look at some of the samples, as many as they can afford; none of them learns from one that another judges
by. Of fewer than five samples none is kept aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array, Batch, DataSource
from greencc.core.passes import Context
from greencc.passes._capture import require_data
from greencc.passes._quantized_pair import HELD_OUT

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some samples of a source, in its order.

    Attributes:
        source: The whole.
        places: Of the samples there, ascending.
    """

    source: DataSource
    places: Int64

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def count(self) -> int:
        return len(self.places)

    @property
    def has_labels(self) -> bool:
        return self.source.has_labels

    @property
    def synthetic(self) -> bool:
        return self.source.synthetic

    @property
    def judging(self) -> NDArray[np.bool_]:
        """(count,): which of the samples judge rather than teach."""
        return _judging(self.source.count)[self.places]

    def digest(self) -> str:
        return self.source.digest()

    def batches(self, size: int) -> Iterator[Batch]:
        if self.count == self.source.count:
            yield from self.source.batches(size)
            return
        wanted = np.zeros(self.source.count, bool)
        wanted[self.places] = True
        waiting: Batch | None = None
        first = 0
        for item in self.source.batches(size):
            picked = _rows(item, wanted[first : first + item.count])
            first += item.count
            waiting = picked if waiting is None else _joined(waiting, picked)
            if waiting.count >= size:
                yield _rows(waiting, slice(size))
                waiting = _rows(waiting, slice(size, None))
        if waiting is not None and waiting.count:
            yield waiting


def spread(source: DataSource, limit: int) -> Chosen:
    """At most `limit` samples, evenly spread over those to learn from and over those kept aside, in their proportion.

    Fewer than five are too few to keep one aside: all of them are then to learn from.
    """
    if limit >= source.count:
        return Chosen(source, np.arange(source.count, dtype=np.int64))
    teach, judge = _parts(source.count)
    aside = limit // HELD_OUT
    return Chosen(source, np.sort(np.concatenate([_evenly(teach, limit - aside), _evenly(judge, aside)])))


def teaching(ctx: Context) -> Context:
    """The context with no calibration samples but those to learn from."""
    source = require_data(ctx)
    return replace(ctx, calibration=Chosen(source, _parts(source.count)[0]))


def judges(source: DataSource, limit: int) -> Chosen:
    """At most `limit` samples, evenly spread over those kept aside; where none are, over those to learn from."""
    teach, judge = _parts(source.count)
    return Chosen(source, _evenly(judge if len(judge) else teach, limit))


def where_judged(judging: NDArray[np.bool_]) -> str:
    """How to tell on which of the chosen samples an error was taken."""
    if judging.any():
        return "on samples kept aside"
    return "on the samples learned from, too few to keep any aside"


def _judging(count: int) -> NDArray[np.bool_]:
    if count < HELD_OUT:
        return np.zeros(count, bool)
    return np.asarray(np.arange(count) % HELD_OUT == HELD_OUT - 1)


def _parts(count: int) -> tuple[Int64, Int64]:
    judging = _judging(count)
    return np.flatnonzero(~judging), np.flatnonzero(judging)


def _evenly(places: Int64, wanted: int) -> Int64:
    wanted = min(wanted, len(places))
    return places[np.arange(1, wanted + 1) * len(places) // max(wanted, 1) - 1]


def _rows(item: Batch, chosen: NDArray[np.bool_] | slice) -> Batch:
    labels = None if item.labels is None else item.labels[chosen]
    return Batch({name: values[chosen] for name, values in item.feeds.items()}, labels)


def _joined(first: Batch, second: Batch) -> Batch:
    def both(one: Array, other: Array) -> Array:
        return np.concatenate([one, other])

    labels = None if first.labels is None or second.labels is None else both(first.labels, second.labels)
    return Batch({name: both(values, second.feeds[name]) for name, values in first.feeds.items()}, labels)
