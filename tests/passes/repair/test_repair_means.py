"""Statistics of normalisations and means of outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.graph import constant_of
from greencc.core.groups import analyse, cut
from greencc.core.model import infer_shapes
from greencc.passes._repair_layers import kept_outputs
from greencc.passes._repair_means import correct_classifier, transfer_batch_norm


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(graph) -> ir.Model:
    g = graph()
    x = g.input("x", ["n", 3, 6, 6])
    first = g.op("Conv", x, g.random(8, 3, 1, 1), name="first")
    value = g.op("Relu", g.batch_norm(first, 8, name="norm1"))
    second = g.op("Conv", value, g.random(4, 8, 1, 1), name="second")
    value = g.op("Relu", g.batch_norm(second, 4, name="norm2"))
    pooled = g.op("Flatten", g.op("GlobalAveragePool", value))
    model = g.model(g.op("Gemm", pooled, g.random(4, 5), name="head"))
    infer_shapes(model)
    return model


def statistics(model: ir.Model, name: str) -> tuple[np.ndarray, np.ndarray]:
    node = next(item for item in model.graph if item.name == name)
    return constant_of(node.inputs[3]), constant_of(node.inputs[4])


def test_an_unchanged_model_keeps_its_statistics(graph, context) -> None:
    model = network(graph)
    ctx = context(x=normal(40, 3, 6, 6))
    other = model.clone()
    assert transfer_batch_norm(model, other, ctx) == []
    assert not ctx.rewrites.applied
    for name in ("norm1", "norm2"):
        assert all(map(np.array_equal, statistics(model, name), statistics(other, name)))


def test_a_scaled_and_shifted_input_is_normalised_as_before(graph, context, run) -> None:
    """The first layer is twice as large and moved: with its statistics carried over nothing is left of that."""
    model = network(graph)
    other = model.clone()
    first = next(node for node in other.graph if node.name == "first")
    first.inputs[1].const_value = ir.tensor(
        2 * first.inputs[1].const_value.numpy(), name=first.inputs[1].name
    )
    norm = next(node for node in model.graph if node.name == "norm1")
    # Exact statistics, so that the whole effect cancels.
    data = normal(200, 3, 6, 6)
    seen = run(model, "first_out", x=data)
    for each in (model, other):
        node = next(item for item in each.graph if item.name == "norm1")
        for index, values in ((3, seen.mean(axis=(0, 2, 3))), (4, seen.var(axis=(0, 2, 3)))):
            node.inputs[index].const_value = ir.tensor(values, name=node.inputs[index].name)
    assert norm.name == "norm1"
    before = np.abs(run(other, x=data) - run(model, x=data)).max()
    ctx = context(x=data)
    transfer_batch_norm(model, other, ctx)
    assert np.abs(run(other, x=data) - run(model, x=data)).max() < 1e-3 < before
    assert ctx.rewrites.applied[0].node == "norm1"


def test_after_a_cut_the_statistics_of_what_is_left_are_moved(graph, context, run) -> None:
    model = network(graph)
    small = model.clone()
    structure = analyse(small)
    removed = {"first": [0, 3, 5]}
    keep = kept_outputs(structure, removed)
    cut(small, structure, removed)
    infer_shapes(small)
    data = normal(200, 3, 6, 6)
    ctx = context(x=data)
    assert transfer_batch_norm(model, small, ctx, keep=keep) == []
    assert [item.node for item in ctx.rewrites.applied] == ["norm2"]
    mean, variance = statistics(model, "norm2")
    exact, seen = run(model, "second_out", x=data), run(small, "second_out", x=data)
    axes = (0, 2, 3)
    scale = np.sqrt(seen.var(axis=axes) / exact.var(axis=axes))
    expected = seen.mean(axis=axes) + (mean - exact.mean(axis=axes)) * scale
    assert np.allclose(statistics(small, "norm2")[0], expected, atol=1e-4)
    assert np.allclose(
        statistics(small, "norm2")[1], variance * seen.var(axis=axes) / exact.var(axis=axes), rtol=1e-3
    )


@pytest.mark.parametrize("removed", [{}, {"first": [0, 3, 5]}, {"first": [1], "second": [0, 2]}])
def test_normalised_values_keep_their_moments_and_twice_is_once(graph, context, run, removed) -> None:
    """The layer before the second normalisation also changed its scale, as a cut or a refit may."""
    model = network(graph)
    norm2 = next(node for node in model.graph if node.name == "norm2")
    # Small beside epsilon, which then matters.
    norm2.inputs[4].const_value = ir.tensor(np.full(4, 3e-5, np.float32), name=norm2.inputs[4].name)
    small = model.clone()
    structure = analyse(small)
    keep = kept_outputs(structure, removed)
    cut(small, structure, removed)
    infer_shapes(small)
    for name in ("first", "second"):
        value = next(node for node in small.graph if node.name == name).inputs[1]
        array = value.const_value.numpy()
        factors = np.linspace(0.7, 3, len(array), dtype=np.float32).reshape(-1, 1, 1, 1)
        value.const_value = ir.tensor(array * factors, name=value.name)
    data = normal(100, 3, 6, 6)
    ctx = context(x=data)
    assert transfer_batch_norm(model, small, ctx, keep=keep) == []
    assert [item.node for item in ctx.rewrites.applied] == ["norm1", "norm2"]
    once = {name: statistics(small, name) for name in ("norm1", "norm2")}
    for name, layer in (("norm1", "first"), ("norm2", "second")):
        stay = list(keep.get(layer, range(len(statistics(model, name)[0]))))
        output = next(node for node in model.graph if node.name == name).outputs[0].name
        exact, seen = run(model, output, x=data)[:, stay], run(small, output, x=data)
        axes = (0, 2, 3)
        spread = exact.std(axis=axes)
        assert np.all(np.abs(seen.mean(axis=axes) - exact.mean(axis=axes)) < 1e-3 * spread)
        assert np.allclose(seen.std(axis=axes), spread, rtol=1e-3)
    assert transfer_batch_norm(model, small, ctx, keep=keep) == []
    for name, found in once.items():
        for first, second in zip(found, statistics(small, name), strict=True):
            assert np.allclose(first, second, rtol=1e-5, atol=1e-6)
    # Nothing was left to write.
    assert len(ctx.rewrites.applied) == 2


def test_without_the_channels_that_are_left_nothing_is_guessed(graph, context) -> None:
    model = network(graph)
    small = model.clone()
    structure = analyse(small)
    cut(small, structure, {"first": [0]})
    infer_shapes(small)
    findings = transfer_batch_norm(model, small, context(x=normal(40, 3, 6, 6)))
    assert ["norm1" in item.message for item in findings] == [True]


def test_a_dead_channel_keeps_its_variance(graph, context) -> None:
    model = network(graph)
    other = model.clone()
    first = next(node for node in other.graph if node.name == "first")
    array = first.inputs[1].const_value.numpy().copy()
    array[2] = 0
    first.inputs[1].const_value = ir.tensor(array, name=first.inputs[1].name)
    transfer_batch_norm(model, other, context(x=normal(40, 3, 6, 6)))
    assert statistics(other, "norm1")[1][2] == statistics(model, "norm1")[1][2]
    assert all(np.isfinite(part).all() for part in statistics(other, "norm1"))


def test_the_mean_of_the_outputs_is_the_originals(graph, context, run) -> None:
    model = network(graph)
    other = model.clone()
    second = next(node for node in other.graph if node.name == "second")
    second.inputs[1].const_value = ir.tensor(normal(4, 8, 1, 1, seed=7), name=second.inputs[1].name)
    data = normal(100, 3, 6, 6)
    ctx = context(x=data)
    assert correct_classifier(model, other, ctx) == []
    assert [item.node for item in ctx.rewrites.applied] == ["head"]
    assert np.allclose(run(other, x=data).mean(axis=0), run(model, x=data).mean(axis=0), atol=1e-4)
    refused = context(limit=0, x=data)
    bias = constant_of(next(node for node in other.graph if node.name == "head").inputs[2])
    correct_classifier(model, other, refused)
    assert np.array_equal(
        constant_of(next(node for node in other.graph if node.name == "head").inputs[2]), bias
    )
    assert not refused.rewrites.applied


def test_a_head_without_bias_is_said(graph, context) -> None:
    g = graph()
    model = g.model(g.op("Relu", g.op("MatMul", g.input("x", ["n", 4]), g.random(4, 3), name="head")))
    findings = correct_classifier(model, model.clone(), context(x=normal(10, 4)))
    assert "no bias" in findings[0].message
