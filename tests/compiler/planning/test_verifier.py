"""What becomes of plans that fail, and what is kept of those that do not; real runtime, real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import pytest

from greencc.compiler.planning import verifier as module
from greencc.compiler.planning.space import PlanSteps
from greencc.compiler.planning.verifier import CannotBuildError, Verifier
from greencc.compiler.session import Deadline
from greencc.core.cache import Cache
from greencc.core.errors import GreenccError, InputError, UnavailableError, UsageError
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget
from greencc.targets._ort import OrtEngine
from tests.compiler.conftest import Bench

from .conftest import SHORT, made

INTEGERS = PlanSteps(quantize=QuantizeInt8())
PART = PlanSteps(quantize=QuantizeInt8(exclude=("box_head", "score_head")))


@dataclass(frozen=True)
class Broken(Pass):
    """Fails in the class of errors named."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "fails"
    lossy: ClassVar[bool] = True
    kind: str = "InputError"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        kinds: dict[str, type[GreenccError]] = {
            kind.__name__: kind for kind in (InputError, UnavailableError, UsageError)
        }
        raise kinds[self.kind]("this layer has no such form")


def test_an_option_that_cannot_be_built_has_no_error_and_the_others_have(verifier: Verifier) -> None:
    plans = [INTEGERS, PlanSteps(extra=(Broken(),)), PART, PlanSteps(prepare=(Broken(),))]
    first, broken, second, before = verifier.errors_of(plans, Deadline(60))
    assert (broken, before) == (None, None)
    assert first is not None
    assert second is not None
    assert first > second > 0
    assert any("no such form" in warning and "broken" in warning for warning in verifier.session.warnings)


def test_errors_that_are_known_need_no_time_whatever_fails_beside_them(verifier: Verifier) -> None:
    known = verifier.errors_of([INTEGERS], Deadline(60))
    assert known[0] is not None
    plans = [PlanSteps(extra=(Broken(),)), INTEGERS]
    assert verifier.errors_of(plans, Deadline(60)) == [None, *known]
    assert verifier.errors_of(plans, Deadline(0)) == [None, *known]


@pytest.mark.parametrize("kind", [UnavailableError, UsageError])
def test_what_no_option_is_to_blame_for_is_raised(verifier: Verifier, kind: type[GreenccError]) -> None:
    with pytest.raises(kind, match="no such form"):
        verifier.errors_of([INTEGERS, PlanSteps(extra=(Broken(kind=kind.__name__),))], Deadline(60))


def test_a_plan_that_cannot_be_opened_or_run_is_one_that_cannot_be_built(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = verifier.verify(PART, "the body")
    form = point.form
    assert form is not None

    def refuse(*_: object, **__: object) -> Any:
        raise InputError("no kernel for this node")

    with monkeypatch.context() as patch:
        patch.setattr(CpuTarget, "open", refuse)
        for call in (
            lambda: verifier.judged(form, point.backend),
            lambda: verifier.opened(point),
            lambda: verifier.opened(replace(point, contender=None)),
            lambda: verifier.verify(INTEGERS, "all layers"),
        ):
            with pytest.raises(CannotBuildError, match="no kernel"):
                call()
    with monkeypatch.context() as patch:
        patch.setattr(OrtEngine, "run", refuse)
        with pytest.raises(CannotBuildError, match="no kernel"):
            verifier.judged(form, point.backend)
    with monkeypatch.context() as patch:
        patch.setattr(CpuTarget, "build", refuse)
        with pytest.raises(CannotBuildError, match="no kernel"):
            verifier.on(form, point.backend, "elsewhere")


def test_a_plan_whose_outputs_cannot_be_had_is_refused_and_its_engine_closed(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise InputError("the outputs have another shape")

    closed = []
    genuine = OrtEngine.close
    monkeypatch.setattr(OrtEngine, "close", lambda self: (closed.append(self), genuine(self)))
    monkeypatch.setattr(Verifier, "error", refuse)
    with pytest.raises(CannotBuildError, match="another shape"):
        verifier.verify(PART, "the body")
    assert verifier.session.engines[-1] in closed


def test_points_are_timed_alike_whatever_they_lose(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier.session.options = replace(verifier.session.options, max_drop=1e-9)
    profiles = []
    genuine: Callable[..., Any] = module.measure_latency

    def measured(engines: Any, feeds: Any, profile: Any, **options: Any) -> Any:
        profiles.append(profile)
        return genuine(engines, feeds, profile, **options)

    monkeypatch.setattr(module, "measure_latency", measured)
    point = verifier.verify(INTEGERS, "all layers")
    assert point.figures.loss is not None
    assert point.figures.loss > 0.2, "the model was made to be ruined"
    assert profiles == [SHORT, SHORT]


def test_every_point_has_its_passes(verifier: Verifier) -> None:
    first = verifier.verify(PART, "the body")
    assert first.form is not None
    again = verifier.verify(PART, "the body")
    assert (first.origin, again.origin) == ("plan", "cache")
    assert first.passes == again.passes == first.form.passes
    assert first.recipe == again.recipe


def test_folders_for_other_run_times_are_new_whatever_was_removed_meanwhile(verifier: Verifier) -> None:
    form = verifier.build("plan", PlanSteps(extra=(QuantizeDynamic(min_elements=0),)))
    candidate = verifier.session.scratch / "candidate-1"
    candidate.mkdir()
    first = verifier.on(form, verifier.session.target, "first")
    candidate.rmdir()
    second = verifier.on(form, verifier.session.target, "second")
    assert first.artifact.parent != second.artifact.parent
    assert first.artifact.read_bytes() == second.artifact.read_bytes()
    # Bundles copy the folder with its rights.
    probe = verifier.session.scratch / "probe"
    probe.mkdir()
    assert first.artifact.parent.stat().st_mode == probe.stat().st_mode


def test_points_judged_by_code_of_the_users_are_not_kept(
    verifier: Verifier, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judged_by_me.py").write_text(
        "def score(outputs, labels, feeds):\n    return outputs['classes'].max(axis=1) > 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cache = Cache(tmp_path / "cache")
    assert made(bench, cache).verify(PART, "the body").origin == "plan"
    assert len(list((tmp_path / "cache").glob("plan-point*/*"))) == 1
    bench.session.options = replace(bench.session.options, metric="judged_by_me:score")
    own = made(bench, cache)
    assert own.verify(PART, "the body").origin == "plan", "what another compile kept is of no use"
    assert own.verify(PART, "the body").origin == "cache", "in one compile the code stays"
    assert len(list(own.store.all(1.0))) == 1
    assert made(bench, cache).verify(PART, "the body").origin == "plan"
    assert len(list((tmp_path / "cache").glob("plan-point*/*"))) == 1
    # A metric by name is greencc's own code.
    bench.session.options = replace(bench.session.options, metric="close:0.1")
    assert made(bench, cache).verify(PART, "the body").origin == "cache"
