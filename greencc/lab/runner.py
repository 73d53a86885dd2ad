"""Run the calibration benchmarks: time each, and its energy where a meter works."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.core.engine import Engine, Target
from greencc.core.errors import UnavailableError
from greencc.core.kernels import Kernels, kernels_of
from greencc.core.meter import Meter
from greencc.core.progress import Progress, silent
from greencc.lab.benchmarks import Benchmark
from greencc.lab.observations import Journal, Observation
from greencc.measure.blocks import Bench as Machine
from greencc.measure.blocks import IdlePart, Watch, Windows, energy_between
from greencc.measure.energy import IDLE_AFTER, IDLE_BEFORE
from greencc.measure.loadgen import drive

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
    """What runs are made with.

    Attributes:
        meter: A working meter of grade A or B, or None: times alone.
        machine: What is seen of it; tests replace it.
    """

    target: Target
    options: RunOptions
    meter: Meter | None = None
    machine: Machine = field(default_factory=Machine)


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
        UnavailableError: The meter failed, or something disturbed, in an idle window again and again; or the meter
            failed in every attempt of a benchmark.
        InputError: The journal cannot be written.
    """
    # What was disturbed is worth another try.
    found = {name: row for name, row in journal.read().items() if not row.disturbed}
    idle = _idle_watts(bench, IDLE_BEFORE)
    rows = []
    for benchmark in progress(benchmarks, label="Calibrating", total=len(benchmarks)):
        model, feeds = benchmark.make()
        kernels = kernels_of(model)
        if benchmark.name not in found:
            with _engine(bench.target, model) as engine:
                found[benchmark.name] = observe(bench, benchmark.name, engine, feeds)
            journal.write(found)
        rows.append((found[benchmark.name], kernels))
    idle += _idle_watts(bench, IDLE_AFTER)
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
    machine = bench.machine
    drive(engine, [feeds], bench.options.warm_up_seconds, clock=machine.clock, sleep=machine.sleep)
    attempts: list[tuple[float, Observation]] = []
    failure: UnavailableError | None = None
    for _ in range(_ATTEMPTS):
        watch = Watch(machine)
        try:
            seen = _block(bench, name, engine, feeds)
        except UnavailableError as error:
            failure = error
            continue
        if watch.verdict() is None:
            return seen
        attempts.append((watch.others or 0.0, seen))
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
    driven = drive(engine, [feeds], length, clock=bench.machine.clock, sleep=bench.machine.sleep)
    seconds = driven.services_ms.percentiles((50.0,))[0] / 1e3
    if meter is None or before is None:
        return Observation(name, seconds, None, None, driven.count, disturbed=False)
    after = meter.read()
    joules = energy_between(before, after).total / driven.count
    return Observation(
        name, seconds, joules, (after.seconds - before.seconds) / driven.count, driven.count, disturbed=False
    )


def _idle_watts(bench: Bench, which: str) -> list[float]:
    """Watts in each part of an idle window; parts that were disturbed are measured again, once each on average."""
    if bench.meter is None:
        return []
    windows = Windows(bench.meter, bench.machine, ())
    watts: list[float] = []
    for _ in range(2 * _IDLE_PARTS):
        part = windows.idle(which, bench.options.idle_seconds / _IDLE_PARTS)
        if part.discarded is None and part.joules is not None:
            watts.append(part.joules / part.seconds)
        if len(watts) == _IDLE_PARTS:
            return watts
    raise _disturbed(part)


def _disturbed(part: IdlePart) -> UnavailableError:
    return UnavailableError(
        f"the idle power could not be measured, {part.which}: {part.note}",
        hint="check the meter with 'greencc doctor'"
        if part.discarded is not None and part.discarded.of_meter
        else "stop other programs and calibrate again; what was measured is kept",
    )
