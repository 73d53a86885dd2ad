"""Second moments of channels over the calibration data, in memory that does not grow with the number of samples.

For a value with C coordinates along its channel axis, every position of every sample is a row x of C numbers.
Summed are x and x x^T (or only the squares). Products are float32 over blocks of rows, centred on the mean of the
first block so that a large offset costs no digits, and are added up in float64. Values that several nodes read are
summed once. The matrices held at once stay within a budget: where it is too small the data is streamed several times.
A value with many positions gives a fixed number of rows, spread evenly with a fixed seed (stratified sampling), so
that time does not grow with the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.groups import Reader
from greencc.core.passes import Context
from greencc.passes._capture import graph_values, non_finite, require_data, stream

Float64 = NDArray[np.float64]
# Bytes of the matrices held at once; a value whose matrix alone is larger has none.
BUDGET_BYTES = 256 << 20
# Rows wanted over all samples.
_MIN_ROWS = 16384
_ROWS_PER_CHANNEL = 8
# Rows of one product: enough to be fast, few enough for float32 sums.
_BLOCK = 1024
# The square of a larger number is near the end of float32.
_LARGE = 1e15


@dataclass(frozen=True, eq=False)
class Energy:
    """Of the coordinates along a value's channel axis.

    Attributes:
        count: Rows (positions of samples) summed.
        mean: (C,).
        square: (C,), the mean of the squares.
    """

    count: float
    mean: Float64
    square: Float64

    @property
    def variance(self) -> Float64:
        return np.maximum(self.square - np.square(self.mean), 0.0)


@dataclass(frozen=True, eq=False)
class Gram:
    """Second moments along a value's channel axis.

    Attributes:
        count: Rows (positions of samples) summed.
        mean: (C,).
        second: (C, C), the mean of x x^T.
    """

    count: float
    mean: Float64
    second: Float64

    @property
    def covariance(self) -> Float64:
        """(C, C): of x less its mean. Channels that are constant have exact zeros."""
        centred = self.second - np.outer(self.mean, self.mean)
        power = np.diagonal(self.second)
        constant = np.diagonal(centred) <= 1e-12 * power
        centred[constant] = 0.0
        centred[:, constant] = 0.0
        return centred


def channel_grams(
    model: ir.Model,
    readers: Sequence[Reader],
    ctx: Context,
    batch: int = 32,
    label: str = "Observing channels",
) -> dict[str, Gram]:
    """The second moments of what each reader reads, by the name of the reader's node.

    A value so wide that its matrix does not fit `BUDGET_BYTES` is left out (see `channel_energies`).

    Args:
        model: It is left unchanged.
        readers: Nodes of the main graph and the values they read.
        ctx: Gives the calibration data and the engine.
        batch: Samples run at once at most.
        label: What the progress bar says.

    Raises:
        InputError: There is no calibration data, or a value becomes NaN or infinity on it.
    """
    found = dict(each_gram(model, readers, ctx, batch, label))
    keys = {reader.node: (reader.value, reader.axis) for reader in readers}
    return {node: found[key] for node, key in keys.items() if key in found}


def each_gram(
    model: ir.Model,
    readers: Sequence[Reader],
    ctx: Context,
    batch: int = 32,
    label: str = "Observing channels",
    only: Collection[tuple[str, int]] | None = None,
) -> Iterator[tuple[tuple[str, int], Gram]]:
    """Like `channel_grams`, one by one: the name and axis of each value that is read, and its second moments.

    Who keeps none of them stays within the budget. Of the values that are read some alone may be wanted (`only`): the
    others are observed with them all the same, in the same pieces, so that their moments are the same to the last bit.
    """
    sums = _distinct(model, readers, full=True)
    fitting = [item for item in sums.values() if item.nbytes <= BUDGET_BYTES]
    for stage in _stages(fitting):
        names = [item.value for item in stage]
        stage = [item for item in stage if only is None or (item.value, item.axis) in only]
        if stage:
            _observe(model, stage, ctx, batch, label, names)
        while stage:
            item = stage.pop(0)
            yield (item.value, item.axis), item.gram()


def channel_energies(
    model: ir.Model,
    readers: Sequence[Reader],
    ctx: Context,
    batch: int = 32,
    label: str = "Observing channels",
) -> dict[str, Energy]:
    """Means and mean squares of what each reader reads, by the name of its node: for values of any width.

    Arguments and errors are those of `channel_grams`.
    """
    sums = _distinct(model, readers, full=False)
    if sums:
        _observe(model, list(sums.values()), ctx, batch, label)
    return {reader.node: sums[reader.value, reader.axis].energy() for reader in readers}


# Squares of doubles may overflow: that is found in the sums.
_overflow_later = np.errstate(over="ignore", invalid="ignore")


@dataclass
class _Sums:
    """Running sums over the rows of one value.

    Attributes:
        value: Its name.
        axis: Its channel axis.
        channels: Coordinates along it.
        full: Whether x x^T is summed, or only the squares.
        shift: What is subtracted from every row; set by the first block.
        first: Sum of the shifted rows.
        total: Sum of their products.
        rows: How many.
        waiting: Rows not summed yet: one product of many rows is cheaper than many of few.
    """

    value: str
    axis: int
    channels: int
    full: bool
    shift: Float64 | None = None
    first: Float64 = field(default_factory=lambda: np.zeros(0))
    total: Float64 = field(default_factory=lambda: np.zeros(0))
    rows: int = 0
    waiting: list[Array] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix, and of the product being added to it."""
        return 12 * self.channels**2

    def add(self, values: Array, wanted: int) -> None:
        """Sum the rows of a piece of data, at most about `wanted` per sample."""
        moved = np.moveaxis(values, self.axis, -1)
        outer = moved.shape[:-1]
        samples = values.shape[0] if self.axis else 1
        picked = _strata(math.prod(outer), wanted * samples, self.generator)
        rows = moved.reshape(-1, self.channels) if picked is None else moved[np.unravel_index(picked, outer)]
        for start in range(0, len(rows), _BLOCK):
            self.waiting.append(rows[start : start + _BLOCK])
            if sum(map(len, self.waiting)) >= _BLOCK:
                self.flush()

    @_overflow_later
    def flush(self) -> None:
        if not self.waiting:
            return
        rows = np.concatenate(self.waiting)
        self.waiting.clear()
        if not len(rows):
            return
        precise = np.float64 if rows.dtype == np.float64 or float(np.abs(rows).max()) > _LARGE else np.float32
        block = rows.astype(precise, copy=False)
        if self.shift is None:
            self.shift = block.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
            self.first = np.zeros(self.channels)
            self.total = np.zeros((self.channels,) * (2 if self.full else 1))
        block = block - self.shift.astype(precise)
        self.first += block.sum(axis=0, dtype=np.float64)
        # NumPy computes only half of a matrix times its own transpose.
        self.total += block.T @ block if self.full else np.square(block).sum(axis=0, dtype=np.float64)
        self.rows += len(block)

    @_overflow_later
    def energy(self) -> Energy:
        shift, mean = self._centre()
        total = self.total / max(self.rows, 1) if self.rows else np.zeros(self.channels)
        square = total + 2 * shift * mean + np.square(shift)
        if not np.isfinite(square).all():
            raise non_finite(self.value)
        return Energy(float(self.rows), shift + mean, square)

    @_overflow_later
    def gram(self) -> Gram:
        shift, mean = self._centre()
        if not self.rows:
            return Gram(0.0, mean, np.zeros((self.channels, self.channels)))
        # In place: the sums are not needed again.
        second, self.total = self.total, np.zeros(0)
        second /= self.rows
        cross = np.outer(shift, mean)
        second += cross
        second += cross.T
        second += np.outer(shift, shift)
        if not np.isfinite(second).all():
            raise non_finite(self.value)
        return Gram(float(self.rows), shift + mean, second)

    def _centre(self) -> tuple[Float64, Float64]:
        """What was subtracted, and the mean of what was left."""
        if self.shift is None:
            return np.zeros(self.channels), np.zeros(self.channels)
        return self.shift, self.first / self.rows


