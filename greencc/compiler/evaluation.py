"""How far many candidate models are from the baseline: built here, run wherever the executor's workers are.

Every error is kept in the cache at once, so an interrupted search goes on where it stopped. One candidate has one
error wherever it is computed: workers load the very model, run the same batches in the same order with the same
packages, and refuse when these differ.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.candidate import MODEL, Compared, Error, ErrorHere, Refused
from greencc.compiler.session import Deadline, Session
from greencc.compiler.slices import Slice, stored
from greencc.core.cache import Cache, cache_key
from greencc.core.engine import Target
from greencc.core.errors import GreenccError, UnavailableError, UsageError
from greencc.core.files import translated_os_errors
from greencc.core.model import save_model
from greencc.core.progress import Progress, silent
from greencc.execution import Blob, Demand, Executor, Task, Work
from greencc.verify.metrics import Close, Metric, parse_metric

_KIND = "sensitivity"
# Changes when an error would come out differently: old ones must not be found then.
_VERSION = 1
# All take about as long: the candidates are one model.
_DEMAND = Demand()
# What no candidate is to blame for: the others would fail alike.
_EVERYONES = (UnavailableError, UsageError)


@dataclass(frozen=True)
class Job:
    """A candidate.

    Attributes:
        key: What, for the cache, stands for the model: texts, and lists of them.
        build: Makes it; called only when its error is not known.
        label: What messages call it.
    """

    key: tuple[str | list[str], ...]
    build: Callable[[], ir.Model]
    label: str = "a candidate"


@dataclass(frozen=True)
class Evaluated:
    """What became of a candidate; neither where the deadline left no time.

    Attributes:
        error: Its divergence.
        problem: Why it has none.
    """

    error: float | None = None
    problem: GreenccError | None = None


@dataclass(frozen=True)
class Evaluator:
    """Errors of candidates, on slices of held-out samples.

    Attributes:
        target: Whose engines run the candidates.
        metric: What decides; see `divergence`. A metric of the user's only says that outputs are compared as they are:
            its function is not called, so workers need not have it.
        cache: Keeps the errors.
        executor: Runs the evaluations.
        scratch: Where models on their way to workers lie: no more than twice the workers at a time.
    """

    target: Target
    metric: Metric
    cache: Cache
    executor: Executor
    scratch: Path

    @classmethod
    def of(cls, session: Session) -> Evaluator:
        """The evaluator of a compile."""
        metric = parse_metric(session.options.metric)
        return cls(session.target, metric, session.cache, session.executor, session.scratch)

    def errors(
        self,
        jobs: Sequence[Job],
        on: Slice,
        deadline: Deadline | None = None,
        progress: Progress = silent,
        label: str = "Evaluating",
    ) -> list[float | None]:
        """The divergence of each candidate, in order; None for those the deadline left no time for.

        Raises:
            GreenccError: A candidate cannot be built or run, or its workers were lost again and again.
        """
        return [one.error for one in self._run(jobs, on, deadline, progress, label, (GreenccError,))]

    def each(
        self,
        jobs: Sequence[Job],
        on: Slice,
        deadline: Deadline | None = None,
        progress: Progress = silent,
        label: str = "Evaluating",
    ) -> list[Evaluated]:
        """As `errors`, but a candidate that cannot be built or run keeps that to itself: the others have their errors.

        Raises:
            UnavailableError: Something is missing here, or workers were lost again and again.
            UsageError: The options fit no candidate.
        """
        return self._run(jobs, on, deadline, progress, label, _EVERYONES)

    def _run(
        self,
        jobs: Sequence[Job],
        on: Slice,
        deadline: Deadline | None,
        progress: Progress,
        label: str,
        fatal: tuple[type[GreenccError], ...],
    ) -> list[Evaluated]:
        """What became of each; raises errors that are `fatal`."""
        versions = self.target.versions()
        metric = repr(self.metric) if isinstance(self.metric, Compared) else f"user:{self.metric.name}"
        keys = [cache_key(_VERSION, *job.key, on.digest, metric, versions) for job in jobs]
        data = None if self.executor.here else stored(on, self.scratch)
        works = [
            Work(_KIND, key, job.label, lambda _, job=job: self._task(job, on, data), _DEMAND)  # type: ignore[misc]
            for job, key in zip(jobs, keys, strict=True)
        ]
        found: dict[str, Evaluated] = {}
        stop = (lambda: deadline.over) if deadline is not None else (lambda: False)
        outcomes = self.executor.run(works, self.cache, stop)
        for outcome in progress(outcomes, label=label, total=len(set(keys))):
            if isinstance(outcome.task, Error):
                shutil.rmtree(outcome.task.model.folder, ignore_errors=True)
            if isinstance(outcome.error, fatal):
                raise outcome.error
            error = None if outcome.arrays is None else float(outcome.arrays["error"])
            found[keys[outcome.index]] = Evaluated(error, outcome.error)
        return [found.get(key, Evaluated()) for key in keys]

    def _task(self, job: Job, on: Slice, data: Blob | None) -> Task:
        try:
            model = job.build()
        except _EVERYONES:
            raise
        except GreenccError as error:
            return Refused(error)
        metric = self.metric if isinstance(self.metric, Compared) else Close()
        if data is None:
            return ErrorHere(model, on, self.target, metric)
        folder = Path(tempfile.mkdtemp(prefix="candidate-", dir=self.scratch))
        with translated_os_errors(folder / MODEL):
            save_model(model, folder / MODEL)
        target = self.target.with_threads(self.executor.threads)
        return Error(Blob.of(folder), data, target, metric, tuple(sorted(self.target.versions().items())))
