"""Recovery of GELU, hard-swish and layer normalization from elementwise operators."""

from __future__ import annotations

import math

import numpy as np
import pytest

from greencc.core.capabilities import Capabilities
from greencc.passes.recover_gelu import RecoverGelu
from greencc.passes.recover_hard_swish import RecoverHardSwish
from greencc.passes.recover_layer_norm import RecoverLayerNorm

FUSES_RESIDUALS = Capabilities(
    None, frozenset(), frozenset(), 23, frozenset({"com.microsoft::SkipLayerNormalization"}), False
)
NOTHING = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), False)


def erf_gelu(g, x: str, form: int) -> str:
    root = math.sqrt(2.0)
    inner = g.op("Div", x, g.const(root)) if form % 2 else g.op("Mul", g.const(1 / root), x)
    gate = g.op("Add", g.op("Erf", inner), g.const(1.0))
    if form < 2:
        return g.op("Mul", g.op("Mul", x, gate), g.const(0.5))
    if form < 4:
        return g.op("Mul", g.op("Mul", x, g.const(0.5)), gate)
    if form < 6:
        return g.op("Mul", x, g.op("Mul", gate, g.const(0.5)))
    return g.op("Div", g.op("Mul", gate, x), g.const(2.0))


def tanh_gelu(g, x: str, form: int) -> str:
    c = math.sqrt(2.0 / math.pi)
    if form == 0:
        cube = g.op("Pow", x, g.const(3.0))
        inner = g.op("Mul", g.op("Add", x, g.op("Mul", cube, g.const(0.044715))), g.const(c))
    else:
        square = g.op("Mul", g.op("Mul", x, g.const(0.044715)), x)
        inner = g.op("Mul", g.op("Mul", g.const(c), x), g.op("Add", square, g.const(1.0)))
    return g.op("Mul", g.op("Mul", x, g.const(0.5)), g.op("Add", g.const(1.0), g.op("Tanh", inner)))


@pytest.mark.parametrize("form", range(8))
def test_exact_gelu_in_all_its_forms(graph, check, form) -> None:
    g = graph()
    x = g.op("MatMul", g.input("x", ["N", 4]), g.random(4, 4))
    result = check(g.model(erf_gelu(g, x, form)), RecoverGelu())
    assert result.ops == ["MatMul", "Gelu"]
    assert result.node("Gelu").domain == "com.microsoft"


@pytest.mark.parametrize("form", [0, 1])
def test_tanh_gelu(graph, check, form) -> None:
    g = graph()
    x = g.op("Add", g.input("x", ["N", 4]), g.random(4))
    assert check(g.model(tanh_gelu(g, x, form)), RecoverGelu()).ops == ["Add", "FastGelu"]


@pytest.mark.parametrize("make", [lambda g, x: erf_gelu(g, x, 0), lambda g, x: tanh_gelu(g, x, 0)])
def test_newer_opsets_use_the_standard_operator(graph, check, make) -> None:
    g = graph(opset=20, ir_version=9)
    result = check(g.model(make(g, g.input("x", ["N", 4]))), RecoverGelu())
    assert result.ops == ["Gelu"]
    assert result.node("Gelu").domain == ""


def test_gelu_stays_when_the_target_does_not_run_it(graph, check) -> None:
    g = graph()
    model = g.model(erf_gelu(g, g.input("x", ["N", 4]), 0))
    assert check(model, RecoverGelu(), capabilities=NOTHING).outcome.changed == 0


def test_almost_gelu_stays(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    gate = g.op("Add", g.op("Erf", g.op("Div", x, g.const(1.5))), g.const(1.0))
    y = g.op("Mul", g.op("Mul", x, gate), g.const(0.5))
    assert check(g.model(y), RecoverGelu()).outcome.changed == 0


def test_gelu_whose_inside_is_read_elsewhere_stays(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    erf = g.op("Erf", g.op("Div", x, g.const(math.sqrt(2.0))))
    y = g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.const(1.0))), g.const(0.5))
    assert check(g.model(y, erf), RecoverGelu()).outcome.changed == 0


def hard_swish(g, x: str, form: int) -> str:
    if form == 3:
        return g.op("Mul", g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)
    clip = g.op("Clip", g.op("Add", x, g.const(3.0)), g.const(0.0), g.const(6.0))
    if form == 0:
        return g.op("Div", g.op("Mul", x, clip), g.const(6.0))
    if form == 1:
        return g.op("Mul", g.op("Mul", clip, x), g.const(1 / 6))
    return g.op("Mul", x, g.op("Div", clip, g.const(6.0)))


