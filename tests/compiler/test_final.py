"""The last measurement of a plan: what it refuses gives way to other points, better ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from greencc.compiler import certify, final
from greencc.compiler.certify import Held
from greencc.compiler.contender import Contender
from greencc.compiler.final import Final, measure_final
from greencc.compiler.forms import INT8_RANK, MIXED_RANK, Form
from greencc.compiler.measurement import Measurement
from greencc.compiler.options import Precision
from greencc.compiler.planning.plan import Plan
from greencc.compiler.variant import Variant
from greencc.core.errors import LimitError
from greencc.core.report import Accuracy, Figures, Interval, Latency, Ratio
from greencc.core.report_plan import PlanInfo

from .conftest import Bench

ACCURACY = Accuracy(
    metric="top-1", baseline=0.9, artifact=0.9, drop=0.0, low=0.0, high=0.0, agreement=1.0, n=500,
    certified=True, epsilon=0.05, confidence=0.95, failures=0, p_value=0.01, n_needed=None, reason="why",
)  # fmt: skip


@dataclass
class Limit(Plan):
    """Keeps what takes at most 10 ms; `planned` are what others were found to take, the best first."""

    planned: dict[str, tuple[Contender, float]]
    asked: list[str] = field(default_factory=list)

    @property
    def ranked(self) -> list[Contender]:
        return []

    def left(self) -> list[Contender]:
        return []

    def others(self, held: Contender | None) -> Iterator[Contender]:
        least = float("inf") if held is None else self.planned[held.form.name][1]
        for name, (item, ms) in self.planned.items():
            if name not in self.asked and ms < least:
                self.asked.append(name)
                yield item

    def keeps(self, measured: Measurement) -> bool:
        return measured.artifact.latency_ms.median <= 10.0

    def objection(self, measured: Measurement) -> str | None:
        return None if self.keeps(measured) else "the last measurement did not keep 10ms"

    def out_of_reach(self, found: str = "") -> LimitError:
        return LimitError(found)

    def info(self, shipped: Contender, measured: Measurement) -> PlanInfo:
        raise AssertionError("not asked for")


@dataclass
class Course:
    """A bench, and what each form takes in the last measurement, by its name."""

    bench: Bench
    times: dict[str, float]
    measured: list[str]

    def form(self, name: str, rank: int = INT8_RANK) -> Contender:
        folder = self.bench.session.scratch / name
        folder.mkdir(exist_ok=True)
        artifact = folder / "model.onnx"
        artifact.write_bytes(b"x")
        return Contender(Form(name, Precision.INT8, rank, self.bench.source, artifact), self.bench.baseline)

    def run(self, plan: Limit, *held: Contender) -> Final:
        plan.asked += [item.form.name for item in held]
        return measure_final(
            self.bench.session, self.bench.path, self.bench.source, self.bench.baseline, self.bench.splits,
            [Held(item, ACCURACY) for item in held], self.bench.feeds, plan,
        )  # fmt: skip


@pytest.fixture
def course(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Course:
    found = Course(bench, {}, [])

    def measured(
        _session: object, _device: object, _baseline: Variant, artifact: Variant, *_: object, **__: object
    ):
        name = artifact.artifact.parent.name
        found.measured.append(name)
        ms = found.times[name]
        figures = [Figures(Latency(each, each, each, 9), None, 1, None, None) for each in (20.0, ms)]
        one = Interval(20.0 / ms, 20.0 / ms, 20.0 / ms)
        return Measurement(figures[0], figures[1], Ratio(one, None, one), {"clean": True})

    monkeypatch.setattr(final, "measure_variants", measured)
    judge = cast(Callable[..., Accuracy], lambda *_: ACCURACY)
    monkeypatch.setattr(certify, "_judge", judge)
    return found


def test_another_point_that_keeps_the_budget_takes_the_place_of_one_that_did_not(course: Course) -> None:
    course.times |= {"best": 10.1, "second": 9.5}
    best, second = course.form("best"), course.form("second")
    found = course.run(Limit({"best": (best, 9.0), "second": (second, 9.6)}), best)
    assert found.contender is second
    assert course.measured == ["best", "second"]
    assert not found.accuracy.certified, "the fixed sequence had ended before it"
    assert "another plan was tested before it" in found.accuracy.reason
    assert best.place == "not kept: the last measurement did not keep 10ms"
    assert any("best was not kept" in warning for warning in course.bench.session.warnings)


def test_a_better_point_comes_before_the_next_safer_one(course: Course) -> None:
    course.times |= {"safe": 9.9, "best": 10.1, "second": 9.5, "worse": 9.95}
    safe, best = course.form("safe", MIXED_RANK), course.form("best")
    second, worse = course.form("second"), course.form("worse")
    planned = {"best": (best, 9.0), "second": (second, 9.6), "safe": (safe, 9.9), "worse": (worse, 9.95)}
    assert course.run(Limit(planned), safe, best).contender is second
    course.times["second"] = 11.0
    course.measured.clear()
    found = course.run(Limit(planned), safe, best)
    assert course.measured == ["best", "second", "safe"], "what is no better than the safer one is not tried"
    assert found.contender is safe
    assert found.accuracy.certified


def test_no_more_than_a_few_are_tried(course: Course) -> None:
    items = {f"p{index}": (course.form(f"p{index}"), 9.0 + index / 10) for index in range(6)}
    course.times |= dict.fromkeys(items, 10.5)
    with pytest.raises(LimitError, match="the last measurement did not keep 10ms"):
        course.run(Limit(items), items["p0"][0])
    assert course.measured == ["p0", "p1", "p2", "p3"]


def test_where_only_a_certified_one_may_be_shipped_no_other_is_tried(course: Course) -> None:
    session = course.bench.session
    session.options = replace(session.options, require_certified=True)
    course.times |= {"best": 10.1, "second": 9.5}
    best, second = course.form("best"), course.form("second")
    with pytest.raises(LimitError, match="did not keep 10ms"):
        course.run(Limit({"best": (best, 9.0), "second": (second, 9.6)}), best)
    assert course.measured == ["best"]
