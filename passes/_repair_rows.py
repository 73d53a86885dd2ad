"""Rows of the layers to repair: what the compressed model feeds them, and what they should give.

Every layer takes about equally many rows of each sample, at positions that follow the golden ratio's sequence: even
for every count, in step with no row length, and independent of how samples are batched. Rows to learn from go into
moments; a few of the samples kept aside (`_repair_split`) are kept to judge by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.passes._capture import non_finite
from greencc.passes._linear_view import LinearView
from greencc.passes._quantized_pair import Piece
from greencc.passes._repair_order import Source
from greencc.passes._repair_weights import Weighted
from greencc.passes._ridge import Moments

Float64 = NDArray[np.float64]
_GOLDEN = 0.6180339887498949
# Rows kept to judge by, and the bytes they may take.
_JUDGED_ROWS = 2048
_JUDGED_BYTES = 16 << 20


@dataclass(frozen=True)
class Channelwise:
    """The layer of the original model that one too wide to be solved is made from.

    Attributes:
        view: The node there.
        source: What it reads.
        matrix: Its weight, for the outputs that are left.
    """

    view: LinearView
    source: str
    matrix: Float64


@dataclass(frozen=True)
class Task:
    """One layer to repair.

    Attributes:
        layer: The node in the compressed model.
        source: The value it reads there.
        target: The value of the original model that it should give.
        keep: Which of that value's channels; None: all.
        minus: A value of the compressed model that is added to the layer's output: the target is what is left.
        offset: (channels,): and a constant that is.
        channelwise: Set where only a map between input channels is sought.
        ideal: Read this instead of `source`.
    """

    layer: Weighted
    source: str
    target: str
    keep: NDArray[np.int64] | None
    minus: str | None
    offset: Float64 | None
    channelwise: Channelwise | None = None
    ideal: Source | None = None

    @property
    def name(self) -> str:
        return str(self.layer.node.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, inputs and outputs of the problem to solve."""
        view = self.layer.view
        if self.channelwise is None:
            return view.groups, view.inputs, view.outputs
        taps = math.prod(view.kernel)
        return view.groups, view.inputs // taps, self.channelwise.view.inputs // taps


