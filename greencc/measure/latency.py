"""Latency of engines compared in turns: A B B A, paired blocks, real inputs.

Engines run in rounds: every round has one block per engine, and the order turns around from round to round, so that
a drift of the clock frequency or the temperature falls on all of them alike. The ratio of two engines is estimated from
the rounds' log-ratios of block medians with a t-interval; what slows a whole round down cancels. A round during which
other processes took a large share of the machine is discarded, for a reason that does not depend on its outcome;
where that would leave too few, measuring goes on for up to twice the time, and if that does not help, all are kept,
the interval says how noisy they were and the result says that it is not clean.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greencc.core.data import Feeds
from greencc.core.elsewhere import DistantEngine
from greencc.core.engine import Engine
from greencc.core.errors import UsageError
from greencc.core.report import Interval, Latency
from greencc.measure.distant_rounds import DistantTimer
from greencc.measure.elsewhere import site_of
from greencc.measure.intervals import percentile, ratio_interval, thin
from greencc.measure.load import LoadProbe
from greencc.measure.profiles import QUICK, Profile
from greencc.measure.rounds import LocalTimer, RoundTimer, TimedRound

_SAMPLES_KEPT = 500
# Measuring ends after this many times the profile's seconds, however disturbed it was.
_LONGEST = 2.0


@dataclass(frozen=True)
class LatencyResult:
    """Latencies of the engines in their order, and how they compare.

    Attributes:
        latencies: One per engine, over the rounds kept.
        ratios: Latency of the first engine divided by that of each of the others (above 1: the other is faster).
        rounds: Rounds kept.
        discarded: Rounds left out because other processes were busy, or (elsewhere) the machine was throttled or slept.
        warnings: What makes the figures less certain.
        clean: Whether none of the rounds kept was disturbed, as far as that is known.
        blocks: Median milliseconds of each engine in each round kept: what a ratio of any two engines rests on.
    """

    latencies: tuple[Latency, ...]
    ratios: tuple[Interval, ...]
    rounds: int
    discarded: int
    warnings: tuple[str, ...]
    clean: bool
    blocks: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class QuickComparison:
    """Which of several engines is the fastest, beyond the noise.

    Attributes:
        median_ms: One per engine.
        ratios: Latency of the first engine (the incumbent) divided by that of each of the others.
        faster: Indices of engines whose whole interval is above 1, i.e. that are faster than the incumbent.
        best: The engine with the lowest median among `faster`; 0 (the incumbent) when there is none.
        warnings: What makes the choice less certain.
        clean: As in `LatencyResult`.
    """

    median_ms: tuple[float, ...]
    ratios: tuple[Interval, ...]
    faster: tuple[int, ...]
    best: int
    warnings: tuple[str, ...]
    clean: bool


def measure_latency(
    engines: Sequence[Engine],
    feeds: Sequence[Feeds],
    profile: Profile,
    *,
    confidence: float = 0.95,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    load: LoadProbe | None = None,
) -> LatencyResult:
    """Measure engines in turns, here or on the other machine that they all are on.

    Args:
        engines: The baseline first.
        feeds: Inputs of one run each, cycled identically for every engine.
        profile: How long.
        confidence: Of the ratios' intervals, each for itself.
        clock_ns: Nanoseconds; engines elsewhere are timed by the clock there.
        load: Tells how busy the rest of the machine is; default: this machine.

    Raises:
        UsageError: No engine or no input, or they are on several machines.
        InputError: An engine refuses an input.
        UnavailableError: The other machine cannot be reached any more, or was lost several times.
    """
    if not engines or not feeds:
        raise UsageError("measuring latency takes at least one engine and one input")
    timer = _timer(engines, feeds, clock_ns, load)
    run_ms = [timer.warm_up(index, profile.warm_up_seconds) for index in range(len(engines))]
    runs = _runs_per_block(run_ms, profile)
    rounds: list[TimedRound] = []
    with timer.watching():
        while len(rounds) < profile.min_rounds or (
            len(rounds) < profile.rounds and timer.seconds() < profile.seconds
        ):
            rounds.append(timer.round(runs, len(rounds)))
        enough = max(profile.min_rounds, len(rounds) // 2)
        while (
            sum(not each.disturbed for each in rounds) < enough
            and timer.seconds() < _LONGEST * profile.seconds
        ):
            rounds.append(timer.round(runs, len(rounds)))
    kept, warnings = _select(rounds, enough)
    warnings += timer.notes()
    samples = [[ms for each in kept for ms in each.times[index]] for index in range(len(engines))]
    blocks = [[statistics.median(each.times[index]) for each in kept] for index in range(len(engines))]
    if len(samples[0]) < profile.min_runs:
        warnings.append(f"only {len(samples[0])} runs fit the time of the {profile.name} profile")
    return LatencyResult(
        latencies=tuple(_latency(values) for values in samples),
        ratios=tuple(ratio_interval(blocks[0], other, confidence) for other in blocks[1:]),
        rounds=len(kept),
        discarded=len(rounds) - len(kept),
        warnings=tuple(warnings),
        clean=not any(each.disturbed for each in kept),
        blocks=tuple(map(tuple, blocks)),
    )


def quick_compare(
    engines: Sequence[Engine],
    feeds: Sequence[Feeds],
    *,
    profile: Profile = QUICK,
    confidence: float = 0.95,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    load: LoadProbe | None = None,
) -> QuickComparison:
    """Find the fastest engine. The first one stays unless another is faster with its whole interval.

    The intervals hold together (Bonferroni), so that many candidates do not make a lucky one likely.
    """
    others = max(1, len(engines) - 1)
    result = measure_latency(
        engines, feeds, profile, confidence=1.0 - (1.0 - confidence) / others, clock_ns=clock_ns, load=load
    )
    medians = tuple(latency.median for latency in result.latencies)
    faster = tuple(index for index, ratio in enumerate(result.ratios, start=1) if ratio.low > 1.0)
    best = min(faster, key=lambda index: medians[index], default=0)
    return QuickComparison(medians, result.ratios, faster, best, result.warnings, result.clean)


def _timer(
    engines: Sequence[Engine], feeds: Sequence[Feeds], clock_ns: Callable[[], int], load: LoadProbe | None
) -> RoundTimer:
    """What times the engines where they are."""
    if site_of(engines) is None:
        return LocalTimer(engines, feeds, clock_ns, load)
    return DistantTimer([engine for engine in engines if isinstance(engine, DistantEngine)], feeds)


def _runs_per_block(run_ms: Sequence[float], profile: Profile) -> int:
    """Runs per block, the same for every engine so that all see the same inputs, that fill a round's time."""
    return max(1, int(profile.seconds * 1e3 / profile.rounds / max(sum(run_ms), 1e-6)))


