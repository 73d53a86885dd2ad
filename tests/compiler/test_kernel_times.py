"""Measured times of operations: on the real runtime, and on profiles without noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greencc.compiler.kernel_grid import channels_of, resized
from greencc.compiler.kernel_times import (
    KIND,
    KernelTime,
    KernelTimes,
    Order,
    Sampling,
    Source,
    compare,
    summary,
)
from greencc.compiler.profiling import Repeats
from greencc.compiler.signatures import Absorbed, Operand, Signature
from greencc.core.cache import Cache
from greencc.core.cache_upkeep import stored_entries
from greencc.core.data import Feeds
from greencc.core.engine import NodeTime
from greencc.core.machine import CpuInfo
from greencc.core.passes import Pass
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import Bias, QuantizeInt8, RangeMethod, Rounding
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.targets import CpuTarget
from greencc.targets import cpu as cpu_module
from greencc.targets._cpu_capabilities import int8_support

SHORT = Sampling(Repeats(runs=2, least=3, most=3))


def conv(outs: int = 16, ins: int = 16) -> Signature:
    operands = (
        Operand("FLOAT", (1, ins, 8, 8), constant=False, open_axes=(0,)),
        Operand("FLOAT", (outs, ins, 3, 3), constant=True),
        Operand("FLOAT", (outs,), constant=True),
    )
    return Signature("Conv", "", (("pads", (1, 1, 1, 1)),), operands, (Absorbed("Relu"),), 20)


def product(outs: int = 64) -> Signature:
    operands = (
        Operand("FLOAT", (1, 7, 32), constant=False, open_axes=(0,)),
        Operand("FLOAT", (32, outs), constant=True),
    )
    bias = Absorbed("Add", operands=(Operand("FLOAT", (outs,), constant=True),))
    return Signature("MatMul", "", (), operands, (bias,), 20)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> CpuTarget:
    """As on a machine with VNNI, whatever this one has."""
    vnni = CpuInfo(
        "x86_64", "test", "test", frozenset({"avx2", "avx512f", "avx512_vnni"}), 1, virtualised=True
    )
    true = CpuTarget(threads=1).capabilities()
    facts = replace(true, int8=int8_support(vnni), channel_alignment=16)
    monkeypatch.setattr(CpuTarget, "capabilities", lambda self: facts)
    return CpuTarget(threads=1)


class Profiles:
    """Stands in for the profiler: real kernels with the times that a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self.factors: list[float] = []
        self.rename: str | None = None
        self.us = 100.0
        true = CpuTarget.profile

        def profile(target: CpuTarget, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
            factor = self.factors[self.taken] if self.taken < len(self.factors) else 1.0
            self.taken += 1
            rows = true(target, artifact, feeds, 1)
            return [
                NodeTime(self.rename or row.name, self.rename or row.op_type, self.us * factor)
                for row in rows
            ]

        monkeypatch.setattr(CpuTarget, "profile", profile)


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch) -> Profiles:
    return Profiles(monkeypatch)


@pytest.mark.parametrize(
    ("arithmetic", "kernels"),
    [
        ((), {"Conv", "MatMul"}),
        ((QuantizeInt8(),), {"QLinearConv", "MatMulIntegerToFloat"}),
        ((QuantizeDynamic(min_elements=1),), {"Conv", "DynamicQuantizeMatMul"}),
        ((QuantizeWeights(ops=("MatMul",), min_elements=1, block_size=32),), {"Conv", "MatMulNBits"}),
    ],
)
def test_the_kernels_that_run_are_those_of_the_arithmetic(
    target: CpuTarget, arithmetic: Sequence[Pass], kernels: set[str]
) -> None:
    times = KernelTimes(target, Cache(), sampling=SHORT)
    found = times.measure([conv(), product(), conv()], arithmetic)
    assert list(found) == [conv(), product()]
    assert {time.kernels for time in found.values()} == kernels
    assert all(time.us > 0.0 and time.low <= time.us <= time.high for time in found.values())
    assert {time.source for time in found.values()} == {Source.MEASURED}
    assert times.findings == []


