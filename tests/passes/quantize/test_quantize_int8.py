"""Numbers: scales, weights and biases against a NumPy reference of fake quantization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.errors import InputError, UsageError
from greencc.passes._quantize_scales import activation_scale, fit_bias, quantize_bias, weight_scales
from greencc.passes._ranges import Range
from greencc.passes.quantize_int8 import QuantizeInt8, RangeMethod


def fake_activation(values: np.ndarray) -> np.ndarray:
    """Asymmetric uint8 over the range of the values."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = np.float32((float(high) - float(low)) / 255)
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def fake_weight(weight: np.ndarray, axis: int | None, limit: int = 127) -> np.ndarray:
    """Symmetric, per channel."""
    others = None if axis is None else tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.max(np.abs(weight), axis=others, keepdims=True) / np.float32(limit)
    return (np.clip(np.rint(weight / scale), -limit, limit) * scale).astype(np.float32)


CASES = {
    "conv": ("y = Conv <kernel_shape=[3,3]> (x, w, b)", (4, 6, 3, 3), 0, 4),
    "depthwise": ("y = Conv <kernel_shape=[3,3], group=6> (x, w, b)", (6, 1, 3, 3), 0, 6),
    "transposed": ("y = ConvTranspose <kernel_shape=[2,2], strides=[2,2]> (x, w, b)", (6, 5, 2, 2), 1, 5),
    "transposed-grouped": (
        "y = ConvTranspose <kernel_shape=[2,2], group=2> (x, w, b)",
        (6, 3, 2, 2),
        1,
        6,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bits", [8, 7])
def test_convolutions_match_the_reference(kit: Any, parse: Any, random: Any, case: str, bits: int) -> None:
    text, shape, axis, channels = CASES[case]
    weight = random(*shape) * np.geomspace(0.01, 10, shape[axis or 1], dtype=np.float32).reshape(
        [-1 if index == (axis or 1) and axis is not None else 1 for index in range(4)]
        if axis is not None
        else [1, -1, 1, 1]
    )
    bias = random(channels)
    model = parse(f"g (float[N, 6, 8, 8] x) => (float[N, C, H, W] y) {{ {text} }}", w=weight, b=bias)
    x = random(8, 6, 8, 8)
    reference = model.clone()
    fake = fake_weight(weight, axis, 127 if bits == 8 else 64)
    reference.graph.initializers["w"].const_value = ir.tensor(fake, name="w")
    expected = fake_activation(kit.run(reference, {"x": fake_activation(x)})[0])
    assert QuantizeInt8().apply(model, kit.context({"x": x}, weight_bits=bits)).changed == 1
    quantized = model.graph.initializers["w_quantized"].const_value.numpy()
    assert np.abs(quantized.astype(int)).max() == (127 if bits == 8 else 64)
    scales = model.graph.initializers["w_scale"]
    assert scales.shape == ([] if axis is None else [shape[axis]])
    got = kit.run(model, {"x": x})[0]
    step = (expected.max() - expected.min()) / 255
    # One step: the bias and the rounding of ties differ between the two.
    assert np.max(np.abs(got - expected)) <= 1.6 * step


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.25, 3.0)])
@pytest.mark.parametrize("bias_shape", [(5,), (1, 5), (1,), ()])
def test_gemm(
    kit: Any, parse: Any, random: Any, transposed: int, alpha: float, beta: float, bias_shape: tuple[int, ...]
) -> None:
    weight, bias, x = random(*((5, 16) if transposed else (16, 5))), random(*bias_shape), random(32, 16)
    text = f"y = Gemm <transB={transposed}, alpha={alpha}, beta={beta}> (x, w, b)"
    model = parse(f"g (float[N, 16] x) => (float[N, 5] y) {{ {text} }}", w=weight, b=np.asarray(bias))
    fake = fake_weight(weight, 0 if transposed else 1)
    expected = alpha * fake_activation(x) @ (fake.T if transposed else fake) + beta * bias
    QuantizeInt8().apply(model, kit.context({"x": x}))
    assert kit.kernels(model)["QGemm"] == 1
    got = kit.run(model, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_matmul_scales_are_per_column(kit: Any, parse: Any, random: Any) -> None:
    weight = random(16, 4) * np.float32([0.001, 1, 10, 1000])
    model = parse("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)
    x = random(32, 16)
    QuantizeInt8().apply(model, kit.context({"x": x}))
    expected = fake_activation(x) @ fake_weight(weight, 1)
    got = kit.run(model, {"x": x})[0]
    np.testing.assert_allclose(got / np.abs(expected).max(0), expected / np.abs(expected).max(0), atol=1e-5)


def test_shared_weights_are_stored_once(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[N, 16] x) => (float[N, 16] y) { h = MatMul (x, w) t = Tanh (h) y = MatMul (t, w) }",
        w=random(16, 16),
    )
    x = random(32, 16)
    expected = kit.run(model, {"x": x})[0]
    QuantizeInt8().apply(model, kit.context({"x": x}))
    assert sum(value.dtype is ir.DataType.INT8 for value in model.graph.initializers.values()) == 2
    assert "w" not in model.graph.initializers
    np.testing.assert_allclose(kit.run(model, {"x": x})[0], expected, atol=0.05 * np.abs(expected).max())


def test_a_bias_that_dwarfs_its_weights_does_not_wrap(kit: Any, parse: Any, random: Any) -> None:
    weight = random(3, 4, 1, 1)
    weight[0] *= 1e-12
    bias = np.float32([1000, -1, 0.5])
    model = parse(
        "g (float[N, 4, 4, 4] x) => (float[N, 3, 4, 4] y) { y = Conv <kernel_shape=[1,1]> (x, w, b) }",
        w=weight,
        b=bias,
    )
    x = random(8, 4, 4, 4)
    expected = kit.run(model, {"x": x})[0]
    QuantizeInt8(exclude=()).apply(model, kit.context({"x": x}))
    integers = next(
        value
        for name, value in model.graph.initializers.items()
        if "bias" in name and name.endswith("quantized")
    )
    assert np.abs(integers.const_value.numpy().astype(np.int64)).max() <= 2**30
    got = kit.run(model, {"x": x})[0]
    np.testing.assert_allclose(got[:, 0], expected[:, 0], rtol=0.01)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    st.floats(2.0**-60, 2.0**20),
    st.floats(2.0**-60, 2.0**20),
)
def test_biases_always_fit(bias: list[float], activation: float, weight: float) -> None:
    scales = np.full(len(bias), weight, np.float32)
    wide = fit_bias(scales, np.float32(activation), np.asarray(bias))
    assert (wide >= scales).all()
    integers, product = quantize_bias(np.asarray(bias), np.float32(activation), wide)
    assert np.isfinite(product).all()
    assert (np.abs(integers.astype(np.int64)) <= 2**30 + 1).all()
    restored = integers.astype(np.float64) * product
    assert (np.abs(restored - bias) <= product * 0.5 + np.abs(bias) * 1e-9).all()


