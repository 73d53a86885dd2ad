"""Intervals agree with published examples and cover."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.verify.intervals import PoissonBootstrap, paired_drop, resamples


def test_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), n = 21, discordant 1 and 7:
    # Tango's interval is (-0.517, -0.026) in Fagerland, Lydersen, Laake, BMC Med. Res. Methodol. 2014.
    low, high = paired_drop(1, 7, 21, 0.95)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


def test_symmetric_and_bounded() -> None:
    low, high = paired_drop(3, 9, 40, 0.9)
    mirrored = paired_drop(9, 3, 40, 0.9)
    assert mirrored == pytest.approx((-high, -low))
    for worse, better, n in ((0, 0, 1), (5, 0, 5), (0, 5, 5), (1, 1, 2)):
        low, high = paired_drop(worse, better, n, 0.99)
        assert -1.0 <= low <= (worse - better) / n <= high <= 1.0
        assert low < high


def test_no_discordant_sample_is_no_proof_of_equality() -> None:
    low, high = paired_drop(0, 0, 100, 0.95)
    assert high == pytest.approx(1.959964**2 / (100 + 1.959964**2), rel=1e-4)
    assert low == pytest.approx(-high)


def test_wider_with_confidence_and_narrower_with_samples() -> None:
    assert paired_drop(5, 2, 100, 0.99)[1] > paired_drop(5, 2, 100, 0.9)[1]
    assert paired_drop(50, 20, 1000, 0.95)[1] < paired_drop(5, 2, 100, 0.95)[1]


@pytest.mark.parametrize(("n", "worse", "better"), [(40, 0.05, 0.02), (150, 0.02, 0.01), (400, 0.01, 0.01)])
def test_coverage(n: int, worse: float, better: float) -> None:
    generator = np.random.default_rng(5)
    counts = generator.multinomial(n, [worse, better, 1 - worse - better], size=1200)
    truth = worse - better
    bounds = {(b, c): paired_drop(b, c, n, 0.95) for b, c in {(int(b), int(c)) for b, c, _ in counts}}
    covered = np.mean([bounds[int(b), int(c)][0] <= truth <= bounds[int(b), int(c)][1] for b, c, _ in counts])
    assert covered >= 0.93


def test_poisson_bootstrap_does_not_depend_on_batches_of_equal_content_and_covers() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(150):
        values = generator.beta(2, 5, size=120) - 0.1
        bootstrap = PoissonBootstrap(400)
        for start in range(0, 120, 40):
            bootstrap.add(values[start : start + 40])
        low, high = bootstrap.interval(0.95)
        hits += low <= 2 / 7 - 0.1 <= high
    assert hits / 150 >= 0.88


def test_bootstraps_are_deterministic() -> None:
    values = np.linspace(0, 1, 50)
    first, second = PoissonBootstrap(), PoissonBootstrap()
    first.add(values)
    second.add(values)
    assert first.interval(0.9) == second.interval(0.9)
    one, two = (np.stack(list(resamples(10, 5))) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.shape == (5, 10)
    assert one.max() < 10
