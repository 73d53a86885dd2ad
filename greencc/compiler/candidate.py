"""The tasks of `greencc.compiler.evaluation`, apart from what builds candidates: workers import this alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from greencc.compiler.slices import Slice, restored
from greencc.core.data import Array, Feeds
from greencc.core.engine import Target
from greencc.core.errors import GreenccError, UnavailableError
from greencc.core.model import load_model
from greencc.execution import Blob, Files, Task
from greencc.verify.divergence import divergence
from greencc.verify.metrics import Auto, Close, TopOne

MODEL = "model.onnx"
Compared = Auto | TopOne | Close


@dataclass(frozen=True)
class Refused(Task):
    """A candidate that could not be built: it ends as one that cannot run, and the others go on."""

    error: GreenccError

    def run(self, files: Files) -> dict[str, Array]:
        raise self.error


@dataclass(frozen=True)
class ErrorHere(Task):
    """The error of a model in this process."""

    model: ir.Model
    on: Slice
    target: Target
    metric: Compared

    def run(self, files: Files) -> dict[str, Array]:
        return _error(self.target, self.model, self.on.feeds, self.on.outputs, self.metric)


@dataclass(frozen=True)
class Error(Task):
    """The error of a model that lies in a file, in any process.

    Attributes:
        model: A folder with `MODEL`.
        data: A stored slice.
        target: Whose engine runs the model.
        metric: What decides; see `divergence`.
        versions: Of the driver's packages: the worker must have the same.
    """

    model: Blob
    data: Blob
    target: Target
    metric: Compared
    versions: tuple[tuple[str, str], ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (self.model, self.data)

    def run(self, files: Files) -> dict[str, Array]:
        check_versions(dict(self.versions), self.target.versions())
        feeds, outputs = _slice(files(self.data))
        return _error(self.target, load_model(files(self.model) / MODEL), feeds, outputs, self.metric)


def check_versions(wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
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
    """A table has two slices; their folders are named by their content."""
    return restored(folder)


def _error(
    target: Target,
    model: ir.Model,
    feeds: Iterable[Feeds],
    reference: Sequence[Mapping[str, Array]],
    metric: Compared,
) -> dict[str, Array]:
    engine = target.calibration_engine(model)
    try:
        return {"error": np.asarray(divergence(reference, [engine.run(item) for item in feeds], metric))}
    finally:
        engine.close()
