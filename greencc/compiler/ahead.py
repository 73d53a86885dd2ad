"""A candidate's outputs on many samples, computed by the session's workers while the driver compares them.

`compare` reads data and runs the candidate batch by batch. `Ahead` is both for it: the data, which it reads once for
the workers and for the comparison, and the candidate, whose outputs it has when they are asked for. So what is
compared, how, and in which order is what it is without workers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from greencc.compiler.session import Session
from greencc.compiler.shard_tasks import RunShard, outputs_of
from greencc.compiler.shards import in_order, stored_runs
from greencc.core.cache import Cache, cache_key
from greencc.core.data import Array, Batch, DataSource, Feeds, TensorSpec, feeds_key
from greencc.core.engine import Engine, Target
from greencc.execution import Blob, Task, Work
from greencc.verify.streaming import padded

_KIND = "outputs"
_VERSION = 1
# Samples of a shard at most, and bytes of their inputs: a few shards are in memory at a time.
_SAMPLES, _BYTES = 64, 32 << 20
# Fewer runs than this end before a worker has loaded the model.
_FEWEST_RUNS = 4
# Outputs of all samples up to this size are kept, shard by shard, until they are judged.
_KEPT_BYTES = 64 << 20


@dataclass
class Ahead:
    """See the module. An `Engine` and a `DataSource` at once, for one comparison after another.

    Attributes:
        session: Gives the workers, and the cache.
        engine: The candidate, opened in this process.
        data: The samples.
        main: Its main file, which lies in a folder of its own.
        target: What it was built for.
        key: What the result of the comparison depends on; None: results of shards are kept in memory, and not for long.
    """

    session: Session
    engine: Engine
    data: DataSource
    main: Path
    target: Target
    key: str | None
    _pass: _Pass | None = None
    _kept: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self.engine.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self.engine.outputs

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def count(self) -> int:
        return self.data.count

    @property
    def has_labels(self) -> bool:
        return self.data.has_labels

    @property
    def synthetic(self) -> bool:
        return self.data.synthetic

    def digest(self) -> str:
        return self.data.digest()

    def batches(self, size: int) -> Iterator[Batch]:
        """See `DataSource.batches`; the runs that follow are of these batches, in their order."""
        self.close()
        self._pass = _Pass(self, size)
        return self._pass.batches()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs for the batch that was yielded last."""
        if self._pass is None or outputs is not None:
            return self.engine.run(feeds, outputs)
        return self._pass.outputs(feeds)

    def close(self) -> None:
        """End what workers still do for it; the engine stays open."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None

    def forget(self) -> None:
        """The result of the comparison is kept: the outputs are of no more use."""
        for key in self._kept:
            self.session.cache.remove(_KIND, key)
        self._kept.clear()


class _Pass:
    """One pass over the data in batches of one size.

    The first run is the engine's in this process: it shows whether samples can be batched at all, how large they
    are, and what comes out. From the second on workers run shards.
    """

    def __init__(self, owner: Ahead, size: int) -> None:
        self._owner = owner
        self._size = size
        self._items = owner.data.batches(size)
        self._runs = math.ceil(owner.data.count / size)
        self._fixed = next((spec.batch for spec in owner.inputs if spec.batch is not None), None)
        # Shards that were read, by their number; each holds `_each` runs.
        self._read: dict[int, list[Batch]] = {}
        self._next = 0
        self._each = 0
        self._now: tuple[int, Batch] | None = None
        self._stream: Generator[dict[str, Array], None, None] | None = None
        self._found: Sequence[dict[str, Array]] = ()
        self._cache = Cache()
        self._keys: list[str] = []
        self._example: dict[str, Array] = {}

    def batches(self) -> Iterator[Batch]:
        first = next(self._items, None)
        if first is None:
            return
        size = sum(value.nbytes for value in first.feeds.values())
        self._each = max(1, min(_SAMPLES // self._size, _BYTES // max(size, 1)))
        self._now = 0, first
        yield first
        shard, number = 0, 1
        while items := self._shard(shard):
            for item in items:
                self._now = number, item
                yield item
                number += 1
            del self._read[shard]
            shard += 1

    def outputs(self, feeds: Feeds) -> dict[str, Array]:
        """What workers found for the present batch, or this process where they do not run it."""
        assert self._now is not None
        number, item = self._now
        own = {name: value[: item.count] for name, value in feeds.items()}
        if feeds is not item.feeds and feeds_key(own) != feeds_key(item.feeds):
            raise RuntimeError("the runs are not those of the batches")
        if number == 0:
            self._example = self._owner.engine.run(feeds)
            return self._example
        if number == 1 and self._runs >= _FEWEST_RUNS and self._can_travel():
            self._stream = self._start()
        if self._stream is None:
            return self._owner.engine.run(feeds)
        shard, inside = divmod(number - 1, self._each)
        if inside == 0:
            self._found = outputs_of(next(self._stream))
            if self._cache is not self._owner.session.cache:
                self._cache.remove(_KIND, self._keys[shard])
        return self._found[inside]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _shard(self, shard: int) -> list[Batch]:
        """The batches of a shard; workers are ahead of who compares, so most were read for them."""
        while shard >= self._next:
            found = [item for _, item in zip(range(self._each), self._items, strict=False)]
            self._read[self._next] = found
            self._next += 1
        return self._read[shard]

    def _can_travel(self) -> bool:
        """Whether there are workers, and what comes out is plain numbers."""
        plain = all(value.dtype.kind in "biuf" for value in self._example.values())
        return plain and self._owner.session.free_workers > 1

    def _small(self) -> bool:
        """Whether all outputs together are worth a place in the cache."""
        return self._runs * sum(value.nbytes for value in self._example.values()) <= _KEPT_BYTES

    def _start(self) -> Generator[dict[str, Array], None, None]:
        owner, session = self._owner, self._owner.session
        artifact = Blob.of(owner.main.parent)
        target = owner.target.beside()
        facts = tuple(sorted(owner.target.versions().items()))
        count = math.ceil((self._runs - 1) / self._each)
        base = (_VERSION, owner.key, artifact.digest, repr(target), self._size, self._each)
        self._keys = [cache_key(*base, shard) for shard in range(count)]
        if owner.key is not None and session.cache.folder is not None and self._small():
            self._cache = session.cache
            owner._kept.update(self._keys)

        def make(shard: int) -> Task:
            runs = [self._padded(item) for item in self._shard(shard)]
            return RunShard(artifact, owner.main.name, stored_runs(runs, session.scratch), target, facts)

        works = [
            Work(_KIND, key, f"outputs of shard {shard}", lambda _, shard=shard: make(shard))  # type: ignore[misc]
            for shard, key in enumerate(self._keys)
        ]
        return in_order(session.executor.run(works, self._cache))

    def _padded(self, item: Batch) -> Feeds:
        return padded(item.feeds, (self._fixed or item.count) - item.count)
