"""Executors: run works, keep every result at once, survive the loss of workers.

One thread per place waits for its worker, so that a result is in the cache as soon as it is there, whatever the driver
does at the time; the driver meanwhile makes the next tasks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from greencc.core.cache import Cache
from greencc.core.data import Array
from greencc.core.errors import GreenccError, UnavailableError
from greencc.execution.local import ProcessWorker, files_here
from greencc.execution.schedule import Place, Scheduler
from greencc.execution.task import Outcome, Task, Work
from greencc.execution.transport import Worker, WorkerLostError

RETRIES = 2
Stop = Callable[[], bool]


def never() -> bool:
    """A `Stop` that does not."""
    return False


class Executor(Protocol):
    """Runs works.

    Attributes:
        workers: How many tasks without a device run at once.
        threads: What each of them may compute with.
        here: Whether tasks run in this process, where they may hold what cannot travel.
        busy: Whether a `run` goes on. Workers run one task at a time: what is made for them runs in this process
            meanwhile.
    """

    @property
    def workers(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def here(self) -> bool: ...

    @property
    def busy(self) -> bool: ...

    def run(self, works: Sequence[Work], cache: Cache, stop: Stop = never) -> Iterator[Outcome]:
        """Yield what becomes of the works, as they finish; results are in the cache by then.

        What the cache has is not run again. Works with the same kind and key are run once, and come as the first of
        them. After `stop` is true nothing more is started: what has not started has no outcome.

        Raises:
            WorkerBugError: A task failed in a way it should not.
        """

    def close(self) -> None:
        """End all workers."""


def _known(works: Sequence[Work], cache: Cache) -> tuple[list[Outcome], list[int]]:
    """What the cache has, and the indices of what it has not, each key once."""
    found: list[Outcome] = []
    wanted: dict[tuple[str, str], int] = {}
    for index, work in enumerate(works):
        name = (work.kind, work.key)
        if name in wanted:
            continue
        arrays = cache.get(*name)
        if arrays is None:
            wanted[name] = index
        else:
            found.append(Outcome(index, arrays))
    return found, list(wanted.values())


@dataclass(frozen=True)
class InProcess:
    """Runs works one by one in this process, in their order."""

    threads: int
    workers: int = 1
    here: bool = True
    busy: bool = False

    def run(self, works: Sequence[Work], cache: Cache, stop: Stop = never) -> Iterator[Outcome]:
        """See `Executor.run`."""
        found, missing = _known(works, cache)
        yield from found
        for index in missing:
            if stop():
                return
            work = works[index]
            task = work.make(work.demand.devices[0] if work.demand.devices else None)
            try:
                arrays = task.run(files_here)
            except GreenccError as error:
                yield Outcome(index, None, error, task)
                continue
            cache.put(work.kind, work.key, arrays)
            yield Outcome(index, arrays, None, task)

    def close(self) -> None:
        """There is nothing to end."""


@dataclass(frozen=True)
class _Event:
    """A worker has ended an attempt: with arrays, or with what it raised."""

    place: Place
    arrays: dict[str, Array] | None = None
    raised: BaseException | None = None


class Pool(ABC):
    """An executor whose tasks run in workers, one for each place; subclasses make the workers."""

    here = False

    def __init__(self, workers: int, threads: int) -> None:
        self.workers = workers
        self.threads = threads
        self._runs = 0
        self._hired: dict[Place, Worker] = {}

    @property
    def busy(self) -> bool:
        """Whether a run goes on."""
        return self._runs > 0

    @abstractmethod
    def hire(self, place: Place) -> Worker:
        """A worker for a place."""

    def release(self, worker: Worker) -> None:
        """Free what is left of a worker that was closed, when no thread waits for it."""

    def close(self) -> None:
        """End all workers, and what they need."""
        self.dismiss()

    def dismiss(self) -> None:
        """End all workers; the next task gets new ones."""
        self._dismiss(list(self._hired))

    def run(self, works: Sequence[Work], cache: Cache, stop: Stop = never) -> Iterator[Outcome]:
        """See `Executor.run`."""
        found, missing = _known(works, cache)
        yield from found
        if not missing:
            return
        self._runs += 1
        try:
            yield from _Run(self, [works[index] for index in missing], missing, cache, stop).outcomes()
        finally:
            self._runs -= 1

    def attempt(self, place: Place, work: Work, task: Task, cache: Cache) -> _Event:
        """Run a task at a place and keep what it gives; in the place's thread."""
        try:
            if place not in self._hired:
                self._hired[place] = self.hire(place)
            arrays = self._hired[place].run(task)
            cache.put(work.kind, work.key, arrays)
        except BaseException as error:  # noqa: BLE001 - it is raised, or told, in the driver's thread
            return _Event(place, raised=error)
        return _Event(place, arrays)

    def interrupt(self, places: Iterable[Place]) -> None:
        """End the workers of some places, whose threads may still wait for them."""
        for place in places:
            if (worker := self._hired.get(place)) is not None:
                worker.close()

    def replace(self, place: Place) -> None:
        """The worker of a place is lost: the next task gets another."""
        self._dismiss([place])

    def _dismiss(self, places: Sequence[Place]) -> None:
        gone = [self._hired.pop(place) for place in places if place in self._hired]
        for worker in gone:
            worker.close()
        for worker in gone:
            self.release(worker)


