"""One window of a measurement, and everything that makes it worthless.

A window counts only when its readings fit together, time ran evenly, nobody else was busy and nothing throttled. What
is found is a `Discard` with a note; none of these tests looks at the figure itself, so discarding does not select.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import numpy as np

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import UnavailableError
from greencc.core.meter import Meter, Reading, joules_between
from greencc.measure.clocks import ClockProbe, ClockReading, SystemClocks, stepped, suspended
from greencc.measure.load import BUSY_SHARE, LoadProbe, SystemLoad, others_share
from greencc.measure.loadgen import FLAT_OUT, Arrivals, Driven, Load, drive
from greencc.measure.thermal import SystemThermal, ThermalProbe, ThermalState, throttled
from greencc.measure.times import Times
from greencc.measure.warm_up import WarmUp, warm_up

_LONGEST_PHASE_SECONDS = 1.0


class Discard(Enum):
    """Why a window does not count."""

    FAILED = "a reading failed"
    GAP = "readings that do not fit together"
    STUCK = "the counter stood still"
    SUSPENDED = "the machine was suspended"
    CLOCK = "the clock was set"
    BUSY = "another process was busy"
    THROTTLED = "the machine was throttled"
    MODE = "the power mode was changed"
    LOST = "the device was lost"
    COMPANION = "another block of its round was discarded"

    @property
    def of_meter(self) -> bool:
        """The meter is at fault, rather than the machine."""
        return self in (Discard.FAILED, Discard.GAP, Discard.STUCK)

    @property
    def lasts(self) -> bool:
        """Several in a row, and there is no use in going on."""
        return self.of_meter or self in (Discard.LOST, Discard.MODE)


@dataclass(frozen=True)
class Energy:
    """Joules between two readings, in all and by domain."""

    total: float
    domains: Mapping[str, float]


@dataclass(frozen=True)
class Block:
    """One measured block.

    Attributes:
        joules: Of all domains; None without a meter, or where it was discarded for the meter's sake.
        seconds: Between the readings.
        count: Inferences.
        begin: Monotonic seconds of the first reading.
        variant: ``baseline`` or ``artifact``.
        round: Number of the round it belongs to, from 0.
        domains: Joules by domain.
        latencies_ms: As `greencc.measure.loadgen.Driven`.
        services_ms: Likewise.
        late: Likewise.
        discarded: Why it does not count, or None.
        note: The same with figures.
        celsius: Of the hottest sensor when it ended; None: there is none.
        others: Share of the machine that other processes used meanwhile; None: not known.
    """

    joules: float | None
    seconds: float
    count: int
    begin: float = 0.0
    variant: str = ""
    round: int = 0
    domains: Mapping[str, float] = field(default_factory=dict)
    latencies_ms: Times = field(default_factory=Times, repr=False, compare=False)
    services_ms: Times = field(default_factory=Times, repr=False, compare=False)
    late: int = 0
    discarded: Discard | None = None
    note: str = ""
    celsius: float | None = None
    others: float | None = None


@dataclass(frozen=True)
class IdlePart:
    """A part of an idle window. `which` is ``idle before`` or ``idle after``."""

    which: str
    begin: float
    seconds: float
    joules: float | None
    discarded: Discard | None = None
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """What the measuring code sees of the machine; tests replace it.

    Attributes:
        clock: Monotonic seconds.
        sleep: Waits.
        others: How busy the rest of the machine is.
        clocks: The system's clocks.
        thermal: Temperature and throttling.
        seed: Of the random phase.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    others: LoadProbe = field(default_factory=SystemLoad)
    clocks: ClockProbe = field(default_factory=SystemClocks)
    thermal: ThermalProbe = field(default_factory=SystemThermal)
    seed: int = 0


