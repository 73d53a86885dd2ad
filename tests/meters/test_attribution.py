"""Shares of layers: they sum to the whole, at every corner, whatever is zero."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import UsageError
from greencc.core.report import Energy, Interval
from greencc.meters.attribution import layer_shares, share_out
from greencc.meters.model import DevicePower, OperationCounts, Range, Workload

POWER = DevicePower(Range(8.0, 10.0, 12.0), "test")


def work(seconds: float, macs: float = 0.0, moved: float = 0.0) -> Workload:
    return Workload(OperationCounts({"float32": macs} if macs else {}, moved), seconds)


def energy(value: float, low: float, high: float, gross: float | None = None) -> Energy:
    return Energy(value, low, high, "D", "package", "test", gross)


def test_without_operations_energy_goes_by_time_and_is_certain() -> None:
    shares = layer_shares([work(1e-3), work(3e-3)], POWER, 1.0)
    assert [share.value for share in shares] == pytest.approx([0.25, 0.75])
    # All coefficients cancel.
    assert [share.low for share in shares] == pytest.approx([0.25, 0.75])
    assert [share.high for share in shares] == pytest.approx([0.25, 0.75])


def test_operations_weigh_beside_time_and_widen_the_interval() -> None:
    # 82 mJ of static power each; 1e9 float MACs cost 1.69 to 4.6 mJ.
    first, second = layer_shares([work(0.01, macs=1e9), work(0.01)], POWER, 1.0)
    assert first.low < first.value < first.high
    assert first.low > 0.5
    assert first.value + second.value == pytest.approx(1.0)
    assert first.low + second.high == pytest.approx(1.0)


def test_a_layer_without_time_still_has_its_operations() -> None:
    none, some, rest = layer_shares([work(0.0), work(0.0, macs=1e9), work(0.01)], POWER, 1.0)
    assert (none.value, none.low, none.high) == (0.0, 0.0, 0.0)
    assert 0.0 < some.value < rest.value


def test_of_net_energy_idle_power_is_no_part() -> None:
    parts = [work(0.01), work(0.0, macs=1e9)]
    gross, net = (layer_shares(parts, POWER, 1.0, net=net)[1] for net in (False, True))
    # 10 W x 10 ms x (0.1 + 0.9 x 0.8) = 82 mJ gross, 72 net: operations weigh more.
    assert net.value / (1 - net.value) == pytest.approx(82 / 72 * gross.value / (1 - gross.value))


@pytest.mark.parametrize(
    "parts", [[], [work(0.0)], [work(-1.0)], [work(math.nan)], [work(1.0, moved=math.inf)]]
)
def test_nothing_to_share_out_by(parts: list[Workload]) -> None:
    with pytest.raises(UsageError, match="shared out"):
        layer_shares(parts, POWER, 1.0)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1e-2), st.floats(0, 1e9), st.floats(0, 1e8)), min_size=1, max_size=8),
    st.floats(1e-6, 1e6),
)
def test_parts_sum_to_the_total(facts: list[tuple[float, float, float]], total: float) -> None:
    parts = [*(work(*fact) for fact in facts), work(1e-3)]
    shares = layer_shares(parts, POWER, 0.5)
    assert all(0.0 <= share.low <= share.value <= share.high <= 1.0 + 1e-12 for share in shares)
    found = share_out(energy(total, 0.5 * total, 2.0 * total), shares)
    # Exactly, but for the rounding of the last addition.
    assert abs(math.fsum(part.mj.value for part in found) - total) <= math.ulp(total)
    assert all(part.mj.low <= part.mj.value <= part.mj.high for part in found)


def test_the_totals_interval_is_in_that_of_its_parts() -> None:
    shares = (Interval(0.25, 0.2, 0.3), Interval(0.75, 0.7, 0.8))
    first, second = share_out(energy(100.0, -10.0, 200.0), shares)
    assert (first.mj.value, second.mj.value) == (25.0, 75.0)
    # Net energy near the noise: its interval reaches below 0, and so do those of the layers.
    assert (first.mj.low, first.mj.high) == pytest.approx((-3.0, 60.0))
    assert (second.mj.low, second.mj.high) == pytest.approx((-8.0, 160.0))
    assert first.share == shares[0]
