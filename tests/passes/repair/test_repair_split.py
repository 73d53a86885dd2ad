"""What repairs learn from and what judges them have no sample in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from greencc.passes._repair_gate import repaired
from greencc.passes._repair_layers import Refit, RefitOptions, refit
from greencc.passes._repair_split import judges, spread, teaching, where_judged


def numbers(count: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(count, dtype=np.float32)[:, np.newaxis]


def rows_of(source, size: int = 32) -> list[float]:  # type: ignore[no-untyped-def]
    parts = [batch.feeds["x"][:, 0] for batch in source.batches(size)]
    assert all(0 < len(part) <= size for part in parts)
    return np.concatenate([*parts, []]).tolist()


@pytest.mark.parametrize("count", [600, 1000, 1024, 100, 5, 17])
@pytest.mark.parametrize("limit", [512, 100, 16, 3])
@pytest.mark.parametrize("size", [1, 4, 32])
def test_no_sample_teaches_and_judges(count: int, limit: int, size: int, context) -> None:  # type: ignore[no-untyped-def]
    ctx = context(x=numbers(count))
    chosen, means, judge = (
        spread(ctx.calibration, limit),
        teaching(ctx).calibration,
        judges(ctx.calibration, 64),
    )
    assert means is not None
    found = np.array(rows_of(chosen, size))
    assert len(found) == chosen.count == len(chosen.judging) == min(limit, count)
    learned = {*found[~chosen.judging], *rows_of(means, size)}
    judging = {*found[chosen.judging], *rows_of(judge, size)}
    assert learned
    assert judging
    assert not learned & judging
    assert len(rows_of(judge)) == judge.count == min(64, count // 5)
    assert chosen.judging.sum() == min(limit, count) // 5


def test_few_samples_of_many_are_spread_over_the_data(context) -> None:  # type: ignore[no-untyped-def]
    source = context(x=numbers(100)).calibration
    found = [batch.feeds["x"][:, 0] for batch in spread(source, 10).batches(4)]
    assert [len(part) for part in found] == [4, 4, 2]
    assert np.concatenate(found).tolist() == [11, 23, 36, 48, 49, 61, 73, 86, 98, 99]
    assert rows_of(judges(source, 4)) == [24, 49, 74, 99]


@pytest.mark.parametrize("count", [1, 4])
def test_of_fewer_than_five_all_teach_and_that_is_told(count: int, context) -> None:  # type: ignore[no-untyped-def]
    ctx = context(x=numbers(count))
    chosen = spread(ctx.calibration, 512)
    assert rows_of(teaching(ctx).calibration) == rows_of(judges(ctx.calibration, 64)) == rows_of(chosen)
    assert not chosen.judging.any()
    assert where_judged(chosen.judging) == "on the samples learned from, too few to keep any aside"
    assert where_judged(np.array([False, True])) == "on samples kept aside"


@pytest.mark.parametrize("count", [600, 1000, 1024, 100])
def test_refit_and_gate_see_disjoint_samples(count: int, graph, context, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """What really enters the moments of a layer, and what the whole is judged on, by the input values."""
    from greencc.passes import _repair_gate, _repair_rows

    g = graph()
    model = g.model(g.op("Gemm", g.input("x", ["n", 1]), g.random(1, 3), g.random(3), name="layer"))
    learned: set[float] = set()
    judged: set[float] = set()
    add, run_one = _repair_rows.Moments.add, _repair_gate.run_one

    def learn(self: Any, x: Any, y: Any) -> None:
        learned.update(x.reshape(-1).tolist())
        add(self, x, y)

    def judge(engine: Any, item: Any) -> Any:
        judged.update(item.feeds["x"].reshape(-1).tolist())
        return run_one(engine, item)

    monkeypatch.setattr(_repair_rows.Moments, "add", learn)
    monkeypatch.setattr(_repair_gate, "run_one", judge)
    ctx = context(x=numbers(count) / count)
    repaired(
        model, model.clone(), ctx, lambda trial: refit(model, trial, [Refit("layer", "layer_out")], ctx), "r"
    )
    assert len(learned) > 50
    assert len(judged) == min(64, count // 5)
    assert not learned & judged


def wrong_and_right(graph: Any) -> tuple[Any, Any]:
    g = graph()
    model = g.model(g.op("Gemm", g.input("x", ["n", 4]), g.random(4, 3), g.random(3), name="layer"))
    return model, model.clone()


@pytest.mark.parametrize("count", [4, 50])
def test_a_repair_that_moves_the_outputs_away_is_taken_back(count: int, graph, context) -> None:  # type: ignore[no-untyped-def]
    import onnx_ir as ir

    model, other = wrong_and_right(graph)
    ctx = context(x=np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32))
    ctx.rewrites.allow("cut", "before")
    before = ir.to_proto(other).SerializeToString()

    def spoil(trial: Any) -> list[Any]:
        ctx.rewrites.allow("refit", "layer")
        value = trial.graph.node("layer").inputs[1]
        value.const_value = ir.tensor(3 * value.const_value.numpy(), name=value.name)
        return []

    (finding,) = repaired(model, other, ctx, spoil, "drop")
    assert "the repair was dropped" in finding.message
    assert ("on samples kept aside" in finding.message) is (count == 50)
    assert ir.to_proto(other).SerializeToString() == before
    assert [item.rule for item in ctx.rewrites.applied] == ["cut"]


def test_a_repair_that_brings_the_outputs_nearer_stays(graph, context) -> None:  # type: ignore[no-untyped-def]
    import onnx_ir as ir

    model, other = wrong_and_right(graph)
    value = other.graph.node("layer").inputs[1]
    value.const_value = ir.tensor(0.1 * value.const_value.numpy(), name=value.name)
    ctx = context(x=np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32))
    layers = [Refit("layer", "layer_out")]
    found = repaired(
        model, other, ctx, lambda trial: refit(model, trial, layers, ctx, RefitOptions(ridge=1e-6)), "r"
    )
    assert any("1 of 1 layers were refit" in item.message for item in found)
    assert [item.node for item in ctx.rewrites.applied] == ["layer"]
    after = other.graph.node("layer").inputs[1].const_value.numpy()
    np.testing.assert_allclose(after, model.graph.node("layer").inputs[1].const_value.numpy(), atol=1e-3)