class Watch:
    """Looks at the machine when a window begins, and says at its end what was wrong."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._thermal: ThermalState = bench.thermal.look()
        self._clocks: ClockReading = bench.clocks.look()
        self._others = bench.others.others_seconds()
        self._start = bench.clock()
        self.clock_mhz: float | None = None
        self.celsius: float | None = None
        self.others: float | None = None

    def verdict(self, fastest_mhz: float | None = None) -> tuple[Discard, str] | None:
        """What disturbed the window that ends now, or None."""
        bench = self._bench
        elapsed = bench.clock() - self._start
        others = others_share(self._others, bench.others.others_seconds(), elapsed, bench.others.cpus)
        clocks, thermal = bench.clocks.look(), bench.thermal.look()
        self.clock_mhz, self.celsius, self.others = thermal.clock_mhz, thermal.celsius, others
        if note := suspended(self._clocks, clocks):
            return Discard.SUSPENDED, note
        if note := stepped(self._clocks, clocks):
            return Discard.CLOCK, note
        if found := busy(others):
            return found
        if note := throttled(self._thermal, thermal, fastest_mhz):
            return Discard.THROTTLED, note
        return None


def busy(others: float | None) -> tuple[Discard, str] | None:
    """Whether others used too large a share of the machine; None: not known."""
    if others is None or others <= BUSY_SHARE:
        return None
    return Discard.BUSY, f"other processes used {others:.0%} of the CPU"


class Stage(Protocol):
    """Where blocks and idle windows are measured: this machine (`Windows`), or one elsewhere."""

    @property
    def gone(self) -> str | None:
        """Why nothing more can be measured there, or None."""

    @property
    def readings(self) -> Sequence[Reading]:
        """What the meter of a machine elsewhere gave, an epoch for every window; here whoever watches it has them."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know of how it went, besides what the windows tell."""

    def seconds(self) -> float:
        """What of the time limit is used up."""

    def warm_up(self, engines: Sequence[Engine], *, window: float, limit: float) -> WarmUp:
        """As `greencc.measure.warm_up.warm_up`."""

    def idle(self, which: str, seconds: float) -> IdlePart:
        """Wait for a while with the meter watched."""

    def block(self, engine: Engine, variant: str, number: int, seconds: float, first: int) -> Block:
        """Drive an engine for a while; `number` is the round, `first` where in the inputs to begin."""


