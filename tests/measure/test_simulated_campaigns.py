"""Campaigns with known truth through the real measuring code (see benchmarks/simulated_campaigns.py)."""

from __future__ import annotations

import math

import pytest

from benchmarks.simulated_campaigns import SCENARIOS, Scenario, Summary, simulate, summarise

NAMES = [scenario.name for scenario in SCENARIOS]


def check(found: Summary) -> None:
    """The interval of the ratio is one of 95 %: what so many campaigns may show of it is within three errors."""
    noise = 3.0 * math.sqrt(0.05 * 0.95 / found.campaigns)
    assert found.energy >= 0.94
    assert found.false_savings <= 0.05
    assert found.ratio >= 0.95 - noise
    assert found.false_claims <= 0.05 + noise


@pytest.mark.parametrize("scenario", SCENARIOS[2:3], ids=NAMES[2:3])
def test_intervals_hold_the_truth_in_100_campaigns(scenario: Scenario) -> None:
    check(summarise(scenario, 100))


@pytest.mark.full
@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_intervals_hold_the_truth_in_500_campaigns(scenario: Scenario) -> None:
    check(summarise(scenario, 500))


def test_the_same_seed_gives_the_same_campaign() -> None:
    first, second = simulate(SCENARIOS[2], 3), simulate(SCENARIOS[2], 3)
    assert first.result.comparison == second.result.comparison
    assert first.result.comparison != simulate(SCENARIOS[2], 4).result.comparison
