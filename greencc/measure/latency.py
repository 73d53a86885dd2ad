"""Latency of engines compared in turns: A B B A, paired blocks, real inputs.

Engines run in rounds: every round has one block per engine, and the order turns around from round to round, so that
a drift of the clock frequency or the temperature falls on all of them alike. The ratio of two engines is estimated from
the rounds' log-ratios of block medians with a t-interval; what slows a whole round down cancels. A round during which
other processes took a large share of the machine is discarded, for a reason that does not depend on its outcome;
where that would leave too few, measuring goes on for up to twice the time, and if that does not help, all are kept,
the interval says how noisy they were and the result says that it is not clean.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import UsageError
from greencc.core.report import Interval, Latency
from greencc.measure.intervals import percentile, ratio_interval, thin
from greencc.measure.load import BUSY_SHARE, LoadProbe, SystemLoad, others_share
from greencc.measure.profiles import QUICK, Profile

_SAMPLES_KEPT = 500
# Measuring ends after this many times the profile's seconds, however disturbed it was.
_LONGEST = 2.0
# The stable state: two windows of runs whose medians differ by less than this.
_STABLE = 0.05
_WARM_UP_WINDOW = 5


@dataclass(frozen=True)
class LatencyResult:
    """Latencies of the engines in their order, and how they compare.

    Attributes:
        latencies: One per engine, over the rounds kept.
        ratios: Latency of the first engine divided by that of each of the others (above 1: the other is faster).
        rounds: Rounds kept.
        discarded: Rounds left out because other processes were busy.
        warnings: What makes the figures less certain.
        clean: Whether none of the rounds kept was disturbed by other processes, as far as that is known.
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


@dataclass(frozen=True)
class _Round:
    """Milliseconds of every run, by engine, and the share of the machine that others used."""

    times: tuple[tuple[float, ...], ...]
    others: float | None

    @property
    def disturbed(self) -> bool:
        return self.others is not None and self.others > BUSY_SHARE


def measure_latency(
    engines: Sequence[Engine],
    feeds: Sequence[Feeds],
    profile: Profile,
    *,
    confidence: float = 0.95,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    load: LoadProbe | None = None,
) -> LatencyResult:
    """Measure engines in turns.

    Args:
        engines: The baseline first.
        feeds: Inputs of one run each, cycled identically for every engine.
        profile: How long.
        confidence: Of the ratios' intervals, each for itself.
        clock_ns: Nanoseconds.
        load: Tells how busy the rest of the machine is; default: this machine.

    Raises:
        UsageError: No engine or no input.
        InputError: An engine refuses an input.
    """
    if not engines or not feeds:
        raise UsageError("measuring latency takes at least one engine and one input")
    probe = load or SystemLoad()
    run_ms = [_warm_up(engine, feeds, profile.warm_up_seconds, clock_ns) for engine in engines]
    runs = _runs_per_block(run_ms, profile)
    start = clock_ns()
    deadline, last = (start + int(factor * profile.seconds * 1e9) for factor in (1.0, _LONGEST))
    rounds: list[_Round] = []
    with _collector_paused():
        while len(rounds) < profile.min_rounds or (len(rounds) < profile.rounds and clock_ns() < deadline):
            rounds.append(_measure_round(engines, feeds, runs, len(rounds), clock_ns, probe))
        enough = max(profile.min_rounds, len(rounds) // 2)
        while sum(not each.disturbed for each in rounds) < enough and clock_ns() < last:
            rounds.append(_measure_round(engines, feeds, runs, len(rounds), clock_ns, probe))
    kept, warnings = _select(rounds, enough)
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


def _warm_up(engine: Engine, feeds: Sequence[Feeds], seconds: float, clock_ns: Callable[[], int]) -> float:
    """Run until two windows agree or the time is over; return milliseconds per run."""
    deadline = clock_ns() + int(seconds * 1e9)
    # The very first run allocates memory and starts threads.
    engine.run(feeds[0])
    previous = math.inf
    index = 0
    while True:
        window = []
        for _ in range(_WARM_UP_WINDOW):
            window.append(_timed(engine, feeds[index % len(feeds)], clock_ns))
            index += 1
            if clock_ns() >= deadline:
                return statistics.median(window)
        median = statistics.median(window)
        if abs(median - previous) <= _STABLE * median:
            return median
        previous = median


def _runs_per_block(run_ms: Sequence[float], profile: Profile) -> int:
    """Runs per block, the same for every engine so that all see the same inputs, that fill a round's time."""
    return max(1, int(profile.seconds * 1e3 / profile.rounds / max(sum(run_ms), 1e-6)))


def _measure_round(
    engines: Sequence[Engine],
    feeds: Sequence[Feeds],
    runs: int,
    number: int,
    clock_ns: Callable[[], int],
    probe: LoadProbe,
) -> _Round:
    order = range(len(engines)) if number % 2 == 0 else reversed(range(len(engines)))
    # Goes on where the previous round ended, so that all inputs get their turn.
    inputs = [feeds[(number * runs + run) % len(feeds)] for run in range(runs)]
    times: dict[int, tuple[float, ...]] = {}
    before, start = probe.others_seconds(), clock_ns()
    for index in order:
        times[index] = tuple(_timed(engines[index], each, clock_ns) for each in inputs)
    elapsed = (clock_ns() - start) / 1e9
    others = others_share(before, probe.others_seconds(), elapsed, probe.cpus)
    return _Round(tuple(times[index] for index in range(len(engines))), others)


def _timed(engine: Engine, feeds: Feeds, clock_ns: Callable[[], int]) -> float:
    start = clock_ns()
    engine.run(feeds)
    return max(clock_ns() - start, 1) / 1e6


def _select(rounds: Sequence[_Round], enough: int) -> tuple[list[_Round], list[str]]:
    """Leave out the rounds that other processes disturbed, unless fewer than `enough` would be left."""
    clean = [each for each in rounds if not each.disturbed]
    discarded = len(rounds) - len(clean)
    if not discarded:
        return clean, []
    if len(clean) >= enough:
        return clean, [f"{discarded} of {len(rounds)} rounds were discarded: other processes were busy"]
    shares = [each.others for each in rounds if each.others is not None]
    return (
        list(rounds),
        [
            f"other processes used {statistics.median(shares):.0%} of the CPU while latency was measured; "
            "the intervals include that noise"
        ],
    )


def _latency(samples: Sequence[float]) -> Latency:
    return Latency(
        median=percentile(samples, 50.0),
        p95=percentile(samples, 95.0),
        p99=percentile(samples, 99.0),
        runs=len(samples),
        samples=thin(samples, _SAMPLES_KEPT),
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed runs."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
