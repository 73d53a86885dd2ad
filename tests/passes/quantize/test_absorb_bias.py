"""High biases move through ReLU into the next layer, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import constant_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Outcome
from greencc.passes.absorb_bias import AbsorbBias
from greencc.passes.quantize_int8 import QuantizeInt8
from tests.passes.conftest import Graph, Runner
from tests.passes.quantize.conftest import Kit

Between = Callable[[Graph, str], str]


def build(g: Graph, between: Between | None = None, bias: Any = None, second: Any = None) -> ir.Model:
    """Conv with two channels that are always on, Relu, and a 1x1 Conv."""
    if bias is None:
        bias = np.array([40.0, 0.1, 25.0, -0.2])
    x = g.op("Conv", g.input("x", ["N", 3, 6, 6]), g.random(4, 3, 1, 1), g.const(bias), name="first")
    x = g.op("Relu", x, name="relu")
    x = x if between is None else between(g, x)
    if second is not None:
        return g.model(second(g, x))
    return g.model(g.op("Conv", x, g.random(5, 4, 1, 1), g.random(5), name="second"))


def data(seed: int = 1, count: int = 8) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)}


def absorbed(kit: Kit, model: ir.Model, limit: int | None = None, **options: Any) -> tuple[ir.Model, Outcome]:
    candidate = model.clone()
    outcome = AbsorbBias(**options).apply(candidate, kit.context(data(), limit))
    infer_shapes(candidate)
    check_model(candidate)
    for feeds in (data(), data(2)):
        for expected, got in zip(
            Runner(model).run(feeds).values(), Runner(candidate).run(feeds).values(), strict=True
        ):
            # Three standard deviations leave about one value in a thousand below the shift.
            moved, size = np.abs(got - expected), max(float(np.abs(expected).max()), 1.0)
            assert np.median(moved) < 1e-4 * size
            assert moved.max() < 0.02 * size
    return candidate, outcome


def bias_of(model: ir.Model, name: str) -> Any:
    return constant_of(next(node for node in model.graph if node.name == name).inputs[2])


def test_always_on_channels_lose_their_bias(kit: Kit, graph: type[Graph]) -> None:
    model = build(graph())
    result, outcome = absorbed(kit, model)
    assert outcome.changed == 1
    shift = bias_of(model, "first") - bias_of(result, "first")
    assert shift[0] > 20
    assert shift[2] > 5
    assert shift[1] == 0
    assert shift[3] == 0


@pytest.mark.parametrize(
    "between",
    [
        lambda g, x: g.op("MaxPool", x, kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
        lambda g, x: g.op("AveragePool", x, kernel_shape=[2, 2]),
        lambda g, x: g.op("GlobalAveragePool", x),
    ],
)
def test_shifts_pass_pooling(kit: Kit, graph: type[Graph], between: Between) -> None:
    assert absorbed(kit, build(graph(), between))[1].changed == 1


def test_shifts_pass_flattening_in_channel_order(kit: Kit, graph: type[Graph]) -> None:
    def gemm(g: Graph, x: str) -> str:
        return g.op("Gemm", g.op("Flatten", x), g.random(144, 5), g.random(5), name="second")

    assert absorbed(kit, build(graph(), second=gemm))[1].changed == 1


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda g, x: g.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), "AveragePool"),
        (lambda g, x: g.op("Sigmoid", x), "Sigmoid"),
        (lambda g, x: g.op("Add", x, g.op("Relu", x)), "shift"),
    ],
)
def test_what_does_not_keep_a_shift_is_refused(
    kit: Kit, graph: type[Graph], between: Between, reason: str
) -> None:
    _, outcome = absorbed(kit, build(graph(), between))
    assert outcome.changed == 0
    assert any(reason in finding.message for finding in outcome.findings)


@pytest.mark.parametrize(
    "second",
    [
        lambda g, x: g.op("Conv", x, g.random(5, 4, 3, 3), pads=[1, 1, 1, 1]),
        lambda g, x: g.op("MatMul", x, g.random(6, 4)),
        lambda g, x: g.op("Add", g.op("MatMul", x, g.random(6, 4)), g.random(4)),
        lambda g, x: g.op("ConvTranspose", x, g.random(4, 5, 2, 2), g.random(5)),
    ],
)
def test_padding_and_other_channel_axes_are_refused(kit: Kit, graph: type[Graph], second: Between) -> None:
    _, outcome = absorbed(kit, build(graph(), second=second))
    assert outcome.changed == 0
    assert outcome.findings


def test_the_second_reader_and_graph_outputs_count(kit: Kit, graph: type[Graph]) -> None:
    g = graph()
    x = g.op(
        "Relu", g.op("Conv", g.input("x", ["N", 3, 6, 6]), g.random(4, 3, 1, 1), g.const(np.full(4, 30.0)))
    )
    a = g.op("Conv", x, g.random(5, 4, 1, 1))
    b = g.op("Conv", x, g.random(2, 4, 2, 2), g.random(2))
    assert absorbed(kit, g.model(a, b))[1].changed == 1
    assert absorbed(kit, build(graph(), second=lambda g, x: x))[1].changed == 0


def test_nothing_happens_where_the_range_stays(kit: Kit, graph: type[Graph]) -> None:
    # The widest channel is not always on, so moving the others narrows nothing.
    g = graph()
    weight = g.rng.standard_normal((4, 3, 1, 1))
    weight[3] *= 100
    x = g.op("Conv", g.input("x", ["N", 3, 6, 6]), g.const(weight), g.const(np.array([40.0, 0, 0, 0])))
    model = g.model(g.op("Conv", g.op("Relu", x), g.random(5, 4, 1, 1), g.random(5)))
    assert absorbed(kit, model)[1].changed == 0


def test_quantization_gains(kit: Kit, graph: type[Graph]) -> None:
    model, feeds = build(graph()), data()
    expected = next(iter(Runner(model).run(feeds).values()))
    errors = []
    for candidate in (model.clone(), absorbed(kit, model)[0]):
        QuantizeInt8().apply(candidate, kit.context(feeds))
        errors.append(np.square(next(iter(Runner(candidate).run(feeds).values())) - expected).sum())
    assert errors[1] < 0.8 * errors[0]


def test_the_log_can_refuse_and_data_are_required(kit: Kit, graph: type[Graph]) -> None:
    model = build(graph())
    assert absorbed(kit, model, limit=0)[1].changed == 0
    with pytest.raises(InputError):
        AbsorbBias().apply(model, kit.context(None))
    for options in ({"sigmas": -1.0}, {"worth": 0.0}, {"batch": 0}):
        with pytest.raises(UsageError):
            AbsorbBias(**options)  # type: ignore[arg-type]
