"""Rounds of timed runs on another machine: every block is one stretch there, timed by its own clock."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from greencc.core.data import Feeds
from greencc.core.elsewhere import DistantEngine, Driven, LostError, Stretch
from greencc.measure.blocks import Discard
from greencc.measure.elsewhere import disturbance, lost_note
from greencc.measure.rounds import WARM_UP_WINDOW, TimedRound, order_of

# Lost so often in a row, the last error is the caller's.
_MAX_LOST = 3
_FEWEST_SECONDS = 1e-3


class DistantTimer:
    """`greencc.measure.rounds.RoundTimer` of a site; what is counted is the time that engines ran there.

    Getting each stretch there and back takes time as well, which is no part of the budget: it would leave no rounds.

    Args:
        engines: In their order, all on one site.
        feeds: Inputs of one run each.
    """

    def __init__(self, engines: Sequence[DistantEngine], feeds: Sequence[Feeds]) -> None:
        self._engines, self._feeds = engines, feeds
        self._spent = 0.0
        self._lost = self._again = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """As `RoundTimer.watching`: the warm-up is no part of the budget."""
        self._spent = 0.0
        yield

    def seconds(self) -> float:
        """As `RoundTimer.seconds`."""
        return self._spent

    def warm_up(self, index: int, seconds: float) -> float:
        """As `RoundTimer.warm_up`; whoever runs a stretch there warms up before it, so that one is enough.

        Raises:
            UnavailableError: The site was lost several times, or cannot be reached.
        """
        while True:
            driven = self._drive(index, Stretch(seconds=max(seconds, _FEWEST_SECONDS)))
            if driven is not None:
                return statistics.median(list(driven.services_ms)[-WARM_UP_WINDOW:])

    def round(self, runs: int, number: int) -> TimedRound:
        """As `RoundTimer.round`; one that was lost is measured again.

        Raises:
            UnavailableError: As `warm_up`.
        """
        stretch = Stretch(runs=runs, first=(number * runs) % len(self._feeds))
        while True:
            driven: dict[int, Driven] = {}
            for index in order_of(len(self._engines), number):
                found = self._drive(index, stretch)
                if found is None:
                    break
                driven[index] = found
            else:
                mode = self._engines[0].site.power_mode
                return _round([driven[index] for index in range(len(self._engines))], mode)

    def notes(self) -> list[str]:
        """As `RoundTimer.notes`."""
        return [lost_note(self._again, "of the latency measurement")] if self._again else []

    def _drive(self, index: int, stretch: Stretch) -> Driven | None:
        """A stretch, or None where it was lost and the site may do better."""
        try:
            driven = self._engines[index].drive(self._feeds, stretch)
        except LostError:
            self._lost += 1
            if self._lost >= _MAX_LOST:
                raise
            self._again += 1
            return None
        self._lost = 0
        self._spent += driven.seconds
        return driven


def _round(blocks: Sequence[Driven], mode: str | None) -> TimedRound:
    shares = [each.others for each in blocks if each.others is not None]
    causes = [
        found[1] for each in blocks if (found := disturbance(each, mode)) and found[0] is not Discard.BUSY
    ]
    return TimedRound(
        tuple(tuple(each.services_ms) for each in blocks),
        max(shares, default=None),
        causes[0] if causes else None,
    )
