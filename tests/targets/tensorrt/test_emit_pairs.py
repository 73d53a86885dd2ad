"""Pairs that TensorRT would refuse or misread: refused by name, before it gets them."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.core.errors import InputError
from greencc.targets._tensorrt.emit import emit

from .emitting import distance, emitted, feeds_of, machine, normal, operators, parse, unfused

ACTIVATION = """g (float[2, 16] x) => (float[2, 16] y) {
  q = QuantizeLinear (x, s, z)
  y = DequantizeLinear (q, s, z)
}"""
CONV = """g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) {
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  wd = DequantizeLinear <axis=1> (w, ws, wz)
  y = Conv (d, wd)
}"""
SCALE = np.float32(0.05)


@pytest.mark.parametrize(
    ("zero_point", "message"),
    [
        (np.uint8(7), "UINT8 around 7"),
        (np.int8(3), "INT8 around 3"),
        (np.uint8(0), "UINT8 around 0"),
        (np.int16(0), "INT16"),
    ],
)
def test_zero_points(zero_point: np.generic, message: str) -> None:
    opset = 21 if zero_point.dtype == np.int16 else 17
    model = parse(ACTIVATION, opset, s=SCALE, z=zero_point)
    with pytest.raises(InputError, match=message) as caught:
        emit(model, machine("10.3"))
    assert "QuantizeLinear_q" in str(caught.value)
    assert "quantize the float model with this target" in caught.value.hint  # type: ignore[operator]


def test_a_missing_zero_point_is_that_of_uint8() -> None:
    text = ACTIVATION.replace("(x, s, z)", "(x, s)").replace("(q, s, z)", "(q, s)")
    with pytest.raises(InputError, match="UINT8 around 0"):
        emit(parse(text, s=SCALE), machine("10.3"))
    signed = text.replace("QuantizeLinear (x, s)", "QuantizeLinear <output_dtype=3> (x, s)", 1)
    model = parse(signed, 21, s=SCALE)
    result = emitted(model, machine("10.3"))
    assert [len(node.inputs) for node in result.graph] == [3, 3]
    feeds = feeds_of(model)
    assert distance(unfused(model, feeds), unfused(result, feeds)) == 0.0


def test_uint8_around_its_middle_is_int8_around_zero() -> None:
    model = parse(ACTIVATION, s=SCALE, z=np.uint8(128))
    result = emitted(model, machine("8.2"))
    feeds = {"x": np.linspace(-8, 8, 32, dtype=np.float32).reshape(2, 16)}
    assert distance(unfused(model, feeds), unfused(result, feeds)) == 0.0


def test_scales_per_channel_of_an_activation() -> None:
    text = ACTIVATION.replace("Linear (", "Linear <axis=1> (")
    model = parse(text, s=np.full(16, 0.05, np.float32), z=np.zeros(16, np.int8))
    with pytest.raises(InputError, match="per channel of an activation"):
        emit(model, machine("10.3"))


def test_scales_along_another_axis() -> None:
    """TensorRT builds an engine for these that computes something else."""
    codes = np.random.default_rng(0).integers(-99, 99, (16, 16, 1, 1)).astype(np.int8)
    scales = np.linspace(0.01, 0.02, 16).astype(np.float32)
    model = parse(CONV, s=SCALE, z=np.int8(0), w=codes, ws=scales, wz=np.zeros(16, np.int8))
    with pytest.raises(InputError, match=r"scales along axis 1; its output channels are along axis 0"):
        emit(model, machine("10.3"))


def test_computed_scales() -> None:
    text = """g (float[2, 16] x) => (float[2, 16] y) {
      m = ReduceMax <keepdims=0> (x)
      q = QuantizeLinear (x, m, z)
      y = DequantizeLinear (q, m, z)
    }"""
    with pytest.raises(InputError, match="computed scale"):
        emit(parse(text, z=np.int8(0)), machine("10.3"))


def test_scales_that_are_not_positive() -> None:
    with pytest.raises(InputError, match="not positive"):
        emit(parse(ACTIVATION, s=np.float32(0), z=np.int8(0)), machine("10.3"))


def test_fp8_is_for_gpus_that_have_it() -> None:
    text = """g (float[2, 16] x) => (float[2, 16] y) {
      q = QuantizeLinear <output_dtype=17> (x, s)
      y = DequantizeLinear (q, s)
    }"""
    model = parse(text, 21, s=SCALE)
    with pytest.raises(InputError, match="FP8"):
        emit(model, machine("11.4", 87))


def test_weights_without_a_quantized_activation_are_floats() -> None:
    text = """g (float[2, 16] x) => (float[2, 8] y) {
      wd = DequantizeLinear <axis=1> (w, ws, wz)
      y = MatMul (x, wd)
    }"""
    codes = np.random.default_rng(0).integers(-99, 99, (16, 8)).astype(np.int8)
    model = parse(text, w=codes, ws=np.full(8, 0.02, np.float32), wz=np.zeros(8, np.int8))
    for version in ("8.2", "11.4"):
        result = emitted(model, machine(version))
        assert operators(result) == {"MatMul": 1}
        assert "greencc.tensorrt.precision" not in result.metadata_props
        feeds = feeds_of(model)
        assert distance(unfused(model, feeds), unfused(result, feeds)) < 1e-6


def test_one_scale_for_all_of_a_weight_needs_no_axis() -> None:
    text = CONV.replace("<axis=1> ", "")
    codes = np.random.default_rng(0).integers(-99, 99, (16, 16, 1, 1)).astype(np.int8)
    model = parse(text, s=SCALE, z=np.int8(0), w=codes, ws=np.float32(0.01), wz=np.int8(0))
    result = emitted(model, machine("10.3"))
    assert all("axis" not in node.attributes for node in result.graph)
    feeds = {"x": normal(1, 16, 4, 4)}
    assert distance(unfused(model, feeds), unfused(result, feeds)) < 1e-6
