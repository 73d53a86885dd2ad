"""Runs that begin where nothing before has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import greencc.passes._quantized_pair as quantized_pair
import greencc.passes._repair_budget as repair_budget
import greencc.passes._repair_layers as repair_layers
from greencc.core.engine import Engine
from greencc.core.model import infer_shapes
from greencc.core.shapes import bind_dims
from greencc.passes._repair_layers import Refit, RefitOptions, refit
from greencc.passes._resume import Resume, value_bytes

LAYERS = ("first", "second", "third", "head")


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(graph) -> ir.Model:
    """Three convolutions around a residual connection, and a head."""
    g = graph()
    x = g.input("x", ["n", 3, 6, 6])
    first = g.op("Relu", g.op("Conv", x, g.random(8, 3, 1, 1), g.random(8), name="first"))
    second = g.op("Conv", first, g.random(8, 8, 3, 3), g.random(8), name="second", pads=[1, 1, 1, 1])
    third = g.op("Conv", g.op("Relu", second), g.random(8, 8, 1, 1), g.random(8), name="third")
    pooled = g.op("Flatten", g.op("GlobalAveragePool", g.op("Add", third, first, name="join")))
    model = g.model(g.op("Gemm", pooled, g.random(8, 5), g.random(5), name="head"))
    infer_shapes(model)
    return model


def disturbed(model: ir.Model, *nodes: str, by: float = 0.3) -> ir.Model:
    other = model.clone()
    for node in other.graph:
        if node.name in nodes:
            value = node.inputs[1]
            array = value.const_value.numpy()
            value.const_value = ir.tensor(array + by * normal(*array.shape, seed=3), name=value.name)
    return other


class Builder:
    """Builds engines and notes what they run."""

    def __init__(self, build) -> None:
        self.build = build
        self.models: list[list[str]] = []

    def __call__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        self.models.append([str(node.name) for node in model.graph])
        return self.build(model, outputs)


def resume_of(model: ir.Model, build, limit: int = 1 << 20) -> Resume:
    bound = bind_dims(model, {"x": (1, 3, 6, 6)})
    return Resume(model, build, {name: 2 * size for name, size in value_bytes(bound).items()}, limit)


def test_a_run_begins_after_what_was_kept(graph, context, run) -> None:
    model = network(graph)
    builder = Builder(context().build)
    resume = resume_of(model, builder)
    samples = [{"x": normal(1, 3, 6, 6, seed=seed)} for seed in (1, 2)]
    place = resume.reachable(resume.first_node(["third", "head"]))
    engine = resume.engine(model, ["first_out"], place)
    for feeds in samples:
        assert np.array_equal(engine.run(feeds)["first_out"], run(model, "first_out", **feeds))
    engine.close()
    assert resume.place == place == 4
    other = disturbed(model, "third")
    engine = resume.engine(other, ["head_out"])
    for feeds in samples:
        assert np.allclose(engine.run(feeds)["head_out"], run(other, **feeds), atol=1e-5)
    engine.close()
    assert builder.models[-1][0] == "third"
    assert not {"first", "second"} & set(builder.models[-1])
    # Of a sample that nothing was kept of everything is run.
    engine = resume.engine(other, ["head_out"])
    fresh = {"x": normal(1, 3, 6, 6, seed=7)}
    assert np.allclose(engine.run(fresh)["head_out"], run(other, **fresh), atol=1e-5)
    engine.close()
    assert "first" in builder.models[-1]


def test_what_is_kept_moves_on_from_pass_to_pass(graph, context, run) -> None:
    model = network(graph)
    builder = Builder(context().build)
    resume = resume_of(model, builder)
    # The same sample twice: the second time the first has been moved on already.
    samples = [{"x": normal(1, 3, 6, 6)}] * 2
    for node in LAYERS:
        wanted = [f"{node}_out"]
        engine = resume.engine(model, wanted, resume.reachable(resume.first_node([node])))
        for feeds in samples:
            assert np.allclose(engine.run(feeds)[wanted[0]], run(model, wanted[0], **feeds), atol=1e-5)
        engine.close()
    assert resume.place == resume.first_node(["head"])


def test_what_comes_out_is_told_without_an_engine_for_the_whole(graph, context) -> None:
    model = network(graph)
    builder = Builder(context().build)
    resume = resume_of(model, builder)
    engine = resume.engine(model, [], resume.reachable(resume.first_node(["head"])))
    feeds = {"x": normal(1, 3, 6, 6)}
    engine.run(feeds)
    engine.close()
    before = len(builder.models)
    engine = resume.engine(model, ["head_out", "third_out"])
    later = resume.engine(model, ["head_out"])
    (spec,) = later.outputs
    assert (spec.name, spec.dtype, spec.shape) == ("head_out", np.float32, ("n", 5))
    assert [spec.name for spec in engine.outputs] == ["head_out", "third_out"]
    assert len(builder.models) == before
    later.run(feeds)
    assert [nodes[-1] for nodes in builder.models[before:]] == ["head"]
    assert "first" not in builder.models[-1]


@pytest.mark.parametrize("wide", [False, True])
def test_all_passes_run_as_many_samples_at_once(wide, graph, context, monkeypatch) -> None:
    """Also where a wide layer reads its original's input as well: what one pass keeps is asked for by the next."""
    model = network(graph)
    data = normal(96, 3, 6, 6)
    wrong = disturbed(model, "first", "second")
    # The wide layer has its output and its input in both models, the others two values.
    size = 4 * 8 * 6 * 6
    for module in (repair_budget, quantized_pair):
        monkeypatch.setattr(module, "BUDGET_BYTES", 16 * 2 * size)
    builder = Builder(context().build)
    ctx = replace(context(x=data), build=builder, samples=[{"x": data[:1]}])
    layers = [Refit(name, f"{name}_out") for name in LAYERS[1:]]
    refit(model, wrong, layers, ctx, RefitOptions(max_columns=60 if wide else 4608))
    assert len(builder.models) > 4
    # One engine for the whole of each model, in the first pass.
    assert sum("first" in nodes for nodes in builder.models) == 2


