"""Engines that run on another machine: they are driven and metered over there, and only figures come back.

Timing calls across a network would time the network. So whoever measures asks such an engine's `Site` for whole
stretches of load, and gets the times of the single runs, the samples of the site's own meter, and what disturbed it,
all by the site's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, PowerSample, Reading


class LostError(UnavailableError):
    """A stretch was lost, to a reboot or because it was killed; the site is back, and the next one may go well."""


@dataclass(frozen=True)
class Stretch:
    """How an engine is driven for a while.

    Attributes:
        seconds: For so long (a run that is due before the end is finished); None: for `runs`.
        runs: So many inferences; exactly one of the two is given.
        rate: Requests per second; None: each right after the one before.
        poisson: Requests come at random rather than evenly.
        seed: Of the random arrivals.
        first: Where in the inputs to begin.
        metered: The site's meter is read meanwhile.
    """

    seconds: float | None = None
    runs: int | None = None
    rate: float | None = None
    poisson: bool = False
    seed: int = 0
    first: int = 0
    metered: bool = False


@dataclass(frozen=True)
class SiteState:
    """The machine at one moment; None: not known.

    Attributes:
        celsius: Of the hottest sensor.
        clock_mhz: Of the processor that does the work.
        throttle_count: Times that it was slowed down for heat or current, cumulative.
        facts: Further figures, as text; ``power_mode`` is the mode that it is in.
    """

    celsius: float | None = None
    clock_mhz: float | None = None
    throttle_count: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Driven:
    """What a stretch gave, by the site's monotonic clock.

    Attributes:
        begin: Seconds when it began.
        seconds: How long it took, from the first start to the last end.
        count: Inferences finished.
        latencies_ms: From when each was due to its end; flat out: its service time.
        services_ms: Of the runs alone.
        late: Requests that started later than they were due by more than a service time.
        samples: Of a power meter, from before the beginning to after the end; empty without one. Domains add up.
        readings: Of a counter, likewise.
        suspended: Seconds that the machine slept meanwhile, which its monotonic clock leaves out.
        others: Share of the machine that other processes used; None: not known.
        before: The machine at the beginning, and `after` at the end.
        problem: Why the meter gave nothing, or less; None: it did not fail.
    """

    begin: float
    seconds: float
    count: int
    latencies_ms: Sequence[float] = ()
    services_ms: Sequence[float] = ()
    late: int = 0
    samples: Sequence[PowerSample] = ()
    readings: Sequence[Reading] = ()
    suspended: float = 0.0
    others: float | None = None
    before: SiteState = field(default_factory=SiteState)
    after: SiteState = field(default_factory=SiteState)
    problem: str | None = None


@dataclass(frozen=True)
class SiteMeter:
    """What the meter of a site says of itself, as `greencc.core.meter.Sensor`."""

    name: str
    grade: Grade
    boundary: str
    period_s: float
    uncertainty: float | None

    def missing(self) -> str | None:
        """None: a site that has no meter that works names none."""
        return None


class Site(Protocol):
    """A machine elsewhere."""

    @property
    def name(self) -> str:
        """For people, such as ``ssh://user@orin``."""

    @property
    def meter(self) -> SiteMeter | None:
        """Its meter; None: it has none that works."""

    @property
    def power_mode(self) -> str | None:
        """The mode that it is to be in while it is measured; None: it has none."""

    def idle(self, seconds: float) -> Driven:
        """Wait for a while with the meter watched; `count` is 0.

        Raises:
            LostError: The machine was restarted meanwhile.
            UnavailableError: It is not to be reached any more.
        """

    def conditions(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """Facts about its state, and warnings about those that make figures less certain."""


@runtime_checkable
class DistantEngine(Engine, Protocol):
    """An engine on another machine."""

    @property
    def site(self) -> Site: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its times and energy must know of how it is driven there."""

    def drive(self, feeds: Sequence[Feeds], stretch: Stretch) -> Driven:
        """Run for a while over there; inputs are sent once.

        Raises:
            InputError: It refuses an input.
            LostError: The machine was restarted meanwhile, or the engine died.
            UnavailableError: The machine is not to be reached any more.
        """
