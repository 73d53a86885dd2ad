"""Second moments of channels, streamed."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.core.errors import InputError
from greencc.core.groups import Reader, analyse
from greencc.passes import _channel_grams
from greencc.passes._channel_grams import channel_energies, channel_grams

MLP = "mlp (float[N, 4] x) => (float[N, 2] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }"
CNN = """cnn (float[N, 2, H, W] x) => (float[N, 3, H, W] y) {
    h = Conv<pads=[1,1,1,1]>(x, a) r = Relu(h) y = Conv(r, b) z = Conv(r, c) y2 = Add(y, z) }"""


def readers_of(model):
    return [reader for group in analyse(model).prunable for reader in group.readers]


def rows_of(values, axis):
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]).astype(np.float64)


def check(gram, rows, tolerance=1e-5):
    scale = np.sqrt(np.outer(*[np.square(rows).mean(axis=0)] * 2)).max()
    np.testing.assert_allclose(gram.mean, rows.mean(axis=0), atol=tolerance * np.abs(rows).max())
    np.testing.assert_allclose(gram.second, rows.T @ rows / len(rows), atol=tolerance * scale)


def test_moments_of_a_matrix_product(parse, random, context):
    model = parse(MLP, a=random(4, 8), b=random(8, 2))
    x = random(150, 4)
    (reader,) = readers_of(model)
    gram = channel_grams(model, [reader], context(x=x))[reader.node]
    rows = np.maximum(x @ model.graph.initializers["a"].const_value.numpy(), 0)
    assert gram.count == 150
    check(gram, rows)
    np.testing.assert_allclose(gram.covariance, np.cov(rows.T, bias=True), atol=1e-5)


def test_moments_of_a_convolution_count_every_position(parse, random, context, engine):
    model = parse(CNN, a=random(5, 2, 3, 3), b=random(3, 5, 1, 1), c=random(3, 5, 1, 1))
    x = random(6, 2, 7, 9)
    readers = readers_of(model)
    assert len(readers) == 2
    grams = channel_grams(model, readers, context(x=x), batch=4)
    rows = rows_of(engine(model, ["r"]).run({"x": x})["r"], 1)
    assert grams[readers[0].node].count == 6 * 7 * 9
    check(grams[readers[0].node], rows)
    assert grams[readers[0].node] is grams[readers[1].node], "one value is summed once"


def test_energies_are_the_diagonal(parse, random, context):
    model = parse(CNN, a=random(5, 2, 3, 3), b=random(3, 5, 1, 1), c=random(3, 5, 1, 1))
    ctx = context(x=random(3, 2, 5, 5))
    readers = readers_of(model)
    gram = channel_grams(model, readers, ctx)[readers[0].node]
    energy = channel_energies(model, readers, ctx)[readers[0].node]
    assert energy.count == gram.count
    np.testing.assert_allclose(energy.mean, gram.mean, rtol=1e-6)
    np.testing.assert_allclose(energy.square, np.diagonal(gram.second), rtol=1e-5)
    np.testing.assert_allclose(energy.variance, np.diagonal(gram.covariance), rtol=1e-4)


def test_a_large_offset_costs_no_digits(parse, random, context):
    model = parse(
        "g (float[N, 3] x) => (float[N, 2] y) { h = MatMul(x, a) s = Add(h, o) y = MatMul(s, b) }",
        a=random(3, 4),
        b=random(4, 2),
        o=np.full(4, 1000, np.float32),
    )
    x = random(4000, 3)
    (reader,) = readers_of(model)
    gram = channel_grams(model, [reader], context(x=x))[reader.node]
    rows = (x @ model.graph.initializers["a"].const_value.numpy() + np.float32(1000)).astype(np.float64)
    np.testing.assert_allclose(gram.covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-5)


def test_huge_values_do_not_overflow(parse, random, context):
    model = parse(MLP, a=random(4, 8, scale=1e25), b=random(8, 2, scale=1e-30))
    (reader,) = readers_of(model)
    gram = channel_grams(model, [reader], context(x=random(20, 4)))[reader.node]
    assert np.isfinite(gram.second).all()
    assert gram.second.max() > 1e48


def test_dead_and_constant_channels_have_no_covariance(parse, random, context):
    a = random(4, 6)
    a[:, 2] = 0
    model = parse(
        "g (float[N, 4] x) => (float[N, 2] y) { h = Gemm(x, a, o) y = MatMul(h, b) }",
        a=a,
        b=random(6, 2),
        o=np.array([0, 0, 7, 0, 0, 0], np.float32),
    )
    (reader,) = readers_of(model)
    gram = channel_grams(model, [reader], context(x=random(50, 4)))[reader.node]
    assert not gram.covariance[2].any()
    assert not gram.covariance[:, 2].any()
    assert gram.mean[2] == pytest.approx(7)


def test_many_positions_are_sampled_evenly_and_the_same_way_every_time(parse, random, context, monkeypatch):
    monkeypatch.setattr(_channel_grams, "_MIN_ROWS", 400)
    model = parse(CNN, a=random(5, 2, 3, 3), b=random(3, 5, 1, 1), c=random(3, 5, 1, 1))
    ctx = context(x=random(8, 2, 40, 40))
    (reader, _) = readers_of(model)
    first, second = (channel_grams(model, [reader], ctx)[reader.node] for _ in range(2))
    assert first.count == 400
    np.testing.assert_array_equal(first.second, second.second)
    monkeypatch.undo()
    whole = channel_grams(model, [reader], ctx)[reader.node]
    assert whole.count == 8 * 1600
    # Four hundred rows tell a variance within some ten percent.
    np.testing.assert_allclose(np.diagonal(first.second), np.diagonal(whole.second), rtol=0.4)


def test_a_small_budget_takes_more_passes_and_gives_the_same(parse, random, context, counted, monkeypatch):
    text = """deep (float[N, 3] x) => (float[N, 2] y) {
        h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) s = Relu(i) y = MatMul(s, c) }"""
    model = parse(text, a=random(3, 6), b=random(6, 7), c=random(7, 2))
    readers = readers_of(model)
    ctx = context(x=random(40, 3), build=counted)
    at_once = channel_grams(model, readers, ctx)
    assert counted.engines == 1
    monkeypatch.setattr(_channel_grams, "BUDGET_BYTES", 12 * 7 * 7)
    one_by_one = channel_grams(model, readers, ctx)
    assert counted.engines == 3
    for node, gram in at_once.items():
        np.testing.assert_array_equal(gram.second, one_by_one[node].second)


def test_a_value_too_wide_for_the_budget_is_left_out(parse, random, context, monkeypatch):
    model = parse(MLP, a=random(4, 8), b=random(8, 2))
    (reader,) = readers_of(model)
    monkeypatch.setattr(_channel_grams, "BUDGET_BYTES", 100)
    assert channel_grams(model, [reader], context(x=random(5, 4))) == {}
    assert channel_energies(model, [reader], context(x=random(5, 4)))[reader.node].count == 5


def test_one_sample(parse, random, context):
    model = parse(MLP, a=random(4, 8), b=random(8, 2))
    (reader,) = readers_of(model)
    gram = channel_grams(model, [reader], context(x=random(1, 4)))[reader.node]
    assert gram.count == 1
    assert not gram.covariance.any()


def test_activations_that_are_no_numbers(parse, random, context):
    a = random(4, 8)
    a[0, 0] = 3e38
    model = parse(MLP, a=a, b=random(8, 2))
    (reader,) = readers_of(model)
    with pytest.raises(InputError, match="'r' becomes NaN or infinity"):
        channel_grams(model, [reader], context(x=np.full((3, 4), 9, np.float32)))


@pytest.mark.parametrize("moments", [channel_grams, channel_energies])
def test_squares_that_are_no_numbers(parse, random, context, moments):
    model = parse(
        MLP.replace("float[", "double["),
        a=random(4, 8).astype(np.float64) * 1e200,
        b=random(8, 2).astype(np.float64),
    )
    (reader,) = readers_of(model)
    with pytest.raises(InputError, match="'r' becomes NaN or infinity"):
        moments(model, [reader], context(x=random(9, 4).astype(np.float64)))


def test_without_data(parse, random, context):
    model = parse(MLP, a=random(4, 8), b=random(8, 2))
    with pytest.raises(InputError, match="needs calibration data"):
        channel_grams(model, readers_of(model), context())
    assert channel_grams(model, [], context()) == {}


def test_a_channel_axis_of_unknown_size(parse, random, context):
    model = parse(CNN, a=random(5, 2, 3, 3), b=random(3, 5, 1, 1), c=random(3, 5, 1, 1))
    with pytest.raises(ValueError, match="size of axis 2"):
        channel_grams(
            model, [Reader("Conv_2", "r", 2, np.zeros((1, 1), np.int64))], context(x=random(1, 2, 4, 4))
        )
