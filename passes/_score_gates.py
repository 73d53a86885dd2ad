"""Gates on the channels of prune groups, and the gradients of losses with respect to them, sample by sample.

A gate multiplies a channel wherever a weighted node reads it (`_score_masks`), all readers of the group together: at 1
nothing is changed, at 0 the channel is cut. Its gradient at 1 is the sum over the readers of ``x dL/dx``.

The gates are a row per sample where samples stay apart, so that one backward pass gives the gradients of a whole batch;
that is tried out rather than assumed, and where it fails the samples go one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError, InputError, UnavailableError
from greencc.core.gradients import Tape
from greencc.core.groups import PruneGroup, Reader
from greencc.core.kl import is_float
from greencc.core.passes import Context
from greencc.passes._capture import (
    graph_values,
    no_samples,
    require_data,
    run_one,
    sample_bytes,
    single_samples,
)
from greencc.passes._prune_costs import macs_per_sample
from greencc.passes._score_masks import Key, Mask, add_masks, close_to
from greencc.passes._score_options import OTHER_SCORE, Float64, ScoreOptions
from greencc.passes._score_reads import Weights

# Of all values of the graph, which the backward pass needs.
_RUN_BYTES = 512 << 20
# Multiply-accumulates to spend, of passes through the model for each sample, and samples to look at all the same.
_WORK, _PASSES, _FEWEST = 4e12, 20.0, 16


@dataclass(frozen=True, eq=False)
class Piece:
    """Some samples that went through the gated model.

    Attributes:
        outputs: The floats among the outputs, samples on the first axis.
        labels: (samples, ...), or None.
        count: How many samples.
    """

    outputs: dict[str, Array]
    labels: Array | None
    count: int
    _gates: _GatedModel
    _tape: Tape
    _spare: int

    def gradients(self, weights: Mapping[str, Array]) -> dict[str, Float64]:
        """The gradients of ``sum(weights * outputs)`` of each sample, (samples, channels) by group.

        Args:
            weights: By output name, of the output's shape.
        """
        padded = {
            name: np.concatenate([array, np.zeros((self._spare, *array.shape[1:]), array.dtype)])
            if self._spare
            else array
            for name, array in weights.items()
        }
        found = self._gates.by_group(self._tape.pull(padded))
        return {name: values[: self.count] for name, values in found.items()}


def gated_pieces(
    model: ir.Model, groups: Sequence[PruneGroup], weights: Weights, ctx: Context, options: ScoreOptions
) -> Iterator[Piece]:
    """Samples, evenly spread over the calibration data, on their way through a model with gates.

    Args:
        model: Left unchanged.
        groups: Some of its prune groups; each has readers with weights. Without any there is nothing to see.
        weights: Of the model.
        ctx: Gives the data, gradients and a reference engine.
        options: How many samples, and how many at once.

    Raises:
        UnavailableError: Nothing here computes gradients.
        InputError: There are no data, or the model has an operator that has no gradient here.
    """
    if not groups:
        return
    source = require_data(ctx)
    kinds = [value.dtype for value in model.graph.outputs]
    if not any(kind is None or kind.is_floating_point() for kind in kinds):
        raise InputError("the model has no float output to take gradients of", hint=OTHER_SCORE)
    work = _PASSES * macs_per_sample(model, ctx.samples)
    wanted = min(options.gradient_samples, source.count, max(_FEWEST, int(_WORK / max(work, 1.0))))
    if not wanted:
        raise no_samples(source)
    gated = _GatedModel(model, groups, weights, ctx, options.batch)
    try:
        samples = single_samples(source, wanted)
        yield from gated.pieces(ctx.progress(samples, label="Gradients of channels", total=wanted))
    finally:
        gated.close()


class _GatedModel:
    """Differentiates a model by gates on the channels of its groups.

    Args:
        model: Left unchanged.
        groups: Some of its prune groups; each has readers with weights.
        weights: Of the model.
        ctx: Gives gradients and a reference engine.
        batch: Samples run at once at most.

    Raises:
        UnavailableError: Nothing here computes gradients.
        InputError: The model has an operator that has no gradient here.
    """

    def __init__(
        self, model: ir.Model, groups: Sequence[PruneGroup], weights: Weights, ctx: Context, batch: int
    ) -> None:
        if ctx.gradients is None:
            raise UnavailableError("nothing computes gradients here", hint=OTHER_SCORE)
        changed = model.clone()
        self._masks: dict[Key, Mask] = add_masks(changed, weights.all_readers(groups))
        self._readers: dict[str, dict[Key, Reader]] = {
            group.name: {(reader.value, reader.axis): reader for reader in weights.readers(group)}
            for group in groups
        }
        try:
            self._graph = ctx.gradients(changed, [mask.name for mask in self._masks.values()])
        except InputError as error:
            raise InputError(error.message, hint=OTHER_SCORE) from error
        except UnavailableError as error:
            hint = f"{error.hint}, or {OTHER_SCORE}" if error.hint else OTHER_SCORE
            raise UnavailableError(error.message, hint=hint) from error
        values = [str(value.name) for value in graph_values(changed.graph)]
        held = sum(sample_bytes(changed, values).values())
        self._rows = max(1, min(batch, _RUN_BYTES // max(held, 1)))
        self._exact: Engine = ctx.build(model)
        self._fixed = next((spec.batch for spec in self._exact.inputs if spec.batch is not None), None)
        self._apart: bool | None = None

    def close(self) -> None:
        self._exact.close()

    def pieces(self, batches: Iterable[Batch]) -> Iterator[Piece]:
        """The samples of the batches, in order.

        Raises:
            InputError: PyTorch does not compute what the runtime computes.
        """
        waiting: list[Batch] = []
        size = self._fixed or self._rows
        for item in batches:
            if self._apart is None and not waiting:
                self._check(item)
            waiting.append(item)
            if len(waiting) == size:
                yield from self._several(waiting)
                waiting = []
        if waiting:
            yield from self._several(waiting)

    def by_group(self, found: Mapping[str, Array]) -> dict[str, Float64]:
        """Gradients by the gates of groups, (rows, channels), from those by the masks."""
        result: dict[str, Float64] = {}
        for name, readers in self._readers.items():
            total: Float64 | None = None
            for key, reader in readers.items():
                mask = self._masks[key]
                flat = found[mask.name].astype(np.float64).reshape(-1, mask.size)
                part = np.asarray(flat[:, reader.positions].sum(axis=2))
                total = part if total is None else total + part
            assert total is not None
            result[name] = total
        return result

    def _several(self, items: Sequence[Batch]) -> Iterator[Piece]:
        if self._apart is None:
            self._apart = self._try(items)
        if self._apart:
            yield self._together(items)
        else:
            yield from map(self._one, items)

    def _one(self, item: Batch) -> Piece:
        """A sample alone, repeated as often as a fixed batch wants; only the first row counts."""
        copies = self._fixed or 1
        feeds = {name: np.repeat(values, copies, axis=0) for name, values in item.feeds.items()}
        feeds |= {mask.name: mask.ones() for mask in self._masks.values()}
        return self._run(feeds, item.labels, 1, copies - 1)

    def _together(self, items: Sequence[Batch]) -> Piece:
        """A row of gates for every sample; the last sample fills a fixed batch up."""
        rows = self._fixed or len(items)
        filled = [*items, *[items[-1]] * (rows - len(items))]
        feeds = {name: np.concatenate([item.feeds[name] for item in filled]) for name in filled[0].feeds}
        feeds |= {mask.name: np.repeat(mask.ones(), rows, axis=0) for mask in self._masks.values()}
        labels = [item.labels for item in items if item.labels is not None]
        return self._run(
            feeds,
            np.concatenate(labels) if len(labels) == len(items) else None,
            len(items),
            rows - len(items),
        )

    def _run(self, feeds: Mapping[str, Array], labels: Array | None, count: int, spare: int) -> Piece:
        try:
            tape = self._graph.run(feeds)
        except InputError as error:
            raise InputError(error.message, hint=OTHER_SCORE) from error
        floats = {
            name: values[:count] if spare else values
            for name, values in tape.outputs.items()
            if is_float(values)
        }
        return Piece(floats, labels, count, self, tape, spare)

    def _try(self, items: Sequence[Batch]) -> bool:
        """Whether each row of the gates acts on its sample and no other."""
        if len(items) < 2 or any(mask.shape[0] != 1 for mask in self._masks.values()):
            return False
        generator = np.random.default_rng(0)
        try:
            together = self._together(items)
        except GreenccError:
            return False
        if any(len(values) != len(items) for values in together.outputs.values()):
            return False
        weights = {
            name: generator.standard_normal(values.shape).astype(np.float32)
            for name, values in together.outputs.items()
        }
        found = together.gradients(weights)
        for row in dict.fromkeys((0, 1, len(items) - 1)):
            alone = self._one(items[row])
            if any(
                values.shape != together.outputs[name][:1].shape for name, values in alone.outputs.items()
            ):
                return False
            expected = alone.gradients({name: values[row : row + 1] for name, values in weights.items()})
            for name, wanted in expected.items():
                if found[name].shape[0] < len(items) or not close_to(wanted[0], found[name][row]):
                    return False
        return True

    def _check(self, item: Batch) -> None:
        expected, found = run_one(self._exact, item), self._one(item).outputs
        for name, values in found.items():
            if not close_to(expected[name], values):
                raise InputError(
                    f"PyTorch and the runtime disagree on output {name!r}: its gradients would mean nothing",
                    hint=OTHER_SCORE,
                )
