"""The error table: how much each group hurts the outputs when it, and nothing else, is quantized.

Two phases: every group on a small slice of held-out samples; the contenders, which carry most of the error, again on a
larger slice and also the other way round, as the only group left in float, which shows what it does among the
others. Rows are kept in the cache one by one, so an interrupted table goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx_ir as ir

from greencc.compiler.groups import Group
from greencc.compiler.session import Deadline
from greencc.core.cache import Cache, cache_key
from greencc.core.capabilities import Capabilities
from greencc.core.data import Array, DataSource, Feeds
from greencc.core.engine import Engine, Target
from greencc.core.errors import InputError
from greencc.core.progress import Progress
from greencc.verify.divergence import divergence
from greencc.verify.metrics import Metric

_KIND = "sensitivity"
# Changes when a table would come out differently: old rows must not be found then.
_VERSION = 1
_STACK = 16
# Phase two looks at the groups that together carry this share of the error.
_CONTENDERS_CARRY = 0.9


@dataclass(frozen=True)
class GroupError:
    """One row of the table. Errors are what `greencc.verify.divergence` returns.

    Attributes:
        group: What was quantized.
        alone: Error with only this group quantized.
        among: Error that quantizing it adds when all others are quantized; None where it was not looked at.
        samples: How many samples `alone` rests on.
    """

    group: Group
    alone: float
    among: float | None = None
    samples: int = 0

    @property
    def error(self) -> float:
        """The larger of the two views."""
        return max(self.alone, self.among or 0.0)


@dataclass(frozen=True)
class Slice:
    """Samples with the float model's outputs for them."""

    feeds: tuple[Feeds, ...]
    outputs: tuple[dict[str, Array], ...]
    digest: str

    @property
    def count(self) -> int:
        return sum(len(next(iter(feeds.values()))) for feeds in self.feeds)


def make_slice(baseline: Engine, source: DataSource, count: int) -> Slice:
    """The first `count` samples of a source, stacked as far as the model takes it.

    Raises:
        InputError: The model refuses them, or there is no whole batch.
    """
    fixed = next((spec.batch for spec in baseline.inputs if spec.batch is not None), None)
    size = fixed or min(_STACK, count)
    feeds = _whole(source, size, count, exact=fixed is not None)
    if not feeds:
        raise InputError(
            f"there is no whole batch of {size} samples to judge layers on", hint="give more samples"
        )
    try:
        outputs = tuple(baseline.run(item) for item in feeds)
    except InputError:
        if size == 1 or fixed is not None:
            raise
        feeds = _whole(source, 1, count, exact=True)
        outputs = tuple(baseline.run(item) for item in feeds)
    return Slice(feeds, outputs, cache_key([{name: item[name] for name in item} for item in feeds]))


def _whole(source: DataSource, size: int, count: int, *, exact: bool) -> tuple[Feeds, ...]:
    found: list[Feeds] = []
    seen = 0
    for batch in source.batches(size):
        if seen >= count or (exact and batch.count != size):
            break
        found.append(batch.feeds)
        seen += batch.count
    return tuple(found)


@dataclass(frozen=True)
class Quantizer:
    """How groups are quantized: `build(excluded node names)` gives the model with all others quantized.

    In the cache `key` stands for the float model, the passes with their options, and the target's kernels
    (`facts_key`).
    """

    build: Callable[[frozenset[str]], ir.Model]
    key: str


def facts_key(capabilities: Capabilities) -> str:
    """What of a target decides how a model is quantized for it."""
    facts = {} if capabilities.int8 is None else asdict(capabilities.int8)
    return cache_key(
        {
            name: sorted(value) if isinstance(value, frozenset) else repr(value)
            for name, value in facts.items()
        },
        sorted(capabilities.fused_ops),
        capabilities.recomputes_dequantize,
    )


@dataclass(frozen=True)
class ErrorTable:
    """Measures rows; see the module."""

    target: Target
    quantizer: Quantizer
    metric: Metric
    cache: Cache
    progress: Progress

    def measure(
        self, groups: Sequence[Group], small: Slice, large: Slice, deadline: Deadline
    ) -> list[GroupError] | None:
        """The table in the order of `groups`, or None when the first phase did not end in time."""
        everything = frozenset(name for group in groups for name in group.nodes)
        rows: list[GroupError] = []
        for group in self.progress(groups, label="Sensitivity", total=len(groups)):
            if deadline.over:
                return None
            rows.append(
                GroupError(group, self.error(everything - set(group.nodes), small), None, small.count)
            )
        full = self.error(frozenset(), large)
        contenders = set(_contenders(rows))
        refined: list[GroupError] = []
        for index, row in self.progress(list(enumerate(rows)), label="Sensitivity, closer", total=len(rows)):
            if index not in contenders or deadline.over:
                refined.append(row)
                continue
            nodes = frozenset(row.group.nodes)
            alone = self.error(everything - nodes, large)
            among = full - self.error(nodes, large)
            refined.append(replace(row, alone=alone, among=max(among, 0.0), samples=large.count))
        return refined

    def error(self, excluded: frozenset[str], on: Slice) -> float:
        """Divergence of the model with everything but `excluded` quantized."""
        key = cache_key(
            _VERSION,
            self.quantizer.key,
            sorted(excluded),
            on.digest,
            repr(self.metric),
            self.target.versions(),
        )
        found = self.cache.get(_KIND, key)
        if found is not None and "error" in found:
            return float(found["error"])
        engine = self.target.calibration_engine(self.quantizer.build(excluded))
        try:
            error = divergence(on.outputs, [engine.run(feeds) for feeds in on.feeds], self.metric)
        finally:
            engine.close()
        self.cache.put(_KIND, key, {"error": np.asarray(error)})
        return error


def _contenders(rows: Sequence[GroupError]) -> list[int]:
    """Indices of the groups that carry most of the error."""
    ranked = sorted(range(len(rows)), key=lambda index: -rows[index].alone)
    total = sum(row.alone for row in rows)
    chosen: list[int] = []
    carried = 0.0
    for index in ranked:
        if carried >= _CONTENDERS_CARRY * total and chosen:
            break
        chosen.append(index)
        carried += rows[index].alone
    return chosen
