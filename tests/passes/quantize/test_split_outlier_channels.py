"""Splitting outlier channels keeps the float function, grows layers within bounds and only where it pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import constant_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Outcome
from greencc.passes._calibrate_channels import ChannelStats
from greencc.passes._equalize_split import Split, SplitNoise
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.split_outlier_channels import SplitOutlierChannels
from tests.passes.conftest import Graph, Runner
from tests.passes.quantize.conftest import Kit

CHANNELS = 64
SPLIT = SplitOutlierChannels(expand=0.05)


def loud_weight(g: Graph, outputs: int, *, channel: int = 7, factor: float = 12.0) -> Any:
    weight = g.rng.standard_normal((CHANNELS, outputs))
    weight[channel] *= factor
    return weight


def data(inputs: int = CHANNELS, seed: int = 1) -> dict[str, Any]:
    values = np.random.default_rng(seed).standard_normal((32, inputs)).astype(np.float32)
    if inputs == CHANNELS:
        # The channel with the loud weights is quiet: its products matter no more than others.
        values[:, 7] /= 12
    return {"x": values}


def split(
    kit: Kit,
    model: ir.Model,
    feeds: dict[str, Any],
    step: SplitOutlierChannels = SPLIT,
    limit: int | None = None,
) -> tuple[ir.Model, Outcome]:
    candidate = model.clone()
    outcome = step.apply(candidate, kit.context(feeds, limit))
    infer_shapes(candidate)
    check_model(candidate)
    for expected, got in zip(
        Runner(model).run(feeds).values(), Runner(candidate).run(feeds).values(), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1e-3))
    return candidate, outcome


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_an_input_without_a_layer_before_it_is_gathered(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    model = g.model(
        g.op("Gemm", g.input("x", ["N", CHANNELS]), g.const(loud_weight(g, 8)), g.random(8), name="fc")
    )
    result, outcome = split(kit, model, data())
    assert outcome.changed == 1
    assert ops(result) == ["Gather", "Gemm"]
    weight = constant_of(result.graph[1].inputs[1])
    assert weight is not None
    assert CHANNELS < len(weight) <= 1.05 * CHANNELS
    np.testing.assert_array_equal(weight[7], weight[CHANNELS])
    assert "dB" in outcome.findings[0].message


@pytest.mark.parametrize("between", ["Relu", "Clip", "HardSwish"])
def test_a_layer_before_computes_the_copies(kit: Kit, graph: type[Graph], between: str) -> None:
    g = graph(seed=3)
    spread = np.ones(CHANNELS)
    spread[7] = 1 / 12
    x = g.op(
        "Gemm", g.input("x", ["N", 10]), g.const(g.rng.standard_normal((10, CHANNELS)) * spread), name="first"
    )
    extra = [g.const(np.float32(0)), g.const(np.float32(6))] if between == "Clip" else []
    model = g.model(g.op("MatMul", g.op(between, x, *extra), g.const(loud_weight(g, 8)), name="second"))
    result, outcome = split(kit, model, data(10))
    assert outcome.changed == 1
    assert "Gather" not in ops(result)
    first = constant_of(result.graph[0].inputs[1])
    assert first is not None
    assert CHANNELS < first.shape[1] <= 1.05 * CHANNELS


def test_a_loud_activation_is_halved_by_the_layer_before(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    spread = np.ones((CHANNELS, 1, 1, 1))
    spread[5] = 30.0
    first = g.rng.standard_normal((CHANNELS, 3, 1, 1)) * spread
    second = g.rng.standard_normal((8, CHANNELS, 3, 3))
    second[:, 5] /= 100
    x = g.op("Conv", g.input("x", ["N", 3, 8, 8]), g.const(first), g.random(CHANNELS), name="first")
    model = g.model(g.op("Conv", g.op("Relu", x), g.const(second), pads=[1, 1, 1, 1], name="second"))
    feeds = {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}
    result, outcome = split(kit, model, feeds)
    assert outcome.changed == 1
    rows = constant_of(result.graph[0].inputs[1])
    assert rows is not None
    np.testing.assert_allclose(np.abs(rows[5]).max(), np.abs(first[5]).max() / 2, rtol=1e-5)
    # A bound does not commute with one half.
    clipped = g.model(
        g.op("Conv", g.op("Clip", x, g.const(np.float32(0)), g.const(np.float32(1e3))), g.const(second))
    )
    assert split(kit, clipped, feeds)[1].changed == 0


def test_even_channels_are_refused_with_figures(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    weight = g.rng.standard_normal((CHANNELS, 8))
    weight[7] *= 1.7
    model = g.model(g.op("Gemm", g.input("x", ["N", CHANNELS]), g.const(weight), name="fc"))
    result, outcome = split(kit, model, data(), SplitOutlierChannels(expand=0.05, worth=3.0))
    assert outcome.changed == 0
    assert ops(result) == ["Gemm"]
    assert outcome.findings[0].kind == "refused"
    assert "dB only" in outcome.findings[0].message


def test_small_layers_shared_weights_and_exclusions_are_left_alone(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    x, weight = g.input("x", ["N", CHANNELS]), g.const(loud_weight(g, CHANNELS))
    a = g.op("Gemm", x, weight, name="a")
    model = g.model(a, g.op("Gemm", a, weight, name="b"))
    assert split(kit, model, data())[1].changed == 0
    g = graph()
    model = g.model(g.op("Gemm", g.input("x", ["N", CHANNELS]), g.const(loud_weight(g, 8)), name="fc"))
    assert split(kit, model, data(), SplitOutlierChannels(expand=0.01))[1].changed == 0
    assert split(kit, model, data(), SplitOutlierChannels(expand=0.05, exclude=("fc",)))[1].changed == 0
    assert split(kit, model, data(), limit=0)[1].changed == 0


def test_quantization_gains(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    model, feeds = g.model(g.op("Gemm", g.input("x", ["N", CHANNELS]), g.const(loud_weight(g, 8)))), data()
    expected = next(iter(Runner(model).run(feeds).values()))
    errors = []
    for candidate in (model.clone(), split(kit, model, feeds)[0]):
        QuantizeInt8().apply(candidate, kit.context(feeds))
        errors.append(np.square(next(iter(Runner(candidate).run(feeds).values())) - expected).sum())
    assert errors[1] < 0.6 * errors[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), most=st.integers(0, 6), activations=st.booleans())
def test_copies_sum_to_the_channel_and_never_add_noise(seed: int, most: int, activations: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((5, 12, 1)) * 10.0 ** rng.uniform(-1, 1, (1, 12, 1))
    high = 10.0 ** rng.uniform(-1, 1, 12)
    noise = SplitNoise(weight, ChannelStats(-high, high, np.zeros(12), high**2 / 4, 9), None)
    found = noise.best(most, activations)
    assert len(found.source) <= 12 + most
    sums = np.zeros(12)
    np.add.at(sums, found.source, found.front * found.back)
    np.testing.assert_allclose(sums, 1.0, rtol=1e-12)
    assert noise.of(found) <= noise.of(Split.none(12))
    assert activations or (found.front == 1).all()


def test_data_are_required_and_options_checked(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    model = g.model(g.op("Gemm", g.input("x", ["N", CHANNELS]), g.random(CHANNELS, 4)))
    with pytest.raises(InputError):
        SPLIT.apply(model, kit.context(None))
    for options in ({"expand": 0.0}, {"expand": 2.0}, {"worth": -1.0}, {"batch": 0}):
        with pytest.raises(UsageError):
            SplitOutlierChannels(**options)  # type: ignore[arg-type]
