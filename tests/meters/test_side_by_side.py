"""Two graphs beside each other on a device that is only known by its profile, against ratios computed by hand."""

from __future__ import annotations

import math

import pytest

from greencc.core.errors import InputError
from greencc.core.kernels import Kernel, Kernels, Work
from greencc.meters.device import Calibration, DeviceProfile
from greencc.meters.model import Range
from greencc.meters.side_by_side import SideBySide, side_by_side
from tests.meters.bench_device import exactly, make_device


def kernel(operations: float, launches: tuple[int, int] = (1, 1), dtype: str = "FLOAT") -> Kernel:
    return Kernel("k", "Conv", dtype, {Work.PRODUCT: operations} if operations else {}, 0.0, 0.0, launches)


def compare(*graphs: tuple[Kernel, ...], device: DeviceProfile | None = None) -> SideBySide:
    device = device or make_device()
    return side_by_side([Kernels(items, ()) for items in graphs], device, device.mode(None))


def test_errors_that_both_share_cancel() -> None:
    device = make_device(
        rates={"float32": {work: Range(5e10, 1e11, 2e11) for work in Work}},
        kernel_seconds=exactly(1e-12),
        run_seconds=exactly(1e-12),
    )
    [ratio] = compare((kernel(2e8),), (kernel(1e8),), device=device).latency
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    # Rates of two types do not: 100 Gop/s within a factor of 2 against 400.
    device = make_device(
        rates={
            "float32": {work: Range(5e10, 1e11, 2e11) for work in Work},
            "int8": {work: exactly(4e11) for work in Work},
        },
        kernel_seconds=exactly(1e-12),
        run_seconds=exactly(1e-12),
    )
    [ratio] = compare((kernel(1e8),), (kernel(1e8, dtype="INT8"),), device=device).latency
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((4.0, 2.0, 8.0))


def test_a_node_that_may_be_fused_may_have_cost_nothing() -> None:
    # 100 us of a run and 10 us a launch: of 16 of which six may be free, against ten that are certain.
    slow = (*[kernel(0.0)] * 10, *[kernel(0.0, (0, 1))] * 6)
    [ratio] = compare(slow, (kernel(0.0),) * 10).latency
    assert ratio.value == pytest.approx(260 / 200)
    assert (ratio.low, ratio.high) == pytest.approx((1.0, 260 / 200))
    # What has joined a kernel may be one of its own.
    [ratio] = compare((kernel(0.0, (1, 5)),) * 10, (kernel(0.0),) * 5).latency
    assert (ratio.value, ratio.high) == pytest.approx((200 / 150, 600 / 150))


def test_small_differences_are_not_told_apart() -> None:
    found = compare((kernel(1.05e8),), (kernel(1e8),))
    [latency], [energy] = found.latency, found.energy
    assert latency.low == energy.low == 1.0
    assert 1.0 < latency.value < 1.1
    assert not found.told_apart
    worse = compare((kernel(1e8),), (kernel(1.05e8),)).latency[0]
    assert worse.value < worse.high == 1.0
    large = compare((kernel(1.5e8),), (kernel(1e8),))
    assert large.latency[0].low > 1.1
    assert large.told_apart
    assert compare((kernel(1e8),), (kernel(1e8),)).told_apart


def test_a_calibrated_profile_has_the_errors_of_its_fit() -> None:
    device = make_device(calibration=Calibration("2026-11-29", 40, 0.1, 1.5))
    [ratio] = compare((kernel(1.05e8),), (kernel(1e8),), device=device).latency
    assert (
        ratio.high / ratio.value
        == pytest.approx(ratio.value / ratio.low)
        == pytest.approx(1.5 ** math.sqrt(2.0))
    )
    assert ratio.low < 1.0 < ratio.high


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(InputError, match="no graph"):
        compare()
