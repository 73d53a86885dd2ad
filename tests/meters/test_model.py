"""The grade D estimate: closed forms, intervals, and shared coefficients in ratios."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.core.errors import UsageError
from greencc.core.report import Interval
from greencc.meters.model import (
    MODEL_BOUNDARY,
    DevicePower,
    OperationCounts,
    Range,
    Workload,
    device_power,
    estimate,
    estimate_pair,
    load_of,
)

POWER = DevicePower(Range(8.0, 10.0, 12.0), "test")


def work(seconds: float, macs: float = 0.0, moved: float = 0.0, dtype: str = "float32") -> Workload:
    return Workload(OperationCounts({dtype: macs} if macs else {}, moved), seconds)


def test_without_operations_it_is_power_times_time() -> None:
    energy = estimate(work(0.01), POWER, load=1.0)
    # 10 W * (0.1 + 0.9 * 0.8) * 10 ms = 82 mJ; low 8 W * (0.05 + 0.95 * 0.4); high 12 W * 1.
    assert energy.value == pytest.approx(82.0)
    assert energy.low == pytest.approx(8 * (0.05 + 0.95 * 0.4) * 10)
    assert energy.high == pytest.approx(120.0)
    assert (energy.grade, energy.boundary, energy.gross) == ("D", MODEL_BOUNDARY, None)
    assert "estimated" in energy.method
    assert "gross" in energy.method


def test_at_full_share_it_is_the_published_law() -> None:
    energy = estimate(work(1.0), DevicePower(Range(100.0, 100.0, 100.0), ""), load=0.5)
    # TDP * (idle + (1 - idle) * load^3) with the largest idle share, 0.3, in millijoules.
    assert energy.high == pytest.approx(1e5 * (0.3 + 0.7 * 0.125))


def test_operations_cost_between_the_two_processes() -> None:
    empty, full = estimate(work(1e-6), POWER, 1.0), estimate(work(1e-6, macs=1e9), POWER, 1.0)
    assert full.low - empty.low == pytest.approx(1.69)
    assert full.high - empty.high == pytest.approx(4.6)


def test_integers_cost_less_than_floats_and_spellings_agree() -> None:
    by_type = {
        dtype: estimate(work(1e-6, 1e9, dtype=dtype), POWER, 1.0).value
        for dtype in ("int8", "float16", "float32", "float64")
    }
    assert sorted(by_type, key=by_type.__getitem__) == ["int8", "float16", "float32", "float64"]
    for alias, dtype in (("UINT8", "int8"), ("FLOAT", "float32"), ("FLOAT16", "float16")):
        assert estimate(work(1e-6, 1e9, dtype=alias), POWER, 1.0).value == by_type[dtype]


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("INT32", 0.03 + 1.48, 0.1 + 3.1),
        ("UINT32", 0.03 + 1.48, 0.1 + 3.1),
        ("INT64", 2 * 0.03 + 4 * 1.48, 2 * 0.1 + 4 * 3.1),
        ("UINT64", 2 * 0.03 + 4 * 1.48, 2 * 0.1 + 4 * 3.1),
        ("COMPLEX64", 4 * 1.69, 4 * 4.6),
    ],
)
def test_wide_integers_and_complex_numbers_have_figures_of_their_own(
    dtype: str, low: float, high: float
) -> None:
    empty, full = estimate(work(1e-6), POWER, 1.0), estimate(work(1e-6, 1e9, dtype=dtype), POWER, 1.0)
    assert full.low - empty.low == pytest.approx(low)
    assert full.high - empty.high == pytest.approx(high)
    assert "upper bound" not in full.method


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [
        ("INT16", "int32"),
        ("UINT16", "int32"),
        ("BOOL", "int8"),
        ("INT4", "int8"),
        ("UINT2", "int8"),
        ("FLOAT8E4M3FN", "float16"),
        ("FLOAT4E2M1", "float16"),
        ("UNDEFINED", "float32"),
    ],
)
def test_types_without_figures_take_those_of_a_wider_one_as_a_bound(dtype: str, wider: str) -> None:
    energy, bound = (estimate(work(1e-6, 1e9, dtype=name), POWER, 1.0) for name in (dtype, wider))
    assert (energy.low, energy.value, energy.high) == (bound.low, bound.value, bound.high)
    assert energy.method.endswith(f"upper bound: {dtype.lower()} operations as {wider}")


def test_every_type_of_onnx_can_be_estimated() -> None:
    for dtype in ir.DataType:
        assert estimate(work(1e-6, 1e9, dtype=dtype.name), POWER, 1.0).low > 0.0


def test_bytes_cost_between_cache_and_memory() -> None:
    empty, full = estimate(work(1e-6), POWER, 1.0), estimate(work(1e-6, moved=1e9), POWER, 1.0)
    assert full.high - empty.high == pytest.approx(2600 / 8)
    assert full.low - empty.low == pytest.approx(0.05 * 1300 / 8 + 0.95 * 14 / 8)


positive = st.floats(1e-3, 1e3)


@given(st.tuples(positive, positive, positive), st.tuples(positive, positive, positive), st.floats(0.05, 1.0))
def test_the_ratio_is_consistent_and_narrower_than_the_quotient(
    first: tuple[float, float, float], second: tuple[float, float, float], load: float
) -> None:
    a = work(first[0] * 1e-3, first[1] * 1e9, first[2] * 1e6)
    b = work(second[0] * 1e-3, second[1] * 1e9, second[2] * 1e6, dtype="int8")
    pair = estimate_pair(a, b, POWER, load)
    assert pair.baseline.low <= pair.baseline.value <= pair.baseline.high
    assert pair.ratio.low <= pair.ratio.value <= pair.ratio.high
    assert pair.ratio.value == pytest.approx(pair.baseline.value / pair.artifact.value)
    assert pair.ratio.low >= pair.baseline.low / pair.artifact.high * (1 - 1e-9)
    assert pair.ratio.high <= pair.baseline.high / pair.artifact.low * (1 + 1e-9)


def test_the_ratio_covers_every_inner_choice_of_coefficients() -> None:
    from greencc.meters import model

    a, b = work(5e-3, 4e9, 3e8), Workload(OperationCounts({"int8": 3e9, "float32": 1e8}, 1e8), 4e-3)
    pair = estimate_pair(a, b, POWER, 1.0)
    grids = [
        [item.low + (item.high - item.low) * part for part in (0.0, 0.3, 0.7)]
        for item in model._ranges(POWER)
    ]
    for values in itertools.product(*grids):
        draw = model.Draw(*values)
        ratio = model._millijoules(a, draw, 1.0) / model._millijoules(b, draw, 1.0)
        assert pair.ratio.low <= ratio <= pair.ratio.high


def test_equal_variants_have_ratio_one_exactly() -> None:
    ratio = estimate_pair(work(1e-3, 1e9), work(1e-3, 1e9), POWER, 1.0).ratio
    assert (ratio.low, ratio.value, ratio.high) == (1.0, 1.0, 1.0)


def test_the_uncertainty_of_the_latency_widens_the_ratio() -> None:
    a, b = work(2e-3), work(1e-3)
    ratio = estimate_pair(a, b, POWER, 1.0, Interval(2.0, 1.5, 2.5)).ratio
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.5, 2.0, 2.5))


@pytest.mark.parametrize(
    ("cpu", "kind"),
    [
        ("Intel(R) Xeon(R) Processor", "server"),
        ("AMD EPYC 7763 64-Core Processor", "server"),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "mobile"),
        ("Intel(R) Core(TM) i7-8550U CPU @ 1.80GHz", "mobile"),
        ("AMD Ryzen 7 5800X 8-Core Processor", "desktop"),
        ("Intel(R) Core(TM) i9-9900K CPU @ 3.60GHz", "desktop"),
        ("Cortex-A53", "small ARM core"),
        ("Cortex-A76", "big ARM core"),
        ("Cortex-A57", "big ARM core"),
        ("Neoverse-N1", "ARM server"),
        ("something else", "unknown CPU"),
    ],
)
def test_unknown_design_power_follows_the_class_and_the_cores(tmp_path: Path, cpu: str, kind: str) -> None:
    one = device_power({"cpu": cpu, "physical_cores": "1"}, root=tmp_path)
    four = device_power({"cpu": cpu, "physical_cores": "4"}, root=tmp_path)
    assert one.source.startswith(kind)
    assert four.watts.central == pytest.approx(4 * one.watts.central)
    assert one.watts.low < one.watts.central < one.watts.high


def test_design_power_from_the_kernel(tmp_path: Path) -> None:
    folder = tmp_path / "class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0\n")
    (folder / "constraint_0_max_power_uw").write_text("15000000\n")
    power = device_power({"cpu": "x", "physical_cores": "4"}, root=tmp_path)
    assert power.watts == Range(12.0, 15.0, 18.0)
    assert "powercap" in power.source


@pytest.mark.parametrize(
    ("facts", "load"),
    [
        ({"threads": "2", "physical_cores": "4"}, 0.5),
        ({"threads": "8", "physical_cores": "4"}, 1.0),
        ({"threads": "3"}, 1.0),
        ({}, 1.0),
    ],
)
def test_load(facts: dict[str, str], load: float) -> None:
    assert load_of(facts) == load


@pytest.mark.parametrize(
    ("workload", "load", "message"),
    [
        (work(0.0), 1.0, "positive time"),
        (work(math.nan), 1.0, "positive time"),
        (work(1.0, -1.0), 1.0, "non-negative"),
        (work(1.0), 0.0, "the load is 0.0"),
        (work(1.0), 1.5, "the load is 1.5"),
    ],
)
def test_nonsense_is_refused(workload: Workload, load: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        estimate(workload, POWER, load)


def test_a_nonsensical_latency_ratio_is_refused() -> None:
    with pytest.raises(UsageError, match="latency ratio"):
        estimate_pair(work(1.0), work(1.0), POWER, 1.0, Interval(1.0, -1.0, 2.0))
