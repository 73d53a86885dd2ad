"""Plans on other run times: which are tried, and which are not waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir
import pytest

from greencc.compiler.options import Effort
from greencc.compiler.planning.backends import try_backends
from greencc.compiler.planning.points import Point
from greencc.compiler.planning.space import PlanSteps
from greencc.compiler.planning.verifier import Verifier
from greencc.compiler.session import Deadline
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget, backends


@dataclass(frozen=True)
class Quick(CpuTarget):
    """A run time of another name."""

    name: ClassVar[str] = "quick"


@dataclass(frozen=True)
class Slow(CpuTarget):
    """One that says that its building takes a minute."""

    name: ClassVar[str] = "slow"

    def build_seconds(self, model: ir.Model) -> float:
        return 60.0


@pytest.fixture
def best(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """A plan and the plain form, with two run times that compete."""
    monkeypatch.setattr(backends, "OTHERS", (Quick, Slow))
    form = verifier.builder.cleaned()
    item = verifier.judged(form, verifier.session.target)
    plain = Point("fp32", "as it is", verifier.figures(item), verifier.session.target, contender=item)
    return [verifier.verify(PlanSteps(quantize=QuantizeInt8()), "all"), plain]


def names(points: Sequence[Point]) -> list[str]:
    return [point.name for point in points]


def test_the_best_plans_are_tried_on_all(verifier: Verifier, best: list[Point]) -> None:
    verifier.session.options = replace(verifier.session.options, effort=Effort.STANDARD)
    found = try_backends(verifier.session, verifier, best, Deadline(3600))
    assert names(found) == ["plan 1 on quick", "fp32 on quick", "plan 1 on slow", "fp32 on slow"]
    assert [point.backend.name for point in found] == ["quick", "quick", "slow", "slow"]
    assert verifier.session.warnings == []


def test_what_takes_longer_than_is_left_is_not_begun(verifier: Verifier, best: list[Point]) -> None:
    verifier.session.options = replace(verifier.session.options, effort=Effort.STANDARD)
    found = try_backends(verifier.session, verifier, best, Deadline(59.0))
    assert names(found) == ["plan 1 on quick", "fp32 on quick"]
    (said,) = verifier.session.warnings
    assert said.startswith("slow:threads=1 was not tried: to generate its code takes about 60 s")


def test_a_quick_plan_waits_for_no_code(verifier: Verifier, best: list[Point]) -> None:
    assert verifier.session.options.effort is Effort.QUICK
    found = try_backends(verifier.session, verifier, best, Deadline(3600))
    assert names(found) == ["plan 1 on quick", "fp32 on quick"]
    (said,) = verifier.session.warnings
    assert "slow:threads=1 was not tried: a compile with --effort quick" in said
