"""Plans, and the figures of the load."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from greencc.compiler.campaign import load_figures, make_plan
from greencc.compiler.options import parse_rate
from greencc.core.errors import UsageError
from greencc.core.meter import Meter, PowerMeter
from greencc.measure.blocks import Block, Discard
from greencc.measure.loadgen import Arrivals


def block(latency: float, discarded: Discard | None = None, **fields: Any) -> Block:
    values = np.full(10, latency, np.float32)
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