class _Run:
    """The state of one `Pool.run`."""

    def __init__(
        self, pool: Pool, works: Sequence[Work], indices: Sequence[int], cache: Cache, stop: Stop
    ) -> None:
        self._pool, self._works, self._indices = pool, works, indices
        self._cache, self._stop = cache, stop
        self._scheduler = Scheduler([work.demand for work in works], pool.workers)
        self._order = deque(
            sorted(
                (index for index, work in enumerate(works) if not work.demand.devices),
                key=lambda index: (-works[index].demand.cost, index),
            )
        )
        self._made: dict[int, Task] = {}
        self._lost = [0] * len(works)
        self._running: set[Place] = set()
        self._events: SimpleQueue[_Event] = SimpleQueue()

    def outcomes(self) -> Iterator[Outcome]:
        threads = ThreadPoolExecutor(len(self._scheduler.places), thread_name_prefix="greencc-place")
        try:
            while True:
                if self._stop():
                    self._scheduler.give_up()
                if self._start(threads):
                    continue
                if not self._running:
                    return
                if self._events.empty() and self._make_ahead():
                    continue
                yield from self._end(self._events.get())
        finally:
            # Only after an error, or when the caller stops listening: what still runs is of no use.
            self._pool.interrupt(self._running)
            threads.shutdown()
            for place in self._running:
                self._pool.replace(place)

    def _start(self, threads: ThreadPoolExecutor) -> bool:
        """Start one task, if one can."""
        start = self._scheduler.next()
        if start is None:
            return False
        work = self._works[start.index]
        task = self._made.get(start.index)
        if task is None:
            task = self._made[start.index] = work.make(start.place.device)
        self._running.add(start.place)
        future = threads.submit(self._pool.attempt, start.place, work, task, self._cache)
        future.add_done_callback(lambda done: self._events.put(done.result()))
        return True

    def _make_ahead(self) -> bool:
        """Make a task that starts soon: no more than there are workers, for each may hold a model on the disk."""
        ready = sum(self._scheduler.waits(index) for index in self._made)
        if ready >= self._pool.workers:
            return False
        while self._order:
            index = self._order.popleft()
            if index not in self._made and self._scheduler.waits(index):
                self._made[index] = self._works[index].make(None)
                return True
        return False

    def _end(self, event: _Event) -> Iterator[Outcome]:
        place, error = event.place, event.raised
        self._running.discard(place)
        if isinstance(error, WorkerLostError):
            self._pool.replace(place)
            index = self._scheduler.at(place)
            self._lost[index] += 1
            if self._lost[index] <= RETRIES:
                self._scheduler.lost(place)
                return
            error = self._gave_up(index, error)
        index = self._scheduler.done(place)
        if error is not None and not isinstance(error, GreenccError):
            raise error
        yield Outcome(self._indices[index], event.arrays, error, self._made.pop(index))

    def _gave_up(self, index: int, error: WorkerLostError) -> GreenccError:
        return UnavailableError(
            f"{self._works[index].label}: given up, {RETRIES + 1} workers got lost with it; the last one {error}",
            hint="it may need more memory than there is: try fewer workers",
        )


class Processes(Pool):
    """Local processes."""

    def hire(self, place: Place) -> Worker:
        """A new process; one that only waits for a device computes with one thread."""
        return ProcessWorker(self.threads if place.device is None else 1)

    def release(self, worker: Worker) -> None:
        """Close the pipes."""
        if isinstance(worker, ProcessWorker):
            worker.release()


def share(cores: int, workers: int) -> int:
    """Threads of each of `workers` workers on `cores` cores."""
    return max(1, math.floor(cores / workers))