class Windows:
    """Measures blocks and idle windows, one after another.

    Args:
        meter: A cumulative meter, or None: blocks have no joules then.
        bench: The machine.
        feeds: Inputs of one inference each.
        load: How the engines are driven.
    """

    def __init__(
        self, meter: Meter | None, bench: Bench, feeds: Sequence[Feeds], load: Load = FLAT_OUT
    ) -> None:
        self._meter, self._bench, self._feeds, self._load = meter, bench, feeds, load
        self._phase = np.random.default_rng(bench.seed)
        self._fastest: dict[str, float] = {}
        self._began = bench.clock()

    @property
    def gone(self) -> str | None:
        """As `Stage.gone`."""
        return None

    @property
    def readings(self) -> Sequence[Reading]:
        """As `Stage.readings`."""
        return ()

    @property
    def notes(self) -> Sequence[str]:
        """As `Stage.notes`."""
        return ()

    def seconds(self) -> float:
        """As `Stage.seconds`: since this was made."""
        return self._bench.clock() - self._began

    def warm_up(self, engines: Sequence[Engine], *, window: float, limit: float) -> WarmUp:
        """As `Stage.warm_up`."""
        return warm_up(engines, self._feeds, self._load, self._bench, window=window, limit=limit)

    def idle(self, which: str, seconds: float) -> IdlePart:
        """Wait for a while with the meter watched."""
        assert self._meter is not None
        watch, begin = Watch(self._bench), self._bench.clock()
        try:
            before = self._meter.read()
            self._bench.sleep(seconds)
            after = self._meter.read()
        except UnavailableError as error:
            return IdlePart(which, begin, self._bench.clock() - begin, None, Discard.FAILED, str(error))
        found = watch.verdict()
        try:
            energy = energy_between(before, after)
        except UnavailableError as error:
            found = found or (Discard.GAP, str(error))
            return IdlePart(which, before.seconds, after.seconds - before.seconds, None, *found)
        part = IdlePart(which, before.seconds, after.seconds - before.seconds, energy.total)
        return part if found is None else IdlePart(which, part.begin, part.seconds, part.joules, *found)

    def block(self, engine: Engine, variant: str, number: int, seconds: float, first: int) -> Block:
        """Drive an engine for a while; `number` is the round, `first` where in the inputs to begin.

        The block begins at a random phase of the meter's period: an error that comes from where a window falls
        between two updates then differs from block to block, and shows in their spread.
        """
        if self._meter is not None:
            self._bench.sleep(random_phase(self._phase, self._meter.period_s))
        load = self._load
        if load.arrivals is Arrivals.POISSON:
            # Both variants of a round get the same arrivals, rounds different ones.
            load = Load(load.arrivals, load.rate, load.seed + number)
        watch = Watch(self._bench)
        found = self._watched(watch, engine, variant, number, seconds, first, load)
        return replace(found, celsius=watch.celsius, others=watch.others)

    def _watched(
        self, watch: Watch, engine: Engine, variant: str, number: int, seconds: float, first: int, load: Load
    ) -> Block:
        begin = self._bench.clock()
        driven: Driven | None = None
        try:
            before = None if self._meter is None else self._meter.read()
            driven = drive(
                engine,
                self._feeds,
                seconds,
                load,
                clock=self._bench.clock,
                sleep=self._bench.sleep,
                first=first,
            )
            after = None if self._meter is None else self._meter.read()
        except UnavailableError as error:
            elapsed = self._bench.clock() - begin
            return _block(driven, variant, number, begin, elapsed, None, (Discard.FAILED, str(error)))
        flat_out = load.arrivals is Arrivals.FLAT_OUT
        found = watch.verdict(self._fastest.get(variant) if flat_out else None)
        if watch.clock_mhz is not None:
            self._fastest[variant] = max(watch.clock_mhz, self._fastest.get(variant, 0.0))
        if before is None or after is None:
            return _block(driven, variant, number, begin, driven.seconds, None, found)
        energy: Energy | None = None
        try:
            energy = energy_between(before, after)
            found = found or stood_still(energy, after.seconds - before.seconds)
        except UnavailableError as error:
            found = found or (Discard.GAP, str(error))
        elapsed = after.seconds - before.seconds
        return _block(driven, variant, number, before.seconds, elapsed, energy, found)


def _block(
    driven: Driven | None,
    variant: str,
    number: int,
    begin: float,
    seconds: float,
    energy: Energy | None,
    found: tuple[Discard, str] | None,
) -> Block:
    discarded, note = found or (None, "")
    return Block(
        joules=None if energy is None else energy.total,
        seconds=seconds,
        count=0 if driven is None else driven.count,
        begin=begin,
        variant=variant,
        round=number,
        domains={} if energy is None else energy.domains,
        latencies_ms=Times() if driven is None else driven.latencies_ms,
        services_ms=Times() if driven is None else driven.services_ms,
        late=0 if driven is None else driven.late,
        discarded=discarded,
        note=note,
    )


def random_phase(source: np.random.Generator, period_s: float) -> float:
    """Seconds to wait before a block, so that it begins anywhere between two updates of the meter."""
    return float(source.uniform(0.0, min(period_s, _LONGEST_PHASE_SECONDS)))


def stood_still(energy: Energy, seconds: float) -> tuple[Discard, str] | None:
    """Whether the meter counted nothing at all."""
    if energy.total != 0.0:
        return None
    return Discard.STUCK, f"the meter counted nothing in {seconds:.3g} s"


def energy_between(before: Reading, after: Reading) -> Energy:
    """Energy between two readings.

    Raises:
        UnavailableError: As `joules_between`.
    """
    return energy_of(joules_between(before, after))


def energy_of(domains: Mapping[str, float]) -> Energy:
    """Energy of joules by domain."""
    return Energy(math.fsum(domains.values()), domains)
