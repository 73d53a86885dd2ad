"""Refitting the layers of a compressed model."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import constant_of
from greencc.core.groups import analyse, cut
from greencc.core.model import infer_shapes
from greencc.passes._repair_layers import (
    Join,
    Refit,
    RefitOptions,
    Source,
    kept_outputs,
    layers_after_cut,
    refit,
)

SHARP = RefitOptions(ridge=1e-9, rows=100)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scrambled(model: ir.Model, *nodes: str, bias: bool = True) -> ir.Model:
    """A clone in which the weights (and biases) of some nodes are others."""
    wrong = model.clone()
    rng = np.random.default_rng(9)
    for node in wrong.graph:
        if node.name in nodes:
            for value in node.inputs[1 : 3 if bias else 2]:
                if value is not None and value.const_value is not None:
                    array = value.const_value.numpy()
                    other = array + rng.standard_normal(array.shape).astype(array.dtype)
                    value.const_value = ir.tensor(other.astype(array.dtype), name=value.name)
    return wrong


def weight(model: ir.Model, node: str, index: int = 1) -> np.ndarray | None:
    found = next(item for item in model.graph if item.name == node)
    return constant_of(found.inputs[index]) if index < len(found.inputs) else None


def messages(findings: list) -> str:
    return " | ".join(finding.message for finding in findings)


LAYERS = {
    "conv": ("Conv", (6, 4, 3, 3), (6,), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "depthwise": ("Conv", (4, 1, 3, 3), (4,), {"group": 4}),
    "grouped": ("Conv", (6, 2, 3, 3), (6,), {"group": 2, "dilations": [2, 2]}),
    "transposed": ("ConvTranspose", (4, 3, 2, 2), (3,), {"strides": [2, 2]}),
    "transposed in groups": ("ConvTranspose", (4, 3, 3, 3), (6,), {"group": 2, "pads": [1, 0, 0, 1]}),
    "no bias": ("Conv", (5, 4, 1, 1), None, {}),
    "gemm": ("Gemm", (4, 5), (5,), {"alpha": 0.5, "beta": 2.0}),
    "gemm transposed": ("Gemm", (5, 4), (1, 5), {"transB": 1}),
    "gemm without bias": ("Gemm", (5, 4), None, {"transB": 1, "beta": 3.0}),
    "gemm of beta 0": ("Gemm", (4, 5), (5,), {"beta": 0.0}),
    "gemm with one number": ("Gemm", (4, 5), (), {}),
    "matmul": ("MatMul", (4, 5), None, {}),
}


@pytest.mark.parametrize("case", LAYERS)
def test_a_scrambled_layer_gets_its_weights_back(case, graph, context, run) -> None:
    op_type, shape, bias, attributes = LAYERS[case]
    g = graph()
    rank = len(shape)
    x = g.input("x", ["n", 4, 9, 9][:rank] if rank == 4 else ["n", 4])
    inputs = [x, g.random(*shape)] + ([] if bias is None else [g.random(*bias)])
    model = g.model(g.op(op_type, *inputs, name="layer", **attributes))
    data = normal(80, 4, 9, 9) if rank == 4 else normal(300, 4) + 2
    wrong = scrambled(model, "layer")
    ctx = context(x=data)
    findings = refit(model, wrong, [Refit("layer", "layer_out")], ctx, SHARP)
    assert [rewrite.node for rewrite in ctx.rewrites.applied] == ["layer"], messages(findings)
    assert np.abs(weight(wrong, "layer") - weight(model, "layer")).max() < 1e-3
    fresh = normal(*data.shape, seed=5)
    assert np.abs(run(wrong, x=fresh) - run(model, x=fresh)).max() < 5e-3


def test_the_bias_of_a_product_is_the_add_after_it(graph, context, run) -> None:
    g = graph()
    x = g.input("x", ["n", 3, 4])
    product = g.op("MatMul", x, g.random(4, 5), name="product")
    model = g.model(g.op("Add", g.random(1, 1, 5), product, name="add"))
    wrong = scrambled(model, "product")
    data = normal(200, 3, 4) + 3
    refit(model, wrong, [Refit("product", "product_out")], context(x=data), SHARP)
    assert np.abs(run(wrong, x=data) - run(model, x=data)).max() < 1e-3


def test_a_first_bias_is_given_where_one_is_needed(graph, context, run) -> None:
    """Ten inputs become nine; the tenth was constant, and only a bias can stand for it."""
    g = graph()
    x = g.input("x", ["n", 10])
    model = g.model(g.op("Gemm", x, g.random(10, 3), name="layer"))
    data = normal(100, 10)
    data[:, 9] = 4.0
    g = graph()
    x = g.input("x", ["n", 10])
    nine = g.op("Slice", x, g.const(np.array([0])), g.const(np.array([9])), g.const(np.array([1])))
    short = g.model(g.op("Gemm", nine, g.const(weight(model, "layer")[:9]), name="layer"))
    refit(model, short, [Refit("layer", "layer_out")], context(x=data), SHARP)
    assert weight(short, "layer", 2) is not None
    assert np.abs(run(short, x=data) - run(model, x=data)).max() < 1e-3


def network(graph, *, residual: bool = True, opset: int = 17) -> ir.Model:
    """stem -> [first -> Relu -> second] + shortcut -> head."""
    g = graph(opset)
    x = g.input("x", ["n", 3, 6, 6])
    stem = g.op("Relu", g.op("Conv", x, g.random(8, 3, 1, 1), g.random(8), name="stem"))
    first = g.op("Conv", stem, g.random(12, 8, 3, 3), g.random(12), name="first", pads=[1, 1, 1, 1])
    second = g.op("Conv", g.op("Relu", first), g.random(8, 12, 1, 1), g.random(8), name="second")
    joined = g.op("Add", second, stem, name="join") if residual else second
    pooled = g.op("Flatten", g.op("GlobalAveragePool", joined))
    model = g.model(g.op("Gemm", pooled, g.random(8, 5), g.random(5), name="head"))
    infer_shapes(model)
    return model


def duplicate(model: ir.Model, node: str, source: int, copy: int) -> None:
    """Make one output channel of a node a copy of another."""
    found = next(item for item in model.graph if item.name == node)
    for value in found.inputs[1:]:
        array = value.const_value.numpy().copy()
        array[copy] = array[source]
        value.const_value = ir.tensor(array, name=value.name)


def pruned(model: ir.Model, removed: dict[str, list[int]]) -> tuple[ir.Model, dict]:
    small = model.clone()
    structure = analyse(small)
    keep = kept_outputs(structure, removed)
    cut(small, structure, removed)
    infer_shapes(small)
    return small, keep


def test_a_removed_copy_is_made_up_for_exactly(graph, context, run) -> None:
    model = network(graph)
    duplicate(model, "first", 2, 7)
    small, keep = pruned(model, {"first": [7]})
    data = normal(100, 3, 6, 6)
    layers = layers_after_cut(model, small, keep=keep)
    assert [item.node for item in layers] == ["second"]
    refit(model, small, layers, context(x=data), SHARP)
    assert np.abs(run(small, x=data) - run(model, x=data)).max() < 1e-3
    merged = weight(model, "second")[:, 2, 0, 0] + weight(model, "second")[:, 7, 0, 0]
    assert np.allclose(weight(small, "second")[:, 2, 0, 0], merged, atol=1e-3)


@pytest.mark.parametrize("rounds", [2, 12])
@pytest.mark.parametrize("later", [False, True])
def test_repair_comes_much_closer_than_none(graph, context, run, rounds, later) -> None:
    model = network(graph)
    small, keep = pruned(model, {"first": [0, 1, 2, 3], "stem": [1]})
    assert keep["stem"] == (0, 2, 3, 4, 5, 6, 7)
    assert keep["second"] == keep["stem"]
    data, fresh = normal(200, 3, 6, 6), normal(50, 3, 6, 6, seed=3)
    exact, before = run(model, x=fresh), run(small, x=fresh)
    layers = layers_after_cut(model, small, keep=keep, later=later)
    findings = refit(model, small, layers, context(x=data), RefitOptions(rounds=rounds))
    after = run(small, x=fresh)
    assert np.mean((after - exact) ** 2) < 0.3 * np.mean((before - exact) ** 2), messages(findings)


def test_the_sum_with_the_other_branch_is_the_target(graph, context, run) -> None:
    """What the shortcut lost cannot be seen in the branch's own output."""
    model = network(graph)
    wrong = model.clone()
    stem = next(node for node in wrong.graph if node.name == "stem")
    stem.inputs[2].const_value = ir.tensor(stem.inputs[2].const_value.numpy() + 2, name=stem.inputs[2].name)
    data = normal(200, 3, 6, 6)
    plain, joined = wrong.clone(), wrong.clone()
    refit(model, plain, [Refit("second", "second_out")], context(x=data))
    layer = Refit("second", "second_out", join=Join("join_out", "Relu1_out"))
    refit(model, joined, [layer], context(x=data))
    exact = run(model, "join_out", x=data)
    means = [np.abs((run(item, "join_out", x=data) - exact).mean(axis=(0, 2, 3))) for item in (plain, joined)]
    assert means[0].min() > 0.3
    assert means[1].max() < 0.2


