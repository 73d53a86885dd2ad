"""Blocks and idle windows on another machine: driven and metered over there, judged here by the same rules.

A stretch of load comes back with the samples of the site's meter. Power is integrated from the first start to the last
end (`greencc.core.trapezoid`); a counter's readings around the stretch subtract. Moments are laid onto this machine's
clock, because a machine that was restarted counts from zero again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from greencc.core.data import Feeds
from greencc.core.elsewhere import DistantEngine, Driven, LostError, Site, SiteMeter, SiteState, Stretch
from greencc.core.engine import Engine
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.meter import PowerSample, Reading
from greencc.core.trapezoid import joules_from, joules_within, longest_gap
from greencc.measure.blocks import (
    Bench,
    Block,
    Discard,
    Energy,
    IdlePart,
    busy,
    energy_between,
    energy_of,
    random_phase,
    stood_still,
)
from greencc.measure.clocks import slept_for
from greencc.measure.loadgen import FLAT_OUT, Arrivals, Load
from greencc.measure.thermal import ThermalState, throttled
from greencc.measure.times import times_of
from greencc.measure.warm_up import WarmUp, run_until_steady

# Each slice of the warm-up is a job of its own there, which takes a second or so to begin.
_SLICE_SECONDS = 5.0
# The answer to a stretch may be so late; beyond that the site's clock is taken to have begun anew.
_LATE_SECONDS = 60.0
_WARM_UP_TRIES = 3


def site_of(engines: Sequence[Engine]) -> Site | None:
    """The one machine elsewhere that all engines run on; None: they run here.

    Raises:
        UsageError: They run on several machines, which are not compared with each other.
    """
    sites = [engine.site if isinstance(engine, DistantEngine) else None for engine in engines]
    if any(site is not sites[0] for site in sites):
        names = sorted({"this machine" if site is None else site.name for site in sites})
        raise UsageError(f"engines on different machines cannot be measured side by side: {', '.join(names)}")
    return sites[0] if sites else None


def stretch_of(load: Load, seconds: float, first: int, *, number: int = 0, metered: bool = False) -> Stretch:
    """A stretch of this load; both variants of a round get the same random arrivals, rounds different ones."""
    return Stretch(
        seconds=seconds,
        rate=load.rate,
        poisson=load.arrivals is Arrivals.POISSON,
        seed=load.seed + number,
        first=first,
        metered=metered,
    )


def disturbance(
    driven: Driven, mode: str | None, fastest_mhz: float | None = None
) -> tuple[Discard, str] | None:
    """What disturbed a stretch, or None; as `greencc.measure.blocks.Watch.verdict`.

    Args:
        driven: What came back.
        mode: The power mode that the site is to be in (`Site.power_mode`).
        fastest_mhz: The clock of earlier stretches of the same load, flat out; None: there is nothing to compare with.
    """
    if note := slept_for(driven.suspended):
        return Discard.SUSPENDED, note
    if note := _mode_changed(driven, mode):
        return Discard.MODE, note
    if found := busy(driven.others):
        return found
    if note := throttled(_thermal(driven.before), _thermal(driven.after), fastest_mhz):
        return Discard.THROTTLED, note
    return None


def _mode_changed(driven: Driven, expected: str | None) -> str | None:
    """Say in which other power mode a site was; one that it does not tell is taken for the right one."""
    begun, ended = (state.facts.get("power_mode") for state in (driven.before, driven.after))
    expected = expected or begun
    for mode in (begun, ended):
        if mode is not None and mode != expected:
            return f"its power mode was {mode}, and not {expected}"
    return None


@dataclass(frozen=True)
class _Metered:
    """Energy of a stretch, when it begins by the site's clock, and for how long."""

    energy: Energy | None
    begin: float
    seconds: float
    found: tuple[Discard, str] | None


