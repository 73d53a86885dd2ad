"""How long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Time budget of a latency comparison.

    Attributes:
        name: As named on the command line.
        seconds: Budget of the measured part, all engines together.
        rounds: Rounds (one block per engine each) that the budget is divided into.
        min_rounds: Never fewer, even where single runs are so slow that the budget is exceeded.
        min_runs: Runs per engine that the interval should rest on; fewer give a warning.
        warm_up_seconds: Longest warm-up per engine.
    """

    name: str
    seconds: float
    rounds: int
    min_rounds: int
    min_runs: int
    warm_up_seconds: float


QUICK = Profile("quick", seconds=4.0, rounds=10, min_rounds=4, min_runs=20, warm_up_seconds=0.5)
STANDARD = Profile("standard", seconds=20.0, rounds=30, min_rounds=6, min_runs=100, warm_up_seconds=2.0)
FULL = Profile("full", seconds=120.0, rounds=60, min_rounds=10, min_runs=500, warm_up_seconds=5.0)

# What a pass takes to see whether a layer gets faster: it asks dozens of times.
GLANCE = Profile("glance", seconds=1.5, rounds=8, min_rounds=4, min_runs=20, warm_up_seconds=0.2)

PROFILES: tuple[Profile, ...] = (QUICK, STANDARD, FULL)
