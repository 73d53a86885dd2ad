"""Tasks that run a model on a few samples, for `shards` and `ahead`; workers import this alone.

A worker keeps the engine of the last model: the next task is most often about the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from greencc.compiler.candidate import MODEL, check_versions
from greencc.compiler.slices import restored
from greencc.core.data import Array
from greencc.core.engine import Engine, Target
from greencc.core.model import load_model
from greencc.execution import Blob, Files, Task

Versions = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ObserveShard(Task):
    """What is seen inside a model in some runs; see `greencc.passes._shards.observe_shard`.

    Attributes:
        model: A folder with `MODEL`.
        data: A stored slice whose batches are the runs.
        ends: Outputs that are scalars.
        counted: Outputs whose elements are counted.
        target: Whose engine runs the model (`Target.beside`).
        versions: Of the driver's packages: the worker must have the same.
    """

    model: Blob
    data: Blob
    ends: tuple[str, ...]
    counted: tuple[str, ...]
    target: Target
    versions: Versions

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (self.model, self.data)

    def run(self, files: Files) -> dict[str, Array]:
        from greencc.passes._shards import observe_shard

        check_versions(dict(self.versions), self.target.versions())
        runs, _ = restored(files(self.data))
        path = files(self.model) / MODEL
        engine = _observer(self.target, path, self.model.digest, (*self.ends, *self.counted))
        return observe_shard(engine, runs, self.ends, self.counted)


@dataclass(frozen=True)
class RunShard(Task):
    """The outputs of an artifact in some runs; `outputs_of` reads them.

    Attributes:
        artifact: Its folder.
        main: Name of its main file.
        data: A stored slice whose batches are the runs.
        target: Opens it (`Target.beside`).
        versions: Of the driver's packages: the worker must have the same.
    """

    artifact: Blob
    main: str
    data: Blob
    target: Target
    versions: Versions

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return (self.artifact, self.data)

    def run(self, files: Files) -> dict[str, Array]:
        check_versions(dict(self.versions), self.target.versions())
        runs, _ = restored(files(self.data))
        engine = _opened(self.target, files(self.artifact) / self.main, self.artifact.digest)
        found = [engine.run(feeds) for feeds in runs]
        names = list(found[0]) if found else []
        arrays = {
            f"{run}.{position}": outputs[name]
            for run, outputs in enumerate(found)
            for position, name in enumerate(names)
        }
        return {"names": np.array(names, np.str_), "runs": np.array(len(found), np.int64), **arrays}


def outputs_of(found: dict[str, Array]) -> Sequence[dict[str, Array]]:
    """What `RunShard` gives, run by run."""
    names = [str(name) for name in found["names"]]
    return [
        {name: found[f"{run}.{position}"] for position, name in enumerate(names)}
        for run in range(int(found["runs"]))
    ]


@lru_cache(maxsize=1)
def _observer(target: Target, path: Path, digest: str, outputs: tuple[str, ...]) -> Engine:
    """The digest is in the key because another folder may come to have this name."""
    del digest
    return target.calibration_engine(load_model(path), outputs)


@lru_cache(maxsize=1)
def _opened(target: Target, path: Path, digest: str) -> Engine:
    del digest
    return target.open(path)