class Collector:
    """Gathers the rows of one task from a pass over the data.

    Args:
        task: What to repair.
        quota: Rows to learn from, of all samples together.
        judging: (samples,): which of them judge; where none do, all of them teach and judge.
    """

    def __init__(self, task: Task, quota: int, judging: NDArray[np.bool_]) -> None:
        self.task, self.quota, self.judging = task, quota, judging
        self.moments = Moments(*task.shape)
        self.mismatch: str | None = None
        self._taken = 0
        view = task.layer.view
        width = 4 * view.groups * (view.inputs + view.outputs)
        self._kept = max(1, min(quota // 4, _JUDGED_ROWS, _JUDGED_BYTES // width))
        self._judged: tuple[list[Array], list[Array]] = ([], [])

    def add(self, piece: Piece) -> None:
        """The samples of a piece: `float_values` are the original's, `quantized_values` the compressed model's."""
        if self.mismatch is not None:
            return
        task, view = self.task, self.task.layer.view
        x, y = self._source(piece), self._target(piece)
        total = view_rows(view, x)
        channels = view.groups * view.outputs
        if y is None or y.size != total * channels:
            self.mismatch = f"{task.target!r} has not the shape of its output"
            return
        learn, judge = self._picks(piece, total)
        if len(judge):
            inputs, targets = view.columns(x, judge), view.targets(y, judge)
            self._check(inputs, targets)
            self._judged[0].append(inputs.astype(np.float32, copy=False))
            self._judged[1].append(self._shifted(targets))
        if not len(learn):
            return
        if task.channelwise is None:
            inputs, targets = view.columns(x, learn), view.targets(y, learn)
            self._check(inputs, targets)
            self.moments.add(inputs, self._shifted(targets))
            return
        original = piece.float_values[task.channelwise.source]
        if original.shape[2:] != x.shape[2:] or len(original) != len(x):
            self.mismatch = "its input has not the shape it has in the original"
            return
        # Positions of the input, not of the output.
        inside = np.unique(learn * (x.size // x.shape[1]) // max(total, 1))
        before, after = (_channel_rows(view.groups, values, inside) for values in (x, original))
        self._check(before, after)
        self.moments.add(before, after)

    def judged(self) -> tuple[Array, Array] | None:
        """The rows to judge by, inputs and targets; None where there are none."""
        if not self._judged[0]:
            return None
        return np.concatenate(self._judged[0], axis=1), np.concatenate(self._judged[1], axis=1)

    def _source(self, piece: Piece) -> Array:
        """What the layer reads."""
        ideal = self.task.ideal
        if ideal is None:
            return piece.quantized_values[self.task.source]
        x = piece.float_values[ideal.value]
        return (
            x if ideal.keep is None else np.take(x, ideal.keep, axis=1 if self.task.layer.view.kernel else -1)
        )

    def _target(self, piece: Piece) -> Array | None:
        task = self.task
        y = piece.float_values[task.target]
        axis = 1 if task.layer.view.kernel else y.ndim - 1
        if task.keep is not None:
            if y.shape[axis] <= task.keep.max():
                return None
            y = np.take(y, task.keep, axis=axis)
        if y.ndim <= axis or y.shape[axis] != task.layer.channels:
            return None
        if task.minus is None:
            return y
        other = piece.quantized_values[task.minus]
        return y - other if other.shape == y.shape else None

    def _shifted(self, targets: Array) -> Array:
        offset = self.task.offset
        if offset is None:
            return targets
        view = self.task.layer.view
        return targets - offset.reshape(view.groups, 1, view.outputs)

    def _check(self, inputs: Array, targets: Array) -> None:
        for name, values in ((self.task.source, inputs), (self.task.target, targets)):
            if not np.isfinite(values).all():
                raise non_finite(name)

    def _picks(self, piece: Piece, total: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to learn from and to judge by."""
        # Where the first axis is not the sample, rows are dealt out as if they lay sample by sample.
        borders = np.arange(piece.count + 1, dtype=np.int64) * total // piece.count
        learn: list[NDArray[np.int64]] = []
        judge: list[NDArray[np.int64]] = []
        samples, aside = len(self.judging), int(self.judging.sum())
        # The place of each sample among those that judge.
        order = np.cumsum(self.judging) - 1 if aside else np.arange(samples)
        for index in range(piece.count):
            number = piece.first + index
            size = int(borders[index + 1] - borders[index])
            if number >= samples or not size:
                continue
            if not self.judging[number]:
                learn.append(borders[index] + self._spread(size, _share(self.quota, number, samples)))
            if self.judging[number] or not aside:
                kept = _share(self._kept, int(order[number]), aside or samples)
                judge.append(borders[index] + self._spread(size, kept))
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *learn]), np.concatenate([empty, *judge])

    def _spread(self, size: int, wanted: int) -> NDArray[np.int64]:
        if wanted >= size:
            return np.arange(size, dtype=np.int64)
        steps = (self._taken + np.arange(wanted)) * _GOLDEN
        self._taken += wanted
        return np.unique((steps % 1.0 * size).astype(np.int64))


def _share(quota: int, number: int, count: int) -> int:
    """Rows of one sample: all together are the quota."""
    return (number + 1) * quota // count - number * quota // count


def view_rows(view: LinearView, x: Array) -> int:
    """Rows that `view.columns(x)` has."""
    if not view.kernel:
        return x.size // x.shape[-1] if x.size else 0
    single = replace(view, inputs=1)
    spatial = single._windows(x[:1, :1]).shape[2 : 2 + len(view.kernel)] if len(x) else (0,)
    return len(x) * math.prod(spatial)


def _channel_rows(groups: int, values: Array, pick: NDArray[np.int64]) -> Array:
    """Input positions as rows, (groups, rows, channels of a group)."""
    flat = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])[pick]
    return np.ascontiguousarray(flat.reshape(len(pick), groups, -1).swapaxes(0, 1))
