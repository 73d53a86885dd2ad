"""Statistics per channel: equal to NumPy's over all samples, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import InputError
from greencc.passes import _calibrate_channels
from greencc.passes._calibrate_channels import ChannelStats, observe_channels

CONV = "g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) { h = Conv (x, w) y = Relu (h) }"


def expect(found: ChannelStats, values: np.ndarray, axis: int) -> None:
    matrix = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    scale = np.abs(matrix).max()
    np.testing.assert_array_equal(found.low, matrix.min(axis=1))
    np.testing.assert_array_equal(found.high, matrix.max(axis=1))
    np.testing.assert_allclose(found.mean, matrix.mean(axis=1), atol=1e-5 * scale)
    np.testing.assert_allclose(found.mean_square, (matrix**2).mean(axis=1), rtol=1e-5)
    assert found.count == matrix.shape[1]
    assert {part.dtype for part in (found.low, found.high, found.mean, found.mean_square)} == {
        np.dtype(np.float64)
    }


@pytest.mark.parametrize("opset", [11, 17, 18, 21])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_statistics_are_those_of_all_samples(
    kit: Any, parse: Any, random: Any, opset: int, axis: int
) -> None:
    model = parse(CONV.replace("N", "5") if axis == 0 else CONV, opset, w=random(4, 3, 3, 3))
    x = random(10, 3, 6, 6)
    h = kit.run_as_written(parse(CONV, w=model.graph.initializers["w"].const_value.numpy()), {"x": x}, ["h"])
    found = observe_channels(model, {"x": axis, "h": axis}, kit.context({"x": x}), 4)
    for name, values in (("x", x), ("h", h["h"])):
        expect(found[name], values.reshape(2, 5, -1).swapaxes(0, 1) if axis == 0 else values, axis)
    assert list(found) == ["x", "h"]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_batch_does_not_matter(batch: int, samples: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((samples, 3, 2)).astype(np.float32)
    parts = [values[start : start + batch] for start in range(0, samples, batch)]
    total = None
    for part in parts:
        total = _calibrate_channels._combine("x", total, _calibrate_channels._reduce(part, -2))
    assert total is not None
    expect(_calibrate_channels._stats(total), values, 1)


def test_a_vector_is_its_own_channels(kit: Any, parse: Any) -> None:
    for opset in (17, 18):
        model = parse("g (float[4] x) => (float[4] y) { y = Relu (x) }", opset)
        context = kit.context({"x": np.array([[1, -2, 3, 0]], np.float32)})
        # The only sample's first axis is the batch: a fixed batch of 4 repeats the sample.
        context.calibration.feeds["x"] = np.array([1, -2, 3, 0], np.float32)
        found = observe_channels(model, {"y": 0}, context)["y"]
        np.testing.assert_array_equal(found.mean, [1, 0, 3, 0])
        np.testing.assert_array_equal(found.mean_square, [1, 0, 9, 0])
        assert found.count == 1


def test_values_of_unknown_rank_are_fetched(kit: Any, parse: Any, random: Any) -> None:
    model = parse(CONV, w=random(4, 3, 3, 3))
    x = random(6, 3, 6, 6)
    h = kit.run_as_written(model, {"x": x}, ["h"])["h"]
    next(node.outputs[0] for node in model.graph if node.op_type == "Conv").shape = None
    expect(observe_channels(model, {"h": 1}, kit.context({"x": x}), 4)["h"], h, 1)


def test_dead_channels(kit: Any, parse: Any, random: Any) -> None:
    w = random(4, 3, 3, 3)
    w[2] = 0
    found = observe_channels(parse(CONV, w=w), {"y": 1}, kit.context({"x": random(4, 3, 6, 6)}))["y"]
    assert (found.low[2], found.high[2], found.mean[2], found.mean_square[2]) == (0, 0, 0, 0)
    assert (found.high[[0, 1, 3]] > 0).all()


def test_values_without_elements_have_zeros(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[N, 8] x) => (float[N, 8] y) { z = Slice (x, a, a, one) e = Relu (z) y = Relu (x) }",
        a=np.array([0], np.int64),
        one=np.array([0], np.int64),
    )
    found = observe_channels(model, {"e": 1, "y": -1}, kit.context({"x": random(6, 8)}))
    assert found["e"].count == 0
    assert not found["e"].mean.any()
    assert len(found["e"].low) == 8
    assert found["y"].count == 6


@pytest.mark.parametrize("large", [1e25, 3e38])
def test_sums_that_overflow_are_computed_again(kit: Any, parse: Any, large: float) -> None:
    model = parse("g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }")
    x = np.array([[large, 1], [large, 3]], np.float32)
    found = observe_channels(model, {"y": 1}, kit.context({"x": x}))["y"]
    np.testing.assert_allclose(found.mean, [large, 2], rtol=1e-6)
    np.testing.assert_allclose(found.mean_square, [large**2, 5], rtol=1e-6)


@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_non_finite_activations_are_named(kit: Any, parse: Any, random: Any, bad: float) -> None:
    model = parse("g (float[N, 16] x) => (float[N, 16] y) { h = Log (x) y = Relu (h) }")
    x = np.abs(random(8, 16)) + 1
    x[5, 5] = bad
    with pytest.raises(InputError, match="activation 'h' becomes NaN or infinity"):
        observe_channels(model, {"x": 1, "h": 1}, kit.context({"x": x}), 4)


def test_non_finite_inputs_are_named(kit: Any, parse: Any, random: Any) -> None:
    x = random(8, 3, 6, 6)
    x[5, 1] = np.nan
    with pytest.raises(InputError, match="sample 5 of arrays"):
        observe_channels(parse(CONV, w=random(4, 3, 3, 3)), {"h": 1}, kit.context({"x": x}), 4)


def test_no_data_and_no_samples(kit: Any, parse: Any, random: Any) -> None:
    model = parse(CONV, w=random(4, 3, 3, 3))
    with pytest.raises(InputError, match="needs calibration data"):
        observe_channels(model, {"h": 1}, kit.context(None))
    with pytest.raises(InputError, match="no samples"):
        observe_channels(model, {"h": 1}, kit.context({"x": np.empty((0, 3, 6, 6), np.float32)}))


def test_channels_that_vary_are_refused(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }")
    with pytest.raises(InputError, match="'y' has 4 channels for some calibration samples and 2 for others"):
        observe_channels(model, {"y": 0}, kit.context({"x": random(6, 3)}), 4)


def test_the_model_is_left_unchanged(kit: Any, parse: Any, random: Any) -> None:
    model = parse(CONV, 18, w=random(4, 3, 3, 3))
    observe_channels(model, {"h": 1}, kit.context({"x": random(4, 3, 6, 6)}))
    assert [node.op_type for node in model.graph] == ["Conv", "Relu"]
    assert list(model.graph.initializers) == ["w"]
    assert [value.name for value in model.graph.outputs] == ["y"]
