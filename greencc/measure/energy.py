"""Energy per inference from a cumulative meter: idle windows and interleaved blocks.

Protocol (docs/energy.md): an idle window before and after, blocks of baseline and artifact in the order A B B A, each
lasting at least `max(block_seconds, 100 meter periods)`. Per block of `n` inferences in `t` seconds that took `E` J:

    gross = E / n            net = (E - P_idle * t) / n
    u^2   = s^2 / N + (t/n)^2 * s_idle^2 + (u_cal * net)^2 + (period / t * gross)^2

with `N` blocks, `s` their standard deviation, and `s_idle` the standard error of the idle power. The ratio comes from
the paired log-ratios of neighbouring blocks with a t-interval, so the meter's gain cancels.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.meter import EnergyComparison, Meter, Reading
from greencc.core.report import Energy, Interval
from greencc.measure.intervals import half_width, ratio_interval, t_quantile
from greencc.measure.load import LoadProbe, SystemLoad, others_share

_PERIODS_PER_BLOCK = 100
_IDLE_PARTS = 5
_BUSY_SHARE = 0.1
_MAX_FAILURES = 3


@dataclass(frozen=True)
class EnergyProtocol:
    """How energy is measured.

    Attributes:
        name: Stands in the method of every figure.
        idle_seconds: Length of each of the two idle windows.
        block_seconds: Shortest block.
        pairs: Pairs of blocks before the stopping rule is looked at.
        target: Stop when the ratio's relative half-width is at most this.
        limit_seconds: Stop after this time in any case.
        calibration: Relative standard uncertainty of the meter's gain; 0 where the vendor publishes none.
        clears_gate: Whether a result may decide a pass/fail gate; quick ones never may.
    """

    name: str
    idle_seconds: float
    block_seconds: float
    pairs: int
    target: float
    limit_seconds: float
    calibration: float = 0.0
    clears_gate: bool = True


QUICK = EnergyProtocol("quick", 2.0, 0.5, 5, 0.05, 20.0, clears_gate=False)
STANDARD = EnergyProtocol("standard", 30.0, 10.0, 10, 0.02, 600.0)
FULL = EnergyProtocol("full", 60.0, 20.0, 20, 0.01, 1800.0)

PROTOCOLS: tuple[EnergyProtocol, ...] = (QUICK, STANDARD, FULL)


@dataclass(frozen=True)
class Block:
    """One measured block: joules, seconds and inferences."""

    joules: float
    seconds: float
    count: int


@dataclass(frozen=True)
class IdlePower:
    """Watts of the idle machine and the standard error of that mean."""

    watts: float
    error: float


@dataclass(frozen=True)
class EnergyResult:
    """What a measurement gave.

    Attributes:
        comparison: The figures (net, with gross beside them).
        idle_watts: Mean over both idle windows.
        pairs: Pairs of blocks used.
        discarded: Pairs left out: a failed reading, or another busy process.
        stopped: Why measuring ended.
    """

    comparison: EnergyComparison
    idle_watts: float
    pairs: int
    discarded: int
    stopped: str


@dataclass(frozen=True)
class _Bench:
    """What the parts of a measurement share."""

    meter: Meter
    protocol: EnergyProtocol
    feeds: Sequence[Feeds]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    load: LoadProbe


def measure_energy(
    baseline: Engine,
    artifact: Engine,
    feeds: Sequence[Feeds],
    meter: Meter,
    protocol: EnergyProtocol = STANDARD,
    *,
    confidence: float = 0.95,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    load: LoadProbe | None = None,
) -> EnergyResult:
    """Measure both engines, already warmed up, with a working meter.

    Args:
        baseline: The model as given.
        artifact: What was built.
        feeds: Inputs of one inference each, cycled identically in every block.
        meter: A grade A or B meter whose `missing()` is None.
        protocol: How long and how often.
        confidence: Of the intervals.
        clock: Monotonic seconds.
        sleep: Idles.
        load: Tells how busy the rest of the machine is; default: this machine.

    Raises:
        UsageError: There is no input, or the meter is a model.
        UnavailableError: The meter fails again and again, or every pair was discarded.
    """
    if not feeds:
        raise UsageError("measuring energy takes at least one input")
    if not meter.grade.measured:
        raise UsageError(
            f"{meter.name} (grade {meter.grade.name}) estimates; energy is measured with grade A or B"
        )
    bench = _Bench(meter, protocol, feeds, clock, sleep, load or SystemLoad())
    start = clock()
    idle = _idle_powers(bench)
    pairs: list[tuple[Block, Block]] = []
    discarded = failures = 0
    number = 0
    while True:
        pair, failure = _measure_pair(bench, baseline, artifact, swap=number % 2 == 1)
        number += 1
        if pair is None:
            discarded += 1
            failures = failures + 1 if failure else 0
            if failures >= _MAX_FAILURES and failure is not None:
                raise UnavailableError(
                    f"{meter.name} failed {failures} times in a row: {failure}"
                ) from failure
        else:
            failures = 0
            pairs.append(pair)
        stopped = _stop(bench, pairs, clock() - start, confidence)
        if stopped is not None:
            break
    idle += _idle_powers(bench)
    if len(pairs) < 2:
        raise UnavailableError(
            f"only {len(pairs)} of {number} pairs of blocks were undisturbed",
            hint="stop other programs, or measure longer",
        )
    power = IdlePower(statistics.fmean(idle), statistics.stdev(idle) / math.sqrt(len(idle)))
    comparison = summarise(pairs, power, meter, protocol, confidence)
    return EnergyResult(comparison, power.watts, len(pairs), discarded, stopped)


def summarise(
    pairs: Sequence[tuple[Block, Block]],
    idle: IdlePower,
    meter: Meter,
    protocol: EnergyProtocol,
    confidence: float = 0.95,
) -> EnergyComparison:
    """Figures and ratio of (baseline, artifact) block pairs; at least two."""
    first = [pair[0] for pair in pairs]
    second = [pair[1] for pair in pairs]
    warnings: list[str] = []
    nets = [[_net(block, idle) for block in blocks] for blocks in (first, second)]
    if all(value > 0.0 for values in nets for value in values):
        ratio = ratio_interval(nets[0], nets[1], confidence)
        ratio = _widened(ratio, first, second, idle, confidence)
    else:
        ratio = ratio_interval(
            [_gross(block) for block in first], [_gross(block) for block in second], confidence
        )
        warnings.append("the load is too small to tell from idle: the energy ratio is that of gross energy")
    if not protocol.clears_gate:
        warnings.append(f"energy was measured with the {protocol.name} protocol, which cannot clear a gate")
    return EnergyComparison(
        _energy(first, idle, meter, protocol, confidence),
        _energy(second, idle, meter, protocol, confidence),
        ratio,
        tuple(warnings),
    )


def _energy(
    blocks: Sequence[Block], idle: IdlePower, meter: Meter, protocol: EnergyProtocol, confidence: float
) -> Energy:
    nets = [_net(block, idle) for block in blocks]
    net, gross = statistics.fmean(nets), statistics.fmean(_gross(block) for block in blocks)
    per_inference = statistics.fmean(block.seconds / block.count for block in blocks)
    block_seconds = statistics.fmean(block.seconds for block in blocks)
    variance = (
        statistics.variance(nets) / len(nets)
        + (per_inference * idle.error) ** 2
        + (protocol.calibration * net) ** 2
        + (meter.period_s / block_seconds * gross) ** 2
    )
    half = t_quantile(confidence, len(nets) - 1) * math.sqrt(variance)
    return Energy(
        value=net * 1e3,
        low=(net - half) * 1e3,
        high=(net + half) * 1e3,
        grade=meter.grade.name,
        boundary=meter.boundary,
        method=(
            f"measured with {meter.name}, net of {idle.watts:.3g} W idle, {protocol.name} protocol: "
            f"{len(blocks)} blocks of {block_seconds:.3g} s"
        ),
        gross=gross * 1e3,
    )


def _widened(
    ratio: Interval, first: Sequence[Block], second: Sequence[Block], idle: IdlePower, confidence: float
) -> Interval:
    """Add what the idle power's error does to the ratio of net energies: it is common to all pairs, so it stays."""
    slopes = [
        statistics.fmean(block.seconds / (block.joules - idle.watts * block.seconds) for block in blocks)
        for blocks in (first, second)
    ]
    error = abs(slopes[0] - slopes[1]) * idle.error
    half = math.hypot(half_width(ratio), t_quantile(confidence, len(first) - 1) * error)
    return Interval(ratio.value, ratio.value * math.exp(-half), ratio.value * math.exp(half))


