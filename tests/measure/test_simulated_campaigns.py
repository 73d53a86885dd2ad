"""Campaigns with known truth through the real measuring code (see benchmarks/simulated_campaigns.py)."""

from __future__ import annotations

import pytest

from benchmarks.simulated_campaigns import SCENARIOS, Scenario, Summary, simulate, summarise

NAMES = [scenario.name for scenario in SCENARIOS]


def check(found: Summary) -> None:
    assert found.energy >= 0.94
    assert found.ratio >= 0.94
    assert found.false_claims <= 0.05
    assert found.false_savings <= 0.05


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
