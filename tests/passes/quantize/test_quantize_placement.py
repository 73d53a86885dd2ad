"""Placement, checked against the kernels ONNX Runtime really picks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from greencc.core.capabilities import ElementType
from greencc.passes.quantize_int8 import QuantizeInt8, dequantized_name


@pytest.fixture
def residual(parse: Any, random: Any) -> Any:
    """Conv-Relu, two residual blocks, MaxPool, global pooling and a classifier: ResNet in small."""
    text = """
    resnet (float[N, 3, 16, 16] x) => (float[N, 10] logits) {
      c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
      r0 = Relu (c0)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r0, w1, b1)
      six = Clip (c1, zero, limit)
      c2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (six, w2, b2)
      a1 = Add (c2, r0)
      r1 = Relu (a1)
      p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r1)
      c3 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (p, w3, b3)
      a2 = Add (p, c3)
      g = GlobalAveragePool (a2)
      f = Flatten (g)
      logits = Gemm <transB=1> (f, w4, b4)
    }"""
    return parse(
        text,
        w0=random(8, 3, 3, 3, scale=0.3),
        b0=random(8),
        w1=random(8, 8, 3, 3, scale=0.2),
        b1=random(8),
        w2=random(8, 8, 3, 3, scale=0.2),
        b2=random(8),
        w3=random(8, 1, 3, 3, scale=0.3),
        b3=random(8),
        w4=random(10, 8),
        b4=random(10),
        zero=np.float32(0),
        limit=np.float32(6),
    )


def test_a_residual_net_runs_as_integers_from_input_to_logits(kit: Any, residual: Any, random: Any) -> None:
    x = {"x": random(32, 3, 16, 16)}
    expected = kit.run(residual, x)[0]
    outcome = QuantizeInt8().apply(residual, kit.context(x))
    assert outcome.changed == 10
    assert not outcome.findings
    kernels = kit.kernels(residual)
    # One quantization at the input and no pair anywhere else; no Relu or Clip is left either.
    assert kernels == {
        "QuantizeLinear": 1,
        "QLinearConv": 4,
        "QLinearAdd": 2,
        "MaxPool": 1,
        "QLinearGlobalAveragePool": 1,
        "Flatten": 1,
        "QGemm": 1,
    }
    got = kit.run(residual, x)[0]
    assert np.max(np.abs(got - expected)) < 0.05 * np.max(np.abs(expected))
    assert (got.argmax(1) == expected.argmax(1)).mean() > 0.9


def test_names_are_stable(kit: Any, residual: Any, random: Any) -> None:
    names = {node.name: node.op_type for node in residual.graph}
    x = {"x": random(4, 3, 16, 16)}
    expected = kit.run_as_written(residual, x, ["r1"])["r1"]
    QuantizeInt8().apply(residual, kit.context(x))
    after = {node.name: node.op_type for node in residual.graph}
    assert names.items() <= after.items()
    got = kit.run_as_written(residual, x, [dequantized_name("r1")])[dequantized_name("r1")]
    assert np.max(np.abs(got - expected)) < 0.06 * np.max(expected)


def test_excluded_and_unasked_nodes_stay_in_float(kit: Any, residual: Any, random: Any) -> None:
    x = {"x": random(4, 3, 16, 16)}
    name = next(node.name for node in residual.graph if node.op_type == "Conv")
    outcome = QuantizeInt8(ops=("Conv", "LSTM"), exclude=(name, "nobody")).apply(residual, kit.context(x))
    messages = [finding.message for finding in outcome.findings]
    assert outcome.changed == 3
    assert any("'nobody'" in message for message in messages)
    assert any("'LSTM'" in message for message in messages)
    left = {finding.node: finding.message for finding in outcome.findings if finding.kind == "left-in-float"}
    assert "excluded" in left[name]
    assert len(left) == 2
    assert kit.kernels(residual)["QLinearConv"] == 3


def test_a_refused_rewrite_is_not_applied(kit: Any, residual: Any, random: Any) -> None:
    x = {"x": random(4, 3, 16, 16)}
    context = kit.context(x, limit=1)
    assert QuantizeInt8().apply(residual, context).changed == 1
    assert [rewrite.rule for rewrite in context.rewrites.applied] == ["quantize"]
    assert kit.kernels(residual)["QLinearConv"] == 1


def test_attention_products_and_movement(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        attention (float[N, 16, 32] x) => (float[N, 16, 32] y) {
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          v = MatMul (x, wv)
          kt = Transpose <perm=[0,2,1]> (k)
          s = MatMul (q, kt)
          p = Softmax <axis=-1> (s)
          o = MatMul (p, v)
          y = Add (o, x)
        }""",
        wq=random(32, 32, scale=0.1),
        wk=random(32, 32, scale=0.1),
        wv=random(32, 32, scale=0.1),
    )
    x = {"x": random(16, 16, 32)}
    expected = kit.run(model, x)[0]
    outcome = QuantizeInt8().apply(model, kit.context(x))
    assert outcome.changed == 6
    kernels = kit.kernels(model)
    # The three projections feed integers to two products; scores and result stay in float.
    assert kernels["QLinearMatMul"] == 3
    assert kernels["MatMulIntegerToFloat"] == 2
    assert kernels["QuantizeLinear"] == 2
    assert kernels["Softmax"] == 1
    assert "DequantizeLinear" not in kernels
    scale = model.graph.initializers["p_scale"].const_value.numpy()
    assert scale == np.float32(1 / 255)
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.03 * np.max(np.abs(expected))


