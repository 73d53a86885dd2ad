"""Tunes the kernels of a model within a time: what is slow and what still improves comes first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from greencc.core.errors import UsageError
from greencc.core.progress import Progress
from greencc.core.tuning import TuningReport
from greencc.targets._tvm.contest import Contest, wall_clock
from greencc.targets._tvm.database import Database, default_path
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.labels import label_of
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.records import place_of
from greencc.targets._tvm.schedules import DefaultSchedules, Schedules, TemplateOf
from greencc.targets._tvm.trials import Bench, TrialProcess
from greencc.targets._tvm.workload import (
    Workload,
    key_of,
)

_RESUMES = "what was tuned is kept, and the next run goes on from there"


@dataclass(frozen=True)
class Clocks:
    """Monotonic seconds, and seconds since 1970; tests replace them."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = wall_clock


@dataclass
class Tuner:
    """Tunes workloads, one slice of a contest at a time (`greencc.targets._tvm.contest`).

    Attributes:
        template_of: The templates.
        machine: Where the kernels run: this one.
        threads: That they run with.
        database: What is known, and where findings are kept after every slice.
        bench: Where candidates are tried.
        clocks: The time.
    """

    template_of: TemplateOf
    machine: Machine
    threads: int
    database: Database
    bench: Bench
    clocks: Clocks = field(default_factory=Clocks)

    def tune(self, counts: Mapping[Workload, int], seconds: float, progress: Progress) -> TuningReport:
        """Tune workloads for about so many seconds.

        Args:
            counts: How many nodes of the model have each workload.
            seconds: The last step may end a little later.
            progress: Shows the slices.

        Raises:
            KeyboardInterrupt: With a note that what was found is kept.
        """
        started = self.clocks.monotonic()
        deadline = started + seconds
        contests = self._contests(counts)
        try:
            self._begin([each for each in contests if each.record is None], deadline, progress)
            left = sum(each.slices for each in contests if each.record is not None)
            if left:
                for contest in progress(self._turns(contests, deadline), label="Tuning", total=left):
                    record = contest.slice(self.bench, deadline, self.clocks.monotonic, self.clocks.wall)
                    self.database.put([record])
        except KeyboardInterrupt as error:
            error.add_note(_RESUMES)
            raise
        return _report(contests, self.clocks.monotonic() - started)

    def _contests(self, counts: Mapping[Workload, int]) -> list[Contest]:
        place = place_of(self.machine, self.threads)
        by_key: dict[str, Contest] = {}
        for workload, count in counts.items():
            key = key_of(workload)
            if key in by_key:
                by_key[key].count += count
                continue
            template = self.template_of(workload)
            space: Sequence[Schedule] = tuple(
                dict.fromkeys(
                    (template.default(workload, self.machine), *template.space(workload, self.machine))
                )
            )
            record = self.database.get(key, place)
            if record is not None and (record.default != space[0] or record.best not in space):
                record = None
            by_key[key] = Contest(workload, label_of(workload), count, space, place, record)
        return list(by_key.values())

    def _begin(self, contests: Sequence[Contest], deadline: float, progress: Progress) -> None:
        """Measure defaults: which workloads take the model's time."""
        found = []
        for contest in progress(contests, label="Timing kernels", total=len(contests)):
            if self.clocks.monotonic() >= deadline:
                break
            record = contest.begin(self.bench, self.clocks.wall())
            if record is not None:
                found.append(record)
        self.database.put(found)

    def _turns(self, contests: Sequence[Contest], deadline: float) -> Iterator[Contest]:
        """The most promising contest, again and again; of equals the first."""
        while self.clocks.monotonic() < deadline:
            ready = [each for each in contests if each.open and each.record is not None]
            if not ready:
                return
            yield max(ready, key=lambda each: each.promise)


def tune_model(
    lower: Callable[[Schedules], Any],
    machine: Machine,
    threads: int,
    seconds: float,
    progress: Progress,
) -> TuningReport:
    """Tune the kernels that a model is lowered to, into the database of this user.

    Args:
        lower: Lowers the model; asks for the schedule of every kernel once for each node.
        machine: This one.
        threads: Of the kernels.
        seconds: To spend.
        progress: Shows how far it is.

    Raises:
        UsageError: There is no place to keep what is found.
        InputError: That place cannot be written: measuring would be for nothing.
    """
    path = default_path()
    if path is None:
        raise UsageError(
            "tuned schedules have no place to be kept: $GREENCC_CACHE is set to nothing",
            hint="unset it, or name a folder",
        )
    warnings: list[str] = []
    database = Database(path, warnings.append)
    database.check()
    asked = DefaultSchedules()
    lower(asked)
    counts: dict[Workload, int] = {}
    for workload in asked.asked:
        counts[workload] = counts.get(workload, 0) + 1
    bench = TrialProcess(machine, threads)
    try:
        tuner = Tuner(template_of, machine, threads, database, bench)
        return replace(tuner.tune(counts, seconds, progress), warnings=tuple(warnings))
    finally:
        bench.close()


def _report(contests: Sequence[Contest], seconds: float) -> TuningReport:
    records = [(each.count, each.record) for each in contests if each.record is not None]
    return TuningReport(
        seconds=seconds,
        kernels=len(contests),
        trials=sum(each.trials for each in contests),
        complete=sum(not each.fresh for each in contests if each.record is not None),
        faster=sum(record.gain.low > 1.0 for _, record in records),
        default_us=sum(count * record.best_us.value * record.gain.value for count, record in records),
        tuned_us=sum(count * record.best_us.value for count, record in records),
        failed=tuple(text for each in contests for text in each.failed),
    )