@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize(("opset", "ops"), [(17, ["HardSwish"]), (13, ["HardSigmoid", "Mul"])])
def test_hard_swish(graph, check, form, opset, ops) -> None:
    g = graph(opset=opset)
    y = hard_swish(g, g.op("Relu", g.input("x", ["N", 4])), form)
    assert check(g.model(y), RecoverHardSwish()).ops == ["Relu", *ops]


def test_other_clips_are_not_hard_swish(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    clip = g.op("Clip", g.op("Add", x, g.const(2.0)), g.const(0.0), g.const(6.0))
    y = g.op("Div", g.op("Mul", x, clip), g.const(6.0))
    assert check(g.model(y), RecoverHardSwish()).outcome.changed == 0


def layer_norm(g, x: str, axes: list[int], form: int) -> str:
    def mean(value: str) -> str:
        if g.opset >= 18:
            return g.op("ReduceMean", value, g.const(axes))
        return g.op("ReduceMean", value, axes=axes)

    d = g.op("Sub", x, mean(x))
    squared = g.op("Pow", d, g.const(2.0)) if form % 2 else g.op("Mul", d, d)
    root = g.op("Sqrt", g.op("Add", mean(squared), g.const(1e-5)))
    if form < 2:
        return g.op("Div", d, root)
    return g.op("Mul", g.op("Reciprocal", root), d)


@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("axes", [[-1], [2], [1, 2]])
def test_layer_norm(graph, check, form, opset, axes) -> None:
    g = graph(opset=opset)
    y = layer_norm(g, g.op("Relu", g.input("x", ["N", 3, 4])), axes, form)
    y = g.op("Add", g.op("Mul", y, g.random(4)), g.random(4), name="last")
    result = check(g.model(y), RecoverLayerNorm(), tolerance=1e-4)
    assert result.ops == ["Relu", "LayerNormalization"]


def test_layer_norm_without_scale(graph, check) -> None:
    g = graph()
    y = layer_norm(g, g.input("x", ["N", 3, 4]), [-1], 0)
    assert check(g.model(y), RecoverLayerNorm(), tolerance=1e-4).ops == ["LayerNormalization"]


@pytest.mark.parametrize(("opset", "axes"), [(16, [-1]), (17, [1])])
def test_layer_norm_that_the_operator_cannot_say_stays(graph, check, opset, axes) -> None:
    g = graph(opset=opset)
    y = layer_norm(g, g.input("x", ["N", 3, 4]), axes, 0)
    assert check(g.model(y), RecoverLayerNorm()).outcome.changed == 0


def test_scale_of_another_axis_is_not_taken(graph, check) -> None:
    g = graph()
    y = layer_norm(g, g.input("x", ["N", 3, 4]), [-1], 0)
    y = g.op("Mul", y, g.const(np.arange(1.0, 4.0).reshape(3, 1)))
    assert check(g.model(y), RecoverLayerNorm(), tolerance=1e-4).ops == ["LayerNormalization", "Mul"]


def residual(g, *, shape=("N", "S", 4), axis: int = -1):
    x, y = g.input("x", shape), g.input("y", shape)
    total = g.op("Add", x, y, name="residual")
    return total, g.op("LayerNormalization", total, g.random(4), axis=axis)


def test_residual_before_layer_norm_is_no_add_where_the_runtime_would_fuse_it(graph, check) -> None:
    g = graph()
    _, y = residual(g)
    result = check(g.model(y), RecoverLayerNorm(), capabilities=FUSES_RESIDUALS)
    assert result.ops == ["Sum", "LayerNormalization"]
    assert result.names[0] == "residual"


def test_residual_stays_an_add_when_it_is_asked_to(graph, check) -> None:
    g = graph()
    _, y = residual(g)
    kept = RecoverLayerNorm(separate_residuals=False)
    assert check(g.model(y), kept, capabilities=FUSES_RESIDUALS).outcome.changed == 0


@pytest.mark.parametrize("case", ["read elsewhere", "rank 2", "bias", "target"])
def test_residual_that_is_not_fused_stays_an_add(graph, check, case) -> None:
    g = graph()
    if case == "bias":
        total = g.op("Add", g.input("x", ["N", "S", 4]), g.random(4))
        y = g.op("LayerNormalization", total, g.random(4))
    else:
        total, y = residual(g, shape=("N", 4) if case == "rank 2" else ("N", "S", 4))
    outputs = (y, total) if case == "read elsewhere" else (y,)
    capabilities = NOTHING if case == "target" else FUSES_RESIDUALS
    assert check(g.model(*outputs), RecoverLayerNorm(), capabilities=capabilities).outcome.changed == 0