def test_rounds_bound_the_passes_over_the_data(graph, context, passes) -> None:
    g = graph()
    value = g.input("x", ["n", 6])
    for number in range(6):
        value = g.op("Relu", g.op("Gemm", value, g.random(6, 6), g.random(6), name=f"layer{number}"))
    model = g.model(value)
    layers = [
        Refit(
            f"layer{number}",
            f"layer{number}_out",
            source=Source("x" if not number else f"Relu{2 * number - 1}_out"),
        )
        for number in range(6)
    ]
    used = {}
    for rounds in (1, 3, 12):
        wrong = scrambled(model, *(item.node for item in layers))
        start = passes()
        refit(model, wrong, layers, context(x=normal(100, 6)), RefitOptions(rounds=rounds))
        used[rounds] = (passes() - start) / 2
    assert used[3] == 3
    assert used[12] == 6
    # The only pass reads nothing but the first layer's input from the compressed model.
    assert used[1] <= 1


def test_a_refit_that_does_not_help_samples_kept_aside_is_left_out(graph, context) -> None:
    """The samples to learn from tell the opposite of those kept aside."""
    g = graph()
    x = g.input("x", ["n", 3])
    hidden = g.op("Gemm", g.op("Abs", x), g.random(3, 4), g.random(4), name="layer")
    model = g.model(hidden)
    g = graph()
    x = g.input("x", ["n", 3])
    other = g.model(
        g.op("Gemm", x, g.const(weight(model, "layer")), g.const(weight(model, "layer", 2)), name="layer")
    )
    data = -np.abs(normal(100, 3))
    data[4::5] *= -1
    ctx = context(x=data)
    findings = refit(model, other, [Refit("layer", "layer_out")], ctx)
    assert not ctx.rewrites.applied
    assert "kept aside" in messages(findings)
    assert np.array_equal(weight(other, "layer"), weight(model, "layer"))


