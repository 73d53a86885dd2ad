"""Load generators: run an engine flat out, at a fixed rate, or at random (Poisson) arrivals.

At a rate, latency counts from when a request *should* have started: a request that waits for a slow one before it has
the waiting in its latency. Measuring from the actual start would leave out exactly the requests that a stall hurts
("coordinated omission", Tene, "How NOT to Measure Latency", 2013). Service time is the run alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from greencc.core.arrivals import due_offsets
from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import UsageError
from greencc.measure.times import EXACT, Times, TimesRecorder


class Arrivals(Enum):
    """When requests come."""

    FLAT_OUT = "flat-out"
    FIXED = "fixed"
    POISSON = "poisson"


@dataclass(frozen=True)
class Load:
    """How an engine is driven.

    Attributes:
        arrivals: Each request right after the one before, at a fixed rate, or as a Poisson process.
        rate: Requests per second; None exactly when flat out.
        seed: Of the Poisson arrivals.
    """

    arrivals: Arrivals = Arrivals.FLAT_OUT
    rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.rate is None) != (self.arrivals is Arrivals.FLAT_OUT):
            raise UsageError(
                f"{self.arrivals.value} arrivals {'need' if self.rate is None else 'take no'} rate"
            )
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0.0):
            raise UsageError(f"the rate is {self.rate}", hint="requests per second, above 0, such as 30/s")

    def offsets(self) -> Iterator[float]:
        """Seconds after the start at which each request is due; none are given when flat out."""
        if self.rate is None:
            return
        yield from due_offsets(self.rate, poisson=self.arrivals is Arrivals.POISSON, seed=self.seed)


FLAT_OUT = Load()


@dataclass(frozen=True)
class Driven:
    """What a stretch of load gave.

    Attributes:
        count: Requests finished.
        seconds: From the first start to the last end (at a rate: to the end of the stretch, waiting included).
        latencies_ms: From when each request was due to its end; flat out: its service time.
        services_ms: Of the runs alone.
        late: Requests that started later than they were due by more than a service time.
    """

    count: int
    seconds: float
    latencies_ms: Times
    services_ms: Times
    late: int


def drive(
    engine: Engine,
    feeds: Sequence[Feeds],
    seconds: float,
    load: Load = FLAT_OUT,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    first: int = 0,
) -> Driven:
    """Run an engine for a stretch of time; at least once.

    Args:
        engine: Warmed up.
        feeds: Inputs of one inference each, cycled.
        seconds: Length of the stretch. A request that is due before its end is finished.
        load: When requests come.
        clock: Monotonic seconds.
        sleep: Waits until a request is due.
        first: Where in `feeds` to begin.

    Raises:
        UsageError: There is no input.
        InputError: The engine refuses an input.
    """
    if not feeds:
        raise UsageError("driving an engine takes at least one input")
    latencies, services = TimesRecorder(), TimesRecorder()
    count = late = 0
    add_latency, add_service, room = latencies.append, services.append, EXACT
    offsets = load.offsets()
    start = now = clock()
    while True:
        offset = next(offsets, now - start)
        if count and offset >= seconds:
            break
        # One request at least, within the stretch: at random arrivals the first may be due long after.
        due = start + min(offset, seconds)
        if due > now:
            sleep(due - now)
        began = clock()
        engine.run(feeds[(first + count) % len(feeds)])
        now = clock()
        count += 1
        add_service((now - began) * 1e3)
        add_latency((now - due) * 1e3)
        if count > room:
            room = count + latencies.fold()
            services.fold()
        late += load.rate is not None and began - due > now - began
    if load.rate is not None and now - start < seconds:
        sleep(seconds - (now - start))
        now = clock()
    return Driven(count, now - start, latencies.times(), services.times(), late)
