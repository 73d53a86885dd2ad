"""The scheduler on a simulated clock: how long a search takes on devices that are not there yet, some of them failing.

Discrete events, nothing is run and nothing is measured.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from greencc.execution.schedule import Demand, Place, Scheduler


@dataclass(frozen=True)
class Faults:
    """How places fail.

    Attributes:
        probability: That an attempt is lost, in [0, 1); some time into it, evenly spread.
        repair: How long the place is out of use after that, in the unit of the costs.
        retries: How often a task is tried again before it is given up.
        seed: Of the random numbers.
    """

    probability: float = 0.0
    repair: float = 0.0
    retries: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0 or self.repair < 0.0 or self.retries < 0:
            raise ValueError(f"no such faults: {self}")


@dataclass(frozen=True)
class Span:
    """One attempt: task `index` was at `place` from `start` to `end`; `lost` when it did not finish."""

    index: int
    place: Place
    start: float
    end: float
    lost: bool


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Attributes:
        makespan: When the last attempt ended.
        bound: No schedule without faults is shorter than this (`lower_bound`).
        spans: All attempts in the order they ended.
        failed: Tasks that were given up.
    """

    makespan: float
    bound: float
    spans: tuple[Span, ...]
    failed: tuple[int, ...]

    @property
    def lost(self) -> int:
        """How many attempts were lost."""
        return sum(span.lost for span in self.spans)


def simulate(demands: Sequence[Demand], workers: int = 1, faults: Faults | None = None) -> Simulation:
    """Run the tasks on a simulated clock; a task takes its cost.

    Args:
        demands: One per task.
        workers: Places for those without a device.
        faults: How places fail; None: never.
    """
    faults = faults or Faults()
    rng = np.random.default_rng(faults.seed)
    scheduler = Scheduler(demands, workers)
    # Time, order of creation, place, and the attempt that ends then; None: the place was repaired.
    events: list[tuple[float, int, Place, Span | None]] = []
    attempts: defaultdict[int, int] = defaultdict(int)
    spans: list[Span] = []
    failed: list[int] = []
    now, created = 0.0, 0

    def add(time: float, place: Place, span: Span | None) -> None:
        nonlocal created
        created += 1
        heapq.heappush(events, (time, created, place, span))

    while True:
        while (start := scheduler.next()) is not None:
            cost = demands[start.index].cost
            lost = bool(rng.random() < faults.probability)
            end = now + (cost * float(rng.random()) if lost else cost)
            attempts[start.index] += 1
            add(end, start.place, Span(start.index, start.place, now, end, lost))
        if not events:
            break
        now, _, place, span = heapq.heappop(events)
        if span is None:
            scheduler.restore(place)
            continue
        spans.append(span)
        if not span.lost:
            scheduler.done(place)
        elif attempts[span.index] > faults.retries:
            failed.append(span.index)
            scheduler.done(place)
        else:
            scheduler.lost(place, usable=False)
            add(now + faults.repair, place, None)
    makespan = max((span.end for span in spans), default=0.0)
    return Simulation(makespan, lower_bound(demands, workers), tuple(spans), tuple(sorted(failed)))


def lower_bound(demands: Sequence[Demand], workers: int) -> float:
    """Time that no schedule beats: the longest task, and the work on any set of places shared out evenly."""
    totals: defaultdict[tuple[str, ...], float] = defaultdict(float)
    longest = 0.0
    for demand in demands:
        totals[demand.devices] += demand.cost
        longest = max(longest, demand.cost)
    bounds = [longest]
    for devices in totals:
        if not devices:
            bounds.append(totals[devices] / workers)
            continue
        inside = set(devices)
        work = sum(cost for other, cost in totals.items() if other and inside.issuperset(other))
        bounds.append(work / len(inside))
    return max(bounds)