def test_dead_and_zero_channels(graph, context, run) -> None:
    model = network(graph)
    first = next(node for node in model.graph if node.name == "first")
    array = first.inputs[1].const_value.numpy().copy()
    array[:6] = 0
    first.inputs[1].const_value = ir.tensor(array, name=first.inputs[1].name)
    small, keep = pruned(model, {"first": [0, 1, 8]})
    refit(model, small, layers_after_cut(model, small, keep=keep, later=True), context(x=normal(60, 3, 6, 6)))
    assert np.isfinite(run(small, x=normal(4, 3, 6, 6))).all()


def test_one_sample_warns_and_stays_finite(graph, context, run) -> None:
    g = graph()
    x = g.input("x", ["n", 20])
    model = g.model(g.op("Gemm", x, g.random(20, 3), g.random(3), name="layer"))
    wrong = scrambled(model, "layer")
    data = normal(1, 20)
    findings = refit(model, wrong, [Refit("layer", "layer_out")], context(x=data))
    assert any(item.kind == "warning" and "1 rows" in item.message for item in findings)
    assert np.isfinite(run(wrong, x=data)).all()


def test_bad_calibration_data(graph, context) -> None:
    model = network(graph)
    layers = [Refit("second", "second_out")]
    broken = normal(10, 3, 6, 6)
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="sample 3"):
        refit(model, model.clone(), layers, context(x=broken))
    with pytest.raises(InputError, match="calibration"):
        refit(model, model.clone(), layers, context())
    with pytest.raises(InputError, match="no samples"):
        refit(model, model.clone(), layers, context(x=normal(0, 3, 6, 6)))


