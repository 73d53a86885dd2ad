"""Masks and second-order updates of one matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes._sparsity_patterns import Columns, Pattern, Rule, least, magnitude_mask
from greencc.passes._sparsity_solve import prune

RULES = [Rule.make(Pattern.TWO_OF_FOUR, 0.5), Rule.make(Pattern.ONE_OF_FOUR, 0.5)]


def correlated(generator: np.random.Generator, rows: int, inputs: int) -> Any:
    mix = generator.standard_normal((inputs, inputs)) / np.arange(1, inputs + 1)
    return (generator.standard_normal((rows, inputs)) @ mix).astype(np.float32)


def error(x: Any, matrix: Any, pruned: Any) -> float:
    y = x @ matrix.swapaxes(1, 2)
    return float(np.square(x @ (matrix - pruned).swapaxes(1, 2), dtype=np.float64).sum() / np.square(y).sum())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    quads=st.integers(1, 18),
    outputs=st.integers(1, 6),
    groups=st.integers(1, 3),
    rows=st.integers(1, 80),
    block=st.sampled_from([4, 16, 128]),
    rule=st.one_of(st.sampled_from(RULES), st.floats(0.05, 0.95).map(Rule)),
)
def test_the_pattern_holds_exactly_and_beats_magnitude(
    seed: int, quads: int, outputs: int, groups: int, rows: int, block: int, rule: Rule
) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((groups, outputs, 4 * quads)).astype(np.float32)
    x = np.stack([correlated(generator, rows, 4 * quads) for _ in range(groups)])
    x[..., 1] = 0.0
    before = matrix.copy()
    solution = prune(matrix, x.swapaxes(1, 2) @ x, rule, block=block, damping=0.01)
    np.testing.assert_array_equal(matrix, before)
    assert rule.holds(solution.matrix)
    zeros = int((solution.matrix == 0).sum())
    if rule.of:
        kept = (solution.matrix.reshape(groups, outputs, quads, 4) != 0).sum(axis=-1)
        assert kept.max() <= rule.keep
    else:
        assert zeros == rule.count(matrix.size)
    plain = np.where(magnitude_mask(matrix, rule), np.float32(0), matrix)
    assert rule.holds(plain)
    assert error(x, matrix, solution.matrix) <= error(x, matrix, plain) * (1 + 1e-3) + 1e-6


@pytest.mark.parametrize("rule", [*RULES, Rule(0.5)])
def test_correlated_inputs_gain(rule: Rule) -> None:
    generator = np.random.default_rng(0)
    x = correlated(generator, 500, 96)
    matrix = generator.standard_normal((1, 24, 96)).astype(np.float32)
    solution = prune(matrix, (x.T @ x)[np.newaxis], rule, block=32, damping=0.01)
    assert solution.error < 0.5 * solution.magnitude_error
    # What the solution says of itself is what the outputs show.
    assert error(x[np.newaxis], matrix, solution.matrix) == pytest.approx(solution.error, rel=1e-2)


def test_uncorrelated_inputs_of_equal_power_give_magnitude_masks_without_updates() -> None:
    matrix = np.random.default_rng(0).standard_normal((1, 8, 64)).astype(np.float32)
    solution = prune(matrix, 7.0 * np.eye(64)[np.newaxis], RULES[0], block=16, damping=0.01)
    expected = np.where(magnitude_mask(matrix, RULES[0]), 0, matrix)
    np.testing.assert_allclose(solution.matrix, expected, atol=1e-6)


def test_dead_inputs_go_first_and_zero_rows_stay_zero() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 32)).astype(np.float32)
    x[:, :8] = 0.0
    matrix = generator.uniform(1, 2, (1, 6, 32)).astype(np.float32)
    matrix[0, 2] = 0.0
    solution = prune(matrix, (x.T @ x)[np.newaxis], Rule(0.25), block=32, damping=0.01)
    assert not solution.matrix[0, 2].any()
    # The zero row takes 32 of the 48 places, dead inputs the others: the outputs do not change at all.
    assert solution.error == 0.0
    dead, kept = solution.matrix[0, :, :8], solution.matrix[0, :, :8] != 0
    np.testing.assert_array_equal(dead[kept], matrix[0, :, :8][kept])
    assert kept.any()


def test_degenerate_moments_stay_finite() -> None:
    matrix = np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32)
    ones = np.ones((2, 1, 32), np.float32)
    outlier = np.eye(32)[np.newaxis].repeat(2, 0)
    outlier[:, 3, 3] = 1e12
    product = ones.swapaxes(1, 2) @ ones
    for hessian in (np.zeros((2, 32, 32)), product, 1e30 * product, outlier):
        for rule in (*RULES, Rule(0.5)):
            solution = prune(matrix, hessian, rule, block=16, damping=0.01)
            assert np.isfinite(solution.matrix).all()
            assert rule.holds(solution.matrix)
            assert solution.error <= solution.magnitude_error


def test_more_damping_updates_less() -> None:
    generator = np.random.default_rng(1)
    x = correlated(generator, 100, 32)
    matrix = generator.standard_normal((1, 8, 32)).astype(np.float32)
    hessian = (x.T @ x)[np.newaxis]
    moved = []
    for damping in (0.01, 1.0):
        got = prune(matrix, hessian, RULES[0], block=32, damping=damping).matrix
        moved.append(float(np.abs(np.where(got == 0, 0, got - matrix)).sum()))
    assert moved[1] < moved[0]


def test_a_count_of_equal_values_takes_the_first_ones() -> None:
    np.testing.assert_array_equal(least(np.ones((2, 3)), 4), [[True, True, True], [True, False, False]])
    assert least(np.arange(4.0), 0).sum() == 0
    assert least(np.arange(4.0), 9).all()
    assert Rule(0.3).count(10) == 3
    assert Rule(0.3).count(11) == 4


def test_columns_put_input_channels_of_a_kernel_position_together() -> None:
    columns = Columns(positions=3, channels=4)
    matrix = np.arange(12).reshape(1, 1, 12)
    ordered = columns.ordered(matrix)
    np.testing.assert_array_equal(ordered[0, 0], [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11])
    np.testing.assert_array_equal(columns.restored(ordered), matrix)
    x = np.random.default_rng(0).standard_normal((5, 12))
    hessian = columns.moments((x.T @ x)[np.newaxis])[0]
    np.testing.assert_allclose(hessian, x[:, columns.order()].T @ x[:, columns.order()])
