"""Calibration in parts: where the data are cut, what is computed of a part, and how parts become one.

Parts are as large as the data and the size of a run make them, never as the number of workers does. A part gives the
ends of each of its runs, one by one, so that moving averages see them in the order of the data; histograms add up
exactly (`Histogram.merge`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from greencc.core.cache import cache_key
from greencc.core.data import Array, Batch, DataSource, Feeds
from greencc.core.engine import Engine
from greencc.core.shards import Shard
from greencc.passes._capture import checked, run_split
from greencc.passes._range_methods import Statistics
from greencc.passes._ranges import Histogram
from greencc.passes._statistics_arrays import pack, unpack

# So many parts keep the workers of one machine busy; each loads the model, so a part is a few runs at least.
_MOST_SHARDS = 16
_FEWEST_RUNS = 4

_ENDS, _RUNS, _BROKEN = "run_ends", "run_numbers", "broken"


def shards_of(source: DataSource, size: int, key: str) -> list[Shard]:
    """Cut the data into runs of `size` samples, and the runs into shards.

    Args:
        source: The calibration data.
        size: Samples of a run.
        key: What all results depend on.
    """
    runs = math.ceil(source.count / size)
    each = max(_FEWEST_RUNS, math.ceil(runs / _MOST_SHARDS))
    reader = _Reader(source, size)
    return [
        Shard(cache_key(key, start, each), lambda start=start: reader.runs(start, start + each))  # type: ignore[misc]
        for start in range(0, runs, each)
    ]


class _Reader:
    """Runs by their number."""

    def __init__(self, source: DataSource, size: int) -> None:
        self._source, self._size = source, size
        self._items: Iterator[Batch] = iter(())
        self._next = math.inf

    def runs(self, start: int, stop: int) -> list[Feeds]:
        """Some runs; the source is read from its beginning again where they lie before the last ones."""
        if start < self._next:
            self._items, self._next = checked(self._source, self._size), 0
        found: list[Feeds] = []
        while self._next < stop:
            item = next(self._items, None)
            if item is None:
                break
            if self._next >= start:
                found.append(item.feeds)
            self._next += 1
        return found


def observe_shard(
    engine: Engine, runs: Sequence[Feeds], ends: Sequence[str], counted: Sequence[str]
) -> dict[str, Array]:
    """What is seen in some runs.

    Args:
        engine: Gives `ends`, scalars, and `counted`, values of any shape.
        runs: Feeds of each.
    """
    seen = {name: Statistics(histogram=Histogram()) for name in counted}
    rows: list[list[float]] = []
    numbers: list[int] = []
    broken = -1
    for number, feeds in enumerate(runs):
        item = Batch(dict(feeds))
        for results in run_split(engine, item, item.count):
            rows.append([float(results[name]) for name in ends])
            numbers.append(number)
            for position, (name, value) in enumerate(seen.items()):
                assert value.histogram is not None
                if not value.histogram.update(results[name]):
                    broken = position
                    break
            if broken >= 0:
                break
        if broken >= 0:
            # Whoever puts the parts together refuses the data.
            break
    return {
        _ENDS: np.array(rows, np.float64).reshape(len(rows), len(ends)),
        _RUNS: np.array(numbers, np.int64),
        _BROKEN: np.array(broken, np.int64),
        **pack(seen),
    }


def run_ends(found: Mapping[str, Array]) -> Iterator[tuple[int, list[float]]]:
    """The scalars that `observe_shard` saw, in the order of the runs: number of the run and one for each of `ends`."""
    for number, row in zip(found[_RUNS], found[_ENDS], strict=True):
        yield int(number), [float(value) for value in row]


def broken_value(found: Mapping[str, Array], counted: Sequence[str]) -> str | None:
    """Which of `counted` held NaN or infinity in the last run of `run_ends`, after which nothing was run."""
    position = int(found[_BROKEN])
    return counted[position] if position >= 0 else None


def histograms_of(found: Mapping[str, Array]) -> Iterator[tuple[str, Histogram]]:
    """The histogram of each of `counted`."""
    for name, value in unpack(found):
        if value.histogram is not None:
            yield name, value.histogram
