"""Run the calibration benchmarks: time each, and its energy where a meter works."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.core.engine import Engine, Target
from greencc.core.errors import UnavailableError
from greencc.core.kernels import Kernels, kernels_of
from greencc.core.meter import Meter, Reading
from greencc.core.progress import Progress, silent
from greencc.lab.benchmarks import Benchmark
from greencc.lab.observations import Journal, Observation
from greencc.measure.load import LoadProbe, SystemLoad, others_share
from greencc.measure.loadgen import drive

_BUSY_SHARE = 0.1
_ATTEMPTS = 3
_PERIODS_PER_BLOCK = 100
_IDLE_PARTS = 5


@dataclass(frozen=True)
class RunOptions:
    """How long.

    Attributes:
        seconds: Of each benchmark; with a meter at least 100 of its periods.
        warm_up_seconds: Before.
        idle_seconds: Of each of the two idle windows; only with a meter.
    """

    seconds: float = 0.5
    warm_up_seconds: float = 0.1
    idle_seconds: float = 10.0


QUICK = RunOptions(seconds=0.15, warm_up_seconds=0.03, idle_seconds=2.0)
STANDARD = RunOptions()


@dataclass(frozen=True)
class Bench:
    """What runs are made with; the clocks and the load are parameters so that tests can drive them.

    Attributes:
        meter: A working meter, or None: times alone.
    """

    target: Target
    options: RunOptions
    meter: Meter | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    load: LoadProbe = field(default_factory=SystemLoad)


@dataclass(frozen=True)
class BenchmarkRun:
    """All observations with the kernels behind them, and watts while idle (None without a meter)."""

    rows: tuple[tuple[Observation, Kernels], ...]
    idle_watts: tuple[float, ...]


def run_suite(
    bench: Bench, benchmarks: Sequence[Benchmark], journal: Journal, progress: Progress = silent
) -> BenchmarkRun:
    """Run what the journal does not have yet; idle windows before and after.

    Raises:
        UnavailableError: The meter failed in an idle window, or in every attempt of a benchmark.
        InputError: The journal cannot be written.
    """
    # What was disturbed is worth another try.
    found = {name: row for name, row in journal.read().items() if not row.disturbed}
    idle = _idle_watts(bench)
    rows = []
    for benchmark in progress(benchmarks, label="Calibrating", total=len(benchmarks)):
        model, feeds = benchmark.make()
        kernels = kernels_of(model)
        if benchmark.name not in found:
            with _engine(bench.target, model) as engine:
                found[benchmark.name] = observe(bench, benchmark.name, engine, feeds)
            journal.write(found)
        rows.append((found[benchmark.name], kernels))
    idle += _idle_watts(bench)
    return BenchmarkRun(tuple(rows), tuple(idle))


@contextmanager
def _engine(target: Target, model: ir.Model) -> Iterator[Engine]:
    """The benchmark as a deployment would run it."""
    with tempfile.TemporaryDirectory(prefix="greencc-calibrate-") as folder:
        engine = target.open(target.build(target.lower(model), Path(folder)))
        try:
            yield engine
        finally:
            engine.close()


def observe(bench: Bench, name: str, engine: Engine, feeds: Feeds) -> Observation:
    """Time one engine; up to three attempts until nothing else disturbs, the least disturbed one counts.

    Raises:
        UnavailableError: The meter failed in every attempt.
    """
    drive(engine, [feeds], bench.options.warm_up_seconds, clock=bench.clock, sleep=bench.sleep)
    attempts: list[tuple[float, Observation]] = []
    failure: UnavailableError | None = None
    for _ in range(_ATTEMPTS):
        before, start = bench.load.others_seconds(), bench.clock()
        try:
            seen = _block(bench, name, engine, feeds)
        except UnavailableError as error:
            failure = error
            continue
        share = others_share(before, bench.load.others_seconds(), bench.clock() - start, bench.load.cpus)
        if share is None or share <= _BUSY_SHARE:
            return seen
        attempts.append((share, seen))
    if not attempts:
        assert failure is not None
        raise failure
    best = min(attempts, key=lambda attempt: attempt[0])[1]
    # Joules of a disturbed block are those of the others as well.
    return Observation(best.name, best.seconds, None, None, best.runs, disturbed=True)


def _block(bench: Bench, name: str, engine: Engine, feeds: Feeds) -> Observation:
    length = bench.options.seconds
    meter = bench.meter
    if meter is not None:
        length = max(length, _PERIODS_PER_BLOCK * meter.period_s)
    before = meter.read() if meter is not None else None
    driven = drive(engine, [feeds], length, clock=bench.clock, sleep=bench.sleep)
    seconds = driven.services_ms.percentiles((50.0,))[0] / 1e3
    if meter is None or before is None:
        return Observation(name, seconds, None, None, driven.count, disturbed=False)
    after = meter.read()
    joules = _joules(before, after) / driven.count
    return Observation(
        name, seconds, joules, (after.seconds - before.seconds) / driven.count, driven.count, disturbed=False
    )


def _idle_watts(bench: Bench) -> list[float]:
    if bench.meter is None:
        return []
    watts = []
    before = bench.meter.read()
    for _ in range(_IDLE_PARTS):
        bench.sleep(bench.options.idle_seconds / _IDLE_PARTS)
        after = bench.meter.read()
        watts.append(_joules(before, after) / (after.seconds - before.seconds))
        before = after
    return watts


def _joules(before: Reading, after: Reading) -> float:
    if (
        before.epoch != after.epoch
        or set(before.joules) != set(after.joules)
        or after.seconds <= before.seconds
    ):
        raise UnavailableError("the meter's readings do not fit together: a gap, or a domain came or went")
    return sum(after.joules[name] - before.joules[name] for name in sorted(after.joules))