def _gross(block: Block) -> float:
    return block.joules / block.count


def _net(block: Block, idle: IdlePower) -> float:
    return (block.joules - idle.watts * block.seconds) / block.count


def _idle_powers(bench: _Bench) -> list[float]:
    """Watts of the parts of one idle window."""
    powers = []
    before = bench.meter.read()
    for _ in range(_IDLE_PARTS):
        bench.sleep(bench.protocol.idle_seconds / _IDLE_PARTS)
        after = bench.meter.read()
        powers.append(_joules(before, after) / (after.seconds - before.seconds))
        before = after
    return powers


def _measure_pair(
    bench: _Bench, baseline: Engine, artifact: Engine, *, swap: bool
) -> tuple[tuple[Block, Block] | None, UnavailableError | None]:
    """One block of each; None where a reading failed (with the failure) or the machine was busy."""
    others, start = bench.load.others_seconds(), bench.clock()
    try:
        if swap:
            second, first = _measure_block(bench, artifact), _measure_block(bench, baseline)
        else:
            first, second = _measure_block(bench, baseline), _measure_block(bench, artifact)
    except UnavailableError as failure:
        return None, failure
    share = others_share(others, bench.load.others_seconds(), bench.clock() - start, bench.load.cpus)
    if share is not None and share > _BUSY_SHARE:
        return None, None
    return (first, second), None


