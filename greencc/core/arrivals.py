"""When requests come at a rate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np


def due_offsets(rate: float, *, poisson: bool = False, seed: int = 0) -> Iterator[float]:
    """Seconds after the start at which each request is due, without end.

    Args:
        rate: Requests per second, above 0.
        poisson: They come at random (exponential gaps) rather than evenly.
        seed: Of the random ones.
    """
    if not poisson:
        yield from (number / rate for number in itertools.count())
    gaps = np.random.default_rng(seed)
    due = 0.0
    while True:
        due += float(gaps.exponential(1.0 / rate))
        yield due
