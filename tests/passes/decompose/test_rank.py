"""Ranks: from a spectrum, from EVBMF, aligned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes._rank import aligned_ranks, energy_rank, evbmf_rank, nearest_rank, rank_errors


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(30, 60), st.integers(30, 90), st.integers(0, 10**6))
def test_evbmf_finds_the_rank_under_noise(rank: int, rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Orthonormal sides: every component stands clear of the noise, whose norm is about sqrt(rows) + sqrt(columns).
    left = np.linalg.qr(generator.standard_normal((rows, rank)))[0]
    right = np.linalg.qr(generator.standard_normal((columns, rank)))[0]
    signal = 8 * np.sqrt(rows + columns) * left @ right.T
    assert evbmf_rank(signal + generator.standard_normal((rows, columns))) == rank
    assert evbmf_rank(1e-6 * (signal + generator.standard_normal((rows, columns)))) == rank


@pytest.mark.parametrize("shape", [(40, 40), (40, 200), (200, 40)])
def test_evbmf_of_noise_is_nothing(shape: tuple[int, int]) -> None:
    assert evbmf_rank(np.random.default_rng(1).standard_normal(shape)) == 0


def test_evbmf_without_noise() -> None:
    generator = np.random.default_rng(2)
    exact = generator.standard_normal((20, 3)) @ generator.standard_normal((3, 30))
    assert evbmf_rank(exact) == 3
    assert evbmf_rank(np.zeros((4, 5))) == 0
    assert evbmf_rank(np.zeros((0, 5))) == 0
    assert evbmf_rank(np.ones((1, 5))) == 1
    with pytest.raises(ValueError, match="3 axes"):
        evbmf_rank(np.zeros((2, 2, 2)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20), st.floats(0.01, 0.999))
def test_energy_rank_is_the_smallest_that_keeps_it(values: list[float], energy: float) -> None:
    singular = np.sort(np.array(values))[::-1]
    rank, errors = energy_rank(singular, energy), rank_errors(singular)
    assert errors[rank] <= 1 - energy
    assert rank == 0 or errors[rank - 1] > 1 - energy
    assert errors[-1] == 0
    assert (np.diff(errors) <= 0).all()


def test_energy_rank_of_known_spectra() -> None:
    assert energy_rank(np.array([3.0, 1.0, 0.0]), 0.89) == 1
    assert energy_rank(np.array([3.0, 1.0, 0.0]), 0.91) == 2
    assert energy_rank(np.zeros(3), 0.9) == 0


def test_alignment() -> None:
    assert aligned_ranks(20, 8) == [8, 16]
    assert aligned_ranks(5, 8) == [1, 2, 3, 4, 5]
    assert aligned_ranks(0, 8) == []
    assert nearest_rank(9, [8, 16]) == 16
    assert nearest_rank(99, [8, 16]) == 16
