"""The certificate keeps its error level, and says how many samples it needs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from greencc.core.errors import UsageError
from greencc.verify.certificate import (
    binomial_p_value,
    bounded_p_value,
    certify,
    certify_bounded,
    fixed_sequence,
    samples_needed,
    samples_needed_at_rate,
)


def test_p_value_is_the_binomial_tail() -> None:
    for failures, n, epsilon in ((0, 299, 0.01), (12, 4500, 0.01), (7, 50, 0.2), (50, 50, 0.5)):
        assert binomial_p_value(failures, n, epsilon) == pytest.approx(binom.cdf(failures, n, epsilon))


@pytest.mark.parametrize(
    ("epsilon", "delta", "failures", "n"), [(0.01, 0.05, 0, 299), (0.01, 0.05, 1, 473), (0.05, 0.05, 0, 59)]
)
def test_samples_needed(epsilon: float, delta: float, failures: int, n: int) -> None:
    assert samples_needed(epsilon, delta, failures) == n
    assert binomial_p_value(failures, n, epsilon) <= delta < binomial_p_value(failures, n - 1, epsilon)


@pytest.mark.parametrize(("failures", "n"), [(0, 10), (1, 200), (1, 120), (5, 1000), (99, 10_000)])
def test_samples_needed_at_the_rate_seen_certify_at_that_rate(failures: int, n: int) -> None:
    needed = samples_needed_at_rate(0.01, 0.05, failures, n)
    assert needed is not None
    expected = int(failures / n * needed + 1e-9)
    assert binomial_p_value(expected, needed, 0.01) <= 0.05
    fewer = int(needed * 0.9)
    assert binomial_p_value(int(np.ceil(failures / n * fewer)), fewer, 0.01) > 0.05


@pytest.mark.parametrize(("failures", "n"), [(10, 1000), (11, 1000), (1, 1), (9_999_999, 1_000_000_000)])
def test_no_number_of_samples_helps_at_or_next_to_the_limit(failures: int, n: int) -> None:
    assert samples_needed_at_rate(0.01, 0.05, failures, n) is None


def test_certify_reports_what_is_needed() -> None:
    assert certify(0, 298, 0.01, 0.95).n_needed == 299
    proof = certify(0, 299, 0.01, 0.95)
    assert proof.certified
    assert proof.n_needed is None


@pytest.mark.parametrize(("epsilon", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.01, 0.4), (0.01, 1.0)])
def test_limits_out_of_range_are_refused(epsilon: float, confidence: float) -> None:
    with pytest.raises(UsageError):
        certify(0, 100, epsilon, confidence)


def test_bounded_losses_need_as_many_samples_as_binary_ones_when_none_is_lost() -> None:
    assert certify_bounded(0.0, 299, 0.01, 0.95).certified
    short = certify_bounded(0.0, 100, 0.01, 0.95)
    assert not short.certified
    assert short.n_needed == 299
    assert certify_bounded(3.0, 100, 0.01, 0.95).n_needed is None


def test_bounded_p_value_never_beats_chance_above_the_limit() -> None:
    # Losses drawn with a mean above the limit are certified no more often than delta.
    generator = np.random.default_rng(3)
    n, epsilon = 400, 0.05
    losses = generator.beta(0.3, 0.3 * (1 - 0.052) / 0.052, size=(1500, n)).sum(axis=1)
    rate = np.mean([bounded_p_value(float(loss), n, epsilon) <= 0.05 for loss in losses])
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


def _family(failures: np.ndarray, n: int) -> list[bool]:
    return [certify(int(count), n, 0.01, 0.95).certified for count in failures]


def test_fixed_sequence_returns_the_last_before_the_first_failure() -> None:
    n = 2000
    assert fixed_sequence(_family(np.array([0, 5, 30, 2]), n)) == 1
    assert fixed_sequence(_family(np.array([30, 0]), n)) is None
    assert fixed_sequence(_family(np.array([0, 0]), n)) == 1
    assert fixed_sequence([]) is None


def test_fixed_sequence_stops_looking() -> None:
    seen: list[int] = []

    def trials():  # type: ignore[no-untyped-def]
        for index, count in enumerate((0, 30, 0)):
            seen.append(index)
            yield certify(count, 2000, 0.01, 0.95).certified

    assert fixed_sequence(trials()) == 0
    assert seen == [0, 1]


def test_error_level_of_the_fixed_sequence() -> None:
    # A family whose true loss rates grow past the limit, on shared samples: a violation is a returned member whose
    # true rate is above the limit. Returning the failing member instead would violate far more often.
    generator = np.random.default_rng(11)
    rates = np.array([0.002, 0.006, 0.0101, 0.012, 0.02])
    n, repetitions = 1500, 1500
    violations = late = 0
    for _ in range(repetitions):
        uniform = generator.random(n)
        found = fixed_sequence(_family((uniform[:, None] < rates).sum(axis=0), n))
        violations += found is not None and rates[found] > 0.01
        late += rates[min(len(rates) - 1, 0 if found is None else found + 1)] > 0.01
    assert violations / repetitions <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / repetitions)
    assert violations > 0
    assert late > 2 * violations