def test_an_activation_that_overflows_is_named(graph, context) -> None:
    g = graph()
    x = g.input("x", ["n", 2])
    huge = g.op("Exp", g.op("Mul", x, g.const(np.float32(1e4))), name="huge")
    model = g.model(g.op("Gemm", huge, g.random(2, 2), name="layer"))
    with pytest.raises(InputError, match="huge_out"):
        refit(model, model.clone(), [Refit("layer", "layer_out")], context(x=np.abs(normal(20, 2))))


def test_weights_that_are_not_finite_are_left_alone(graph, context) -> None:
    model = network(graph)
    wrong = model.clone()
    node = next(item for item in wrong.graph if item.name == "head")
    array = node.inputs[1].const_value.numpy().copy()
    array[0, 0] = np.nan
    node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)
    ctx = context(x=normal(20, 3, 6, 6))
    findings = refit(model, wrong, [Refit("head", "head_out")], ctx)
    assert "NaN" in messages(findings)
    assert not ctx.rewrites.applied


def test_what_cannot_be_refit_is_said(graph, context) -> None:
    g = graph()
    x = g.input("x", ["n", 4])
    shared = g.random(4, 4, name="shared")
    one = g.op("Gemm", x, shared, name="one")
    two = g.op("Gemm", one, shared, name="two")
    exposed = g.op("Gemm", two, g.op("Identity", g.random(4, 4), name="exposed"), name="three")
    computed = g.op("Gemm", exposed, g.random(4, 4), x, name="four")
    model = g.model(computed, "exposed_out")
    layers = [Refit(name, f"{name}_out") for name in ("one", "two", "three", "four", "five")]
    layers.append(Refit("x", "nowhere"))
    ctx = context(x=normal(20, 4))
    findings = refit(model, model.clone(), layers, ctx)
    text = messages(findings)
    assert text.count("another node reads the same weight") == 2
    assert "output of the model" in text
    assert "computed" in text
    assert text.count("no such node") == 2
    assert not ctx.rewrites.applied


def test_unknown_targets_and_wrong_channels_are_said(graph, context) -> None:
    model = network(graph)
    ctx = context(x=normal(20, 3, 6, 6))
    layers = [Refit("second", "nothing"), Refit("first", "stem_out"), Refit("stem", "stem_out", keep=(0, 1))]
    text = messages(refit(model, model.clone(), layers, ctx))
    assert "does not compute 'nothing'" in text
    assert "not the shape" in text
    assert "2 channels are to be kept, it has 8" in text
    assert not ctx.rewrites.applied


def test_rewrites_can_be_refused(graph, context) -> None:
    model = network(graph)
    wrong = scrambled(model, "first", "second", "head")
    ctx = context(limit=1, x=normal(60, 3, 6, 6))
    before = {name: weight(wrong, name) for name in ("second", "head")}
    refit(model, wrong, [Refit(name, f"{name}_out") for name in ("first", "second", "head")], ctx)
    assert [item.node for item in ctx.rewrites.applied] == ["first"]
    assert all(np.array_equal(weight(wrong, name), array) for name, array in before.items())


def test_weights_of_the_original_are_never_written_to(graph, context) -> None:
    model = network(graph)
    arrays = {value.name: value.const_value.numpy().copy() for value in model.graph.initializers.values()}
    wrong = model.clone()
    refit(model, wrong, [Refit("second", "second_out")], context(x=normal(60, 3, 6, 6)), SHARP)
    small, keep = pruned(model, {"first": [0, 1]})
    refit(model, small, layers_after_cut(model, small, keep=keep, later=True), context(x=normal(60, 3, 6, 6)))
    for value in model.graph.initializers.values():
        assert np.array_equal(value.const_value.numpy(), arrays[value.name])


def test_the_result_does_not_depend_on_the_batch(graph, context) -> None:
    model = network(graph)
    small, keep = pruned(model, {"first": [0, 1, 2]})
    found = []
    for batch in (1, 7, 64):
        one = small.clone()
        layers = layers_after_cut(model, one, keep=keep, later=True)
        refit(model, one, layers, context(x=normal(65, 3, 6, 6)), RefitOptions(batch=batch))
        found.append(weight(one, "second"))
    assert np.allclose(found[0], found[1], atol=1e-5)
    assert np.allclose(found[0], found[2], atol=1e-5)


