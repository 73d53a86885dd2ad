"""Certificates: with probability 1 - delta, the artifact loses at most epsilon.

The loss of a sample is 1 when the artifact fails it (see `greencc.verify.compare`). The null hypothesis "the true
loss rate is above epsilon" is rejected by the exact binomial p-value ``P(Bin(n, epsilon) <= k)``, or, for losses
anywhere in [0, 1], by the Hoeffding-Bentkus p-value. A family of variants is tested in a fixed sequence, so no
correction for multiplicity is needed.

Source: Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test", arXiv 2110.01052, sections 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import bdtr, xlogy

from greencc.core.errors import UsageError

# Beyond this many samples a certificate is out of reach in practice, and "no n certifies" is the honest answer.
_MOST_SAMPLES = 1_000_000_000


@dataclass(frozen=True)
class Certificate:
    """Outcome of one test.

    Attributes:
        certified: With probability `confidence`, the true loss rate is at most `epsilon`.
        loss: Sum of the losses of the `n` samples; the number of failures when losses are 0 or 1.
        n_needed: When not certified, how many samples would certify at the loss rate seen; None when that
            rate is `epsilon` or more, so that no number would.
    """

    certified: bool
    n: int
    loss: float
    epsilon: float
    confidence: float
    p_value: float
    n_needed: int | None


def check_limits(epsilon: float, confidence: float) -> None:
    """Raise `UsageError` unless 0 < epsilon < 1 and 0.5 <= confidence < 1."""
    if not 0.0 < epsilon < 1.0:
        raise UsageError(
            f"the accuracy limit is {epsilon:g}", hint="give a share between 0 and 1, such as 0.01"
        )
    if not 0.5 <= confidence < 1.0:
        raise UsageError(f"the confidence is {confidence:g}", hint="give a share in [0.5, 1), such as 0.95")


def binomial_p_value(failures: int, n: int, epsilon: float) -> float:
    """``P(Bin(n, epsilon) <= failures)``: exact p-value of "the failure rate is above epsilon"."""
    return float(bdtr(failures, n, epsilon))


def bounded_p_value(loss: float, n: int, epsilon: float) -> float:
    """Hoeffding-Bentkus p-value for losses in [0, 1] that sum to `loss` (arXiv 2110.01052, proposition 8)."""
    mean = min(loss / n, epsilon)
    hoeffding = math.exp(-n * _divergence(mean, epsilon))
    bentkus = math.e * binomial_p_value(min(n, math.ceil(loss)), n, epsilon)
    return min(1.0, hoeffding, bentkus)


def samples_needed(epsilon: float, delta: float, failures: int = 0) -> int:
    """Smallest n at which `failures` failures still certify: 299 for epsilon = 1 %, delta = 5 %, none failed."""
    high = max(2, 2 * (failures + 1))
    while binomial_p_value(failures, high, epsilon) > delta:
        high *= 2
    low = failures  # never certifies: P(Bin(k, eps) <= k) = 1
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_p_value(failures, middle, epsilon) > delta:
            low = middle
        else:
            high = middle
    return high


def samples_needed_at_rate(epsilon: float, delta: float, failures: int, n: int) -> int | None:
    """Smallest number of samples that certifies when they fail at the rate `failures` / `n` seen so far.

    Returns None when that rate is not below `epsilon` (no number certifies), or so near that 10^9 do not.
    """
    if failures >= epsilon * n:
        return None

    def expected_fit(allowed: int) -> bool:
        """At the observed rate, the n that `allowed` failures certify has at most `allowed` failures."""
        return failures * samples_needed(epsilon, delta, allowed) <= allowed * n

    if failures == 0:
        return samples_needed(epsilon, delta)
    low, high = 0, max(1, failures)
    while not expected_fit(high):
        low, high = high, 2 * high
        if high > epsilon * _MOST_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if expected_fit(middle):
            high = middle
        else:
            low = middle
    return samples_needed(epsilon, delta, high)


def certify(failures: int, n: int, epsilon: float, confidence: float) -> Certificate:
    """Test `failures` of `n` independent samples against the limit `epsilon`."""
    check_limits(epsilon, confidence)
    delta = 1.0 - confidence
    p_value = binomial_p_value(failures, n, epsilon)
    certified = p_value <= delta
    needed = None if certified else samples_needed_at_rate(epsilon, delta, failures, n)
    return Certificate(certified, n, float(failures), epsilon, confidence, p_value, needed)


def certify_bounded(loss: float, n: int, epsilon: float, confidence: float) -> Certificate:
    """Like `certify`, for losses in [0, 1] that sum to `loss`."""
    check_limits(epsilon, confidence)
    p_value = bounded_p_value(loss, n, epsilon)
    certified = p_value <= 1.0 - confidence
    needed = None
    if not certified and loss < epsilon * n:
        needed = math.ceil(-math.log(1.0 - confidence) / _divergence(loss / n, epsilon))
    return Certificate(certified, n, loss, epsilon, confidence, p_value, needed)


def fixed_sequence(certified: Iterable[bool]) -> int | None:
    """Index of the last certified trial before the first one that is not; None when the first is not.

    `certified` says for each trial whether it was, from safe to aggressive, an order fixed without looking at the
    certification data. It is consumed lazily: nothing after the first failure is evaluated. The error level of the
    answer is that of one test. (The published reference code returns the failing trial itself, which breaks the
    level.)
    """
    last: int | None = None
    for index, holds in enumerate(certified):
        if not holds:
            break
        last = index
    return last


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence between Bernoulli(a) and Bernoulli(b), in nats."""
    return float(xlogy(a, a / b) + xlogy(1.0 - a, (1.0 - a) / (1.0 - b)))