def _distinct(model: ir.Model, readers: Iterable[Reader], full: bool) -> dict[tuple[str, int], _Sums]:
    """Sums for each value that is read, in the order of the readers."""
    values = {str(value.name): value for value in graph_values(model.graph)}
    sums: dict[tuple[str, int], _Sums] = {}
    for reader in readers:
        if (reader.value, reader.axis) in sums:
            continue
        shape = values[reader.value].shape
        size = None if shape is None else shape[reader.axis]
        if not isinstance(size, int):
            raise ValueError(f"the size of axis {reader.axis} of {reader.value} is not known")
        sums[reader.value, reader.axis] = _Sums(reader.value, reader.axis, size, full)
    return sums


def _stages(sums: Sequence[_Sums]) -> list[list[_Sums]]:
    """What is summed together, within the budget, in order."""
    stages: list[list[_Sums]] = []
    size = 0
    for item in sums:
        if not stages or size + item.nbytes > BUDGET_BYTES:
            stages.append([])
            size = 0
        stages[-1].append(item)
        size += item.nbytes
    return stages


def _observe(
    model: ir.Model,
    stage: Sequence[_Sums],
    ctx: Context,
    batch: int,
    label: str,
    names: Sequence[str] | None = None,
) -> None:
    """Sum over the data; `names` of values are looked at, which may be more than are summed."""
    count = max(1, require_data(ctx).count)
    by_name: dict[str, list[_Sums]] = {}
    for item in stage:
        by_name.setdefault(item.value, []).append(item)
    watched = list(dict.fromkeys(names or by_name))
    for results in stream(model, watched, ctx, batch, label=label):
        for name, values in results.items():
            if not np.isfinite(values).all():
                raise non_finite(name)
            for item in by_name.get(name, ()):
                wanted = math.ceil(max(_MIN_ROWS, _ROWS_PER_CHANNEL * item.channels) / count)
                item.add(values, wanted)
    for item in stage:
        item.flush()


def _strata(total: int, wanted: int, generator: np.random.Generator) -> NDArray[np.int64] | None:
    """Indices, one at random out of each of `wanted` equal stretches; None: all."""
    if total <= wanted:
        return None
    edges = np.linspace(0, total, wanted + 1).astype(np.int64)
    return generator.integers(edges[:-1], edges[1:], dtype=np.int64)
