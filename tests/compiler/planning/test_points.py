from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from greencc.compiler.planning.points import Figures, PointStore
from greencc.compiler.planning.space import PlanSteps
from greencc.core.cache import Cache
from greencc.core.report import Interval
from greencc.passes.prune import Prune
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights

FIGURES = Figures(0.004, 1e-4, Interval(1.5, 1.4, 1.6), {50: 2.0, 95: 2.5, 99: 3.0}, None, 12_345, 1e6)
STEPS = PlanSteps(
    (Prune(channels=("/conv=48",)),),
    QuantizeInt8(exclude=("/head",)),
    (QuantizeWeights(bits=4, exclude=("/conv",)),),
)


@pytest.fixture
def store(tmp_path: Path) -> PointStore:
    return PointStore(Cache(tmp_path), "a" * 64)


def test_a_point_comes_back_as_it_was(store: PointStore) -> None:
    chosen = {"arithmetic:/conv": "int8"}
    store.put(STEPS, "cpu", "two layers", FIGURES, chosen)
    assert store.get(STEPS, "cpu", 3.0) == FIGURES
    (kept,) = store.all(3.0)
    assert (kept.steps, kept.backend, kept.summary) == (STEPS, "cpu", "two layers")
    assert (kept.figures, kept.chosen) == (FIGURES, chosen)


def test_points_differ_by_steps_and_backend(store: PointStore) -> None:
    store.put(STEPS, "cpu", "", FIGURES, None)
    assert store.get(STEPS, "openvino", 3.0) is None
    assert store.get(PlanSteps(), "cpu", 3.0) is None


def test_other_contexts_have_other_points(store: PointStore) -> None:
    store.put(STEPS, "cpu", "", FIGURES, None)
    other = PointStore(store.cache, "b" * 64)
    assert list(other.all(3.0)) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 0}',
        '{"version": 1}',
        '{"version": 1, "prepare": "[[pass]]\\nname = \'x\'"}',
        "[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_no_point(store: PointStore, text: str) -> None:
    store.put(STEPS, "cpu", "", FIGURES, None)
    (key,) = store.cache.keys(store.kind)
    store.cache.put(store.kind, key, {"point": np.array(text)})
    assert store.get(STEPS, "cpu", 3.0) is None
    assert list(store.all(3.0)) == []


def test_a_damaged_file_is_no_point(store: PointStore, tmp_path: Path) -> None:
    store.put(STEPS, "cpu", "", FIGURES, None)
    (path,) = tmp_path.rglob("*.cache")
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    assert store.get(STEPS, "cpu", 3.0) is None
    assert list(store.all(3.0)) == []


def test_times_are_relative_to_what_the_baseline_takes_now(store: PointStore) -> None:
    store.put(STEPS, "cpu", "", FIGURES, None)
    found = store.get(STEPS, "cpu", 6.0)
    assert found is not None
    assert found.latency_ms == {50: 4.0, 95: 5.0, 99: 6.0}


@pytest.mark.parametrize("baseline_ms", [3.0, 1e300])
@pytest.mark.parametrize(
    "planted",
    [
        {"loss": math.nan},
        {"loss": math.inf},
        {"error": math.nan},
        {"error": math.inf},
        {"error": -1e-3},
        {"error": None},
        {"ratio": [math.nan, 1.4, 1.6]},
        {"ratio": [0.0, 0.0, 0.0]},
        {"ratio": [-1.5, 1.4, 1.6]},
        {"ratio": [1e-320, 1.4, 1.6]},
        {"ratio": [1.5, 1.4]},
        {"latency_ms": {"50": math.nan, "95": 2.5, "99": 3.0}},
        {"latency_ms": {"50": 0.0, "95": 2.5, "99": 3.0}},
        {"latency_ms": {"50": -2.0, "95": 2.5, "99": 3.0}},
        {"latency_ms": {"50": 2.0, "95": math.inf, "99": 3.0}},
        {"latency_ms": {"50": 2.0}},
        {"energy_mj": math.inf},
        {"energy_mj": -1.0},
        {"size_bytes": math.inf},
        {"size_bytes": -1},
        {"size_bytes": 10**400},
        {"macs": math.nan},
        {"macs": -1e6},
        {"macs": 10**400},
    ],
)
def test_figures_that_no_plan_has_make_no_point(
    store: PointStore, planted: dict[str, object], baseline_ms: float
) -> None:
    store.put(STEPS, "cpu", "", FIGURES, None)
    (key,) = store.cache.keys(store.kind)
    entry = store.cache.get(store.kind, key)
    assert entry is not None
    text = json.dumps(json.loads(str(entry["point"])) | planted)
    store.cache.put(store.kind, key, {"point": np.array(text)})
    assert store.get(STEPS, "cpu", baseline_ms) is None
    assert list(store.all(baseline_ms)) == []


def test_a_plan_may_be_more_accurate_than_the_original(store: PointStore) -> None:
    better = replace(FIGURES, loss=-0.01)
    store.put(STEPS, "cpu", "", better, None)
    assert store.get(STEPS, "cpu", 3.0) == better
