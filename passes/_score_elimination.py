"""Remove the channels of a group one after the other, the cheapest first, and note what each costs at its turn.

Two channels that replace each other are both cheap alone and dear together. So channels go one by one, as in the
optimal brain surgeon: of what is left the channel with the least increase of the squared error

    d_c = tr(R_Q^T (P_QQ)^-1 R_Q),

then the weights of the others make up for it, and their inverse forgets it (Hassibi and Stork 1993, eq. 5; in blocks,
Frantar and Alistarh 2022, arXiv 2208.11580, eqs. 6 and 7):

    R <- R - P_:Q (P_QQ)^-1 R_Q,      P <- P - P_:Q (P_QQ)^-1 P_Q:

with P the inverse of the damped second moments and R the weights of the reader. The increases add up to the error of
removing all of them together. In a large group several channels go in one round: exact among twice as many
candidates, while the others are brought up to date once a round, by one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.passes._score_options import Float64

Ints = NDArray[np.int64]
# Rounds of a large group.
_ROUNDS = 64


@dataclass(eq=False)
class Part:
    """What is left of one value that the channels are read from. `eliminate` uses it up.

    Attributes:
        inverse: (C, C), of the damped second moments.
        weights: (C, weights), of all that read the value.
        positions: (channels, n), where the channels are.
        damping: On the diagonal of the second moments. What it adds to the cost of a weight is taken off again.
    """

    inverse: Float64
    weights: Float64
    positions: Ints
    damping: float

    def __post_init__(self) -> None:
        self._own = self.damping * np.square(self.weights).sum(axis=1)[self.positions].sum(axis=1)

    def costs(self, channels: Ints) -> Float64:
        """What removing each channel adds to the error now."""
        where = self.positions[channels]
        if where.shape[1] == 1:
            flat = where[:, 0]
            found = np.square(self.weights[flat]).sum(axis=1) / self.inverse[flat, flat]
        else:
            inside = self.inverse[where[:, :, np.newaxis], where[:, np.newaxis, :]]
            rows = self.weights[where]
            found = np.sum(np.linalg.solve(inside, rows) * rows, axis=(1, 2))
        return np.asarray(found - self._own[channels])

    def among(self, channels: Ints) -> Part:
        """A part of the same values that knows these channels alone, numbered anew."""
        where = self.positions[channels].ravel()
        positions = np.arange(where.size).reshape(len(channels), -1)
        part = Part(self.inverse[np.ix_(where, where)], self.weights[where], positions, self.damping)
        part._own = self._own[channels]
        return part

    def remove(self, channels: Ints) -> None:
        """Let the others make up for the channels, and forget these."""
        gone = self.positions[channels].ravel()
        stay = np.ones(len(self.inverse), bool)
        stay[gone] = False
        across = self.inverse[np.ix_(stay, gone)]
        factor = np.linalg.solve(self.inverse[np.ix_(gone, gone)], across.T).T
        self.weights = self.weights[stay] - factor @ self.weights[gone]
        self.inverse = self.inverse[np.ix_(stay, stay)]
        self.inverse -= factor @ across.T
        self.positions = (np.cumsum(stay) - 1)[self.positions]


def eliminate(parts: Sequence[Part], size: int) -> Float64:
    """(size,): what each channel costs when it goes, in all parts together; at least what the one before did."""
    scores = np.zeros(size)
    left = np.arange(size)
    per_round = max(1, size // _ROUNDS)
    highest = 0.0
    while len(left):
        order = np.argsort(_costs(parts, left), kind="stable")
        candidates = left[order[: 2 * per_round]] if per_round > 1 else left[order[:1]]
        chosen: list[int] = []
        small = [part.among(candidates) for part in parts]
        waiting = np.arange(len(candidates))
        for _ in range(min(per_round, len(candidates))):
            costs = _costs(small, waiting)
            place = int(np.argmin(costs))
            # Who sorts by scores gets the order of removal, also where one makes the next cheaper.
            least = float(np.nextafter(highest, np.inf)) if highest > 0.0 else 0.0
            highest = max(least, float(costs[place]))
            channel = waiting[place : place + 1]
            chosen.append(int(candidates[channel[0]]))
            scores[chosen[-1]] = highest
            waiting = np.delete(waiting, place)
            for part in small:
                part.remove(channel)
        for part in parts:
            part.remove(np.array(chosen, np.int64))
        left = np.setdiff1d(left, chosen)
    return scores


def _costs(parts: Sequence[Part], channels: Ints) -> Float64:
    return np.asarray(sum((part.costs(channels) for part in parts), np.zeros(len(channels))))