def test_a_layer_too_wide_gets_a_map_between_channels(graph, context, run) -> None:
    g = graph()
    x = g.input("x", ["n", 3, 6, 6])
    first = g.op("Conv", x, g.random(10, 3, 1, 1), g.random(10), name="first")
    second = g.op(
        "Conv", g.op("Relu", first), g.random(4, 10, 3, 3), g.random(4), name="second", pads=[1] * 4
    )
    model = g.model(second)
    infer_shapes(model)
    duplicate(model, "first", 2, 7)
    small, keep = pruned(model, {"first": [7, 1]})
    data = normal(100, 3, 6, 6)
    before = np.mean((run(small, x=data) - run(model, x=data)) ** 2)
    ctx = context(x=data)
    layers = layers_after_cut(model, small, keep=keep)
    findings = refit(model, small, layers, ctx, RefitOptions(max_columns=50, ridge=1e-6))
    assert [item.node for item in ctx.rewrites.applied] == ["second"], messages(findings)
    assert np.mean((run(small, x=data) - run(model, x=data)) ** 2) < 0.3 * before
    left = weight(small, "second").shape
    findings = refit(model, small, layers, context(x=data), RefitOptions(max_columns=5))
    assert "too many" in messages(findings)
    assert weight(small, "second").shape == left


def test_half_precision_weights_stay_half(graph, context) -> None:
    g = graph()
    x = g.input("x", ["n", 4], 10)
    model = g.model(g.op("Gemm", x, g.const(normal(4, 3).astype(np.float16)), name="layer"))
    wrong = scrambled(model, "layer")

    ctx = context(x=normal(100, 4).astype(np.float16))
    refit(model, wrong, [Refit("layer", "layer_out")], ctx, RefitOptions(ridge=1e-6))
    assert ctx.rewrites.applied
    assert weight(wrong, "layer").dtype == np.float16
    assert weight(wrong, "layer", 2).dtype == np.float16
    assert np.abs(weight(wrong, "layer").astype(np.float32) - weight(model, "layer")).max() < 0.02


@pytest.mark.parametrize(
    ("name", "value"), [("ridge", -1.0), ("ridge", float("nan")), ("rounds", 0), ("samples", 0), ("rows", 0)]
)
def test_bad_options(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        RefitOptions(**{name: value})


@pytest.mark.parametrize(("count", "aside"), [(4, False), (5, True)])
def test_it_is_told_where_too_few_samples_leave_none_to_judge_by(count, aside, graph, context) -> None:
    model = network(graph)
    small, keep = pruned(model, {"first": [0, 1]})
    layers = layers_after_cut(model, small, keep=keep, later=True)
    told = messages(refit(model, small, layers, context(x=normal(count, 3, 6, 6))))
    assert "layers were refit" in told
    assert ("on samples kept aside" in told) is aside
    assert ("on the samples learned from, too few to keep any aside" in told) is not aside


def test_what_is_selected_after_a_cut(graph) -> None:
    model = network(graph)
    small, keep = pruned(model, {"first": [0, 5]})
    stay = (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    second = Refit("second", "second_out", None, Join("join_out", "Relu1_out"), Source("Relu3_out", stay))
    assert layers_after_cut(model, small, keep=keep) == [second]
    later = layers_after_cut(model, small, keep=keep, later=True)
    assert [(item.node, item.inherits) for item in later] == [("second", False), ("head", True)]
    # Without knowing what was kept, the layer reads the compressed model.
    assert layers_after_cut(model, small)[0].source is None


def test_of_two_branches_that_are_refit_one_takes_the_sum(graph, context) -> None:
    g = graph()
    x = g.input("x", ["n", 3, 4, 4])
    stem = g.op("Conv", x, g.random(6, 3, 1, 1), g.random(6), name="stem")
    left = g.op("Conv", stem, g.random(4, 6, 1, 1), g.random(4), name="left")
    right = g.op("Conv", stem, g.random(4, 6, 1, 1), g.random(4), name="right")
    model = g.model(g.op("Relu", g.op("Add", left, right, name="join")))
    infer_shapes(model)
    small, keep = pruned(model, {"stem": [2]})
    found = {item.node: item.join for item in layers_after_cut(model, small, keep=keep)}
    assert found == {"left": None, "right": Join("join_out", "left_out")}
