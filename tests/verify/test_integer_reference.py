"""The integer reference against arithmetic by hand, in whole numbers, and against ONNX Runtime."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from greencc.core.errors import InputError
from greencc.verify.integer_reference import run_integer

FLOAT = onnx.TensorProto.FLOAT


def make(text: str, opset: int = 19, domains: dict[str, int] | None = None, **constants: Any) -> ir.Model:
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    imports = [helper.make_opsetid(name, version) for name, version in {"": opset, **(domains or {})}.items()]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=9))


def pairs(**values: tuple[float | list[float], Any]) -> dict[str, np.ndarray]:
    """Scales and zero points: `x=(scale, zero_point)` gives `xs` and `xz`."""
    found: dict[str, np.ndarray] = {}
    for name, (scale, zero_point) in values.items():
        found[f"{name}s"] = np.asarray(scale, np.float32)
        found[f"{name}z"] = np.asarray(zero_point)
    return found


def in_runtime(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def half_even(value: Fraction) -> int:
    return round(value)


PRODUCT = """
g (uint8[2, 3] x) => (uint8[2, 2] y) {
  xd = DequantizeLinear (x, xs, xz)
  wd = DequantizeLinear <axis = 1> (w, ws, wz)
  bd = DequantizeLinear <axis = 0> (b, bs, bz)
  p = Gemm (xd, wd, bd)
  r = Relu (p)
  y = QuantizeLinear (r, ys, yz)
}"""


def test_a_product_is_the_formula_in_whole_numbers() -> None:
    x = np.array([[3, 200, 7], [255, 0, 130]], np.uint8)
    w = np.array([[5, -127], [-3, 64], [100, 1]], np.int8)
    b = np.array([1000, -20], np.int32)
    # Powers of 2: the multiplier m is exact, and so is the comparison.
    sx, sw, sy = 0.5, [0.25, 2.0], 16.0
    model = make(PRODUCT, w=w, b=b, **pairs(x=(sx, np.uint8(128)), w=(sw, np.zeros(2, np.int8)),
                 b=([sx * s for s in sw], np.zeros(2, np.int32)), y=(sy, np.uint8(10))))  # fmt: skip
    expected = np.zeros((2, 2), np.uint8)
    for row in range(2):
        for column in range(2):
            total = sum((int(x[row, k]) - 128) * int(w[k, column]) for k in range(3)) + int(b[column])
            m = Fraction(sx) * Fraction(sw[column]) / Fraction(sy)
            # Relu, zero point, saturation.
            expected[row, column] = min(255, max(10, half_even(m * total) + 10))
    np.testing.assert_array_equal(run_integer(model, {"x": x})["y"], expected)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(in_runtime(model, {"x": x})["y"], expected)


def test_halves_round_to_even_and_ends_saturate() -> None:
    text = """
    g (int8[7] x) => (int8[7] y) {
      d = DequantizeLinear (x, xs, xz)
      a = Add (d, d)
      y = QuantizeLinear (a, ys, yz)
    }"""
    model = make(text, **pairs(x=(1.0, np.int8(0)), y=(4.0, np.int8(0))))
    x = np.array([1, 3, 5, -1, -3, 127, -128], np.int8)
    assert run_integer(model, {"x": x})["y"].tolist() == [0, 2, 2, 0, -2, 64, -64]
    model = make(text, **pairs(x=(1.0, np.int8(0)), y=(1.0, np.int8(-100))))
    assert run_integer(model, {"x": x})["y"].tolist() == [-98, -94, -90, -102, -106, 127, -128]


def test_bounds_come_before_the_rounding() -> None:
    text = """
    g (uint8[1, 1] x) => (uint8[1, 1] y) {
      xd = DequantizeLinear (x, xs, xz)
      wd = DequantizeLinear (w, ws, wz)
      p = MatMul (xd, wd)
      c = Clip (p, low, high)
      y = QuantizeLinear (c, ys, yz)
    }"""
    common = {"w": np.array([[1]], np.int8), "low": np.float32(0), "high": np.float32(2.6)}
    model = make(text, **common, **pairs(x=(0.5, np.uint8(0)), w=(1.0, np.int8(0)), y=(1.0, np.uint8(0))))
    got = [int(run_integer(model, {"x": np.array([[n]], np.uint8)})["y"].item()) for n in range(8)]
    assert got == [0, 0, 1, 2, 2, 2, 3, 3]


def test_a_float_bias_is_added_before_the_rounding() -> None:
    text = PRODUCT.replace("bd = DequantizeLinear <axis = 0> (b, bs, bz)", "bd = Identity (b)")
    common = pairs(x=(1.0, np.uint8(0)), w=([1.0, 1.0], np.zeros(2, np.int8)), y=(1.0, np.uint8(0)))
    model = make(text, w=np.ones((3, 2), np.int8), b=np.array([0.5, -0.75], np.float32), **common)
    x = np.array([[1, 1, 1], [0, 0, 1]], np.uint8)
    # 3.5 and 1.5 go to the even neighbour.
    assert run_integer(model, {"x": x})["y"].tolist() == [[4, 2], [2, 0]]


def test_what_reads_a_product_in_float_gets_the_accumulator() -> None:
    text = """
    g (uint8[1, 2] x) => (float[1, 2] y) {
      xd = DequantizeLinear (x, xs, xz)
      wd = DequantizeLinear <axis = 1> (w, ws, wz)
      y = MatMul (xd, wd)
    }"""
    w = np.array([[127, 3], [-5, 8]], np.int8)
    parts = pairs(x=(0.1, np.uint8(3)), w=([0.3, 0.7], np.zeros(2, np.int8)))
    model = make(text, w=w, **parts)
    x = np.array([[250, 17]], np.uint8)
    got = run_integer(model, {"x": x})["y"]
    product = np.float32(0.1) * np.array([0.3, 0.7], np.float32)
    expected = ((x.astype(int) - 3) @ w.astype(int)).astype(np.float32) * product
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(in_runtime(model, {"x": x})["y"], expected)


def test_integers_that_one_scale_does_not_hold_for_are_multiplied_in_float() -> None:
    # A scale per row of the weight varies along the sum.
    text = """
    g (uint8[1, 2] x) => (float[1, 2] y) {
      xd = DequantizeLinear (x, xs, xz)
      wd = DequantizeLinear <axis = 0> (w, ws, wz)
      y = MatMul (xd, wd)
    }"""
    model = make(text, w=np.array([[1, 2], [3, 4]], np.int8),
                 **pairs(x=(1.0, np.uint8(0)), w=([10.0, 0.5], np.zeros(2, np.int8))))  # fmt: skip
    assert run_integer(model, {"x": np.array([[1, 2]], np.uint8)})["y"].tolist() == [[13.0, 24.0]]


def test_blocks_and_four_bits_are_dequantized() -> None:
    text = """
    g (float[1, 4] x, float[1] unused) => (float[1, 2] y) {
      wd = DequantizeLinear <axis = 0, block_size = 2> (w, ws)
      y = MatMul (x, wd)
    }"""
    graph = onnx.parser.parse_graph(text)
    codes = np.array([[1, -8], [2, 7], [3, 0], [-4, 5]])
    graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.INT4, [4, 2], codes.flatten().tolist()))
    scales = np.array([[1, 2], [0.5, 10]], np.float32)
    graph.initializer.append(numpy_helper.from_array(scales, "ws"))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.array([[1, 10, 100, 1000]], np.float32)
    got = run_integer(ir.from_proto(proto), {"x": x, "unused": np.zeros(1, np.float32)})["y"]
    np.testing.assert_array_equal(got, x @ (codes * np.repeat(scales, 2, 0)).astype(np.float32))


def test_sums_that_leave_int32_are_refused() -> None:
    parts = pairs(x=(1.0, np.uint8(0)), w=([1.0, 1.0], np.zeros(2, np.int8)),
                  b=([1.0, 1.0], np.zeros(2, np.int32)), y=(1e7, np.uint8(0)))  # fmt: skip
    largest = 2**31 - 1
    model = make(PRODUCT, w=np.ones((3, 2), np.int8), b=np.array([largest, 0], np.int32), **parts)
    zeros = np.zeros((2, 3), np.uint8)
    assert run_integer(model, {"x": zeros})["y"].tolist() == [[215, 0], [215, 0]]
    with pytest.raises(InputError, match=r"Gemm.*leaves INT32"):
        run_integer(model, {"x": zeros + 1})


def test_bodies_read_dequantized_values_from_outside() -> None:
    text = """
    g (uint8[2] x, bool c) => (float[2] y) {
      xd = DequantizeLinear (x, xs, xz)
      y = If (c) <
        then_branch = t () => (float[2] a) { a = Add (xd, k) },
        else_branch = e () => (float[2] b) {
          b = If (c) <
            then_branch = tt () => (float[2] aa) { aa = Identity (xd) },
            else_branch = ee () => (float[2] bb) { bb = Mul (xd, k) }
          >
        }
      >
    }"""
    model = make(text, k=np.float32(3), **pairs(x=(2.0, np.uint8(1))))
    x = np.array([1, 4], np.uint8)
    assert run_integer(model, {"x": x, "c": np.array(True)})["y"].tolist() == [3.0, 9.0]
    assert run_integer(model, {"x": x, "c": np.array(False)})["y"].tolist() == [0.0, 18.0]


def test_given_values_are_read_and_computed_ones_are_returned() -> None:
    text = """
    g (float[2] x) => (float[2] y) {
      q = QuantizeLinear (x, xs, xz)
      d = DequantizeLinear (q, xs, xz)
      y = Neg (d)
    }"""
    model = make(text, **pairs(x=(1.0, np.uint8(0))))
    x = np.array([1.2, 3.9], np.float32)
    got = run_integer(model, {"x": x}, ["q", "y"], given={"q": np.array([7, 8], np.uint8)})
    assert got["q"].tolist() == [1, 4]
    assert got["y"].tolist() == [-7.0, -8.0]


def test_an_input_with_a_default_may_be_left_out() -> None:
    text = "g (float[1] x, float[1] k) => (float[1] y) { y = Add (x, k) }"
    model = make(text, k=np.array([2], np.float32))
    one = np.ones(1, np.float32)
    assert run_integer(model, {"x": one})["y"].tolist() == [3.0]
    assert run_integer(model, {"x": one, "k": one})["y"].tolist() == [2.0]
    assert run_integer(model, {"x": one}, ["k"])["k"].tolist() == [2.0]


def test_inference_normalizes_by_the_stored_statistics() -> None:
    # The ONNX reference takes those of the batch before opset 14.
    text = """
    g (float[2, 1, 2] x) => (float[2, 1, 2] y) {
      y = BatchNormalization <momentum = 0.9, epsilon = 0.0> (x, one, zero, one, four)
    }"""
    constants = {"one": [1.0], "zero": [0.0], "four": [4.0]}
    model = make(text, opset=12, **{name: np.array(v, np.float32) for name, v in constants.items()})
    x = np.arange(4, dtype=np.float32).reshape(2, 1, 2)
    np.testing.assert_array_equal(run_integer(model, {"x": x})["y"], (x - 1) / 2)


@pytest.mark.parametrize(
    ("feeds", "outputs", "message"),
    [
        ({}, None, "input 'x' is missing"),
        ({"x": np.zeros(1, np.float32), "z": np.zeros(1)}, None, "'z' is no input.*inputs: x"),
        ({"x": np.zeros(1, np.float32)}, ["v"], "no value 'v'"),
        ({"x": np.array([np.nan], np.float32)}, None, "QuantizeLinear.*NaN"),
    ],
)
def test_bad_requests_are_said(feeds: dict[str, np.ndarray], outputs: list[str] | None, message: str) -> None:
    text = "g (float[1] x) => (uint8[1] y) { y = QuantizeLinear (x, ys, yz) }"
    with pytest.raises(InputError, match=message):
        run_integer(make(text, **pairs(y=(1.0, np.uint8(0)))), feeds, outputs)


def test_infinities_saturate() -> None:
    text = "g (float[2] x) => (uint8[2] y) { y = QuantizeLinear (x, ys, yz) }"
    model = make(text, **pairs(y=(1.0, np.uint8(3))))
    assert run_integer(model, {"x": np.array([-np.inf, np.inf], np.float32)})["y"].tolist() == [0, 255]


def test_operators_without_a_reference_are_named() -> None:
    model = make("g (float[1] x) => (float[1] y) { y = my.domain.Thing (x) }", domains={"my.domain": 1})
    with pytest.raises(InputError, match=r"my.domain::Thing.*no reference"):
        run_integer(model, {"x": np.zeros(1, np.float32)})
    model = make("g (float[1] x) => (float[2] y) { y = Reshape (x, shape) }", shape=np.array([2]))
    with pytest.raises(InputError, match=r"Reshape.*cannot be computed"):
        run_integer(model, {"x": np.zeros(1, np.float32)})


CONVOLUTION = """
g (uint8[N, {channels}, {sizes}] x) => (uint8[N, M, {outer}] y) {{
  xd = DequantizeLinear (x, xs, xz)
  wd = DequantizeLinear <axis = {axis}> (w, ws, wz)
  bd = DequantizeLinear <axis = 0> (b, bs, bz)
  p = {kind} <{attributes}> (xd, wd, bd)
  y = QuantizeLinear (p, ys, yz)
}}"""


@settings(max_examples=25)
@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 1),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_convolutions_are_those_of_the_runtime(
    rank: int, groups: int, kernel: int, stride: int, dilation: int, pad: int, transposed: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kind, outputs = ("ConvTranspose" if transposed else "Conv"), 8
    shape = (
        (4, outputs // groups, *[kernel] * rank) if transposed else (outputs, 4 // groups, *[kernel] * rank)
    )
    w = rng.integers(-64, 65, shape).astype(np.int8)
    channels = shape[1] if transposed else outputs
    # The groups of a ConvTranspose share the scales along axis 1.
    scales = rng.uniform(1e-3, 1e-2, channels).astype(np.float32)
    product = np.float32(0.02) * np.tile(scales, groups if transposed else 1)
    attributes = {"strides": [stride] * rank, "dilations": [dilation] * rank, "pads": [pad] * 2 * rank}
    text = CONVOLUTION.format(
        channels=4,
        sizes=",".join("DEF"[:rank]),
        outer=",".join("GHI"[:rank]),
        axis=1 if transposed else 0,
        kind=kind,
        attributes=", ".join(f"{name} = {value}" for name, value in attributes.items())
        + f", group = {groups}",
    )
    b = rng.integers(-500, 500, outputs).astype(np.int32)
    model = make(text, w=w, b=b, **pairs(x=(0.02, np.uint8(117)), w=(scales.tolist(), np.zeros(channels, np.int8)),
                 b=(product.tolist(), np.zeros(outputs, np.int32)), y=(0.03, np.uint8(100))))  # fmt: skip
    feeds = {"x": rng.integers(0, 256, (2, 4, *[6, 5, 7][:rank])).astype(np.uint8)}
    got, expected = run_integer(model, feeds)["y"], in_runtime(model, feeds)["y"]
    assert got.shape == expected.shape
    # ONNX Runtime has no integer ConvTranspose; its float one sums in another order.
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= (1 if transposed else 0)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["MaxPool", "AveragePool"]),
    rank=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.sampled_from([[0, 0], [1, 0], [1, 1], "VALID", "SAME_UPPER", "SAME_LOWER"]),
    ceil=st.booleans(),
    include=st.booleans(),
)
def test_pools_are_those_of_the_runtime(
    kind: str,
    rank: int,
    kernel: int,
    stride: int,
    dilation: int,
    pad: list[int] | str,
    ceil: bool,
    include: bool,
) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank}
    if isinstance(pad, str):
        # ONNX Runtime pads by a negative number there.
        assume(kernel >= stride or pad == "VALID")
        attributes["auto_pad"] = pad
    else:
        # Paddings are smaller than kernels.
        attributes["pads"] = [min(side, kernel - 1) for side in pad for _ in range(rank)]
        attributes |= {"dilations": [dilation] * rank, "ceil_mode": int(ceil)}
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(include)
    x = np.random.default_rng(kernel).normal(size=(2, 3, *[7, 6, 8][:rank])).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], **attributes)],
        "pool",
        [helper.make_tensor_value_info("x", FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    expected = in_runtime(model, {"x": x})["y"]
    got = run_integer(model, {"x": x})["y"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_window_larger_than_the_input_is_refused() -> None:
    text = "g (float[1, 1, 2] x) => (float[1, 1, 1] y) { y = MaxPool <kernel_shape = [3]> (x) }"
    with pytest.raises(InputError, match=r"MaxPool.*window is larger"):
        run_integer(make(text), {"x": np.zeros((1, 1, 2), np.float32)})


def test_the_model_is_not_changed() -> None:
    parts = pairs(x=(1.0, np.uint8(0)), w=([1.0, 1.0], np.zeros(2, np.int8)),
                  b=([1.0, 1.0], np.zeros(2, np.int32)), y=(1.0, np.uint8(0)))  # fmt: skip
    model = make(PRODUCT, w=np.ones((3, 2), np.int8), b=np.zeros(2, np.int32), **parts)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    run_integer(model, {"x": np.ones((2, 3), np.uint8)})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
