"""The run time as one more choice: what each is given, how it is judged, and who wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import pytest

from greencc.compiler import run_times
from greencc.compiler.contender import Contender, contender
from greencc.compiler.forms import PLAN_RANK
from greencc.compiler.options import Effort, Precision, QuantizedFormat
from greencc.compiler.run_times import rows, try_run_times
from greencc.compiler.select import Choice
from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.report import Interval
from greencc.measure.latency import QuickComparison
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget, OpenVinoTarget

from .conftest import Bench


@dataclass(frozen=True)
class Other(CpuTarget):
    """A run time of another name."""

    name: ClassVar[str] = "other"


@dataclass(frozen=True)
class Third(CpuTarget):
    name: ClassVar[str] = "third"


@dataclass(frozen=True)
class Broken(CpuTarget):
    """It builds whatever it is given and runs nothing."""

    name: ClassVar[str] = "broken"

    def open(self, artifact: Path) -> Engine:
        raise InputError("the operator Conv is not supported")


class Clock:
    """Stands for the comparison: by run time and precision how much faster than the first, +- `noise`."""

    def __init__(self, choice: Choice) -> None:
        self.speed: dict[str, float] = {}
        self.noise = 0.01
        self.clean = True
        self.calls: list[int] = []
        self.own = choice.ranked[0]

    def compare(self, engines: Sequence[Engine], feeds: Sequence[Feeds], **options: Any) -> QuickComparison:
        self.calls.append(len(engines))
        assert engines[0] is self.own.timed
        ratios = [self.speed[self.names[id(engine)]] for engine in engines[1:]]
        intervals = tuple(Interval(r, r * (1 - self.noise), r * (1 + self.noise)) for r in ratios)
        return QuickComparison((8.0, *(8.0 / r for r in ratios)), intervals, (), 0, (), self.clean)

    names: dict[int, str] = {}


@pytest.fixture
def choice(bench: Bench) -> Choice:
    """A plain form and INT8 behind it, as `--precision auto` leaves them: INT8 preferred."""
    plain = contender(bench.session, bench.builder.cleaned(), bench.baseline, bench.splits)
    # Without its head, which does not bear INT8.
    step = QuantizeInt8(exclude=("box_head", "score_head", "join", "pool", "flatten", "classes"))
    integers = contender(bench.session, bench.builder.static("int8", (), step), bench.baseline, bench.splits)
    bench.session.options = _with(bench.session.options, max_drop=0.99, precision=Precision.AUTO)
    return Choice([integers, plain], [plain, integers])


def _with(options: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(options, **changes)


@pytest.fixture
def clock(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(choice)
    found.names = {}
    built = run_times._built

    def watched(*arguments: Any) -> run_times.Trial:
        trial = built(*arguments)
        if trial.contender is not None:
            found.names[id(trial.contender.engine)] = trial.name
        return trial

    monkeypatch.setattr(run_times, "_built", watched)
    monkeypatch.setattr(run_times, "quick_compare", found.compare)
    return found


def others(monkeypatch: pytest.MonkeyPatch, *targets: CpuTarget) -> None:
    monkeypatch.setattr(run_times, "backends", lambda target: (target, *targets))


def run(bench: Bench, choice: Choice) -> list[run_times.Trial]:
    return try_run_times(bench.session, bench.builder, choice, bench.baseline, bench.splits, bench.feeds)


PLAIN, INTEGERS = "fp32 on other", "int8 on other"


def test_the_faster_one_comes_first(
    bench: Bench, choice: Choice, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(monkeypatch, Other(threads=1))
    integers, plain = choice.ranked
    clock.speed = {PLAIN: 0.5, INTEGERS: 1.25}
    tried = run(bench, choice)
    best = choice.ranked[0]
    assert [item.form.name for item in choice.ranked] == [INTEGERS, "int8", plain.form.name]
    assert best.form.target == Other(threads=1)
    # Tested last in the fixed sequence: what is safer comes before it.
    assert best.form.rank == PLAN_RANK > integers.form.rank
    assert best in choice.all
    assert best.planning is not None
    # All are compared at a glance; who is plainly slower is neither judged nor compared again.
    assert clock.calls == [3, 2]
    table = rows(tried, best)
    assert [(row.backend, row.form, row.chosen) for row in table] == [
        ("cpu:threads=1", "int8", False),
        ("other:threads=1", PLAIN, False),
        ("other:threads=1", INTEGERS, True),
    ]
    assert table[1].reason == "not chosen: slower than int8 on cpu (0.50x [0.49, 0.51] as fast)"
    assert table[1].drop is None
    assert table[2].ratio == Interval(1.25, 1.25 * 0.99, 1.25 * 1.01)
    assert table[2].latency_ms == 6.4
    assert "1.25x [1.24, 1.26] as fast as int8 on cpu" in table[2].reason
    assert "8 ms against 6.4 ms of int8 on other" in table[0].reason
    # What is shipped in the end may be another, after the certificate.
    assert [row.chosen for row in rows(tried, integers)] == [True, False, False]


@pytest.mark.parametrize(
    ("speed", "noise", "said"),
    [
        (1.02, 0.001, "less than 3% faster than int8 on cpu"),
        (1.5, 0.6, "not faster beyond doubt than int8 on cpu"),
        (1.0, 0.01, "not faster beyond doubt"),
        (0.99, 0.001, "slower than int8 on cpu"),
    ],
)
def test_a_tie_is_the_compiles_own(
    bench: Bench,
    choice: Choice,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    speed: float,
    noise: float,
    said: str,
) -> None:
    others(monkeypatch, Other(threads=1))
    clock.speed, clock.noise = {PLAIN: 0.1, INTEGERS: speed}, noise
    before = list(choice.ranked)
    tried = run(bench, choice)
    assert choice.ranked == before
    assert said in tried[2].reason
    assert len(choice.all) == 2


@pytest.mark.parametrize(
    ("speed", "won", "said"),
    [
        (
            1.92,
            True,
            "1.92x [1.90, 1.94] as fast as int8 on cpu, measured side by side",
        ),
        (
            1.205,
            False,
            "the machine was busy: not told apart from int8 on cpu (1.21x [1.19, 1.22] as fast)",
        ),
        (1.0, False, "the machine was busy: not told apart from int8 on cpu"),
        (0.9, False, "slower than int8 on cpu (0.90x [0.89, 0.91] as fast)"),
    ],
)
def test_on_a_busy_machine_only_a_large_gain_counts(
    bench: Bench,
    choice: Choice,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    speed: float,
    won: bool,
    said: str,
) -> None:
    others(monkeypatch, Other(threads=1))
    clock.speed, clock.clean = {PLAIN: 0.1, INTEGERS: speed}, False
    tried = run(bench, choice)
    best = choice.ranked[0]
    assert (best.form.name == INTEGERS) is won
    table = rows(tried, best)
    assert said in table[2].reason
    assert [row.busy for row in table] == [True] * 3


def test_the_fastest_of_several(
    bench: Bench, choice: Choice, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(monkeypatch, Other(threads=1), Third(threads=1))
    clock.speed = {PLAIN: 1.1, INTEGERS: 1.3, "fp32 on third": 1.6, "int8 on third": 1.5}
    tried = run(bench, choice)
    assert choice.ranked[0].form.name == "fp32 on third"
    assert clock.calls == [5, 5]
    assert len(tried) == 5
    assert tried[2].reason == "not chosen: 6.15 ms against 5 ms of fp32 on third"


def test_what_loses_too_much_is_not_eligible(
    bench: Bench, choice: Choice, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(monkeypatch, Other(threads=1))
    clock.speed = {PLAIN: 1.2, INTEGERS: 3.0}
    choice.ranked.pop(0)
    clock.own = choice.ranked[0]
    bench.session.options = _with(bench.session.options, max_drop=0.2)
    real = run_times.judge

    def judge(session: Any, baseline: Any, engine: Engine, *rest: Any) -> Any:
        found = real(session, baseline, engine, *rest)
        return _with(found, drop=0.5) if clock.names[id(engine)] == INTEGERS else found

    monkeypatch.setattr(run_times, "judge", judge)
    for item in choice.all:
        if item.form.name == "int8" and item.planning is not None:
            item.planning = _with(item.planning, drop=0.0, agreement=1.0)
    tried = run(bench, choice)
    assert choice.ranked[0].form.name == PLAIN
    assert "loses 50.00% on the planning split, more than the limit of 0.2" in tried[2].reason


def test_a_run_time_that_cannot_run_it_is_named(
    bench: Bench, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(monkeypatch, Broken(threads=1))
    before = list(choice.ranked)
    tried = run(bench, choice)
    assert choice.ranked == before
    assert [trial.reason for trial in tried[1:]] == ["not tried: the operator Conv is not supported"] * 2
    assert (
        "int8 was not tried on broken:threads=1: the operator Conv is not supported" in bench.session.warnings
    )


@dataclass(frozen=True)
class Slow(CpuTarget):
    """It says that its building takes a minute."""

    name: ClassVar[str] = "slow"

    def build_seconds(self, model: ir.Model) -> float:
        return 60.0


def test_a_quick_compile_builds_for_no_run_time_that_takes_long(
    bench: Bench, choice: Choice, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(monkeypatch, Other(threads=1), Slow(threads=1))
    clock.speed = {PLAIN: 0.5, INTEGERS: 1.25, "fp32 on slow": 2.0, "int8 on slow": 3.0}
    tried = run(bench, choice)
    assert choice.ranked[0].form.name == INTEGERS
    assert [trial.contender is None for trial in tried] == [False, False, False, True, True]
    assert all(trial.reason.startswith("not tried: a compile with --effort quick") for trial in tried[3:])
    assert clock.calls == [3, 2]
    # It is the compile's own wish, and no fault.
    assert bench.session.warnings == []


def test_others_wait_for_it(
    bench: Bench, choice: Choice, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(monkeypatch, Slow(threads=1))
    bench.session.options = _with(bench.session.options, effort=Effort.STANDARD)
    clock.speed = {"fp32 on slow": 2.0, "int8 on slow": 3.0}
    run(bench, choice)
    assert choice.ranked[0].form.name == "int8 on slow"


def test_nothing_is_tried_where_there_is_no_choice(
    bench: Bench, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_times, "quick_compare", None)
    others(monkeypatch)
    assert run(bench, choice) == []
    others(monkeypatch, Other(threads=1))
    bench.session.options = _with(bench.session.options, format=QuantizedFormat.QOPERATOR)
    assert run(bench, choice) == []
    assert rows([], choice.ranked[0]) == ()


def test_layers_that_are_slow_here_alone_are_quantized_elsewhere(bench: Bench, choice: Choice) -> None:
    whole = choice.ranked[0]
    assert whole.planning is not None
    step = QuantizeInt8(exclude=("box_head",))
    mixed = Contender(bench.builder.static("mixed", (), step, Precision.MIXED), whole.engine, whole.planning)
    trimmed = Choice([mixed], [mixed, whole])
    assert [form.name for form in run_times._forms(trimmed, 1.0)] == ["int8"]
    # Where they were left in float for accuracy, they are there as well.
    mixed.planning = _with(whole.planning, drop=0.0, agreement=1.0)
    whole.planning = _with(whole.planning, drop=None, agreement=0.8)
    assert [form.name for form in run_times._forms(trimmed, 0.25)] == ["mixed"]


def test_forms_without_integers_keep_their_graph(bench: Bench) -> None:
    form = bench.builder.cleaned()
    built = bench.builder.on(form, Other(threads=1), "fp32 on other")
    assert built.model is form.model
    assert built.artifact != form.artifact
    assert built.artifact.is_file()
    assert (built.passes, built.records) == (form.passes, form.records)


@pytest.mark.skipif(OpenVinoTarget().missing() is not None, reason="OpenVINO is not installed")
def test_integers_are_placed_where_each_run_time_wants_them(bench: Bench) -> None:
    target = OpenVinoTarget(threads=1)
    if target.capabilities().int8 is None:
        pytest.skip("no integer kernels are claimed here")
    form = bench.builder.static("int8", (), QuantizeInt8())
    built = bench.builder.on(form, target, "int8 on openvino")
    assert built.passes == form.passes
    assert len(built.records) == len(built.passes)
    # OpenVINO fuses the next quantization into the kernel: what no kernel of its own reads is left in float.
    assert 0 < _quantizers(built.model) < _quantizers(form.model)
    engine = target.open(built.artifact)
    engine.run(bench.feeds[0])
    engine.close()


def _quantizers(model: ir.Model) -> int:
    return sum(node.op_type == "QuantizeLinear" for node in model.graph)
