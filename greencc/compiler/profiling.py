"""Profiles taken several times, without those that other processes slowed down.

On a machine with other work a whole profile may come out half as slow again as the one before it, all kernels alike,
and the next one as before. Nothing makes kernels faster than they are, so the quickest profiles tell their times; the
slow ones only tell of the others' work.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greencc.core.engine import NodeTime

# Profiles whose totals lie within this share of the quickest are alike.
_ALIKE = 0.05


@dataclass(frozen=True)
class Repeats:
    """How often a profile is taken.

    Attributes:
        runs: Of each.
        least: Quiet profiles to have.
        most: Profiles at most; with fewer quiet ones than `least` among them all are used, and their spread shows it.
    """

    runs: int
    least: int = 3
    most: int = 8


def quiet_profiles(
    take: Callable[[], list[NodeTime]],
    repeats: Repeats,
    enough: Callable[[Sequence[list[NodeTime]]], bool] = lambda _: True,
) -> list[list[NodeTime]]:
    """Profiles of one artifact that other processes did not slow down.

    Args:
        take: Takes one.
        repeats: How often.
        enough: Whether quiet ones, as many as `repeats` wants, tell what is wanted; if not, taking goes on.
    """
    taken: list[list[NodeTime]] = []
    quiet: list[list[NodeTime]] = []
    while len(taken) < repeats.most:
        taken.append(take())
        quiet = _quiet(taken)
        if len(quiet) >= repeats.least and enough(quiet):
            break
    return quiet if len(quiet) >= repeats.least else taken


def merged(profiles: Sequence[list[NodeTime]]) -> list[NodeTime]:
    """Median times over profiles of one artifact, in the order of the first."""
    times: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for rows in profiles:
        # Names need not be unique.
        seen: Counter[tuple[str, str]] = Counter()
        for row in rows:
            key = (row.name, row.op_type)
            times[(*key, seen[key])].append(row.microseconds)
            seen[key] += 1
    return [
        NodeTime(name, op_type, float(statistics.median(found)))
        for (name, op_type, _), found in times.items()
    ]


def _quiet(profiles: Sequence[list[NodeTime]]) -> list[list[NodeTime]]:
    totals = [sum(row.microseconds for row in rows) for rows in profiles]
    limit = (1.0 + _ALIKE) * min(totals)
    return [rows for rows, total in zip(profiles, totals, strict=True) if total <= limit]
