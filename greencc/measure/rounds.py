"""Rounds of timed runs on this machine: the order turns around, inputs go on where the last round ended."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.measure.load import BUSY_SHARE, LoadProbe, SystemLoad, others_share

# The stable state: two windows of runs whose medians differ by less than this.
STABLE = 0.05
WARM_UP_WINDOW = 5


@dataclass(frozen=True)
class TimedRound:
    """Milliseconds of every run, by engine, and the share of the machine that others used.

    `marred` says what else makes it worthless; None: nothing.
    """

    times: tuple[tuple[float, ...], ...]
    others: float | None
    marred: str | None = None

    @property
    def disturbed(self) -> bool:
        return self.marred is not None or (self.others is not None and self.others > BUSY_SHARE)


class RoundTimer(Protocol):
    """Runs some engines where they are, and times them."""

    def watching(self) -> AbstractContextManager[None]:
        """What the rounds are in."""

    def seconds(self) -> float:
        """What of the time budget is used up."""

    def warm_up(self, index: int, seconds: float) -> float:
        """Run an engine until two windows of runs agree or the time is over; milliseconds per run."""

    def round(self, runs: int, number: int) -> TimedRound:
        """One block of so many runs per engine."""

    def notes(self) -> list[str]:
        """What a reader of the times must know."""


def order_of(count: int, number: int) -> Sequence[int]:
    """Whose turn it is in a round: the order turns around from round to round."""
    return range(count) if number % 2 == 0 else range(count - 1, -1, -1)


class LocalTimer:
    """`RoundTimer` of this machine.

    Args:
        engines: In their order.
        feeds: Inputs of one run each.
        clock_ns: Nanoseconds.
        load: How busy the rest of the machine is.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        feeds: Sequence[Feeds],
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        load: LoadProbe | None = None,
    ) -> None:
        self._engines, self._feeds, self._clock_ns = engines, feeds, clock_ns
        self._load = load or SystemLoad()
        self._start = clock_ns()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep Python's garbage collector out of the timed runs."""
        enabled = gc.isenabled()
        gc.collect()
        gc.disable()
        self._start = self._clock_ns()
        try:
            yield
        finally:
            if enabled:
                gc.enable()

    def seconds(self) -> float:
        """Since the rounds began."""
        return (self._clock_ns() - self._start) / 1e9

    def warm_up(self, index: int, seconds: float) -> float:
        """As `RoundTimer.warm_up`."""
        engine, feeds = self._engines[index], self._feeds
        deadline = self._clock_ns() + int(seconds * 1e9)
        # The very first run allocates memory and starts threads.
        engine.run(feeds[0])
        previous = math.inf
        number = 0
        while True:
            window = []
            for _ in range(WARM_UP_WINDOW):
                window.append(self._timed(engine, feeds[number % len(feeds)]))
                number += 1
                if self._clock_ns() >= deadline:
                    return statistics.median(window)
            median = statistics.median(window)
            if abs(median - previous) <= STABLE * median:
                return median
            previous = median

    def round(self, runs: int, number: int) -> TimedRound:
        """As `RoundTimer.round`."""
        # Goes on where the previous round ended, so that all inputs get their turn.
        inputs = [self._feeds[(number * runs + run) % len(self._feeds)] for run in range(runs)]
        times: dict[int, tuple[float, ...]] = {}
        before, start = self._load.others_seconds(), self._clock_ns()
        for index in order_of(len(self._engines), number):
            times[index] = tuple(self._timed(self._engines[index], each) for each in inputs)
        elapsed = (self._clock_ns() - start) / 1e9
        others = others_share(before, self._load.others_seconds(), elapsed, self._load.cpus)
        return TimedRound(tuple(times[index] for index in range(len(self._engines))), others)

    def notes(self) -> list[str]:
        """As `RoundTimer.notes`."""
        return []

    def _timed(self, engine: Engine, feeds: Feeds) -> float:
        start = self._clock_ns()
        engine.run(feeds)
        return max(self._clock_ns() - start, 1) / 1e6
