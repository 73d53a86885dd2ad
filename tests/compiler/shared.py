"""Executors for the tests of what runs on workers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

import pytest

from greencc.core.cache import Cache
from greencc.execution import Executor, Outcome, Work
from greencc.execution.executor import Stop, never

ENGINES = [
    ("local", 1),
    ("local", 2),
    ("local", 3),
    pytest.param(
        ("ray", 2),
        marks=pytest.mark.skipif(
            importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray"
        ),
    ),
]


class Watched:
    """Two workers, as far as their user can tell; what they run is counted, and the driver ends after some results."""

    here = False

    def __init__(self, inside: Executor, stop_after: int | None = None) -> None:
        self.inside, self.stop_after = inside, stop_after
        self.workers, self.threads = 2, 1
        self.busy = False
        self.ran = 0

    def run(self, works: Sequence[Work], cache: Cache, stop: Stop = never) -> Iterator[Outcome]:
        for outcome in self.inside.run(works, cache, stop):
            self.ran += outcome.task is not None
            yield outcome
            if self.stop_after is not None and self.ran >= self.stop_after:
                raise KeyboardInterrupt

    def close(self) -> None:
        """There is nothing to end."""