def test_a_product_read_by_float_and_integer_nodes(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        mixed (float[N, 16] x) => (float[N, 8] y, float[N, 16] e) {
          h = MatMul (x, w1)
          e = Exp (h)
          y = MatMul (h, w2)
        }""",
        w1=random(16, 16, scale=0.2),
        w2=random(16, 8),
    )
    x = {"x": random(32, 16)}
    expected = kit.run(model, x)
    QuantizeInt8().apply(model, kit.context(x))
    kernels = kit.kernels(model)
    assert kernels["MatMul"] == 0
    assert kernels["QLinearMatMul"] + kernels["MatMulIntegerToFloat"] == 2
    for before, after in zip(expected, kit.run(model, x), strict=True):
        assert np.max(np.abs(after - before)) < 0.05 * np.max(np.abs(before))


def test_concat_operands_share_the_scale_of_the_result(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        inception (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
          a = Conv <kernel_shape=[1,1]> (x, wa)
          b = Conv <kernel_shape=[1,1]> (x, wb)
          c = Concat <axis=1> (a, b)
          y = Conv <kernel_shape=[1,1]> (c, wc)
        }""",
        wa=random(4, 4, 1, 1),
        wb=random(4, 4, 1, 1, scale=5),
        wc=random(4, 8, 1, 1),
    )
    x = {"x": random(8, 4, 8, 8)}
    QuantizeInt8().apply(model, kit.context(x))
    pairs = {node.name: node for node in model.graph if node.op_type == "QuantizeLinear"}
    scales = {pairs[f"{name}_QuantizeLinear"].inputs[1] for name in "abc"}
    assert len(scales) == 1
    assert kit.kernels(model)["QLinearConcat"] == 1


def test_the_unquantized_reader_of_an_input_keeps_the_exact_value(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 16] x) => (float[N, 16] y, float[N, 16] z) {
          y = MatMul (x, w)
          z = Identity (x)
        }""",
        w=random(16, 16),
    )
    x = {"x": random(8, 16)}
    QuantizeInt8().apply(model, kit.context(x))
    np.testing.assert_array_equal(kit.run(model, x)[1], x["x"])


def test_an_integer_value_that_is_an_output_keeps_its_name(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] mid, float[N, 4, 8, 8] y) {
          mid = Conv <kernel_shape=[1,1]> (x, wa)
          y = Conv <kernel_shape=[1,1]> (mid, wb)
        }""",
        wa=random(4, 4, 1, 1),
        wb=random(4, 4, 1, 1),
    )
    x = {"x": random(8, 4, 8, 8)}
    expected = kit.run(model, x)
    QuantizeInt8().apply(model, kit.context(x))
    assert [value.name for value in model.graph.outputs] == ["mid", "y"]
    assert kit.kernels(model)["QLinearConv"] == 2
    for before, after in zip(expected, kit.run(model, x), strict=True):
        assert np.max(np.abs(after - before)) < 0.03 * np.max(np.abs(before))


