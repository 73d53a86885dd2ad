"""Bias correction: means come closer, in whatever form the bias is; what does not help is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greencc.core.capabilities import ElementType
from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.passes import Context, RewriteLog
from greencc.passes._channel_means import Wanted, channel_means
from greencc.passes._correct_bias import BiasCorrection, correct_bias
from greencc.passes.quantize_int8 import QuantizeInt8

CONV = "g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {{ y = Conv <kernel_shape=[3,3]> ({}) }}"
METHODS = list(BiasCorrection)


def quantized(model: ir.Model, ctx: Context) -> ir.Model:
    copy = model.clone()
    QuantizeInt8().apply(copy, ctx)
    return copy


def spoil(model: ir.Model, steps: int = 3) -> ir.Model:
    """Move the integer weights the same way, so that every channel's mean is off."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype is ir.DataType.INT8 and len(tensor.shape) > 1:
            moved = np.clip(tensor.numpy().astype(np.int32) + steps, -127, 127).astype(np.int8)
            value.const_value = ir.tensor(moved, name=value.name)
    return model


def mean_error(kit: Any, model: ir.Model, other: ir.Model, x: Array, name: str = "y", axis: int = 1) -> float:
    expected, got = (kit.run_as_written(m, {"x": x}, [name])[name] for m in (model, other))
    axes = tuple(index for index in range(expected.ndim) if index != axis)
    return float(np.abs((expected - got).mean(axis=axes)).max())


def noise(kit: Any, model: ir.Model, other: ir.Model, x: Array, name: str = "y") -> float:
    expected, got = (kit.run_as_written(m, {"x": x}, [name])[name] for m in (model, other))
    return float(np.sum(np.square(expected - got)))


@pytest.fixture
def x(random: Callable[..., Array]) -> Array:
    return np.abs(random(40, 4, 8, 8))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("form", [ElementType.INT32, ElementType.FLOAT])
