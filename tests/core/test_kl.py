"""Class scores, their probabilities and the divergence of these."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.core.kl import are_probabilities, is_scores, kl_divergence, log_probabilities


def softmax(scores: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    shares = np.exp(scores.astype(np.float64))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1, 1)])
def test_scores_and_their_probabilities_tell_the_same(shape: tuple[int, ...]) -> None:
    scores = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    chances = softmax(scores.reshape(5, 4))
    assert is_scores(scores)
    assert not are_probabilities(scores)
    assert are_probabilities(chances)
    np.testing.assert_allclose(np.exp(log_probabilities(scores)), chances, rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_probabilities(chances)), chances, rtol=1e-5)


def test_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.standard_normal((6, 3)), rng.standard_normal((6, 3))
    p, q = softmax(old), softmax(new)
    wanted = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(old, new), wanted)
    np.testing.assert_allclose(kl_divergence(p, q), wanted)


def test_masked_classes_count_as_impossible_and_broken_scores_have_no_divergence() -> None:
    masked = np.array([[1.0, -np.inf, 0.0]])
    np.testing.assert_array_equal(kl_divergence(masked, masked), [0.0])
    assert kl_divergence(masked, np.array([[np.nan, -np.inf, 0.0]])) is None
    # What was impossible and is not any more takes its share from the others.
    found = kl_divergence(masked, np.array([[1.0, 1.0, 0.0]]))
    assert found is not None
    assert found[0] == pytest.approx(np.log((2 * np.e + 1) / (np.e + 1)))


@pytest.mark.parametrize(
    "array", [np.zeros(4), np.zeros((4, 1)), np.zeros((4, 3, 2)), np.zeros((4, 3), np.int64)]
)
def test_other_arrays_are_no_scores(array: np.ndarray) -> None:  # type: ignore[type-arg]
    assert not is_scores(array)