def test_a_runtime_that_quantizes_inputs_only(kit: Any, residual: Any, random: Any) -> None:
    """TensorRT's form: signed, symmetric, float bias, nothing quantized but what products read."""
    x = {"x": random(16, 3, 16, 16)}
    expected = kit.run(residual, x)[0]
    QuantizeInt8().apply(
        residual,
        kit.context(
            x,
            activation=ElementType.INT8,
            symmetric_activations=True,
            bias=ElementType.FLOAT,
            quantize_outputs=False,
        ),
    )
    quantized = {node.inputs[0].name: node for node in residual.graph if node.op_type == "QuantizeLinear"}
    # Nothing behind a convolution that only an Add or an output reads; what Flatten and MaxPool hand to a
    # product is quantized before them.
    assert set(quantized) == {"x", "r0", "six", "r1", "p", "g", "f"}
    for node in quantized.values():
        zero_point = node.inputs[2].const_value.numpy()
        assert zero_point.dtype == np.int8
        assert zero_point == 0
    for node in residual.graph:
        if node.op_type == "Conv":
            assert node.inputs[2].is_initializer()
    got = kit.run(residual, x)[0]
    assert np.max(np.abs(got - expected)) < 0.05 * np.max(np.abs(expected))


@pytest.mark.parametrize("repeat", range(2))
def test_the_same_input_gives_the_same_bytes(kit: Any, residual: Any, random: Any, repeat: int) -> None:
    x = {"x": random(8, 3, 16, 16)}
    first, second = residual.clone(), residual.clone()
    QuantizeInt8().apply(first, kit.context(x))
    QuantizeInt8(batch=3).apply(second, kit.context(x))
    assert kit.save(first, "a.onnx").read_bytes() == kit.save(second, "b.onnx").read_bytes()


def test_bodies_stay_in_float_and_read_the_right_values(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) {
          total = ReduceMax <keepdims=0> (x)
          flag = Greater (total, many)
          a = Conv <kernel_shape=[1,1]> (x, w)
          y = If (flag) <
            then_branch = yes () => (float[N, 4, 4, 4] t) { t = Relu (a) },
            else_branch = no () => (float[N, 4, 4, 4] e) { e = Neg (a) }
          >
        }""",
        w=random(4, 4, 1, 1),
        many=np.float32(100),
    )
    x = {"x": random(4, 4, 4, 4)}
    expected = kit.run(model, x)[0]
    outcome = QuantizeInt8().apply(model, kit.context(x))
    assert any("bodies of If" in finding.message for finding in outcome.findings)
    assert kit.kernels(model)["QLinearConv"] == 1
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.03 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = MatMul (w, x)", "first operand is constant"),
        ("v = Neg (w) y = Gemm (x, v)", "weight is computed"),
        ("n = Neg (b) y = Gemm (x, w, n)", "bias is computed"),
        ("y = Gemm <transA=1> (x, w)", "transposes its activations"),
        ("y = Gemm <alpha=-1.0> (x, w)", "alpha is not positive"),
        ("y = Gemm (x, w, w)", "not one value per output channel"),
    ],
)
def test_what_cannot_be_expressed_is_named(kit: Any, parse: Any, random: Any, text: str, reason: str) -> None:
    model = parse(f"g (float[16, 16] x) => (float[16, 16] y) {{ {text} }}", w=random(16, 16), b=random(16))
    outcome = QuantizeInt8().apply(model, kit.context({"x": random(16, 16)}))
    assert outcome.changed == 0
    assert [reason in finding.message for finding in outcome.findings] == [True]
    assert outcome.findings[0].kind == "left-in-float"
    assert outcome.findings[0].node is not None
