"""Shards of the calibration data on the session's workers (`greencc.core.shards`).

Each result is in the cache as soon as a worker has it, so that a driver that was killed finds what was finished.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from greencc.compiler.candidate import MODEL
from greencc.compiler.session import Session
from greencc.compiler.shard_tasks import ObserveShard
from greencc.compiler.slices import Slice, stored
from greencc.core.cache import cache_key
from greencc.core.data import Array, Feeds
from greencc.core.files import translated_os_errors
from greencc.core.model import save_model
from greencc.core.shards import Shard
from greencc.execution import Blob, Outcome, Task, Work

_KIND = "statistics-shard"


@dataclass(frozen=True)
class WorkerShards:
    """Runs shards on the workers of a session; a `greencc.core.shards.ShardObserver`."""

    session: Session

    @property
    def ready(self) -> bool:
        """Whether there are workers, and no evaluation has them now."""
        return self.session.free_workers > 0

    def observe(
        self, model: ir.Model, ends: Sequence[str], counted: Sequence[str], shards: Sequence[Shard]
    ) -> Generator[dict[str, Array], None, None]:
        """See `ShardObserver.observe`."""
        session = self.session
        target = session.target.beside()
        versions = tuple(sorted(session.target.versions().items()))
        folder = Path(tempfile.mkdtemp(prefix="observed-", dir=session.scratch))
        with translated_os_errors(folder / MODEL):
            save_model(model, folder / MODEL)
        blob = Blob.of(folder)

        def make(shard: Shard) -> Task:
            data = stored_runs(shard.runs(), session.scratch)
            return ObserveShard(blob, data, tuple(ends), tuple(counted), target, versions)

        works = [
            Work(_KIND, key, f"shard {index} of the calibration", lambda _, shard=shard: make(shard))  # type: ignore[misc]
            for index, (shard, key) in enumerate(zip(shards, self._keys(shards), strict=True))
        ]
        try:
            with closing(in_order(session.executor.run(works, session.cache))) as found:
                yield from found
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def forget(self, shards: Sequence[Shard]) -> None:
        """See `ShardObserver.forget`."""
        for key in self._keys(shards):
            self.session.cache.remove(_KIND, key)

    def _keys(self, shards: Sequence[Shard]) -> list[str]:
        if not shards:
            return []
        target = self.session.target
        facts = (repr(target.beside()), target.versions())
        return [cache_key(shard.key, *facts) for shard in shards]


def stored_runs(runs: Sequence[Feeds], scratch: Path) -> Blob:
    """Feeds of runs as a blob of their own; `in_order` removes it."""
    folder = Path(tempfile.mkdtemp(prefix="shard-", dir=scratch))
    return stored(Slice(tuple(runs), tuple({} for _ in runs), ""), folder, shared=False)


def in_order(outcomes: Iterator[Outcome]) -> Generator[dict[str, Array], None, None]:
    """The arrays of works in the order of the works; the data they came with is removed.

    Raises:
        GreenccError: A work failed.
    """
    early: dict[int, dict[str, Array]] = {}
    wanted = 0
    try:
        for outcome in outcomes:
            if outcome.task is not None:
                shutil.rmtree(outcome.task.blobs[-1].folder.parent, ignore_errors=True)
            if outcome.error is not None:
                raise outcome.error
            assert outcome.arrays is not None
            early[outcome.index] = outcome.arrays
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1
    finally:
        # What the workers still run is of no use to anyone who stops here.
        if isinstance(outcomes, Generator):
            outcomes.close()
