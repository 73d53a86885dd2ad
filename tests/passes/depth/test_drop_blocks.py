"""The pass: which blocks go, in which order, what it says, when it declines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.capabilities import Arithmetic
from greencc.core.engine import Timing
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import constant_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.pass_list import format_passes, parse_passes
from greencc.core.passes import Context
from greencc.core.recipe import dump_recipe, parse_recipe
from greencc.core.report import Interval
from greencc.passes import PASSES, _repair_layers
from greencc.passes._blocks_score import BlockScore, BlockScorer
from greencc.passes.drop_blocks import DropBlocks
from tests.passes.conftest import Graph

SCALES = (1.0, 0.01, 0.3, 0.05)
PLAIN = DropBlocks(ratio=0.6, repair=False)


def network(scales: Sequence[float] = SCALES, seed: int = 0, batch: int | str = "N") -> ir.Model:
    """Residual blocks of equal work that add about `scale` times what they get, and a classifier."""
    g = Graph(seed=seed)
    x = g.op("Relu", g.op("Conv", g.input("x", [batch, 3, 6, 6]), g.random(8, 3, 1, 1)))
    for index, scale in enumerate(scales):
        h = g.op("Relu", g.op("Conv", x, g.const(0.2 * g.rng.standard_normal((8, 8, 1, 1)))))
        f = g.op("Conv", h, g.const(scale * g.rng.standard_normal((8, 8, 1, 1))))
        x = g.op("Relu", g.op("Add", x, f, name=f"block{index}"), name=f"relu{index}")
    y = g.op("Flatten", g.op("GlobalAveragePool", x))
    model = g.model(g.op("Gemm", y, g.const(0.5 * g.rng.standard_normal((8, 5))), name="head"))
    model.graph.outputs[0].dtype = ir.DataType.FLOAT
    return model


@pytest.fixture
def feeds() -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((40, 3, 6, 6)).astype(np.float32)}


def joins(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph if node.op_type == "Add"]


def reasons(outcome: Any) -> str:
    return " | ".join(finding.message for finding in outcome.findings)


@pytest.mark.parametrize("score", list(BlockScore))
def test_the_least_harmful_block_goes_first(feeds: Any, kit: Any, score: BlockScore) -> None:
    model = network()
    context = kit.context(feeds)
    outcome = replace(PLAIN, count=2, score=score).apply(model, context)
    assert [rewrite.node for rewrite in context.rewrites.applied] == ["block1", "block3"]
    assert outcome.changed == 2
    assert joins(model) == ["block0", "block2"]
    infer_shapes(model)
    check_model(model)
    assert f"'block1', 23.8 % of the MACs: {score.value} score" in reasons(outcome)
    assert "nothing was measured" in reasons(outcome)


def test_no_more_than_the_ratio_goes(feeds: Any, kit: Any) -> None:
    model = network()
    assert replace(PLAIN, ratio=0.5).apply(model, kit.context(feeds)).changed == 2
    model = network()
    outcome = replace(PLAIN, ratio=0.2).apply(model, kit.context(feeds))
    assert outcome.changed == 0
    assert (
        "block0 (23.8 %), block1 (23.8 %), block2 (23.8 %) and 1 more stays: it takes more than 20 %"
        in reasons(outcome)
    )


@pytest.mark.parametrize("score", list(BlockScore))
def test_scores_are_what_removal_does(feeds: Any, kit: Any, score: BlockScore) -> None:
    model = network()
    infer_shapes(model)
    context = kit.context(feeds)
    arguments: Any = {"score": score, "samples": 40, "batch": 7}
    with BlockScorer(model, ["block0", "block2"], {}, context, **arguments) as scorer:
        alone = scorer.scores((), ["block0", "block2"])
        after = scorer.scores(["block0"], ["block2"])
    inner = kit.run_as_written(model, feeds, ["relu1_out", "block2_out"])
    before, behind = inner["relu1_out"], inner["block2_out"]
    if score is BlockScore.SIMILARITY:
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(behind, axis=1)
        expected = 1 - np.where(norms > 0, (before * behind).sum(axis=1) / np.maximum(norms, 1e-30), 0)
        assert alone["block2"] == pytest.approx(expected.mean(), rel=1e-3)
    else:
        shorter = network()
        replace(PLAIN, exclude=("block0", "block1", "block3")).apply(shorter, context)
        log_p, log_q = (log_softmax(kit.run(item, feeds)[0]) for item in (model, shorter))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
        assert alone["block2"] == pytest.approx(divergence, rel=1e-2)
    assert after["block2"] != alone["block2"]


def log_softmax(scores: Any) -> Any:
    scores = scores.astype(np.float64)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def test_outputs_that_are_no_scores_count_by_their_squared_error(feeds: Any, kit: Any) -> None:
    model = network()
    graph = model.graph
    graph.outputs[0] = next(node for node in graph if node.name == "relu3").outputs[0]
    infer_shapes(model)
    with BlockScorer(
        model, ["block3"], {}, kit.context(feeds), score=BlockScore.OUTPUT, samples=40, batch=16
    ) as scorer:
        found = scorer.scores((), ["block3"])["block3"]
    inner = kit.run_as_written(model, feeds, ["relu2_out", "relu3_out"])
    difference = np.square(inner["relu2_out"] - inner["relu3_out"]).sum()
    assert found == pytest.approx(difference / np.square(inner["relu3_out"]).sum(), rel=1e-3)


def test_a_block_that_breaks_the_model_is_the_last_to_go(feeds: Any, kit: Any) -> None:
    # Without the block a division by zero follows.
    g = Graph()
    x = g.op("Relu", g.input("x", ["N", 3, 6, 6]))
    a = g.op("Add", x, g.op("Conv", x, g.const(np.zeros((3, 3, 1, 1))), g.const(np.ones(3))), name="needed")
    b = g.op("Div", a, a)
    c = g.op("Add", b, g.op("Conv", b, g.random(3, 3, 1, 1)), name="harmful")
    model = g.model(g.op("Flatten", c))
    infer_shapes(model)
    context = kit.context(feeds)
    with BlockScorer(
        model, ["needed", "harmful"], {}, context, score=BlockScore.OUTPUT, samples=8, batch=8
    ) as scorer:
        found = scorer.scores((), ["needed", "harmful"])
    assert found["needed"] == np.inf
    assert np.isfinite(found["harmful"])


def test_fixed_batches_and_few_samples(kit: Any, feeds: Any) -> None:
    model = network(batch=4)
    few = {"x": feeds["x"][:6]}
    outcome = replace(PLAIN, count=1, samples=5, batch=3).apply(model, kit.context(few))
    assert outcome.changed == 1
    assert "block1" not in joins(model)


def timed(context: Context, low: float, high: float) -> tuple[Context, list[list[int]]]:
    calls: list[list[int]] = []

    def time(models: Sequence[ir.Model], feeds: Any) -> Timing:
        calls.append([len(model.graph) for model in models])
        return Timing((2.0, 1.0), (Interval((low + high) / 2, low, high),))

    return replace(context, time=time, samples=[{"x": np.zeros((1, 3, 6, 6), np.float32)}]), calls


def test_it_declines_where_the_target_is_not_faster(feeds: Any, kit: Any) -> None:
    model = network()
    count = len(model.graph)
    context, calls = timed(kit.context(feeds), 0.95, 1.05)
    outcome = replace(PLAIN, count=1).apply(model, context)
    assert outcome.changed == 0
    assert not context.rewrites.applied
    assert len(model.graph) == count
    (finding,) = [item for item in outcome.findings if "measured" in item.message]
    assert finding.kind == "refused"
    assert "1.00 times as fast (0.95 to 1.05)" in finding.message
    assert calls == [[count, count - 4]]


def test_it_says_how_much_faster_the_target_is(feeds: Any, kit: Any) -> None:
    model = network()
    context, _ = timed(kit.context(feeds), 1.2, 1.4)
    outcome = replace(PLAIN, count=1).apply(model, context)
    assert outcome.changed == 1
    assert "2 ms before and 1 ms after, 1.30 times as fast (1.20 to 1.40) in float" in reasons(outcome)
    integers = replace(context, arithmetic=Arithmetic.INT8)
    assert "in INT8" in reasons(replace(PLAIN, count=1).apply(network(), integers))


def test_rewrites_that_are_not_allowed_are_not_done(feeds: Any, kit: Any) -> None:
    model = network()
    assert replace(PLAIN, count=2).apply(model, kit.context(feeds, limit=1)).changed == 1
    assert joins(model) == ["block0", "block2", "block3"]
    model = network()
    assert DropBlocks(ratio=0.6, count=2).apply(model, kit.context(feeds, limit=0)).changed == 0
    assert len(joins(model)) == 4


def test_later_layers_are_handed_to_the_repair(feeds: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def refit(original: ir.Model, compressed: ir.Model, layers: Any, ctx: Context) -> list[Any]:
        seen.update(original=joins(original), compressed=joins(compressed), layers=layers)
        return []

    monkeypatch.setattr(_repair_layers, "refit", refit)
    model = network()
    replace(PLAIN, count=1, repair=True).apply(model, kit.context(feeds))
    assert len(seen["original"]) == 4
    assert seen["compressed"] == joins(model) == ["block0", "block2", "block3"]
    weighted = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    # Those before the block see what they saw.
    assert [item.node for item in seen["layers"]] == [node.name for node in weighted[3:]]
    assert [item.target for item in seen["layers"]] == [node.outputs[0].name for node in weighted[3:]]


def test_repair_brings_the_outputs_back(feeds: Any, kit: Any) -> None:
    model = network((0.3, 0.3, 0.3))
    expected = kit.run(model, feeds)[0]
    errors = []
    for repair in (False, True):
        shorter = model.clone()
        outcome = replace(PLAIN, count=1, repair=repair).apply(shorter, kit.context(feeds))
        assert outcome.changed == 1
        infer_shapes(shorter)
        errors.append(float(np.square(kit.run(shorter, feeds)[0] - expected).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_repair_that_moves_the_outputs_away_is_dropped(
    feeds: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(original: ir.Model, compressed: ir.Model, layers: Any, ctx: Context) -> list[Any]:
        weight = compressed.graph.node("head").inputs[1]
        assert weight is not None
        array = constant_of(weight)
        assert array is not None
        weight.const_value = ir.tensor(-5 * array, name=weight.name)
        return []

    plain, model = network(), network()
    replace(PLAIN, count=1).apply(plain, kit.context(feeds))
    monkeypatch.setattr(_repair_layers, "refit", spoil)
    outcome = replace(PLAIN, count=1, repair=True).apply(model, kit.context(feeds))
    assert "the repair was dropped" in reasons(outcome)
    np.testing.assert_array_equal(kit.run(model, feeds)[0], kit.run(plain, feeds)[0])


def test_clones_share_weights_and_stay_as_they_are(feeds: Any, kit: Any) -> None:
    model = network()
    other = model.clone()
    before = kit.run(other, feeds)[0]
    replace(PLAIN, count=2, repair=True).apply(model, kit.context(feeds))
    np.testing.assert_array_equal(kit.run(other, feeds)[0], before)
    head = next(node for node in other.graph if node.name == "head")
    assert constant_of(head.inputs[1]) is not None


def test_excluding_what_there_is_not(feeds: Any, kit: Any) -> None:
    outcome = replace(PLAIN, exclude=("block0", "nope")).apply(network(), kit.context(feeds))
    warned = [item.message for item in outcome.findings if item.kind == "warning"]
    assert warned == ["no node is named 'nope', so excluding it has no effect"]


def test_what_stays_and_why(feeds: Any, kit: Any) -> None:
    outcome = replace(PLAIN, exclude=tuple(joins(network()))).apply(network(), kit.context(feeds))
    assert outcome.changed == 0
    assert "excluded by the options" in reasons(outcome)
    g = Graph()
    x = g.input("x", ["N", 3, 6, 6])
    r = g.op("Add", x, g.op("Relu", x))
    light = g.model(g.op("Conv", r, g.random(4, 3, 1, 1)))
    assert "multiplies nothing" in reasons(PLAIN.apply(light, kit.context(feeds)))
    g = Graph()
    plain = g.model(g.op("Conv", g.input("x", ["N", 3, 6, 6]), g.random(4, 3, 1, 1)))
    outcome = PLAIN.apply(plain, kit.context(feeds))
    assert (outcome.findings[0].kind, outcome.findings[0].message) == (
        "refused",
        "the model has no residual blocks",
    )


def test_bad_data(feeds: Any, kit: Any) -> None:
    with pytest.raises(InputError, match="calibration data"):
        PLAIN.apply(network(), kit.context(None))
    with pytest.raises(InputError, match="no samples"):
        PLAIN.apply(network(), kit.context({"x": feeds["x"][:0]}))
    feeds["x"][2, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match="sample 2"):
        PLAIN.apply(network(), kit.context(feeds))


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.0}, {"ratio": 1.0}, {"ratio": float("nan")}, {"count": -1}, {"samples": 0}, {"batch": 0}],
)
def test_options_out_of_range(options: Any) -> None:
    with pytest.raises(UsageError):
        DropBlocks(**options)


def bytes_of(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def test_named_blocks_go_whatever_else_is_asked(feeds: Any, kit: Any) -> None:
    """`block0` is the dearest, and both are more than the ratio allows; nothing is measured."""
    model = network()
    context, calls = timed(kit.context(feeds), 0.5, 0.6)
    outcome = DropBlocks(ratio=0.01, count=1, blocks=("block2", "block0"), repair=False).apply(model, context)
    assert joins(model) == ["block1", "block3"]
    assert (outcome.changed, outcome.chosen) == (2, {"blocks": ("block2", "block0")})
    assert not calls
    assert "'block2', 23.8 % of the MACs" in reasons(outcome)
    infer_shapes(model)
    check_model(model)


@pytest.mark.parametrize("options", [{"count": 2}, {"ratio": 0.3, "score": BlockScore.SIMILARITY}])
def test_what_was_chosen_can_be_given_back(feeds: Any, kit: Any, options: dict[str, Any]) -> None:
    first, again = network((0.3, 0.2, 0.4, 0.1)), network((0.3, 0.2, 0.4, 0.1))
    step = replace(PLAIN, repair=True, **options)
    outcome = step.apply(first, kit.context(feeds))
    assert outcome.chosen["blocks"]
    repeated = replace(step, ratio=0.01, blocks=outcome.chosen["blocks"]).apply(again, kit.context(feeds))
    assert bytes_of(again) == bytes_of(first)
    assert repeated.chosen == outcome.chosen


def test_named_blocks_need_no_data_without_a_repair(feeds: Any, kit: Any) -> None:
    model, expected = network(), network()
    step = DropBlocks(blocks=("block1",), repair=False)
    assert step.apply(model, kit.context(None)).changed == 1
    step.apply(expected, kit.context(feeds))
    assert bytes_of(model) == bytes_of(expected)
    with pytest.raises(InputError, match="calibration data"):
        replace(step, repair=True).apply(network(), kit.context(None))


def nested() -> ir.Model:
    """A block inside another one."""
    g = Graph()
    x = g.op("Relu", g.input("x", ["N", 3, 6, 6]))
    h = g.op("Conv", x, g.random(3, 3, 1, 1))
    inner = g.op("Add", h, g.op("Conv", h, g.random(3, 3, 1, 1)), name="inner")
    g.op("Add", x, g.op("Conv", inner, g.random(3, 3, 1, 1)), name="outer")
    return g.model(g.op("Flatten", "outer_out"))


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"blocks": ("blok1",)}, "no residual block ends in a node named 'blok1'", "did you mean 'block1'"),
        ({"blocks": ("head",)}, "no residual block ends in a node named 'head'", "known: block0"),
        ({"blocks": ("block1",), "exclude": ("block1",)}, "'block1' cannot be removed: it is excluded", ""),
    ],
)
def test_names_of_no_block_change_nothing(
    feeds: Any, kit: Any, options: dict[str, Any], message: str, hint: str
) -> None:
    model = network()
    before = bytes_of(model)
    with pytest.raises(UsageError, match=message) as caught:
        DropBlocks(**options).apply(model, kit.context(feeds))
    assert hint in (caught.value.hint or "")
    assert bytes_of(model) == before


def test_blocks_inside_others(feeds: Any, kit: Any) -> None:
    model = nested()
    assert DropBlocks(blocks=("inner", "outer"), repair=False).apply(model, kit.context(feeds)).changed == 2
    assert [node.op_type for node in model.graph] == ["Relu", "Flatten"]
    with pytest.raises(UsageError, match="'inner' cannot be removed: it is none any more once outer went"):
        DropBlocks(blocks=("outer", "inner"), repair=False).apply(nested(), kit.context(feeds))


def test_an_add_of_branches_says_why_it_stays(feeds: Any, kit: Any) -> None:
    g = Graph()
    x = g.input("x", ["N", 3, 6, 6])
    join = g.op("Add", g.op("Conv", x, g.random(3, 3, 1, 1)), g.op("Relu", x), name="join")
    model = g.model(g.op("Flatten", join))
    with pytest.raises(UsageError, match="'join' cannot be removed: neither operand is computed"):
        DropBlocks(blocks=("join",), repair=False).apply(model, kit.context(feeds))


def test_blocks_go_through_recipes_and_lists() -> None:
    step = DropBlocks(blocks=("/a:0/add", "b=c"))
    assert parse_recipe(dump_recipe([step]), PASSES) == (step,)
    assert parse_passes(format_passes([step]), PASSES) == (step,)
    assert parse_passes("drop-blocks:blocks=add1+add2", PASSES) == (DropBlocks(blocks=("add1", "add2")),)
    with pytest.raises(UsageError, match="'a' comes twice"):
        DropBlocks(blocks=("a", "a"))
