"""Which of the verified plans is preferred, and what is told where none is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from greencc.compiler.planning.budget import Asked
from greencc.compiler.planning.choose import _ladder, _out_of_reach
from greencc.compiler.planning.points import Figures, Point
from greencc.core.report import Interval
from greencc.planner.budget import Objective, parse_budget
from greencc.targets import CpuTarget

_TARGET = CpuTarget(threads=1)


@dataclass
class Session:
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def point(name: str, ms: float, loss: float, error: float | None = None) -> Point:
    figures = Figures(
        loss,
        loss if error is None else error,
        Interval(1.0, 1.0, 1.0),
        {50: ms, 95: ms, 99: ms},
        ms,
        1_000,
        1e6,
    )
    return Point(name, name, figures, _TARGET, origin="form" if name == "original" else "plan")


def asked(budget: str = "", objective: Objective = Objective.LATENCY) -> Asked:
    return Asked(parse_budget(budget) if budget else (), objective, None, 0.1, max_drop=0.01)


def names(found: list[Point]) -> list[str]:
    return [item.name for item in found]


def ladder(points: list[Point], what: Asked) -> list[Point]:
    session: Any = Session()
    return _ladder(what, session, points)


def test_a_plan_without_room_is_better_than_none() -> None:
    points = [point("original", 50.0, 0.0), point("tight", 32.5, 0.002), point("lossy", 20.0, 0.05)]
    assert names(ladder(points, asked("33ms"))) == ["tight"]


def test_a_plan_with_room_is_preferred() -> None:
    points = [point("original", 50.0, 0.0), point("tight", 32.5, 0.002), point("roomy", 31.0, 0.004)]
    assert names(ladder(points, asked("33ms"))) == ["roomy"]


def test_the_ladder_goes_from_safe_to_good() -> None:
    points = [point("original", 50.0, 0.0), point("fast", 20.0, 0.008), point("middle", 30.0, 0.003)]
    assert names(ladder(points, asked())) == ["original", "middle", "fast"]


def test_a_gain_of_nothing_is_no_reason_to_leave_the_original() -> None:
    points = [point("original", 50.0, 0.0), point("same", 49.5, 0.003)]
    assert names(ladder(points, asked())) == ["original"]


@given(
    st.lists(st.tuples(st.floats(1.0, 100.0), st.floats(0.0, 0.03)), min_size=1, max_size=8),
    st.floats(1.0, 100.0),
)
def test_where_any_plan_keeps_budget_and_accuracy_one_is_preferred(
    found: list[tuple[float, float]], milliseconds: float
) -> None:
    points = [point(f"plan {index}", ms, loss) for index, (ms, loss) in enumerate(found)]
    what = asked(f"{milliseconds:.6f}ms")
    good = [item for item in points if what.keeps(item.figures) and (item.figures.loss or 0.0) <= 0.01]
    chosen = ladder(points, what)
    assert bool(chosen) == bool(good)
    assert all(item in good for item in chosen)


def test_out_of_reach_names_the_nearest_points_first() -> None:
    points = [point("original", 50.0, 0.0), point("near", 12.0, 0.0), point("far", 30.0, 0.0)]
    error = _out_of_reach(asked("10ms"), points, "")
    lines = error.message.splitlines()
    assert "no verified plan keeps 10ms" in lines[0]
    assert lines[1].strip().startswith("near: 12 ms")
    assert "10ms" in lines[1]
    assert error.hint