def test_values_before_the_place_are_still_had(graph, context, run) -> None:
    model = network(graph)
    resume = resume_of(model, context().build)
    feeds = {"x": normal(1, 3, 6, 6)}
    engine = resume.engine(model, [], resume.first_node(["head"]))
    engine.run(feeds)
    engine.close()
    assert resume.place > 0
    engine = resume.engine(model, ["second_out", "head_out"])
    assert np.array_equal(engine.run(feeds)["second_out"], run(model, "second_out", **feeds))
    engine.close()


def test_places_that_too_much_crosses_are_passed_over(graph, context) -> None:
    model = network(graph)
    pooled = 2 * 8 * 4
    resume = resume_of(model, context().build, limit=pooled)
    assert resume.reachable(resume.first_node(["third"])) == 0
    assert resume.reachable(resume.first_node(["head"])) == resume.first_node(["head"])
    nothing = Resume(model, context().build, {}, 1 << 20)
    assert nothing.reachable(resume.first_node(["head"])) == 0


def test_the_limit_holds_where_there_are_more_samples_than_was_said(graph, context, run) -> None:
    model = network(graph)
    resume = resume_of(model, context().build, limit=2 * 8 * 4)
    samples = [{"x": normal(1, 3, 6, 6, seed=seed)} for seed in range(5)]
    engine = resume.engine(model, [], resume.reachable(resume.first_node(["head"])))
    for feeds in samples:
        engine.run(feeds)
    engine.close()
    assert len(resume._known) == 2
    engine = resume.engine(model, ["head_out"])
    for feeds in samples:
        assert np.allclose(engine.run(feeds)["head_out"], run(model, **feeds), atol=1e-5)
    engine.close()


@pytest.mark.parametrize("batched", [False, True])
def test_a_repair_does_not_depend_on_what_is_kept(batched, graph, context, monkeypatch) -> None:
    model = network(graph)
    data = normal(100, 3, 6, 6)
    layers = [Refit(name, f"{name}_out") for name in LAYERS[1:]]

    def repaired(limit: int) -> tuple[ir.Model, list[list[str]]]:
        monkeypatch.setattr(repair_layers, "_KEPT_BYTES", limit)
        builder = Builder(context().build)
        sample = {"x": data[: 4 if batched else 1]}
        ctx = replace(context(x=data), build=builder, samples=[sample])
        wrong = disturbed(model, "first", "second")
        refit(model, wrong, layers, ctx)
        return wrong, builder.models

    plain, everything = repaired(0)
    found, less = repaired(1 << 20)
    assert sum(map(len, less)) < sum(map(len, everything))
    for name, value in found.graph.initializers.items():
        expected = plain.graph.initializers[name].const_value.numpy()
        assert np.allclose(value.const_value.numpy(), expected, rtol=1e-4, atol=1e-5), name