class ElsewhereWindows:
    """A `greencc.measure.blocks.Stage` on a site; all engines are on it.

    Args:
        site: Where.
        bench: This machine, of which only the clock is looked at.
        feeds: Inputs of one inference each.
        load: How the engines are driven.
        metered: The site's meter is used, where it has one.
    """

    def __init__(
        self,
        site: Site,
        bench: Bench,
        feeds: Sequence[Feeds],
        load: Load = FLAT_OUT,
        *,
        metered: bool = True,
    ) -> None:
        self._site, self._bench, self._feeds, self._load = site, bench, feeds, load
        self.meter: SiteMeter | None = site.meter if metered else None
        self._phase = np.random.default_rng(bench.seed)
        self._fastest: dict[str, float] = {}
        self._shift: float | None = None
        self._celsius: float | None = None
        self._readings: list[Reading] = []
        self._gone: str | None = None
        self._seconds = 0.0
        self._again = 0

    @property
    def gone(self) -> str | None:
        """As `Stage.gone`."""
        return self._gone

    @property
    def readings(self) -> Sequence[Reading]:
        """As `Stage.readings`: joules since the window began, on this machine's clock."""
        return tuple(self._readings)

    @property
    def notes(self) -> Sequence[str]:
        """As `Stage.notes`."""
        return (lost_note(self._again, "of the warm-up"),) if self._again else ()

    def seconds(self) -> float:
        """As `Stage.seconds`: those of the stretches that came back.

        Getting each of them there and back, loading an engine for it and waiting for a device that others use is not
        counted: it would leave no rounds where a stretch of half a second takes seconds to begin.
        """
        return self._seconds

    def warm_up(self, engines: Sequence[Engine], *, window: float, limit: float) -> WarmUp:
        """As `greencc.measure.warm_up.warm_up`, by the site's temperature.

        Raises:
            UnavailableError: The site was lost several times, or cannot be reached.
        """
        rate = self._load.rate
        length = _SLICE_SECONDS if rate is None else max(_SLICE_SECONDS, 1.0 / rate)

        def run(engine: Engine) -> None:
            driven = self._insist(
                lambda: _distant(engine).drive(self._feeds, stretch_of(self._load, length, 0))
            )
            self._celsius = driven.after.celsius

        return run_until_steady(engines, run, lambda: self._celsius, self.seconds, window=window, limit=limit)

    def idle(self, which: str, seconds: float) -> IdlePart:
        """As `Stage.idle`."""
        asked = self._bench.clock()
        driven = self._attempt(lambda: self._site.idle(seconds))
        if isinstance(driven, str):
            return IdlePart(which, asked, self._bench.clock() - asked, None, Discard.LOST, driven)
        shift = self._shift_of(driven)
        metered = self._metered(driven, shift)
        found = disturbance(driven, self._site.power_mode) or metered.found
        part = IdlePart(
            which,
            metered.begin + shift,
            metered.seconds,
            None if metered.energy is None else metered.energy.total,
        )
        return part if found is None else replace(part, discarded=found[0], note=found[1])

    def block(self, engine: Engine, variant: str, number: int, seconds: float, first: int) -> Block:
        """As `Stage.block`."""
        if self.meter is not None:
            self._bench.sleep(random_phase(self._phase, self.meter.period_s))
        stretch = stretch_of(
            self._load,
            seconds,
            first % len(self._feeds),
            number=number,
            metered=self.meter is not None,
        )
        asked = self._bench.clock()
        driven = self._attempt(lambda: _distant(engine).drive(self._feeds, stretch))
        if isinstance(driven, str):
            return Block(
                None,
                self._bench.clock() - asked,
                0,
                begin=asked,
                variant=variant,
                round=number,
                discarded=Discard.LOST,
                note=driven,
            )
        found = disturbance(driven, self._site.power_mode, self._fastest_of(variant, driven))
        shift = self._shift_of(driven)
        metered = self._metered(driven, shift)
        if metered.energy is not None:
            found = found or stood_still(metered.energy, metered.seconds)
        found = found or metered.found
        return Block(
            joules=None if metered.energy is None else metered.energy.total,
            seconds=metered.seconds,
            count=driven.count,
            begin=metered.begin + shift,
            variant=variant,
            round=number,
            domains={} if metered.energy is None else metered.energy.domains,
            latencies_ms=times_of(driven.latencies_ms),
            services_ms=times_of(driven.services_ms),
            late=driven.late,
            discarded=None if found is None else found[0],
            note="" if found is None else found[1],
            celsius=driven.after.celsius,
            others=driven.others,
        )

    def _attempt(self, stretch: Callable[[], Driven]) -> Driven | str:
        """What came back, or why nothing did."""
        try:
            driven = stretch()
        except LostError as error:
            return str(error)
        except UnavailableError as error:
            self._gone = str(error)
            return self._gone
        self._seconds += driven.seconds
        return driven

    def _insist(self, stretch: Callable[[], Driven]) -> Driven:
        for _ in range(_WARM_UP_TRIES - 1):
            found = self._attempt(stretch)
            if not isinstance(found, str):
                return found
            if self._gone is not None:
                break
            self._again += 1
        driven = stretch()
        self._seconds += driven.seconds
        return driven

    def _fastest_of(self, variant: str, driven: Driven) -> float | None:
        """The clock of the variant's earlier blocks, to compare with; it is remembered flat out alone."""
        before, now = self._fastest.get(variant), driven.after.clock_mhz
        if now is not None:
            self._fastest[variant] = max(now, before or 0.0)
        return before if self._load.arrivals is Arrivals.FLAT_OUT else None

    def _shift_of(self, driven: Driven) -> float:
        """What to add to the site's seconds to get this machine's.

        The first answer tells; it is kept, so that how long answers take does not move moments against each other.
        """
        now = self._bench.clock() - (driven.begin + driven.seconds)
        if self._shift is None or not -_LATE_SECONDS <= now - self._shift <= _LATE_SECONDS:
            self._shift = now
        return self._shift

    def _metered(self, driven: Driven, shift: float) -> _Metered:
        """The energy of a stretch."""
        begin, end = driven.begin, driven.begin + driven.seconds
        meter = self.meter
        if meter is None:
            return _Metered(None, begin, driven.seconds, None)
        if driven.problem is not None:
            return _Metered(None, begin, driven.seconds, (Discard.FAILED, driven.problem))
        try:
            if driven.readings:
                around = _around(driven.readings, begin, end)
                energy = energy_between(around[0], around[-1])
                begin, end = around[0].seconds, around[-1].seconds
            else:
                gap = longest_gap(meter.period_s)
                energy = energy_of(joules_within(meter.name, driven.samples, begin, end, gap))
                around = _summed(meter.name, driven.samples, gap)
        except UnavailableError as error:
            return _Metered(None, begin, driven.seconds, (Discard.GAP, str(error)))
        epoch = (self._readings[-1].epoch + 1 if self._readings else 0) - around[0].epoch
        self._readings += [
            replace(each, seconds=each.seconds + shift, epoch=each.epoch + epoch) for each in around
        ]
        return _Metered(energy, begin, end - begin, None)


