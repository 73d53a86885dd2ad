"""Second order: the least increase of the readers' squared error when a channel goes and the others make up for it.

`score_c = tr(R_Q^T E_Q R_Q) / tr(R^T S R)`, summed over the readers, with R the weights of the reader, S the covariance
of what it reads, Q the coordinates of channel c and E_Q the covariance of x_Q that the others cannot explain
(`_score_residuals`). This is the saliency of the structured optimal brain surgeon: Frantar and Alistarh 2022
(arXiv 2208.11580, section 4), Kurtic et al. 2023 (ZipLM, arXiv 2302.04089, eq. 3). 1 means that removing the channel
costs a reader as much as its whole output varies.

The others are those that are still there when the channels of a group go in the order of their scores
(`_score_elimination`): the sum of the lowest k scores is the error of removing these k together. Of duplicates one is
free and the other dear.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.groups import PruneGroup, Reader
from greencc.core.memory import give_back
from greencc.core.passes import Context
from greencc.passes._channel_grams import BUDGET_BYTES, Gram, each_gram
from greencc.passes._score_activation import activation
from greencc.passes._score_elimination import Part, eliminate
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_reads import Weights
from greencc.passes._score_residuals import Inverse, inverse


@dataclass(eq=False)
class _Waiting:
    """A group some of whose values have been seen.

    Attributes:
        group: The group.
        missing: The values that have not been seen.
        parts: Of those that have.
        alone: The sum over the values of what each channel costs alone.
    """

    group: PruneGroup
    missing: set[tuple[str, int]]
    parts: list[Part] = field(default_factory=list)
    alone: Float64 = field(default_factory=lambda: np.zeros(0))
    keeps: bool = True

    @property
    def nbytes(self) -> int:
        return sum(part.inverse.nbytes + part.weights.nbytes for part in self.parts)

    def add(self, part: Part, room: int) -> None:
        """Note what a value says; matrices are kept as far as there is room."""
        costs = np.maximum(part.costs(np.arange(self.group.size)), 0.0)
        self.alone = costs if not self.alone.size else self.alone + costs
        self.keeps = self.keeps and part.inverse.nbytes + part.weights.nbytes <= room
        self.parts = [*self.parts, part] if self.keeps else []

    def scores(self) -> Float64:
        if not self.keeps:
            return self.alone
        found, self.parts = eliminate(self.parts, self.group.size), []
        return found


def second_order(
    model: ir.Model,
    groups: Sequence[PruneGroup],
    ctx: Context,
    options: ScoreOptions,
    only: Collection[str] | None = None,
    watch: Callable[[tuple[str, int], Gram], None] | None = None,
) -> dict[str, Float64]:
    """Scores by group name, (channels,).

    Where a value is too wide for a matrix, activation energy takes their place. Where a group has so many wide
    values that their matrices do not fit the memory budget, each channel is scored as if it went alone.

    Args:
        model: It is left unchanged.
        groups: Its prune groups.
        ctx: Gives the calibration data and the engine.
        options: Of the scores.
        only: Names of groups whose scores are wanted, at least; None: all. The same values are observed either way.
        watch: Is shown the second moments of each value by its name and axis.
    """
    weights = Weights(model)
    # Whether a group's matrices are kept may depend on those of the others.
    alone = only is not None and _held(groups, weights) <= BUDGET_BYTES
    wanted = [group for group in groups if not alone or (only is not None and group.name in only)]
    found = dict(_scored(model, groups, wanted, weights, ctx, options, watch))
    give_back()
    if all(group.name in found for group in wanted):
        return found
    if alone:
        # Those that have no matrices are observed together.
        return second_order(model, groups, ctx, options, watch=watch)
    return found | activation(model, [group for group in groups if group.name not in found], ctx, options)


def _held(groups: Sequence[PruneGroup], weights: Weights) -> int:
    """Bytes of the matrices of all groups at most."""
    total = 0
    for group in groups:
        for reader in weights.readers(group):
            rows = weights.read(group, reader)
            total += 8 * len(rows) * (len(rows) + rows.shape[1])
    return total


def _scored(
    model: ir.Model,
    groups: Sequence[PruneGroup],
    wanted: Sequence[PruneGroup],
    weights: Weights,
    ctx: Context,
    options: ScoreOptions,
    watch: Callable[[tuple[str, int], Gram], None] | None,
) -> Iterator[tuple[str, Float64]]:
    """The groups that are wanted and their scores as soon as all their values have been seen."""
    by_value: dict[tuple[str, int], dict[str, list[Reader]]] = defaultdict(lambda: defaultdict(list))
    waiting: dict[str, _Waiting] = {}
    for group in wanted:
        readers = weights.readers(group)
        for reader in readers:
            by_value[reader.value, reader.axis][group.name].append(reader)
        waiting[group.name] = _Waiting(group, {(reader.value, reader.axis) for reader in readers})
    grams = each_gram(model, weights.all_readers(groups), ctx, options.batch, only=set(by_value))
    for key, gram in grams:
        if watch is not None:
            watch(key, gram)
        surgeon = inverse(gram, options.damping)
        for name, readers in by_value[key].items():
            item = waiting[name]
            stacked = [_relative(weights.read(item.group, reader), surgeon) for reader in readers]
            part = Part(
                surgeon.matrix, np.concatenate(stacked, axis=1), readers[0].positions, surgeon.damping
            )
            held = sum(other.nbytes for other in waiting.values())
            item.add(part, BUDGET_BYTES - held)
            item.missing.discard(key)
            if not item.missing:
                yield name, item.scores()


def _relative(weights: Array, surgeon: Inverse) -> Float64:
    """Weights of a reader for coordinates of variance 1 and an output of energy 1."""
    scaled = np.asarray(weights.astype(np.float64) * surgeon.scale[:, np.newaxis])
    energy = float(np.sum((surgeon.correlation @ scaled) * scaled))
    return scaled / np.sqrt(energy) if energy > 0.0 else np.zeros_like(scaled)
