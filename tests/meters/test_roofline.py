"""The roofline and the energy table, against figures computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from greencc.core.errors import InputError, UsageError
from greencc.core.kernels import Kernel, Kernels, Work
from greencc.core.meter import Grade
from greencc.core.report import Interval
from greencc.meters.calibrated import TimedKernels, calibrated_pair
from greencc.meters.device import Calibration, DeviceProfile, PowerMode
from greencc.meters.model import Range
from greencc.meters.roofline import Estimate, demands, estimate
from tests.meters.bench_device import exactly, make_device

CALIBRATION = Calibration("2026-11-29", 40, 0.1, 1.5, 0.05, 1.2, "rapl")


def kernel(
    operations: float, weights: float = 0.0, activations: float = 400.0, dtype: str = "FLOAT"
) -> Kernel:
    return Kernel("k", "Conv", dtype, {Work.PRODUCT: operations}, weights, activations)


def of(
    *items: Kernel, device: DeviceProfile | None = None, mode: str | None = None, **options: float
) -> Estimate:
    device = device or make_device()
    return estimate(Kernels(items, ()), device, device.mode(mode), **options)  # type: ignore[arg-type]


def test_computing_bounds() -> None:
    found = of(kernel(1e8))
    # 100 us run + 1e8 / 1e11 = 1 ms + 10 us launch.
    assert found.latency_ms.value == pytest.approx(1.11)
    assert found.layers[0].bound == "compute"
    # 1e8 * 10 pJ + 400 bytes * 1 pJ + 2 W * 1.11 ms
    assert found.energy.value == pytest.approx(1.0 + 4e-7 + 2.22)
    assert found.watts.value == pytest.approx(3.22 / 1.11)
    assert (found.energy.grade, found.energy.boundary) == ("D", "test bench")
    assert found.energy.method.startswith("estimated, gross")


def test_weights_beyond_the_cache_stream_from_memory() -> None:
    found = of(kernel(1e3, weights=1e6))
    assert found.latency_ms.value == pytest.approx(0.1 + 0.01 + 1e3 * 1e6 / 1e9 + 1e3 * 400 / 1e9)
    assert (found.layers[0].bound, found.layers[0].level) == ("memory", "DRAM")
    assert any("stream from DRAM" in note for note in found.notes)


def test_weights_of_the_whole_graph_decide_where_they_come_from() -> None:
    small = kernel(1.0, weights=500.0, activations=100.0)
    alone, among = (
        demands(Kernels((small,), ()), make_device()),
        demands(Kernels((small, small), ()), make_device()),
    )
    assert alone[0].bytes == {0: 600.0}
    assert among[0].bytes == {0: 100.0, 1: 500.0}


def test_launches_bound_small_kernels() -> None:
    found = of(*[kernel(1.0)] * 50)
    assert found.latency_ms.value == pytest.approx(0.1 + 50 * 0.01, rel=1e-2)
    assert {layer.bound for layer in found.layers} == {"overhead"}
    assert sum(layer.share for layer in found.layers) == pytest.approx(0.5 / 0.6, rel=1e-2)


def test_integers_are_faster_and_cheaper() -> None:
    wide, narrow = of(kernel(1e9)), of(kernel(1e9, dtype="INT8"))
    assert wide.latency_ms.value / narrow.latency_ms.value == pytest.approx(10.11 / 2.61)
    assert narrow.energy.value < wide.energy.value


def test_the_power_cap_slows_down() -> None:
    # 100 Gop/s take 1 W at 10 pJ: with 2 W besides 3 W. Busy power is held to 60 % of the cap, 1.8 W.
    device = make_device(joules_per_operation={"float32": exactly(1e-10)}, run_seconds=exactly(1e-9))
    found = of(kernel(1e9), device=device, mode="3W")
    assert found.throttled
    assert found.unthrottled_ms == pytest.approx(20.01, rel=1e-3)
    assert found.latency_ms.value == pytest.approx(1e9 * 1e-10 / (3.0 - 1.8) * 1e3, rel=1e-3)
    assert found.watts.value == pytest.approx(3.0)
    assert found.watts.high <= 3.0 + 1e-9
    assert any("cap of 3 W" in note for note in found.notes)
    free = of(kernel(1e9), device=device)
    assert not free.throttled
    assert free.watts.value > 3.0


def test_intervals_span_all_ranges() -> None:
    device = make_device(
        rates={"float32": {work: Range(5e10, 1e11, 2e11) for work in Work}},
        kernel_seconds=Range(5e-6, 1e-5, 2e-5),
        busy_watts=Range(1.0, 2.0, 4.0),
        joules_per_operation={"float32": Range(1e-12, 1e-11, 1e-10)},
    )
    found = of(kernel(1e8), device=device)
    assert found.latency_ms.low == pytest.approx(0.1 + 0.5 + 0.005)
    assert found.latency_ms.high == pytest.approx(0.1 + 2.0 + 0.02)
    assert found.energy.low == pytest.approx(0.1 + 1.0 * 0.605, rel=1e-3)
    assert found.energy.high == pytest.approx(10.0 + 4.0 * 2.12, rel=1e-3)
    assert found.watts.low < found.watts.value < found.watts.high
    assert (found.watts.grade, found.watts.boundary) == ("D", "test bench")
    layer = found.layers[0].millijoules
    assert layer.low == pytest.approx(0.1 + 1.0 * 0.505, rel=1e-3)
    assert layer.value == pytest.approx(1.0 + 2.0 * 1.01, rel=1e-3)
    assert layer.high == pytest.approx(10.0 + 4.0 * 2.02, rel=1e-3)
    assert (layer.grade, layer.boundary) == ("D", "test bench")


def test_the_interval_of_a_calibrated_device_is_its_error() -> None:
    timed = make_device(calibration=replace(CALIBRATION, energy_mape=None, energy_factor=None, meter=None))
    found = of(kernel(1e8), device=timed)
    assert found.latency_ms.high / found.latency_ms.value == pytest.approx(1.5)
    assert found.latency_ms.value / found.latency_ms.low == pytest.approx(1.5)
    assert "leave-one-out error 10%" in found.latency_method
    assert "not calibrated" in found.energy.method
    full = of(kernel(1e8), device=make_device(calibration=CALIBRATION, grade=Grade.C))
    assert full.energy.grade == "C"
    # 1 mJ of operations and 2 W over 1.5 times as long, and the error of the fit on top.
    assert full.energy.high == pytest.approx((1.0 + 2.0 * 1.11 * 1.5) * 1.2, rel=1e-3)
    assert "fitted to rapl" in full.energy.method
    layer = full.layers[0].millijoules
    assert (layer.value, layer.grade) == (pytest.approx(1.0 + 2.0 * 1.01, rel=1e-3), "C")
    assert layer.high == pytest.approx((1.0 + 2.0 * 1.01 * 1.5) * 1.2, rel=1e-3)
    assert layer.low == pytest.approx((1.0 + 2.0 * 1.01 / 1.5) / 1.2, rel=1e-3)
    assert full.watts.high / full.watts.value > 1.2


def test_a_rate_adds_idle_time() -> None:
    found = of(kernel(1e8), rate=100.0).at_rate
    assert found is not None
    assert found.reachable == "yes"
    assert found.utilisation.value == pytest.approx(0.111)
    assert found.millijoules is not None
    assert found.watts is not None
    assert found.millijoules.value == pytest.approx(3.22 + 1.0 * (10.0 - 1.11))
    assert found.watts.value == pytest.approx(found.millijoules.value * 0.1)
    assert (found.watts.grade, found.millijoules.boundary) == ("D", "test bench")
    fitted = of(kernel(1e8), device=make_device(calibration=CALIBRATION, grade=Grade.C), rate=100.0).at_rate
    assert fitted is not None
    assert fitted.millijoules is not None
    assert fitted.millijoules.high >= fitted.millijoules.value * 1.2


def test_a_rate_may_be_out_of_reach_or_uncertain() -> None:
    found = of(kernel(1e8), rate=1e4).at_rate
    assert found is not None
    assert (found.reachable, found.watts, found.millijoules) == ("no", None, None)
    unsure = of(kernel(1e8), device=make_device(calibration=CALIBRATION), rate=1000.0).at_rate
    assert unsure is not None
    assert unsure.reachable == "uncertain"
    assert unsure.watts is not None


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_must_be_a_positive_number(rate: float) -> None:
    with pytest.raises(UsageError, match="rate"):
        of(kernel(1.0), rate=rate)


def test_an_empty_graph_has_no_estimate() -> None:
    with pytest.raises(InputError, match="nothing to estimate"):
        of()


def test_a_pair_with_measured_times() -> None:
    device = make_device(calibration=CALIBRATION, grade=Grade.C)
    big, small = (
        TimedKernels(Kernels((kernel(ops),), ()), seconds) for ops, seconds in ((2e8, 4e-3), (1e8, 2e-3))
    )
    found = calibrated_pair(big, small, device, Interval(2.0, 1.9, 2.1))
    assert found.artifact.value == pytest.approx(1.0 + 2.0 * 2.0, rel=1e-4)
    assert (found.artifact.low, found.artifact.high) == (
        pytest.approx(found.artifact.value / 1.2), pytest.approx(found.artifact.value * 1.2)
    )  # fmt: skip
    assert (found.artifact.grade, found.artifact.boundary) == ("C", "test bench")
    assert found.artifact.method.startswith("estimated")
    assert found.ratio.value == pytest.approx(2.0, rel=1e-4)
    assert found.ratio.high / found.ratio.value > 1.2
    with pytest.raises(UsageError, match="not calibrated"):
        calibrated_pair(big, small, make_device(), Interval(2.0, 1.9, 2.1))
    with pytest.raises(UsageError, match="positive times"):
        calibrated_pair(big, replace(small, seconds=0.0), device, Interval(2.0, 1.9, 2.1))


def test_a_mode_without_a_cap_never_throttles() -> None:
    assert not of(kernel(1e12)).throttled
    assert make_device(modes=()).mode(None) == PowerMode("default", None)