def test_a_convolution(
    kit: Any, parse: Any, random: Any, x: Array, method: BiasCorrection, with_bias: bool, form: ElementType
) -> None:
    weights = {"w": random(6, 4, 3, 3)} | ({"b": random(6)} if with_bias else {})
    model = parse(CONV.format("x, w, b" if with_bias else "x, w"), **weights)
    ctx = kit.context({"x": x}, bias=form)
    before = spoil(quantized(model, ctx))
    after = before.clone()
    outcome = correct_bias(model, after, ctx, method)
    assert outcome.changed == 1
    assert "dB before" in outcome.findings[-1].message
    fresh = np.abs(random(40, 4, 8, 8))
    assert mean_error(kit, model, after, fresh) < 0.2 * mean_error(kit, model, before, fresh)
    node = next(node for node in after.graph if node.op_type == "Conv")
    assert len(node.inputs) == 3
    bias = node.inputs[2]
    producer = bias.producer()
    if form is ElementType.INT32:
        assert producer.op_type == "DequantizeLinear"
        assert producer.inputs[0].const_value.dtype is ir.DataType.INT32
        assert kit.kernels(after)["QLinearConv"] == 1
    else:
        assert bias.const_value.dtype is ir.DataType.FLOAT
    kit.save(after)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("y = Gemm <alpha=0.5, beta=2.0> (x, w, b)", {"w": (12, 5), "b": (5,)}),
        ("y = Gemm <transB=1> (x, w)", {"w": (5, 12)}),
        ("h = MatMul (x, w) y = Add (h, b)", {"w": (12, 5), "b": (5,)}),
        ("h = MatMul (x, w) y = Add (b, h)", {"w": (12, 5), "b": (1, 5)}),
    ],
)
def test_matrix_products(
    kit: Any, parse: Any, random: Any, method: BiasCorrection, text: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    model = parse(
        f"g (float[N, 12] x) => (float[N, 5] y) {{ {text} }}",
        **{name: random(*shape) for name, shape in shapes.items()},
    )
    x = random(60, 12) + np.float32(2)
    ctx = kit.context({"x": x})
    before = spoil(quantized(model, ctx))
    after = before.clone()
    assert correct_bias(model, after, ctx, method).changed == 1
    assert mean_error(kit, model, after, x) < 0.2 * mean_error(kit, model, before, x)
    kit.save(after)


@pytest.mark.parametrize("method", METHODS)
def test_transposed_and_grouped_convolutions(
    kit: Any, parse: Any, random: Any, method: BiasCorrection
) -> None:
    model = parse(
        """g (float[N, 4, 6, 6] x) => (float[N, 6, K, L] y, float[N, 8, 4, 4] z) {
            y = ConvTranspose <kernel_shape=[2,2], strides=[2,2], group=2> (x, w)
            z = Conv <kernel_shape=[3,3], group=4> (x, v)
        }""",
        w=random(4, 3, 2, 2),
        v=random(8, 1, 3, 3),
    )
    x = np.abs(random(40, 4, 6, 6))
    ctx = kit.context({"x": x})
    before = spoil(quantized(model, ctx))
    after = before.clone()
    assert correct_bias(model, after, ctx, method).changed == 2
    for name in "yz":
        assert mean_error(kit, model, after, x, name) < 0.2 * mean_error(kit, model, before, x, name)


def test_sweeps_correct_a_chain(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """g (float[N, 8] x) => (float[N, 8] y) {
            a = Gemm (x, w0, b) p = Relu (a) c = Gemm (p, w1, b) q = Relu (c) y = Gemm (q, w2, b)
        }""",
        w0=random(8, 8),
        w1=random(8, 8),
        w2=random(8, 8),
        b=random(8),
    )
    x = random(100, 8)
    ctx = kit.context({"x": x})
    before = spoil(quantized(model, ctx))
    errors = {}
    for sweeps in (1, 6):
        after = before.clone()
        assert correct_bias(model, after, ctx, BiasCorrection.EMPIRICAL, sweeps=sweeps).changed == 3
        errors[sweeps] = mean_error(kit, model, after, x)
    assert errors[6] < 0.9 * errors[1] < 0.5 * mean_error(kit, model, before, x)


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_help_is_left_out(
    kit: Any, parse: Any, random: Any, x: Array, method: BiasCorrection, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parse(CONV.format("x, w, b"), w=random(6, 4, 3, 3), b=random(6))
    ctx = kit.context({"x": x})
    copy = quantized(model, ctx)
    before = kit.run_as_written(copy, {"x": x}, ["y"])["y"]
    wrong = {"Conv_0": np.full(6, 10.0)}
    monkeypatch.setattr("greencc.passes._correct_bias._candidates", lambda *_: iter([wrong]))
    outcome = correct_bias(model, copy, ctx, method)
    assert outcome.changed == 0
    assert not [rewrite for rewrite in ctx.rewrites.applied if rewrite.rule == "correct-bias"]
    assert [finding.kind for finding in outcome.findings] == ["refused"]
    assert "dB before" in outcome.findings[0].message
    np.testing.assert_array_equal(kit.run_as_written(copy, {"x": x}, ["y"])["y"], before)


def test_respects_the_rewrite_log(kit: Any, parse: Any, random: Any, x: Array) -> None:
    model = parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            h = Conv <kernel_shape=[1,1]> (x, w, b) y = Conv <kernel_shape=[1,1]> (h, v, b)
        }""",
        w=random(4, 4, 1, 1),
        v=random(4, 4, 1, 1),
        b=random(4),
    )
    ctx = kit.context({"x": x})
    start = spoil(quantized(model, ctx))
    for limit in (0, 1, 2):
        log = RewriteLog(limit)
        outcome = correct_bias(model, start.clone(), replace(ctx, rewrites=log), BiasCorrection.EMPIRICAL)
        assert outcome.changed == len(log.applied) == limit


def test_the_source_of_a_clone_is_left_alone(kit: Any, parse: Any, random: Any, x: Array) -> None:
    model = parse(CONV.format("x, w, b"), w=random(6, 4, 3, 3), b=random(6))
    ctx = kit.context({"x": x})
    start = spoil(quantized(model, ctx))
    before = kit.run_as_written(start, {"x": x}, ["y"])["y"]
    assert correct_bias(model, start.clone(), ctx, BiasCorrection.ANALYTIC).changed == 1
    np.testing.assert_array_equal(kit.run_as_written(start, {"x": x}, ["y"])["y"], before)


def test_a_product_without_bias_is_named(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(8, 4))
    ctx = kit.context({"x": random(20, 8)})
    outcome = correct_bias(model, quantized(model, ctx), ctx, BiasCorrection.EMPIRICAL)
    assert outcome.changed == 0
    assert [finding.node for finding in outcome.findings] == ["MatMul_0"]


def test_a_shared_float_bias_moves_for_one_reader_only(kit: Any, parse: Any, random: Any, x: Array) -> None:
    model = parse(
        """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
            y = Conv <kernel_shape=[1,1]> (x, w, b) z = Conv <kernel_shape=[1,1]> (x, v, b)
        }""",
        w=random(4, 4, 1, 1),
        v=random(4, 4, 1, 1),
        b=random(4),
    )
    ctx = kit.context({"x": x}, bias=ElementType.FLOAT)
    before = spoil(quantized(model, ctx))
    after = before.clone()
    assert correct_bias(model, after, ctx, BiasCorrection.ANALYTIC).changed == 2
    for name in "yz":
        assert mean_error(kit, model, after, x, name) < 0.1 * mean_error(kit, model, before, x, name)


@pytest.mark.parametrize("method", METHODS)
def test_dead_channels_and_few_samples(kit: Any, parse: Any, random: Any, method: BiasCorrection) -> None:
    weight = random(6, 4, 3, 3)
    weight[1] = 0
    model = parse(CONV.format("x, w, b"), w=weight, b=np.zeros(6, np.float32))
    ctx = kit.context({"x": np.abs(random(1, 4, 8, 8))})
    copy = quantized(model, ctx)
    correct_bias(model, copy, ctx, method)
    kit.save(copy)


def test_needs_data(kit: Any, parse: Any, random: Any, x: Array) -> None:
    model = parse(CONV.format("x, w, b"), w=random(6, 4, 3, 3), b=random(6))
    copy = quantized(model, kit.context({"x": x}))
    with pytest.raises(InputError, match="calibration"):
        correct_bias(model, copy, kit.context(None), BiasCorrection.ANALYTIC)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("batch", [1, 7])
def test_channel_means(kit: Any, parse: Any, random: Any, opset: int, batch: int) -> None:
    model = parse("g (float[N, 3, H, 4] x) => (float[N, 3, H, 4] y) { y = Neg (x) }", opset=opset)
    x = random(20, 3, 5, 4)
    wanted = [Wanted("x", 3, 4, square=True), Wanted("y", 4, None), Wanted("y", 3, 4)]
    found = channel_means(model, wanted, kit.context({"x": x}), batch, "Means")
    np.testing.assert_allclose(found[wanted[0]].mean, x.mean(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(found[wanted[0]].square, np.square(x).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found[wanted[1]].mean, -x.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(found[wanted[2]].mean, -x.mean(axis=(0, 2, 3)), atol=1e-5)
    assert len(model.graph.outputs) == 1


@given(seed=st.integers(0, 10**6), samples=st.integers(1, 30), method=st.sampled_from(METHODS))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_outputs_on_the_calibration_data_never_get_worse(
    kit: Any, parse: Any, seed: int, samples: int, method: BiasCorrection
) -> None:
    rng = np.random.default_rng(seed)
    model = parse(
        "g (float[N, 6] x) => (float[N, 3] y) { h = Gemm (x, w, b) r = Relu (h) y = Gemm (r, v) }",
        w=rng.standard_normal((6, 9)).astype(np.float32),
        b=rng.standard_normal(9).astype(np.float32),
        v=rng.standard_normal((9, 3)).astype(np.float32),
    )
    x = rng.standard_normal((samples, 6)).astype(np.float32)
    ctx = kit.context({"x": x})
    before = spoil(quantized(model, ctx), 1)
    after = before.clone()
    outcome = correct_bias(model, after, ctx, method, batch=1)
    kit.save(after)
    # Without samples to spare, what is judged by is everything.
    judged = x if samples < 5 else x[4::5]
    if outcome.changed:
        assert noise(kit, model, after, judged) <= noise(kit, model, before, judged) * (1 + 1e-5)
    else:
        assert noise(kit, model, after, judged) == noise(kit, model, before, judged)
