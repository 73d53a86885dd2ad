"""Several quantizations of one graph, one after another: each takes its layers and leaves the others' alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.data import Array
from greencc.core.graph import ensure_names
from greencc.core.model import check_model, infer_shapes
from greencc.passes._exclude import origins
from greencc.passes._quantize_nodes import has_quantized_weight
from greencc.passes.decompose import Decompose
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights
from tests.passes.quantize.test_quantize_dynamic import KERNELS, dynamic, error

Random = Callable[..., Array]
TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 8] y) {
  c = Conv <pads=[1,1,1,1]> (x, w0, b0)
  r = Relu (c)
  f = Flatten (r)
  a = Gemm <transB=1> (f, w1, b1)
  b = Relu (a)
  d = Gemm <transB=1> (b, w2, b2)
  e = Relu (d)
  h = MatMul (e, w3)
  i = Relu (h)
  y = MatMul (i, w4)
}"""
# By what becomes of them.
STATIC, DYNAMIC, STORED, FLOAT = ("Conv_0", "Gemm_3"), "Gemm_5", "MatMul_7", "MatMul_9"


@pytest.fixture
def network(parse: Any, random: Random) -> ir.Model:
    shapes = {"w0": (4, 3, 3, 3), "w1": (32, 256), "w2": (32, 32), "w3": (32, 16), "w4": (16, 8)}
    weights = {name: random(*shape, scale=0.2) for name, shape in shapes.items()}
    model: ir.Model = parse(TEXT, b0=random(4), b1=random(32), b2=random(32), **weights)
    ensure_names(model)
    infer_shapes(model)
    return model


def form(model: ir.Model, name: str) -> str:
    """How the layer of a name, or what it became, holds its weight."""
    for node in model.graph:
        if node.name == name or name in origins(node):
            return "stored" if has_quantized_weight(node) else "float"
    return "dynamic"


@pytest.mark.parametrize("foldable", [False, True])
def test_three_quantizations_share_a_graph(
    kit: Any, network: ir.Model, random: Random, foldable: bool
) -> None:
    feeds = {"x": random(64, 3, 8, 8)}
    expected = kit.run(network, feeds)[0]
    ctx = dynamic(kit.context(feeds))
    ctx = replace(ctx, capabilities=replace(ctx.capabilities, recomputes_dequantize=foldable))
    static = QuantizeInt8(exclude=(DYNAMIC, STORED, FLOAT)).apply(network, ctx)
    assert static.changed
    infer_shapes(network)
    integers = {name: value.const_value for name, value in network.graph.initializers.items()}
    found = QuantizeDynamic(exclude=(STORED, FLOAT), min_elements=1).apply(network, ctx)
    assert found.changed == 1
    infer_shapes(network)
    # Nothing is said of what is quantized already.
    left = [item.node for item in found.findings if item.kind == "left-in-float" and item.node]
    assert sorted(left) == [STORED, FLOAT]
    assert not any("Conv" in item.message for item in found.findings)
    stored = QuantizeWeights(exclude=(FLOAT,), min_elements=1).apply(network, ctx)
    assert stored.changed == 1
    infer_shapes(network)
    check_model(network)
    forms = {name: form(network, name) for name in (*STATIC, DYNAMIC, STORED, FLOAT)}
    assert forms == {
        **dict.fromkeys(STATIC, "stored"),
        DYNAMIC: "dynamic",
        STORED: "stored",
        FLOAT: "float",
    }
    # What the first pass made is untouched.
    codes = [
        name for name, tensor in integers.items() if tensor is not None and tensor.dtype is ir.DataType.INT8
    ]
    assert codes
    assert all(network.graph.initializers[name].const_value is integers[name] for name in codes)
    assert 0.0 < error(expected, kit.run(network, feeds)[0]) < 0.05
    kernels = kit.kernels(network)
    assert kernels["QLinearConv"] == 1
    assert kernels["DynamicQuantizeMatMul"] + kernels["MatMulIntegerToFloat"] == 1


def test_a_second_run_finds_nothing_left(kit: Any, network: ir.Model, random: Random) -> None:
    feeds = {"x": random(8, 3, 8, 8)}
    ctx = dynamic(kit.context(feeds), KERNELS)
    steps = (
        QuantizeInt8(exclude=(DYNAMIC, STORED)),
        QuantizeDynamic(exclude=(STORED,), min_elements=1),
        QuantizeWeights(min_elements=1),
    )
    for step in steps:
        assert step.apply(network, ctx).changed
        infer_shapes(network)
    before = ir.to_proto(network).SerializeToString(deterministic=True)
    for step in (QuantizeDynamic(min_elements=1), QuantizeWeights(min_elements=1)):
        outcome = step.apply(network, ctx)
        assert outcome.changed == 0
        assert outcome.findings[0].kind == "refused"
        assert "quantized already" in outcome.findings[0].message
    assert ir.to_proto(network).SerializeToString(deterministic=True) == before


def test_factors_are_treated_as_their_layer(kit: Any, network: ir.Model, random: Random) -> None:
    """A layer left to a later pass is left to it with all its factors."""
    feeds = {"x": random(64, 3, 8, 8)}
    ctx = dynamic(kit.context(feeds))
    ranks = (f"{DYNAMIC}=svd:12", f"{STORED}=svd:8", "Gemm_3=svd:16")
    Decompose(ranks=ranks, min_elements=1).apply(network, ctx)
    infer_shapes(network)
    expected = kit.run(network, feeds)[0]
    QuantizeInt8(exclude=(DYNAMIC, STORED, FLOAT)).apply(network, ctx)
    infer_shapes(network)
    assert QuantizeDynamic(exclude=(STORED, FLOAT), min_elements=1).apply(network, ctx).changed == 2
    infer_shapes(network)
    assert QuantizeWeights(exclude=(FLOAT,), min_elements=1).apply(network, ctx).changed == 2
    infer_shapes(network)
    check_model(network)
    plain = [node for node in network.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert [node.name for node in plain if not has_quantized_weight(node)] == [FLOAT]
    assert sum(node.op_type == "MatMulInteger" for node in network.graph) == 2
    assert 0.0 < error(expected, kit.run(network, feeds)[0]) < 0.05


def test_weights_that_are_read_as_they_are_count_as_float(parse: Any, random: Random) -> None:
    text = "g (float[N, 8] x) => (float[N, 8] y) { t = Transpose (w)\n y = MatMul (x, t) }"
    model = parse(text, w=random(8, 8))
    assert not has_quantized_weight(model.graph.node("MatMul_1"))
    text = "g (float[N, 8] x, float[8, 8] w) => (float[N, 8] y) { y = MatMul (x, w) }"
    assert not has_quantized_weight(parse(text).graph.node("MatMul_0"))
    text = """g (float[N, 8] x) => (float[N, 8] y) {
        c = Cast <to=1> (w)\n m = Mul (c, s)\n y = MatMul (x, m) }"""
    coded = parse(text, w=np.ones((8, 8), np.int8), s=np.ones(8, np.float32))
    assert has_quantized_weight(coded.graph.node("MatMul_2"))
