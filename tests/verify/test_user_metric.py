"""Metrics of the user: per sample, aggregate, and wrong in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from greencc.core.errors import GreenccError, InputError, UsageError
from greencc.verify import UserMetric, compare, load_user_metric, parse_metric
from greencc.verify.metrics import Auto, Close, TopOne

SOURCE = """
import numpy as np

def close_to_label(outputs, labels, feeds):
    assert feeds["x"].shape[0] == len(labels)
    return np.clip(1 - np.abs(outputs["y"][:, 0] - labels), 0, 1)

def spread(outputs, labels):
    return float(outputs["y"].std())

spread.aggregate = True

def broken(outputs, labels, feeds):
    return 1 / 0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my_metrics_for_test.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return path


def _engines(fakes: Any, shift: float) -> tuple[Any, Any]:
    return fakes.engine(lambda x: {"y": x}), fakes.engine(lambda x: {"y": x + np.float32(shift)})


def test_per_sample_scores(fakes: Any, module: Path) -> None:
    x = np.random.default_rng(0).random((600, 2)).astype(np.float32)
    data = fakes.data(x, x[:, 0].astype(np.float64))
    found = compare(*_engines(fakes, 0.004), data, metric="my_metrics_for_test:close_to_label")
    assert found.metric == "my_metrics_for_test:close_to_label"
    assert found.baseline == pytest.approx(1.0)
    assert found.drop == pytest.approx(0.004, rel=1e-3)
    assert found.low is not None
    assert found.low <= found.drop <= found.high + 1e-9
    assert found.failures == 600
    assert not found.certified
    assert found.n_needed is not None
    assert found.n_needed > 600
    more = fakes.data(np.tile(x, (3, 1)), np.tile(x[:, 0], 3).astype(np.float64))
    assert compare(*_engines(fakes, 0.004), more, metric=f"{module}:close_to_label").certified


def test_unchanged_scores_are_no_proof(fakes: Any, module: Path) -> None:
    x = np.full((50, 2), 0.5, np.float32)
    data = fakes.data(x, np.zeros(50))
    found = compare(*_engines(fakes, 0.0), data, metric="my_metrics_for_test:close_to_label")
    assert found.high is not None
    assert found.high > 0.05


def test_binary_scores_get_the_exact_test(fakes: Any) -> None:
    def hit(outputs: Any, labels: Any, feeds: Any) -> Any:
        return outputs["y"][:, 0] > 0.5

    x = np.ones((400, 1), np.float32)
    x[:2] = 0.55
    found = compare(*_engines(fakes, -0.1), fakes.data(x), metric=UserMetric("m:hit", hit))
    assert found.failures == 2
    assert found.p_value == pytest.approx(binom.cdf(2, 400, 0.01))


def test_aggregate(fakes: Any, module: Path) -> None:
    x = np.random.default_rng(1).normal(size=(80, 3)).astype(np.float32)
    baseline = fakes.engine(lambda x: {"y": x})
    artifact = fakes.engine(lambda x: {"y": 0.9 * x})
    found = compare(baseline, artifact, fakes.data(x), metric="my_metrics_for_test:spread", batch=7)
    assert found.baseline == pytest.approx(float(x.std()), rel=1e-6)
    assert found.drop == pytest.approx(0.1 * float(x.std()), rel=1e-4)
    assert found.low is not None
    assert 0 < found.low < found.drop < found.high
    assert found.failures is None
    assert not found.certified
    assert "only per-sample scores can be certified" in found.reason


def test_aggregate_that_is_often_undefined_has_no_interval(fakes: Any) -> None:
    def picky(outputs: Any, labels: Any) -> float:
        y = outputs["y"][:, 0]
        return float("nan") if len(np.unique(y)) < 7 else 0.5

    picky.aggregate = True  # type: ignore[attr-defined]
    x = np.arange(8, dtype=np.float32)[:, None]
    found = compare(*_engines(fakes, 1.0), fakes.data(x), metric=UserMetric("m:picky", picky))
    assert (found.drop, found.low, found.high) == (0.0, None, None)


def test_failing_code_is_named_with_its_line(fakes: Any, module: Path) -> None:
    line = SOURCE.splitlines().index("    return 1 / 0") + 1
    with pytest.raises(InputError, match=rf"my_metrics_for_test\.py:{line}: ZeroDivisionError"):
        compare(
            *_engines(fakes, 0), fakes.data(np.ones((4, 2), np.float32)), metric="my_metrics_for_test:broken"
        )


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.ones(3), r"returned shape \[3\] for 4 samples"),
        (np.float64(0.5), r"returned shape \[\] for 4 samples"),
        (np.full(4, 1.5), r"returned 1.5 to 1.5"),
        (np.array([0, 1, np.nan, 1]), "returned NaN"),
        (object(), "not an array of numbers"),
    ],
)
def test_wrong_results(fakes: Any, result: Any, message: str) -> None:
    metric = UserMetric("m:f", lambda outputs, labels, feeds: result)
    with pytest.raises(InputError, match=message):
        compare(*_engines(fakes, 0), fakes.data(np.ones((4, 2), np.float32)), metric=metric)


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("no_such_module_here:f", UsageError, "no module 'no_such_module_here'"),
        ("my_metrics_for_test:spred", UsageError, "did you mean 'spread'"),
        ("missing.py:f", UsageError, r"no file missing\.py"),
        ("broken_import.py:f", InputError, r"broken_import\.py:2: .*ModuleNotFoundError"),
        ("bad_syntax.py:f", InputError, r"bad_syntax\.py:1: SyntaxError"),
        (":f", UsageError, "write module:function"),
    ],
)
def test_loading(module: Path, reference: str, kind: type[GreenccError], message: str) -> None:
    (module.parent / "broken_import.py").write_text("import os\nimport not_there_at_all\n")
    (module.parent / "bad_syntax.py").write_text("def f(:\n")
    with pytest.raises(kind, match=message):
        load_user_metric(reference)


def test_parse_metric() -> None:
    assert parse_metric(None) == Auto()
    assert parse_metric("auto") == Auto()
    assert parse_metric("top1:probs") == TopOne("probs")
    assert parse_metric("close:0.02") == Close(0.02)
    for bad in ("acuracy", "close:x", "close:2", "top"):
        with pytest.raises(UsageError):
            parse_metric(bad)
