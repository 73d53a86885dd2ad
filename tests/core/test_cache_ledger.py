"""What a run finds again of what earlier runs in the same process have computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from greencc.core import cache as module
from greencc.core.cache import Cache


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_was_computed_before_and_found_again(
    tmp_path: Path, clock: list[float], in_memory: bool
) -> None:
    shared = Cache(None if in_memory else tmp_path / "cache")
    arrays = {"x": np.ones(2)}
    first = shared.sibling()
    first.ledger.begin()
    # Both are looked for before either is computed, as a search does it.
    assert first.get("a", "1") is None
    assert first.get("a", "2") is None
    clock[0] += 3.0
    first.put("a", "1", arrays)
    clock[0] += 5.0
    first.put("a", "2", arrays)
    assert first.get("a", "1") is not None
    assert (first.ledger.count, first.ledger.seconds) == (0, 0.0), "what this run made itself saves nothing"
    second = shared.sibling()
    second.ledger.begin()
    assert second.get("a", "2") is not None
    assert second.get("a", "2") is not None
    assert second.get("b", "2") is None
    assert (second.ledger.count, second.ledger.seconds) == (1, 5.0)
    assert second.get("a", "1") is not None
    assert (second.ledger.count, second.ledger.seconds) == (2, 8.0)
    assert (first.hits, second.hits) == ((0, 0) if in_memory else (0, 2))


def test_entries_of_earlier_processes_do_not_count(tmp_path: Path) -> None:
    Cache(tmp_path).put("a", "1", {"x": np.ones(2)})
    later = Cache(tmp_path)
    later.ledger.begin()
    assert later.get("a", "1") is not None
    assert later.ledger.count == 0
    assert later.hits == 1