def _select(rounds: Sequence[TimedRound], enough: int) -> tuple[list[TimedRound], list[str]]:
    """Leave out the rounds that other processes disturbed, unless fewer than `enough` would be left."""
    clean = [each for each in rounds if not each.disturbed]
    discarded = len(rounds) - len(clean)
    if not discarded:
        return clean, []
    marred = dict.fromkeys(each.marred for each in rounds if each.marred is not None)
    if len(clean) >= enough:
        causes = [*marred, *(["other processes were busy"] if any(map(_crowded, rounds)) else [])]
        return clean, [f"{discarded} of {len(rounds)} rounds were discarded: {'; '.join(causes)}"]
    warnings = [f"while latency was measured, {cause}; the intervals include that" for cause in marred]
    if any(map(_crowded, rounds)):
        shares = [each.others for each in rounds if each.others is not None]
        warnings.append(
            f"other processes used {statistics.median(shares):.0%} of the CPU while latency was measured; "
            "the intervals include that noise"
        )
    return list(rounds), warnings


def _crowded(each: TimedRound) -> bool:
    """Whether a round is disturbed by other processes alone."""
    return each.disturbed and each.marred is None


def _latency(samples: Sequence[float]) -> Latency:
    return Latency(
        median=percentile(samples, 50.0),
        p95=percentile(samples, 95.0),
        p99=percentile(samples, 99.0),
        runs=len(samples),
        samples=thin(samples, _SAMPLES_KEPT),
    )
