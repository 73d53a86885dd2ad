"""The tuner on a machine that takes the time it is told to: deterministic to the last trial."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from greencc.core.progress import T, silent
from greencc.targets._tvm.codec import from_json, to_json
from greencc.targets._tvm.contest import median_interval
from greencc.targets._tvm.database import Database
from greencc.targets._tvm.epilogue import AddTensor, Apply, Clip, Epilogue, Function, Quantize, ScaleChannels
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.labels import label_of
from greencc.targets._tvm.records import place_of
from greencc.targets._tvm.schedules import DefaultSchedules, TunedSchedules
from greencc.targets._tvm.tuning import Clocks, Tuner
from greencc.targets._tvm.workload import (
    BatchedProduct,
    Conv,
    Dense,
    Depthwise,
    Pool,
    PoolKind,
    Window,
    Workload,
    key_of,
)

from .tuning_shared import (
    MACHINE,
    FakeBench,
    FakeClock,
    Space,
    nothing_to_warn_of,
    record,
    schedule,
    workload,
)

SPACE = [schedule(number) for number in range(1, 31)]
# The default takes 30 us; number 17 is the fastest, number 21 as fast.
TIMES = {each: 30.0 + abs(each.rows - 17) for each in SPACE} | {
    SPACE[0]: 30.0,
    SPACE[16]: 12.0,
    SPACE[20]: 12.0,
}


def _times(*scales: float) -> Mapping[Workload, Mapping[Schedule, float]]:
    return {
        workload(number): {each: scale * us for each, us in TIMES.items()}
        for number, scale in enumerate(scales, start=1)
    }


def _tuner(bench: FakeBench, path: Path | None = None, space: list[Schedule] = SPACE) -> Tuner:
    database = Database(path, nothing_to_warn_of())
    clocks = Clocks(bench.clock, lambda: 0.0)
    return Tuner(lambda workload: Space(space), MACHINE, 1, database, bench, clocks)  # type: ignore[arg-type,return-value]


def _bench(*scales: float, **options: Any) -> FakeBench:
    return FakeBench(_times(*scales), FakeClock(), **options)


def test_the_fastest_schedule_is_found_despite_a_drift():
    bench = _bench(1.0)
    tuner = _tuner(bench)
    report = tuner.tune({workload(1): 3}, 1e6, silent)
    found = tuner.database.get(key_of(workload(1)), place_of(MACHINE, 1))
    assert found is not None
    # Of the two that tie, the first of the space.
    assert found.best == schedule(17)
    assert found.gain.value == pytest.approx(2.5)
    assert found.complete
    assert (report.trials, report.complete, report.faster, report.kernels) == (30, 1, 1, 1)
    assert report.gain == pytest.approx(2.5)
    assert report.default_us / report.tuned_us == pytest.approx(2.5)
    assert report.failed == ()


def test_the_same_times_give_the_same_trials():
    runs = [_bench(1.0, 3.0) for _ in range(2)]
    for bench in runs:
        _tuner(bench).tune({workload(1): 1, workload(2): 2}, 200.0, silent)
    assert runs[0].added == runs[1].added


def test_a_default_that_nothing_beats_stays():
    flat = {workload(1): dict.fromkeys(SPACE, 30.0)}
    tuner = _tuner(FakeBench(flat, FakeClock()))
    report = tuner.tune({workload(1): 1}, 1e6, silent)
    found = tuner.database.get(key_of(workload(1)), place_of(MACHINE, 1))
    assert found is not None
    assert found.best == found.default == schedule(1)
    assert found.complete
    assert (report.gain, report.faster) == (1.0, 0)


def test_the_time_is_kept():
    bench = _bench(1.0)
    started = bench.clock.now
    report = _tuner(bench).tune({workload(1): 1}, 7.5, silent)
    # One candidate more, and what decides between those that were built.
    assert bench.clock.now - started < 7.5 + bench.build + 1.0
    assert report.seconds == bench.clock.now - started
    assert 1 < report.trials < 10
    assert report.complete == 0
    nothing = _tuner(_bench(1.0)).tune({workload(1): 1}, 0.0, silent)
    assert (nothing.trials, nothing.gain) == (0, 1.0)


def test_what_takes_the_models_time_comes_first():
    bench = _bench(1.0, 1.0, 0.1)
    _tuner(bench).tune({workload(1): 1, workload(2): 20, workload(3): 2}, 14.0, silent)
    assert {each for each, _ in bench.added} == {workload(2)}


def test_what_stops_improving_gives_way():
    flat = {workload(1): dict.fromkeys(SPACE, 300.0), **dict([list(_times(1.0, 1.0).items())[1]])}
    bench = FakeBench(flat, FakeClock())
    _tuner(bench).tune({workload(1): 1, workload(2): 3}, 60.0, silent)
    turns = [each for each, _ in itertools.groupby(each for each, _ in bench.added)]
    assert turns[:2] == [workload(1), workload(2)]
    # It gave way before all of its schedules were tried.
    assert sum(each == workload(1) for each, _ in bench.added[:20]) < len(SPACE) - 1


def test_an_interruption_keeps_what_was_found_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "schedules"
    bench = _bench(1.0, interrupt_after=20)
    with pytest.raises(KeyboardInterrupt) as caught:
        _tuner(bench, path).tune({workload(1): 1}, 1e6, silent)
    assert any("kept" in note for note in caught.value.__notes__)
    kept = Database(path, nothing_to_warn_of()).get(key_of(workload(1)), place_of(MACHINE, 1))
    assert kept is not None
    assert 1 < kept.trials <= 20
    again = _bench(1.0)
    tuner = _tuner(again, path)
    tuner.tune({workload(1): 1}, 1e6, silent)
    found = tuner.database.get(key_of(workload(1)), place_of(MACHINE, 1))
    assert found is not None
    assert found.complete
    assert found.best == schedule(17)
    tried = {each for _, each in again.added}
    assert tried.isdisjoint(set(kept.out) - {kept.best})
    third = _bench(1.0)
    report = _tuner(third, path).tune({workload(1): 1}, 1e6, silent)
    assert third.added == []
    assert (report.trials, report.complete) == (0, 1)
    assert report.gain == pytest.approx(2.5)


def test_candidates_that_crash_or_are_wrong_are_out_and_named(tmp_path):
    out = {schedule(17): "it crashed with SIGSEGV", schedule(21): "it computes something else"}
    bench = _bench(1.0, out=out)
    tuner = _tuner(bench, tmp_path / "schedules")
    report = tuner.tune({workload(1): 1}, 1e6, silent)
    found = tuner.database.get(key_of(workload(1)), place_of(MACHINE, 1))
    assert found is not None
    assert found.complete
    assert found.best == schedule(1)
    assert {each: found.out[each] for each in out} == out
    assert len(report.failed) == 2
    assert any("dense 1x16->16 float32" in text and "SIGSEGV" in text for text in report.failed)
    again = _bench(1.0, out=out)
    _tuner(again, tmp_path / "schedules").tune({workload(1): 1}, 1e6, silent)
    assert again.added == []


def test_a_crash_while_times_are_taken_puts_those_out_that_were_measured():
    few = [schedule(number) for number in (1, 16, 17, 18)]
    bench = _bench(1.0, lost=frozenset({schedule(18)}))
    tuner = _tuner(bench, space=few)
    report = tuner.tune({workload(1): 1}, 1e6, silent)
    found = tuner.database.get(key_of(workload(1)), place_of(MACHINE, 1))
    assert found is not None
    assert found.best == schedule(1)
    assert found.complete
    assert len(report.failed) == 3


def test_a_workload_whose_default_fails_is_left_alone():
    bench = _bench(1.0, 1.0, out={schedule(1): "it crashed with SIGILL"})
    report = _tuner(bench).tune({workload(1): 1, workload(2): 1}, 1e6, silent)
    assert bench.added == []
    assert (report.kernels, report.complete, report.faster) == (2, 0, 0)
    assert len(report.failed) == 2


def test_workloads_that_differ_in_constants_alone_are_one():
    ones = [Dense((16, 16), epilogue=Epilogue(quantize=Quantize("uint8", scale, 3))) for scale in (0.1, 0.2)]
    bench = FakeBench(dict.fromkeys(ones, TIMES), FakeClock())
    report = _tuner(bench).tune(dict.fromkeys(ones, 1), 1e6, silent)
    assert report.kernels == 1
    assert report.default_us > 2 * 30.0


def test_large_weights_are_not_multiplied_by_eight():
    large = Dense((25088, 4096))
    bench = FakeBench({large: TIMES}, FakeClock())
    most = 0

    def progress(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        nonlocal most
        for item in items:
            before = len(bench.added)
            yield item
            most = max(most, len(bench.added) - before)

    tuner = _tuner(bench)
    tuner.tune({large: 1}, 1e6, progress)
    found = tuner.database.get(key_of(large), place_of(MACHINE, 1))
    assert found is not None
    assert (found.best, found.complete) == (schedule(17), True)
    # The best so far is built again in every slice.
    assert most <= 2


def test_progress_counts_slices():
    seen: list[tuple[str, int | None, int]] = []

    def progress(items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        done = 0
        for item in items:
            yield item
            done += 1
        seen.append((label, total, done))

    _tuner(_bench(1.0, 1.0)).tune({workload(1): 1, workload(2): 1}, 1e6, progress)
    assert seen == [("Timing kernels", 2, 2), ("Tuning", 8, 8)]


def test_the_lowering_gets_the_best_or_the_default():
    database = Database(None, nothing_to_warn_of())
    known, unknown, stale = workload(1), workload(2), workload(3)
    place = place_of(MACHINE, 1)
    database.put([record(key_of(known), best=17, place=place), record(key_of(stale), best=99, place=place)])
    source = TunedSchedules(database, 1, lambda workload: Space(SPACE))  # type: ignore[arg-type,return-value]
    assert source.schedule(known, MACHINE) == schedule(17)
    assert source.schedule(known, MACHINE) == schedule(17)
    assert source.schedule(unknown, MACHINE) == schedule(1)
    # Not a schedule of the template, whoever wrote it.
    assert source.schedule(stale, MACHINE) == schedule(1)
    assert source.tuned == {key_of(known): 2}
    assert source.untuned == {key_of(unknown): 1, key_of(stale): 1}
    assert source.findings() == (
        "2 kernels have schedules that were tuned",
        "2 kernels were not tuned",
    )
    other = TunedSchedules(database, 2, lambda workload: Space(SPACE))  # type: ignore[arg-type,return-value]
    assert other.schedule(known, MACHINE) == schedule(1)
    assert other.findings() == ()
    plain = DefaultSchedules(lambda workload: Space(SPACE))  # type: ignore[arg-type,return-value]
    assert plain.schedule(known, MACHINE) == schedule(1)
    assert plain.asked == [known]


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(1, 0, 0), (3, 0, 2), (5, 0, 4), (6, 0, 5), (9, 1, 7), (15, 3, 11), (25, 7, 17)],
)
def test_intervals_of_medians_are_those_of_the_sign_test(count, low, high):
    # Order statistics with at least 95 % (Conover, Practical Nonparametric Statistics, 3.2), where there are enough.
    found = median_interval([float(value) for value in reversed(range(count))])
    assert (found.low, found.value, found.high) == (low, (count - 1) / 2, high)


_WINDOW = Window(14, 14, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
_EPILOGUE = Epilogue(
    bias=True,
    multiplier=True,
    steps=(
        AddTensor("uint8", 0.1, 3),
        Clip(0.0, float("inf")),
        Apply(Function.LEAKY_RELU, 0.1),
        ScaleChannels(),
    ),
    quantize=Quantize("uint8", 0.02, 128),
)


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (
            Conv(_WINDOW, (64, 128), 2, "uint8", 128, epilogue=_EPILOGUE),
            "conv 14x14 64->128 2 groups 3x3/2 pad 1 uint8, bias, add uint8, relu, LeakyRelu, scale, scaled to uint8",
        ),
        (Depthwise(_WINDOW, 64), "depthwise 14x14 64 3x3/2 pad 1 float32"),
        (
            Conv(Window(9, 9, (3, 1), (1, 2), (2, 1), (0, 0, 1, 0)), (3, 4)),
            "conv 9x9 3->4 3x1/1x2 pad 0,0,1,0 dilation 2x1 float32",
        ),
        (
            Dense((16, 32), 4, epilogue=Epilogue(steps=(AddTensor("float32"), Clip(0.0, 6.0)))),
            "dense 4x16->32 float32, add, clip 0..6",
        ),
        (Dense((16, 32), 4), "dense 4x16->32 float32"),
        (BatchedProduct((4, 5, 6), True), "product 4x5x6 float32 transposed"),
        (Pool(Window(7, 7, (7, 7)), 8, PoolKind.AVERAGE), "average-pool 7x7 8 7x7 float32"),
    ],
)
def test_workloads_survive_json_and_have_labels(given, label):
    assert from_json(to_json(given)) == given
    assert label_of(given) == label
    assert from_json(to_json(MACHINE)) == MACHINE


def test_json_of_unknown_kinds_is_refused():
    with pytest.raises(ValueError, match="no kind"):
        from_json({"kind of": "Path"})
    with pytest.raises(TypeError, match="Path"):
        to_json(Path())