def lost_note(count: int, of_what: str) -> str:
    """What is said of stretches that were measured again because they never came back."""
    what = f"{count} stretch {of_what} was" if count == 1 else f"{count} stretches {of_what} were"
    return f"{what} lost with the device or its engine, and repeated"


def _distant(engine: Engine) -> DistantEngine:
    assert isinstance(engine, DistantEngine)
    return engine


def _thermal(state: SiteState) -> ThermalState:
    return ThermalState(state.celsius, state.throttle_count, clock_mhz=state.clock_mhz)


def _around(readings: Sequence[Reading], begin: float, end: float) -> list[Reading]:
    """The readings from the last one before a stretch to the first one after it.

    Raises:
        UnavailableError: They do not cover it.
    """
    before = [index for index, each in enumerate(readings) if each.seconds <= begin]
    after = [index for index, each in enumerate(readings) if each.seconds >= end]
    if not before or not after:
        raise UnavailableError("the meter's readings do not cover the whole stretch")
    return list(readings[before[-1] : after[0] + 1])


def _summed(name: str, samples: Sequence[PowerSample], gap_s: float) -> list[Reading]:
    """Cumulative joules at every sample, for the trace; a gap begins a new epoch."""
    found: list[Reading] = []
    sums = dict.fromkeys(samples[0].watts, 0.0)
    epoch = 0
    for index, sample in enumerate(samples):
        if index:
            last = samples[index - 1]
            if sample.seconds - last.seconds > gap_s:
                epoch += 1
                sums = dict.fromkeys(sample.watts, 0.0)
            else:
                within = joules_from(name, last, sample)
                sums = {domain: value + within[domain] for domain, value in sums.items()}
        found.append(Reading(sample.seconds, dict(sums), epoch))
    return found