SUPPORT = Int8Support(
    ElementType.UINT8, False, 8, True, ElementType.INT32, frozenset(), quantize_outputs=True, reason=""
)


@given(st.floats(-(2.0**100), 2.0**100), st.floats(-(2.0**100), 2.0**100), st.booleans(), st.booleans())
def test_zero_is_exact_and_the_range_is_covered(a: float, b: float, signed: bool, symmetric: bool) -> None:
    low, high = min(a, b), max(a, b)
    kind = ElementType.INT8 if signed else ElementType.UINT8
    support = replace(SUPPORT, activation=kind, symmetric_activations=symmetric)
    scale = activation_scale(Range(low, high), support)
    limits = np.iinfo(scale.dtype)
    assert np.isfinite(scale.scale)
    assert scale.scale > 0
    assert limits.min <= scale.zero_point <= limits.max
    assert scale.quantize(np.zeros(1))[0] == scale.zero_point
    step = float(scale.scale)
    assert (limits.max - scale.zero_point + 0.51) * step >= max(high, 0) * (1 - 1e-6)
    assert (scale.zero_point - limits.min + 0.51) * step >= max(-low, 0) * (1 - 1e-6)


def test_weight_scales_of_zero_and_non_finite_channels() -> None:
    weight = np.float32([[0, 0], [2, -4]])
    np.testing.assert_array_equal(weight_scales(weight, 0, 8), np.float32([4 / 127, 4 / 127]))
    np.testing.assert_array_equal(weight_scales(np.zeros((2, 2), np.float32), 0, 8), np.float32([1, 1]))
    weight[0, 0] = np.nan
    assert weight_scales(weight, 0, 8) is None


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("method", list(RangeMethod))
def test_constant_activations(kit: Any, parse: Any, random: Any, value: float, method: RangeMethod) -> None:
    model = parse("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(16, 4))
    x = np.full((4, 16), value, np.float32)
    expected = kit.run(model, {"x": x})[0]
    QuantizeInt8(method=method).apply(model, kit.context({"x": x}))
    np.testing.assert_allclose(kit.run(model, {"x": x})[0], expected, atol=0.02 * np.abs(expected).max())


def test_non_finite_weights_stay_in_float(kit: Any, parse: Any, random: Any) -> None:
    weight = random(16, 4)
    weight[3, 2] = np.inf
    model = parse("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)
    outcome = QuantizeInt8().apply(model, kit.context({"x": random(4, 16)}))
    assert outcome.changed == 0
    assert [finding.message for finding in outcome.findings] == [
        "MatMul 'MatMul_0': its weight is not finite"
    ]


def test_weights_in_constant_nodes(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[N, 2] x) => (float[N, 2] y) "
        "{ w = Constant <value = float[2,2] {1.0, 2.0, -3.0, 4.0}> () y = MatMul (x, w) }"
    )
    x = random(8, 2)
    expected = kit.run(model, {"x": x})[0]
    assert QuantizeInt8().apply(model, kit.context({"x": x})).changed == 1
    assert not [node for node in model.graph if node.op_type == "Constant"]
    np.testing.assert_allclose(kit.run(model, {"x": x})[0], expected, atol=0.03 * np.abs(expected).max())


def test_quantized_models_are_refused(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(16, 4))
    x = {"x": random(4, 16)}
    QuantizeInt8().apply(model, kit.context(x))
    before = kit.save(model).read_bytes()
    outcome = QuantizeInt8().apply(model, kit.context(x))
    assert outcome.changed == 0
    assert outcome.findings[0].kind == "refused"
    assert "quantized already" in outcome.findings[0].message
    assert kit.save(model).read_bytes() == before


def test_a_target_without_integer_kernels(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(16, 4))
    context = kit.context(None)
    context = replace(context, capabilities=replace(context.capabilities, int8=None))
    outcome = QuantizeInt8().apply(model, context)
    assert outcome.changed == 0
    assert "no INT8 kernels" in outcome.findings[0].message


def test_old_opsets(kit: Any, parse: Any, random: Any) -> None:
    text = "g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }"
    x = {"x": random(4, 16)}
    old = parse(text, opset=12, w=random(16, 4))
    outcome = QuantizeInt8().apply(old, kit.context(x))
    assert outcome.changed == 1
    assert "run upgrade-opset first" in outcome.findings[0].message
    assert old.graph.initializers["w_scale"].shape == []
    kit.run(old, x)
    ancient = parse(text, opset=9, w=random(16, 4))
    outcome = QuantizeInt8().apply(ancient, kit.context(x))
    assert outcome.changed == 0
    assert outcome.findings[0].kind == "refused"


def test_calibration_data_is_needed(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(16, 4))
    with pytest.raises(InputError, match="needs calibration data"):
        QuantizeInt8().apply(model, kit.context(None))


@pytest.mark.parametrize("options", [{"percentile": 50.0}, {"percentile": 100.1}, {"batch": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        QuantizeInt8(**options)


@pytest.mark.parametrize("method", list(RangeMethod))
def test_digits_lose_less_than_a_point(kit: Any, parse: Any, method: RangeMethod) -> None:
    """A two-layer net fitted in closed form to scikit-learn's digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    generator = np.random.default_rng(3)
    hidden = generator.normal(size=(64, 256), scale=0.3).astype(np.float32)
    offset = generator.normal(size=256, scale=0.3).astype(np.float32)
    train, test = slice(0, 1200), slice(1200, None)
    features = np.maximum(images[train] @ hidden + offset, 0)
    gram = features.T @ features + 1.0 * np.eye(256, dtype=np.float32)
    readout = np.linalg.solve(gram, features.T @ np.eye(10, dtype=np.float32)[labels[train]])
    model = parse(
        """
        digits (float[N, 64] x) => (float[N, 10] y) {
          h = Gemm (x, hidden, offset)
          r = Relu (h)
          y = MatMul (r, readout)
        }""",
        hidden=hidden,
        offset=offset,
        readout=readout.astype(np.float32),
    )
    feeds = {"x": images[test]}
    before = (kit.run(model, feeds)[0].argmax(1) == labels[test]).mean()
    QuantizeInt8(method=method).apply(model, kit.context({"x": images[:128]}))
    after = (kit.run(model, feeds)[0].argmax(1) == labels[test]).mean()
    assert before > 0.9
    assert after >= before - 0.01
