"""Plans, and the figures of the load."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from greencc.compiler import campaign
from greencc.compiler.campaign import load_figures, make_plan, run_load
from greencc.compiler.options import parse_rate
from greencc.core.errors import UsageError
from greencc.core.meter import Meter, PowerMeter
from greencc.measure.blocks import Block, Discard
from greencc.measure.loadgen import Arrivals
from greencc.measure.protocols import EnergyProtocol
from greencc.measure.times import times_of


def block(latency: float, discarded: Discard | None = None, **fields: Any) -> Block:
    values = times_of([latency] * 10)
    return Block(
        None,
        2.0,
        10,
        variant="artifact",
        latencies_ms=values,
        services_ms=values,
        discarded=discarded,
        **fields,
    )


def test_plans() -> None:
    plan = make_plan("quick", rate=30.0, poisson=True, until=0.1, limit_seconds=60.0)
    assert (plan.protocol.name, plan.protocol.target, plan.protocol.limit_seconds) == ("quick", 0.1, 60.0)
    assert (plan.load.arrivals, plan.load.rate) == (Arrivals.POISSON, 30.0)
    assert make_plan(rate=1.0).load.arrivals is Arrivals.FIXED
    assert make_plan().load.arrivals is Arrivals.FLAT_OUT
    with pytest.raises(UsageError, match="random arrivals take a rate"):
        make_plan(poisson=True)


def test_a_rate_that_leaves_blocks_without_a_request_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at 0.002 requests per second most blocks of 10 s") as caught:
        make_plan(rate=0.002)
    assert caught.value.hint == "a --rate of 0.1/s or more, or flat out"
    assert make_plan(rate=0.1).load.rate == 0.1


def test_a_recording_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    recording = tmp_path / "recording.csv"
    recording.write_text("seconds,watts\n" + "".join(f"{number / 10},5.0\n" for number in range(100)))
    with pytest.raises(UsageError, match=r"\(grade D\) estimates") as caught:
        make_plan(meter=f"csv:{recording}")
    assert caught.value.hint is not None
    assert "csv:FILE?grade=A" in caught.value.hint
    plan = make_plan(meter=f"csv:{recording}?grade=A")
    assert plan.meter is not None


def test_without_a_meter_a_block_is_long_enough_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EnergyProtocol] = []

    def measure(
        first: Any, second: Any, feeds: Any, meter: None, protocol: EnergyProtocol, **options: Any
    ) -> Any:
        seen.append(protocol)
        return SimpleNamespace(blocks=())

    monkeypatch.setattr(campaign, "measure_energy", measure)
    for rate in (0.2, 1000.0):
        run_load((None, None), [], make_plan(rate=rate))  # type: ignore[arg-type]
    slow, fast = seen
    assert slow.block_seconds == 5.0
    assert fast.block_seconds == 1.0
    for each in seen:
        each.check_limit(0.0)


@pytest.mark.parametrize(
    ("text", "rate"), [("30/s", 30.0), ("1800 / min", 30.0), ("7.5", 7.5), ("36/h", 0.01)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "0", "-3/s", "30/", "30/day", "nan", "inf/s", "1e3/s"])
def test_bad_rates(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate of requests"):
        parse_rate(text)


def test_figures_of_the_load_leave_disturbed_blocks_out() -> None:
    figures = load_figures(
        [block(5.0, late=3), block(7.0, Discard.FAILED), block(99.0, Discard.BUSY)], "artifact"
    )
    assert figures is not None
    assert (figures.requests, figures.per_second, figures.late, figures.clean) == (20, 5.0, 3, True)
    assert (figures.latency_ms.p50, figures.latency_ms.p999) == pytest.approx((6.0, 7.0))


def test_where_all_blocks_were_disturbed_their_figures_say_so() -> None:
    figures = load_figures([block(99.0, Discard.BUSY)], "artifact")
    assert figures is not None
    assert (figures.clean, figures.latency_ms.p50) == (False, pytest.approx(99.0))
    assert load_figures([block(99.0)], "baseline") is None


def test_which_meters_a_plan_tries() -> None:
    def working() -> list[Meter | PowerMeter]:
        raise AssertionError("meters were looked for")

    assert list(make_plan("quick", meter="none").meters(working)) == []
    assert list(make_plan("quick").meters(list)) == []
    with pytest.raises(AssertionError):
        make_plan("quick").meters(working)
