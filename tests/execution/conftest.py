"""Executors to test, and works for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from greencc.core.cache import Cache
from greencc.execution import Executor, InProcess, Outcome, Work, make_executor

from .tasks import Square

HAS_RAY = importlib.util.find_spec("ray") is not None
NO_RAY = "Ray is not installed: make test-ray"
KINDS = ("here", "processes", pytest.param("ray", marks=pytest.mark.skipif(not HAS_RAY, reason=NO_RAY)))


@pytest.fixture(scope="session")
def ray_executor() -> Iterator[Executor]:
    """One Ray for all tests: it takes seconds to start."""
    executor = make_executor("ray", 2)
    yield executor
    executor.close()


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """The executor named by the parameter."""
    if request.param == "ray":
        yield request.getfixturevalue("ray_executor")
        return
    made: Executor = InProcess(1) if request.param == "here" else make_executor("local", 2)
    yield made
    made.close()


def squares(count: int, log: Path, deaths: dict[int, int] | None = None, sleep: float = 0.0) -> list[Work]:
    """Works that square the first numbers; some kill their worker a few times first."""
    deaths = deaths or {}
    return [
        Work(
            "squares",
            f"square-{number}",
            f"the square of {number}",
            lambda _, number=number: Square(number, log, deaths.get(number, 0), sleep),  # type: ignore[misc]
        )
        for number in range(count)
    ]


def gather(executor: Executor, works: Sequence[Work], cache: Cache) -> dict[int, Outcome]:
    """All outcomes, by index."""
    found = {outcome.index: outcome for outcome in executor.run(works, cache)}
    assert len(found) <= len(works)
    return found


def log_lines(log: Path) -> list[int]:
    """The numbers that were squared, sorted."""
    return sorted(map(int, log.read_text(encoding="utf-8").split())) if log.exists() else []
