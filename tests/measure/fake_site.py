"""A machine elsewhere, simulated: its clock and power are known exactly, and it can be lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from greencc.core.arrivals import due_offsets
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.elsewhere import Driven, LostError, SiteMeter, SiteState, Stretch
from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, PowerSample, Reading

METER = SiteMeter("jetson", Grade.B, "VDD_IN", 0.1, None)
TRANSFER = 0.7
"""Seconds of this machine's clock that every answer takes on its way."""


@dataclass
class FakeSite:
    """Draws `watts` when idle. `here` is the clock of the machine that measures, `now` the site's own.

    `spoil` may change what comes back, or raise, as a function of the number of the stretch (idle ones count as well).
    """

    here: Any
    meter: SiteMeter | None = METER
    watts: float = 5.0
    now: float = 40.0
    counter: bool = False
    celsius: Callable[[float], float | None] = lambda now: None
    spoil: Callable[[int, Driven], Driven] = lambda number, driven: driven
    name: str = "ssh://user@fake"
    power_mode: str | None = "15W"
    overhead: float = TRANSFER
    stretches: int = 0
    asked: list[Stretch] = field(default_factory=list)

    def idle(self, seconds: float) -> Driven:
        return self.lasting(seconds, 0.0, Driven(self.now, seconds, 0), metered=True)

    def conditions(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        return {"power_mode": "15W"}, ("the clocks are not fixed",)

    def lasting(self, seconds: float, extra: float, driven: Driven, *, metered: bool) -> Driven:
        """A stretch goes by."""
        begin, self.now = self.now, self.now + seconds
        self.here.now += seconds + self.overhead
        self.stretches += 1
        facts = {"power_mode": "15W"}
        before, after = (
            SiteState(celsius=self.celsius(at), clock_mhz=1500.0, facts=facts) for at in (begin, self.now)
        )
        found = replace(driven, before=before, after=after, others=0.0)
        if metered and self.meter is not None:
            found = replace(found, **self.metered(begin, seconds, self.watts + extra))
        found = self.spoil(self.stretches, found)
        self.now += 0.5
        return found

    def metered(self, begin: float, seconds: float, watts: float) -> dict[str, Any]:
        """What the meter gives: two moments before, the stretch, and one after it at the power of the idle machine."""
        steps = max(1, round(seconds / 0.1))
        inside = [begin + seconds * step / steps for step in range(steps + 1)]
        if self.counter:
            energies = [(begin - 0.1, -0.1 * self.watts)]
            energies += [(at, (at - begin) * watts) for at in inside]
            energies.append((begin + seconds + 0.1, seconds * watts + 0.1 * self.watts))
            return {"readings": [Reading(at, {"VDD_IN": 100.0 + joules}) for at, joules in energies]}
        powers = [(begin - 0.2, self.watts), (begin - 0.1, self.watts), *((at, watts) for at in inside)]
        powers.append((begin + seconds + 0.1, self.watts))
        return {"samples": [PowerSample(at, {"VDD_IN": value}) for at, value in powers]}


@dataclass
class FakeDistantEngine:
    """Takes `seconds` a run, and `extra` watts above idle meanwhile."""

    site: FakeSite
    seconds: float
    extra: float = 0.0
    closed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return ()

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return ()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        raise AssertionError("runs are never timed across a network")

    def close(self) -> None:
        self.closed = True

    def drive(self, feeds: Sequence[Feeds], stretch: Stretch) -> Driven:
        assert 0 <= stretch.first < len(feeds)
        self.site.asked.append(stretch)
        count, length = self._counted(stretch)
        times = [self.seconds * 1e3] * count
        busy = min(1.0, count * self.seconds / length)
        driven = Driven(self.site.now, length, count, times, times)
        return self.site.lasting(length, self.extra * busy, driven, metered=stretch.metered)

    def _counted(self, stretch: Stretch) -> tuple[int, float]:
        if stretch.runs is not None:
            return stretch.runs, stretch.runs * self.seconds
        assert stretch.seconds is not None
        if stretch.rate is None:
            count = max(1, -int(-stretch.seconds // self.seconds))
            return count, count * self.seconds
        count = 0
        for due in due_offsets(stretch.rate, poisson=stretch.poisson, seed=stretch.seed):
            if due >= stretch.seconds:
                break
            count += 1
        return count, stretch.seconds


def lost(*numbers: int) -> Callable[[int, Driven], Driven]:
    """The stretches of these numbers never come back."""

    def spoil(number: int, driven: Driven) -> Driven:
        if number in numbers:
            raise LostError("the device was restarted")
        return driven

    return spoil


def gone_from(first: int) -> Callable[[int, Driven], Driven]:
    """From a stretch on, the device cannot be reached any more."""

    def spoil(number: int, driven: Driven) -> Driven:
        if number >= first:
            raise UnavailableError("ssh://user@fake does not answer")
        return driven

    return spoil