def test_what_was_measured_is_not_measured_again(
    target: CpuTarget, profiles: Profiles, tmp_path: Path
) -> None:
    first = KernelTimes(target, Cache(tmp_path), sampling=SHORT).measure([conv(), product()])
    taken = profiles.taken
    assert taken == 3, "one joint model, three times"
    again = KernelTimes(target, Cache(tmp_path), sampling=SHORT)
    assert again.measure([product(), conv()]) == {product(): first[product()], conv(): first[conv()]}
    assert profiles.taken == taken
    again.measure([conv(), conv(32)])
    assert profiles.taken == taken + 3, "only what is new"
    entries = stored_entries(tmp_path)
    assert [entry.kind for entry in entries] == [KIND] * 3
    headers = [entry.header for entry in entries if entry.header is not None]
    assert {header.label for header in headers} == {
        f"{signature.label}, float" for signature in (conv(), conv(32), product())
    }
    assert all("cpu:threads=1" in header.device for header in headers)


def test_operations_of_a_large_network_are_measured_among_as_many_bytes(
    target: CpuTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    true = CpuTarget.profile

    def profile(on: CpuTarget, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        fed.append(sum(array.nbytes for array in feeds.values()))
        return true(on, artifact, feeds, runs)

    monkeypatch.setattr(CpuTarget, "profile", profile)
    found = KernelTimes(target, Cache(), 1 << 22, sampling=SHORT).measure([conv(), product()])
    assert {time.kernels for time in found.values()} == {"Conv", "MatMul"}
    assert all(size == pytest.approx(1 << 21, rel=0.02) for size in fed), "half is read, half is written"


def test_other_arithmetic_threads_versions_or_devices_are_measured_anew(
    target: CpuTarget, profiles: Profiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(on: CpuTarget = target, *steps: Pass, size: int = 1 << 20) -> int:
        before = profiles.taken
        KernelTimes(on, Cache(tmp_path), size, sampling=SHORT).measure([conv()], steps)
        return profiles.taken - before

    assert measure() == 3
    assert measure() == 0
    assert measure(target, QuantizeInt8()) == 3
    assert measure(size=1 << 22) == 3, "less of it is in the caches"
    slow = QuantizeInt8(
        method=RangeMethod.ENTROPY, rounding=Rounding.ADAROUND, bias=Bias.EMPIRICAL, exclude=("some_node",)
    )
    assert measure(target, slow) == 0, "the same kernels"
    assert measure(CpuTarget(threads=1, optimization=cpu_module.Optimization.BASIC)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(CpuTarget, "versions", lambda self: {"onnxruntime": "0.1"})
        assert measure() == 3
    device = target.device()
    monkeypatch.setattr(CpuTarget, "device", lambda self: replace(device, fingerprint="another"))
    assert measure() == 3


def test_a_damaged_or_strange_entry_is_measured_again(
    target: CpuTarget, profiles: Profiles, tmp_path: Path
) -> None:
    KernelTimes(target, Cache(tmp_path), sampling=SHORT).measure([conv()])
    (entry,) = stored_entries(tmp_path)
    for arrays in ({"us": np.array([])}, {"other": np.ones(3)}):
        Cache(tmp_path).put(KIND, entry.path.stem, arrays)
        before = profiles.taken
        assert KernelTimes(target, Cache(tmp_path), sampling=SHORT).measure([conv()])[conv()].us == 100.0
        assert profiles.taken == before + 3


def test_a_profile_that_was_slowed_down_does_not_count(target: CpuTarget, profiles: Profiles) -> None:
    profiles.factors = [1.8, 1.0, 1.5, 1.0, 1.0]
    sampling = Sampling(Repeats(runs=7, least=3, most=8))
    time = KernelTimes(target, Cache(), sampling=sampling).measure([conv()])[conv()]
    assert (time.us, time.runs) == (100.0, 21)
    assert (time.low, time.high) == (99.5, 100.5), "no finer than the runtime's clock"
    assert profiles.taken == 5


def test_profiles_are_repeated_until_the_times_are_known_or_enough_were_taken(
    target: CpuTarget, profiles: Profiles
) -> None:
    # Within the 5 % that count as quiet, and wider than an interval of 1 % allows.
    profiles.factors = [1.0, 1.04, 1.0, 1.04, 1.0, 1.04, 1.0, 1.04]
    sampling = Sampling(Repeats(runs=1, least=3, most=6), share=0.01)
    time = KernelTimes(target, Cache(), sampling=sampling).measure([conv()])[conv()]
    assert profiles.taken == 6
    assert time.low < 100.0
    assert time.high > 104.0


def test_names_that_do_not_map_back_are_shared_by_work_with_one_warning(
    target: CpuTarget, profiles: Profiles, tmp_path: Path
) -> None:
    profiles.rename = "opaque"
    times = KernelTimes(target, Cache(tmp_path), sampling=SHORT)
    found = times.measure([conv(16), conv(48)])
    assert {time.source for time in found.values()} == {Source.SHARED}
    assert found[conv(48)].us == pytest.approx(3 * found[conv(16)].us)
    assert found[conv(16)].us > 0.0
    times.measure([conv(16), conv(48)])
    (finding,) = times.findings
    assert "2 of 2 nodes" in finding.message
    assert repr(conv(16).label) in finding.message
    assert stored_entries(tmp_path) == [], "a guess is not kept"


def test_what_a_profile_says_nothing_of_is_missing_with_a_warning(
    target: CpuTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuTarget, "profile", lambda *_: [])
    times = KernelTimes(target, Cache(), sampling=SHORT)
    assert times.measure([conv()]) == {}
    (finding,) = times.findings
    assert "times are not known" in finding.message


def test_many_channels_are_interpolated_between_measured_ones(
    target: CpuTarget, profiles: Profiles, tmp_path: Path
) -> None:
    wanted = [conv(16 * index) for index in range(1, 13)]
    sampling = replace(SHORT, family=6, per_axis=4)
    times = KernelTimes(target, Cache(tmp_path), sampling=sampling)
    found = times.measure([product(), *wanted])
    assert list(found) == [product(), *wanted]
    sources = [found[signature].source for signature in wanted]
    assert sources.count(Source.MEASURED) == 8, "four points and four checks"
    assert sources[0] is sources[-1] is Source.MEASURED
    between = next(time for time in found.values() if time.source is Source.INTERPOLATED)
    assert (between.source, between.runs, between.us) == (Source.INTERPOLATED, 0, 100.0)
    assert between.error == pytest.approx(0.0, abs=1e-9)
    assert between.kernels == found[wanted[0]].kernels
    assert len(stored_entries(tmp_path)) == 9, "only what was measured is kept"
    assert channels_of(resized(conv(), 16, 64)) == (16, 64)


def test_a_grid_that_the_profile_says_nothing_of_ends_with_warnings(
    target: CpuTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuTarget, "profile", lambda *_: [])
    times = KernelTimes(target, Cache(), sampling=replace(SHORT, family=6))
    assert times.measure([conv(16 * index) for index in range(1, 13)]) == {}
    assert times.findings


def test_times_are_told_apart_by_their_intervals() -> None:
    def time(low: float, high: float) -> KernelTime:
        return KernelTime((low + high) / 2, low, high, 60, Source.MEASURED)

    assert compare(time(1.0, 2.0), time(2.1, 3.0)) is Order.FASTER
    assert compare(time(2.1, 3.0), time(1.0, 2.0)) is Order.SLOWER
    assert compare(time(1.0, 2.2), time(2.1, 3.0)) is Order.TIE
    assert compare(time(1.0, 5.0), time(2.0, 3.0)) is Order.TIE


def test_a_summary_has_the_median_and_students_interval() -> None:
    found = summary([10.0, 12.0, 11.0, 30.0], 80, Source.MEASURED, "Conv")
    assert found.us == 11.5
    half = 3.182446 * np.std([10.0, 12.0, 11.0, 30.0], ddof=1) / 2
    assert found.high == pytest.approx(11.5 + half, rel=1e-5)
    assert found.low == 0.0, "no time is negative"
    assert summary([10.0], 20, Source.MEASURED, "").high == float("inf")
