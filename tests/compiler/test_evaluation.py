"""Errors of candidates through every executor; real runtime, real data."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from greencc.compiler.candidate import check_versions
from greencc.compiler.evaluation import Evaluator, Job
from greencc.compiler.groups import quantized_groups
from greencc.compiler.session import Deadline
from greencc.compiler.slices import Slice, make_slice, restored, stored
from greencc.compiler.tables import error_table
from greencc.compiler.variants import variants
from greencc.core.cache import Cache
from greencc.core.errors import GreenccError, InputError, UnavailableError
from greencc.execution import Executor, InProcess, make_executor
from greencc.verify.metrics import Close, UserMetric

from .conftest import Bench

RAY = pytest.param(
    "ray",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray"
    ),
)


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make_executor(request.param, 2)
    yield made
    made.close()


def evaluator(bench: Bench, executor: Executor) -> Evaluator:
    return replace(Evaluator.of(bench.session), executor=executor, cache=Cache())


def scaled(model: ir.Model, factor: float) -> ir.Model:
    """The model with the weights of its first layer scaled."""
    found = model.clone()
    value = found.graph.initializers["w0"]
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(factor), name="w0")
    return found


def jobs(bench: Bench, *factors: float) -> list[Job]:
    model = bench.builder.cleaned().model
    return [
        Job((f"scaled by {factor}",), lambda factor=factor: scaled(model, factor), f"scale {factor}")  # type: ignore[misc]
        for factor in factors
    ]


@pytest.mark.parametrize("executor", ["local", RAY], indirect=True)
def test_a_table_is_the_same_wherever_it_is_computed(bench: Bench, executor: Executor) -> None:
    model = bench.builder.cleaned().model
    variant = next(variants(bench.session.options.effort, bench.builder.context.capabilities, model))
    groups = quantized_groups(bench.builder.static("int8", (), variant.plain).qdq)
    arguments = (bench.session, bench.builder, bench.baseline, bench.splits, variant, groups)
    bench.session.cache = Cache()
    here = error_table(*arguments, Deadline(600))
    assert here is not None
    assert len({row.error for row in here}) > 1
    bench.session.cache = Cache()
    bench.session._executor = executor
    assert error_table(*arguments, Deadline(600)) == here, "not to the last bit"
    assert not list(bench.session.scratch.glob("candidate-*")), "models of candidates are left"


@pytest.mark.parametrize("executor", ["local"], indirect=True)
def test_errors_come_in_the_order_of_the_jobs(bench: Bench, executor: Executor) -> None:
    on = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    wanted = jobs(bench, 1.0, 2.0, 1.1, 2.0)
    errors = evaluator(bench, executor).errors(wanted, on)
    assert errors[0] is not None
    assert errors[0] < 1e-9
    assert errors[1] == errors[3]
    assert errors == evaluator(bench, InProcess(1)).errors(wanted, on)


def test_without_time_there_is_no_error_and_what_is_known_needs_none(bench: Bench) -> None:
    on = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    found = evaluator(bench, InProcess(1))
    assert found.errors(jobs(bench, 1.5), on, Deadline(60)) != [None]
    assert [error is None for error in found.errors(jobs(bench, 1.5, 1.7), on, Deadline(0))] == [False, True]


@pytest.mark.parametrize("executor", ["local"], indirect=True)
def test_a_metric_of_the_users_compares_outputs_and_is_found_again(
    bench: Bench, executor: Executor, tmp_path: Path
) -> None:
    """Its function lives in this process alone; the key in the cache does not depend on where."""
    on = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    cache = Cache(tmp_path / "kept")
    for _ in range(2):
        metric = UserMetric("mine:score", lambda outputs, labels, feeds: np.ones(1))
        own = replace(evaluator(bench, executor), metric=metric, cache=cache)
        plain = replace(evaluator(bench, executor), metric=Close())
        assert own.errors(jobs(bench, 1.3), on) == plain.errors(jobs(bench, 1.3), on)
    assert len(list((tmp_path / "kept").rglob("*.cache"))) == 1


@pytest.mark.parametrize("executor", ["local"], indirect=True)
def test_a_candidate_that_cannot_run_is_one_clear_error(bench: Bench, executor: Executor) -> None:
    on = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    feeds = tuple({"other": item["image"]} for item in on.feeds)
    wrong = Slice(feeds, on.outputs, "wrong")
    for where in (InProcess(1), executor):
        with pytest.raises(InputError, match="no input 'other'"):
            evaluator(bench, where).errors(jobs(bench, 1.0, 2.0, 3.0), wrong)


def test_workers_with_other_packages_are_refused() -> None:
    check_versions({"onnx": "1.18", "numpy": "2"}, {"onnx": "1.18", "numpy": "2", "more": "1"})
    with pytest.raises(UnavailableError, match=r"a worker has numpy 1, not 2; onnx missing, not 1.18"):
        check_versions({"numpy": "2", "onnx": "1.18"}, {"numpy": "1"})


def test_a_stored_slice_is_what_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = tuple(
        {
            "image": rng.standard_normal((size, 3)).astype(np.float32),
            "half": rng.standard_normal(size).astype(ml_dtypes.bfloat16),
            "word": np.array(["a", "bc"][:size], object),
        }
        for size in (2, 1)
    )
    outputs = tuple(
        {
            "scores": rng.standard_normal((len(item["half"]), 4)),
            "tiny": rng.standard_normal(2).astype(ml_dtypes.float8_e4m3fn),
            "label": np.array([1], np.int64),
        }
        for item in feeds
    )
    blob = stored(Slice(feeds, outputs, "digest"), tmp_path)
    assert stored(Slice(feeds, outputs, "digest"), tmp_path) == blob
    found_feeds, found_outputs = restored(blob.folder)
    _same(found_feeds, feeds)
    _same(found_outputs, [{name: item[name] for name in ("scores", "tiny")} for item in outputs])


def _same(found: list[dict[str, np.ndarray]], wanted: object) -> None:
    assert isinstance(wanted, list | tuple)
    assert len(found) == len(wanted)
    for new, old in zip(found, wanted, strict=True):
        assert isinstance(old, Mapping)
        assert set(new) == set(old)
        for name, value in old.items():
            assert new[name].shape == value.shape
            assert value.dtype in (object, new[name].dtype)
            assert (new[name] == value).all()


def refused(error: GreenccError) -> Job:
    def build() -> ir.Model:
        raise error

    return Job((f"refused: {error}",), build, "what cannot be built")


@pytest.mark.parametrize("executor", ["local"], indirect=True)
def test_a_candidate_that_cannot_be_built_keeps_that_to_itself(bench: Bench, executor: Executor) -> None:
    on = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    problem = InputError("this layer has no integers", hint="leave it")
    for where in (InProcess(1), executor):
        found = evaluator(bench, where)
        (wanted,) = found.errors(jobs(bench, 2.0), on)
        known, broken, new = found.each([*jobs(bench, 2.0), refused(problem), *jobs(bench, 1.5)], on)
        assert (known.error, known.problem) == (wanted, None)
        assert new.error is not None
        assert broken.error is None
        assert isinstance(broken.problem, InputError)
        assert (broken.problem.message, broken.problem.hint) == (problem.message, problem.hint)
        with pytest.raises(InputError, match="no integers"):
            found.errors([*jobs(bench, 2.0), refused(problem)], on)
        with pytest.raises(UnavailableError, match="no memory"):
            found.each([refused(UnavailableError("no memory")), *jobs(bench, 1.7)], on)
    assert not list(bench.session.scratch.glob("candidate-*")), "models of candidates are left"


def test_candidates_that_cannot_run_say_so_one_by_one(bench: Bench) -> None:
    on = make_slice(bench.baseline.engine, bench.splits.planning, 16)
    wrong = Slice(tuple({"other": item["image"]} for item in on.feeds), on.outputs, "wrong")
    found = evaluator(bench, InProcess(1)).each(jobs(bench, 1.0, 2.0), wrong)
    assert ["no input 'other'" in str(one.problem) for one in found] == [True, True]
