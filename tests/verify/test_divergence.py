"""The one-number error of a variant: KL divergence of decisions, otherwise noise over signal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from greencc.verify.divergence import BROKEN, divergence
from greencc.verify.metrics import Auto, Close, TopOne

RNG = np.random.default_rng(0)
SCORES = RNG.standard_normal((8, 5)).astype(np.float32)
NOISY = SCORES + 0.1 * RNG.standard_normal((8, 5)).astype(np.float32)


def test_class_scores_are_compared_by_their_probabilities() -> None:
    expected = rel_entr(softmax(SCORES, axis=1), softmax(NOISY, axis=1)).sum(axis=1).mean()
    assert divergence([{"y": SCORES}], [{"y": NOISY}], Auto()) == pytest.approx(expected, rel=1e-5)
    # A constant added to the scores of a sample changes no probability.
    assert divergence([{"y": SCORES}], [{"y": SCORES + 3}], Auto()) == pytest.approx(0, abs=1e-9)


def test_probabilities_are_not_put_through_a_softmax_again() -> None:
    p, q = softmax(SCORES, axis=1), softmax(NOISY, axis=1)
    direct = divergence([{"y": p}], [{"y": q}], Auto())
    assert direct == pytest.approx(divergence([{"y": SCORES}], [{"y": NOISY}], Auto()), rel=1e-4)


def test_other_outputs_are_compared_by_noise_over_signal() -> None:
    maps = RNG.standard_normal((4, 3, 6, 6))
    assert divergence([{"m": maps}], [{"m": maps * 1.1}], Auto()) == pytest.approx(0.01)
    assert divergence([{"y": SCORES}], [{"y": SCORES * 1.1}], Close()) == pytest.approx(0.01)
    both = divergence([{"m": maps, "y": SCORES}], [{"m": maps * 1.1, "y": SCORES}], Auto())
    assert both == pytest.approx(0.01)


def test_top_one_looks_at_the_output_that_decides() -> None:
    old, new = {"y": SCORES, "z": SCORES}, {"y": SCORES, "z": NOISY}
    assert divergence([old], [new], TopOne()) == 0
    assert divergence([old], [new], TopOne("z")) > 0


def test_batches_of_different_sizes_weigh_by_their_samples() -> None:
    whole = divergence([{"y": SCORES}], [{"y": NOISY}], Auto())
    parts = divergence([{"y": SCORES[:3]}, {"y": SCORES[3:]}], [{"y": NOISY[:3]}, {"y": NOISY[3:]}], Auto())
    assert parts == pytest.approx(whole)


@pytest.mark.parametrize("bad", [np.full((8, 5), np.nan, np.float32), np.zeros((8, 4), np.float32)])
def test_broken_outputs_are_worse_than_any_noise(bad: np.ndarray) -> None:
    assert divergence([{"y": SCORES}], [{"y": bad}], Auto()) == BROKEN
    assert divergence([{"y": SCORES}], [{"y": bad}], Close()) == BROKEN


def test_masked_values_may_stay_infinite_and_silence_counts_as_no_noise() -> None:
    masked = np.where(SCORES > 0, SCORES, -np.inf)
    assert divergence([{"y": masked}], [{"y": masked}], Close()) == 0
    zero = np.zeros((2, 3, 4))
    assert divergence([{"y": zero}], [{"y": zero}], Auto()) == 0
    assert divergence([{"y": zero}], [{"y": zero + 1}], Auto()) == BROKEN
    assert divergence([{"n": np.arange(3)}], [{"n": np.arange(3)}], Auto()) == 0
