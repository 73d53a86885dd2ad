"""Which task runs where: list scheduling, a pure data structure that executors and the simulation share.

A *place* runs one task at a time: a worker, for tasks that run anywhere, or a measured device, for tasks that name it.
Whenever a place is free, the longest task that may run there starts (longest processing time first; Graham, "Bounds on
multiprocessing timing anomalies", 1969: with equal places never more than 4/3 of the best schedule). Among equally long
ones a task goes to the place that ran its like before, whose files are there already; then the first comes first.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a task needs.

    Attributes:
        cost: How long it takes, in any unit, compared with the others.
        devices: The measured devices it may run on, alone; empty: any worker.
        affinity: Tasks with the same text have files in common.
    """

    cost: float = 1.0
    devices: tuple[str, ...] = ()
    affinity: str | None = None

    def __post_init__(self) -> None:
        if not self.cost >= 0.0:
            raise ValueError(f"a cost of {self.cost}")


@dataclass(frozen=True)
class Place:
    """Something that runs one task at a time; `device` is None for a worker."""

    name: str
    device: str | None = None


@dataclass(frozen=True)
class Start:
    """Task number `index` is to run at a place."""

    index: int
    place: Place


class _Queue:
    """Tasks that may run at the same places, the longest first."""

    def __init__(self) -> None:
        self._all: list[tuple[float, int]] = []
        self._like: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)

    def add(self, index: int, demand: Demand) -> None:
        entry = (-demand.cost, index)
        heapq.heappush(self._all, entry)
        if demand.affinity is not None:
            heapq.heappush(self._like[demand.affinity], entry)

    def first(self, waiting: set[int], affinity: str | None = None) -> tuple[float, int] | None:
        """The longest of those still waiting, of one affinity if that costs nothing; it stays in the queue."""
        longest = _first(self._all, waiting)
        if longest is None or affinity is None or affinity not in self._like:
            return longest
        like = _first(self._like[affinity], waiting)
        return like if like is not None and like[0] == longest[0] else longest


def _first(heap: list[tuple[float, int]], waiting: set[int]) -> tuple[float, int] | None:
    while heap and heap[0][1] not in waiting:
        heapq.heappop(heap)
    return heap[0] if heap else None


class Scheduler:
    """Assigns tasks to places; see the module.

    Args:
        demands: One per task; tasks are known by their index.
        workers: How many places there are for tasks that name no device, at least 1.
    """

    def __init__(self, demands: Sequence[Demand], workers: int) -> None:
        if workers < 1:
            raise ValueError(f"{workers} workers")
        self._demands = demands
        self._waiting: set[int] = set()
        self._running: dict[Place, int] = {}
        self._last: dict[Place, str | None] = {}
        self._queues: dict[tuple[str, ...], _Queue] = {}
        classes: defaultdict[Place, list[tuple[str, ...]]] = defaultdict(list)
        for demand in demands:
            if demand.devices not in self._queues:
                self._queues[demand.devices] = _Queue()
                for place in _places(demand.devices, workers):
                    classes[place].append(demand.devices)
        # A device that fewer kinds of tasks may run on goes first: it is missed less.
        self._rank = {
            place: (len(found), position) for position, (place, found) in enumerate(classes.items())
        }
        self._classes = classes
        self._places = list(classes)
        self._free: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._idle: set[Place] = set()
        for place in self._places:
            self.restore(place)
        for index in range(len(demands)):
            self._wait(index)

    @property
    def places(self) -> Sequence[Place]:
        return self._places

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return bool(self._running)

    @property
    def waiting(self) -> int:
        """How many tasks have not started."""
        return len(self._waiting)

    def next(self) -> Start | None:
        """Start a task, or None when nothing can start now."""
        best: tuple[float, int, Place] | None = None
        for devices, queue in self._queues.items():
            place = self._free_place(devices)
            if place is None:
                continue
            found = queue.first(self._waiting, self._last.get(place))
            if found is not None and (best is None or found < best[:2]):
                best = (*found, place)
        if best is None:
            return None
        _, index, place = best
        self._waiting.remove(index)
        self._idle.remove(place)
        self._running[place] = index
        self._last[place] = self._demands[index].affinity
        return Start(index, place)

    def waits(self, index: int) -> bool:
        """Whether a task has not started."""
        return index in self._waiting

    def at(self, place: Place) -> int:
        """The task that runs at a place."""
        return self._running[place]

    def done(self, place: Place) -> int:
        """The task at a place has ended, well or for good; its index."""
        index = self._running.pop(place)
        self.restore(place)
        return index

    def lost(self, place: Place, *, usable: bool = True) -> int:
        """The task at a place got lost and waits again; its index. The place runs tasks again now, or not yet."""
        index = self._running.pop(place)
        self._wait(index)
        if usable:
            self.restore(place)
        return index

    def restore(self, place: Place) -> None:
        """A place can run tasks (again)."""
        self._idle.add(place)
        for devices in self._classes[place]:
            heapq.heappush(self._free[devices], self._rank[place])

    def give_up(self) -> None:
        """Forget what has not started."""
        self._waiting.clear()

    def _wait(self, index: int) -> None:
        self._waiting.add(index)
        self._queues[self._demands[index].devices].add(index, self._demands[index])

    def _free_place(self, devices: tuple[str, ...]) -> Place | None:
        heap = self._free[devices]
        while heap:
            place = self._places[heap[0][1]]
            if place in self._idle:
                return place
            heapq.heappop(heap)
        return None


def _places(devices: tuple[str, ...], workers: int) -> list[Place]:
    if devices:
        return [Place(f"device {device}", device) for device in devices]
    return [Place(f"worker {number}") for number in range(1, workers + 1)]
