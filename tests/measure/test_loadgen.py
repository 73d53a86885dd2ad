"""Load generators on fake time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from greencc.core.errors import UsageError
from greencc.measure.loadgen import Arrivals, Driven, Load, drive
from greencc.measure.times import EXACT, TimesRecorder


def run(fake_time: Any, engine: Any, feeds: Any, seconds: float, load: Load) -> Driven:
    return drive(engine, feeds, seconds, load, clock=fake_time.seconds, sleep=fake_time.sleep)


def test_flat_out_fills_the_time(fake_time: Any, make_engine: Callable[..., Any], feeds: Any) -> None:
    found = run(fake_time, make_engine(0.25), feeds, 2.0, Load())
    assert (found.count, found.seconds, found.late) == (8, 2.0, 0)
    assert set(found.latencies_ms.values) == {250.0}


def test_at_a_rate_it_waits(fake_time: Any, make_engine: Callable[..., Any], feeds: Any) -> None:
    engine = make_engine(0.1)
    found = run(fake_time, engine, feeds, 2.0, Load(Arrivals.FIXED, 2.0))
    assert (found.count, found.seconds, found.late) == (4, pytest.approx(2.0), 0)
    assert list(found.latencies_ms.values) == pytest.approx([100.0] * 4)
    assert engine.seen == [0.0, 1.0, 2.0, 0.0]


def test_a_stall_hurts_those_behind_it(fake_time: Any, make_engine: Callable[..., Any], feeds: Any) -> None:
    # 10 requests per second of 10 ms each; the third stalls for 0.45 s, so four more wait behind it.
    engine = make_engine(lambda number: 0.45 if number == 2 else 0.01)
    found = run(fake_time, engine, feeds, 1.0, Load(Arrivals.FIXED, 10.0))
    assert found.count == 10
    assert found.services_ms.values[3] == pytest.approx(10.0)
    assert list(found.latencies_ms.values[2:8]) == pytest.approx([450.0, 360.0, 270.0, 180.0, 90.0, 10.0])
    assert found.late == 4


def test_memory_does_not_grow_with_the_time(
    fake_time: Any, make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of 1 to 7 ms: seven bins, whatever the number of runs."""
    sizes: list[int] = []
    fold = TimesRecorder.fold

    def watched(self: TimesRecorder) -> int:
        sizes.append(len(self._recent))
        return fold(self)

    monkeypatch.setattr(TimesRecorder, "fold", watched)
    engine = make_engine(lambda number: 0.001 * (1 + number % 7))
    feeds = [{"x": np.zeros(1)}]
    found = run(fake_time, engine, feeds, 0.004 * (EXACT + 30_000), Load())
    assert found.count == len(found.latencies_ms) == len(found.services_ms) >= EXACT + 29_000
    assert len(found.services_ms.values) <= 14
    assert max(sizes[:2]) == EXACT + 1
    assert max(sizes[2:]) < 10_000
    assert found.services_ms.percentiles((0.0, 50.0, 100.0)) == pytest.approx([1.0, 4.0, 7.0], rel=1e-3)


def test_poisson_arrivals_have_their_rate_and_repeat(
    fake_time: Any, make_engine: Callable[..., Any], feeds: Any
) -> None:
    load = Load(Arrivals.POISSON, 50.0, seed=3)
    first = run(fake_time, make_engine(1e-4), feeds, 100.0, load)
    second = run(fake_time, make_engine(1e-4), feeds, 100.0, load)
    # A Poisson count of mean 5,000: five standard deviations are 354.
    assert abs(first.count - 5000) < 354
    assert first.count == second.count


def test_it_runs_at_least_once(fake_time: Any, make_engine: Callable[..., Any], feeds: Any) -> None:
    assert run(fake_time, make_engine(5.0), feeds, 1.0, Load()).count == 1
    # The first request would be due after minutes; the stretch is not prolonged for it.
    found = run(fake_time, make_engine(0.1), feeds, 0.1, Load(Arrivals.POISSON, 0.001))
    assert (found.count, found.seconds) == (1, pytest.approx(0.2))


@pytest.mark.parametrize(
    ("arrivals", "rate"),
    [
        (Arrivals.FIXED, None),
        (Arrivals.FLAT_OUT, 3.0),
        (Arrivals.FIXED, 0.0),
        (Arrivals.POISSON, float("nan")),
    ],
)
def test_bad_loads_are_refused(arrivals: Arrivals, rate: float | None) -> None:
    with pytest.raises(UsageError):
        Load(arrivals, rate)


def test_no_input_is_refused(fake_time: Any, make_engine: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="at least one input"):
        run(fake_time, make_engine(0.1), [], 1.0, Load())
