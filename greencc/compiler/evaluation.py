"""How far many candidate models are from the baseline: built here, run wherever the executor's workers are.

Every error is kept in the cache at once, so an interrupted search goes on where it stopped. One candidate has one
error wherever it is computed: workers load the very model, run the same batches in the same order with the same
packages, and refuse when these differ.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.compiler.session import Deadline, Session
from greencc.compiler.slices import Slice, restored, stored
from greencc.core.cache import Cache, cache_key
from greencc.core.data import Array, Feeds
from greencc.core.engine import Target
from greencc.core.errors import UnavailableError
from greencc.core.files import translated_os_errors
from greencc.core.model import load_model, save_model
from greencc.core.progress import Progress, silent
from greencc.execution import Blob, Demand, Executor, Files, Task, Work
from greencc.verify.divergence import divergence
from greencc.verify.metrics import Auto, Close, Metric, TopOne, parse_metric

_KIND = "sensitivity"
# Changes when an error would come out differently: old ones must not be found then.
_VERSION = 1
_MODEL = "model.onnx"


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
        keys = [self._key(job, on) for job in jobs]
        data = None if self.executor.here else stored(on, self.scratch)
        works = [
            Work(_KIND, key, job.label, lambda _, job=job: self._task(job, on, data), _DEMAND)  # type: ignore[misc]
            for job, key in zip(jobs, keys, strict=True)
        ]
        found: dict[str, float] = {}
        stop = (lambda: deadline.over) if deadline is not None else (lambda: False)
        outcomes = self.executor.run(works, self.cache, stop)
        for outcome in progress(outcomes, label=label, total=len(set(keys))):
            if isinstance(outcome.task, _Evaluate):
                shutil.rmtree(outcome.task.model.folder, ignore_errors=True)
            if outcome.error is not None:
                raise outcome.error
            assert outcome.arrays is not None
            found[keys[outcome.index]] = float(outcome.arrays["error"])
        return [found.get(key) for key in keys]

    def _key(self, job: Job, on: Slice) -> str:
        metric = f"user:{self.metric.name}" if not isinstance(self.metric, _OURS) else repr(self.metric)
        return cache_key(_VERSION, *job.key, on.digest, metric, self.target.versions())

    def _task(self, job: Job, on: Slice, data: Blob | None) -> Task:
        model = job.build()
        metric = self.metric if isinstance(self.metric, _OURS) else Close()
        if data is None:
            return _EvaluateHere(model, on, self.target, metric)
        folder = Path(tempfile.mkdtemp(prefix="candidate-", dir=self.scratch))
        with translated_os_errors(folder / _MODEL):
            save_model(model, folder / _MODEL)
        target = self.target.with_threads(self.executor.threads)
        return _Evaluate(Blob.of(folder), data, target, metric, tuple(sorted(self.target.versions().items())))


# All take about as long: the candidates are one model.
_DEMAND = Demand()
_OURS = (Auto, TopOne, Close)
_Compared = Auto | TopOne | Close


@dataclass(frozen=True)
class _EvaluateHere(Task):
    """The error of a model in this process."""

    model: ir.Model
    on: Slice
    target: Target
    metric: _Compared

    def run(self, files: Files) -> dict[str, Array]:
        return _error(self.target, self.model, self.on.feeds, self.on.outputs, self.metric)


@dataclass(frozen=True)
class _Evaluate(Task):
    """The error of a model that lies in a file, in any process.

    `versions` are those of the driver's packages.
    """

    model: Blob
    data: Blob
    target: Target
    metric: _Compared
    versions: tuple[tuple[str, str], ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (self.model, self.data)

    def run(self, files: Files) -> dict[str, Array]:
        check_versions(dict(self.versions), self.target.versions())
        feeds, outputs = _slice(files(self.data))
        return _error(self.target, load_model(files(self.model) / _MODEL), feeds, outputs, self.metric)


def check_versions(wanted: dict[str, str], found: dict[str, str]) -> None:
    """Refuse a worker whose packages would give other results.

    Raises:
        UnavailableError: They differ; the message names them.
    """
    other = [
        f"{name} {found.get(name, 'missing')}, not {version}"
        for name, version in wanted.items()
        if found.get(name) != version
    ]
    if other:
        raise UnavailableError(
            f"a worker has {'; '.join(other)}",
            hint="install the same packages on all machines of the cluster",
        )


@lru_cache(maxsize=2)
def _slice(folder: Path) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Both phases of a table alternate between few slices; their folders are named by their content."""
    return restored(folder)


def _error(
    target: Target,
    model: ir.Model,
    feeds: Iterable[Feeds],
    reference: Sequence[dict[str, Array]],
    metric: Metric,
) -> dict[str, Array]:
    engine = target.calibration_engine(model)
    try:
        return {"error": np.asarray(divergence(reference, [engine.run(item) for item in feeds], metric))}
    finally:
        engine.close()
