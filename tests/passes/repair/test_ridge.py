"""The streamed ridge regression against NumPy's least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes._ridge import Moments, solve


def rows(seed: int, groups: int, count: int, inputs: int, outputs: int, mean: float = 0.0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((groups, count, inputs)) + mean).astype(np.float32)
    y = rng.standard_normal((groups, count, outputs)).astype(np.float32)
    return x, y


def streamed(x, y, sizes=(7, 50, 300)) -> Moments:
    moments = Moments(len(x), x.shape[-1], y.shape[-1])
    start, turn = 0, 0
    while start < x.shape[1]:
        stop = start + sizes[turn % len(sizes)]
        moments.add(x[:, start:stop], y[:, start:stop])
        start, turn = stop, turn + 1
    return moments


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 4),
    centred=st.booleans(),
    mean=st.sampled_from([0.0, 3.0, 1000.0]),
)
def test_without_damping_it_is_least_squares(seed, groups, inputs, outputs, centred, mean) -> None:
    x, y = rows(seed, groups, 200, inputs, outputs, mean)
    found = solve(
        streamed(x, y).gram(centred=centred), np.zeros((groups, outputs, inputs)), 1e-13, centred=centred
    )
    assert found is not None
    for index in range(groups):
        columns = x[index].astype(np.float64)
        if centred:
            columns = np.hstack([columns, np.ones((200, 1))])
        exact = np.linalg.lstsq(columns, y[index].astype(np.float64))[0]
        error = np.linalg.norm(columns @ exact - y[index])
        got = x[index] @ found.matrix[index].T + found.bias[index]
        assert np.linalg.norm(got - y[index]) <= error * (1 + 1e-4) + 1e-6


def test_wide_problems_use_single_precision_products_and_are_exact_enough() -> None:
    x, y = rows(0, 1, 1600, 1030, 2)
    truth = np.random.default_rng(1).standard_normal((1, 2, 1030)).astype(np.float32)
    y = (x @ truth.swapaxes(1, 2)) + 5
    found = solve(streamed(x, y).gram(), np.zeros((1, 2, 1030)), 1e-9)
    assert found is not None
    assert np.abs(found.matrix - truth).max() < 1e-3
    assert np.allclose(found.bias, 5, atol=1e-2)


def test_damping_pulls_to_the_start_and_not_to_zero() -> None:
    x, y = rows(3, 1, 100, 4, 2)
    start = np.full((1, 2, 4), 7.0)
    gram = streamed(x, y).gram()
    near = solve(gram, start, 1e6)
    assert near is not None
    assert np.allclose(near.matrix, start, atol=1e-3)


def test_directions_that_rows_leave_open_stay_as_they_are() -> None:
    x, y = rows(4, 1, 3, 8, 1)
    start = np.random.default_rng(0).standard_normal((1, 1, 8))
    found = solve(streamed(x, y).gram(), start, 1e-6)
    assert found is not None
    centred = (x - x.mean(axis=1, keepdims=True))[0].astype(np.float64)
    outside = np.eye(8) - np.linalg.pinv(centred) @ centred
    assert np.allclose((found.matrix[0] - start[0]) @ outside, 0, atol=1e-6)
    assert np.isfinite(found.matrix).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e18])
def test_degenerate_inputs_never_give_nan(scale: float) -> None:
    x, y = rows(5, 2, 50, 6, 3)
    x = (x[:, :, :1] * np.ones((1, 1, 6)) * scale).astype(np.float32)
    x[1] = 0
    start = np.ones((2, 3, 6))
    found = solve(streamed(x, y).gram(), start, 0.0)
    assert found is not None
    assert np.isfinite(found.matrix).all()
    assert np.isfinite(found.bias).all()
    # A group whose inputs are all zero keeps its weights and gives the mean.
    assert np.allclose(found.matrix[1], start[1])
    assert np.allclose(found.bias[1], y[1].mean(axis=0), atol=1e-5)


def test_sums_that_are_not_finite_have_no_solution() -> None:
    x, y = rows(6, 1, 20, 3, 1)
    gram = streamed(x.astype(np.float64) * 1e200, y.astype(np.float64)).gram()
    assert solve(gram, np.zeros((1, 1, 3)), 1e-3) is None


def test_no_rows_keep_the_start() -> None:
    start = np.ones((1, 2, 3))
    found = solve(Moments(1, 3, 2).gram(), start, 1e-3)
    assert found is not None
    assert np.array_equal(found.matrix, start)


def test_what_is_held_does_not_grow_with_the_rows() -> None:
    x, y = rows(7, 1, 500, 4, 2)

    def held(times: int) -> int:
        moments = Moments(1, 4, 2)
        for _ in range(times):
            moments.add(x, y)
        arrays = [item for item in vars(moments).values() if isinstance(item, np.ndarray)]
        waiting = [part for pair in moments._waiting for part in pair]
        assert sum(part.shape[1] for part in waiting) < 2 * 2048
        return sum(item.nbytes for item in arrays)

    assert held(3) == held(60)


def test_moments_of_many_columns_are_those_of_all_rows() -> None:
    """More columns than are multiplied at once."""
    x = np.random.default_rng(4).standard_normal((1, 60, 2100)).astype(np.float32)
    moments = Moments(1, 2100, 2)
    moments.add(x, x[:, :, :2])
    gram = moments.gram()
    exact = np.cov(x[0].astype(np.float64), rowvar=False, bias=True)
    assert np.array_equal(gram.xx[0], gram.xx[0].T)
    assert np.allclose(gram.xx[0], exact, atol=1e-5)


@pytest.mark.parametrize("spoiled", [0.0, 1e9])
def test_solving_leaves_the_moments_as_they_were(spoiled) -> None:
    """Also where the damping has to be raised before there is a factor."""
    x = np.random.default_rng(5).standard_normal((2, 400, 300)).astype(np.float32)
    moments = Moments(2, 300, 3)
    moments.add(x, x[:, :, :3])
    gram = moments.gram()
    gram.xx[:, 7, 9] -= spoiled
    gram.xx[:, 9, 7] -= spoiled
    before = gram.xx.copy()
    first = solve(gram, np.zeros((2, 3, 300)), 1e-3)
    assert np.array_equal(gram.xx, before)
    second = solve(gram, np.zeros((2, 3, 300)), 1e-3)
    assert first is not None
    assert second is not None
    assert first.raised == second.raised
    assert (first.raised > 1.0) == (spoiled > 0.0)
    assert np.array_equal(first.matrix, second.matrix)