def _measure_block(bench: _Bench, engine: Engine) -> Block:
    length = max(bench.protocol.block_seconds, _PERIODS_PER_BLOCK * bench.meter.period_s)
    before = bench.meter.read()
    count = 0
    while bench.clock() - before.seconds < length:
        engine.run(bench.feeds[count % len(bench.feeds)])
        count += 1
    after = bench.meter.read()
    return Block(_joules(before, after), after.seconds - before.seconds, count)


def _joules(before: Reading, after: Reading) -> float:
    """Energy between two readings, over the domains both have."""
    if after.seconds <= before.seconds or set(before.joules) != set(after.joules):
        raise UnavailableError(
            "the meter's readings do not fit together: a domain came or went, or time stood still"
        )
    joules = sum(after.joules[name] - before.joules[name] for name in sorted(after.joules))
    if not math.isfinite(joules) or joules < 0.0:
        raise UnavailableError(f"the meter counted {joules} J")
    return joules


def _stop(
    bench: _Bench, pairs: Sequence[tuple[Block, Block]], elapsed: float, confidence: float
) -> str | None:
    """Why to stop measuring, or None to go on."""
    protocol = bench.protocol
    if len(pairs) >= max(2, protocol.pairs):
        gross = ratio_interval(
            [_gross(pair[0]) for pair in pairs], [_gross(pair[1]) for pair in pairs], confidence
        )
        if half_width(gross) <= protocol.target:
            return f"the ratio is known to {protocol.target:.0%}"
    if elapsed >= protocol.limit_seconds:
        return f"the time limit of {protocol.limit_seconds:g} s"
    return None
