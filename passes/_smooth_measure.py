"""Choose the scale of every block from the calibration data.

One pass over all data gives the range of each channel. A second one, over a few samples spread through the data, gives
rows of the projections' inputs (a fixed number, chosen at random with a fixed seed) and operands of attention
products. Memory does not depend on the amount of data; with many blocks the second pass is
repeated for groups of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import Int8Support
from greencc.core.data import Array, Batch, DataSource
from greencc.core.graph import constant_tensor
from greencc.core.passes import Context
from greencc.passes._capture import non_finite, require_data, stream
from greencc.passes._linear_view import LinearView
from greencc.passes._quantize_insert import release
from greencc.passes._smooth_blocks import Block, Projections, Scores, attention_product, column_channels
from greencc.passes._smooth_ranges import Ranges
from greencc.passes._smooth_search import (
    Errors,
    Float64,
    Matrix,
    linear_errors,
    score_errors,
    smoothing_scale,
    value_errors,
)

_RETAINED_BYTES = 128 << 20
# Of an attention product: what is kept ends with the sample that reaches this, and rows of its first operand a sample.
_OPERAND_BYTES = 8 << 20
_OPERAND_ROWS = 64


@dataclass(frozen=True)
class Search:
    """How the scales are looked for.

    Attributes:
        alphas: The grid.
        samples: Calibration samples that errors are measured on.
        rows: Rows of each projection's input that errors are measured on.
        batch: Samples run at once, where the model's batch is dynamic.
    """

    alphas: tuple[float, ...]
    samples: int
    rows: int
    batch: int


@dataclass(frozen=True)
class Choice:
    """The best scale of a block.

    Attributes:
        scale: s, one per channel.
        alpha: Where on the grid.
        gain: Error saved, in dB.
    """

    scale: Float64
    alpha: float
    gain: float


def choose(
    model: ir.Model, blocks: Sequence[Block], search: Search, int8: Int8Support, ctx: Context
) -> list[Choice]:
    """The best scale of each block.

    Raises:
        InputError: There is no calibration data, or it or an activation holds NaN or infinity.
    """
    limits = Ranges(model, blocks, ctx, search.batch)
    source = require_data(ctx)
    subset = _Spread(source, max(1, -(-source.count // search.samples)))
    few = replace(ctx, calibration=subset)
    choices: list[Choice] = []
    for part in _parts(blocks, search.rows):
        probes = [_probe(block, limits, search, int8) for block in part]
        _show(model, probes, few)
        choices += [probe.choice() for probe in probes]
    return choices


def _show(model: ir.Model, probes: Sequence[_Probe], ctx: Context) -> None:
    """Run the data and show every probe its values as soon as they are all there."""
    names = list(dict.fromkeys(name for probe in probes for name in probe.names))
    waiting = list(probes)
    held: dict[str, Array] = {}
    for results in stream(model, names, ctx, 1, label="Measuring"):
        for name, values in results.items():
            if not np.isfinite(values).all():
                raise non_finite(name)
        held.update(results)
        ready = [probe for probe in waiting if all(name in held for name in probe.names)]
        for probe in ready:
            probe.see(held)
        waiting = [probe for probe in waiting if probe not in ready]
        if waiting:
            needed = {name for probe in waiting for name in probe.names}
            held = {name: values for name, values in held.items() if name in needed}
        else:
            # The sample is through.
            waiting, held = list(probes), {}


def _parts(blocks: Sequence[Block], rows: int) -> Iterator[list[Block]]:
    """Split the blocks so that the rows kept for a part stay within the budget."""
    part: list[Block] = []
    size = 0
    for block in blocks:
        needed = _kept_bytes(block, rows)
        if part and size + needed > _RETAINED_BYTES:
            yield part
            part, size = [], 0
        part.append(block)
        size += needed
    if part:
        yield part


def _kept_bytes(block: Block, rows: int) -> int:
    """What a probe of the block keeps, about."""
    if isinstance(block, Scores) or attention_product(block) is not None:
        return _OPERAND_BYTES
    unfolded = sum(view.groups * view.inputs for view in block.readers if view.kernel)
    return 4 * rows * (unfolded or block.channels)


@dataclass(frozen=True)
class _Spread:
    """Every so-manieth sample of a source."""

    source: DataSource
    step: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def count(self) -> int:
        return -(-self.source.count // self.step)

    @property
    def has_labels(self) -> bool:
        return False

    @property
    def synthetic(self) -> bool:
        return self.source.synthetic

    def digest(self) -> str:
        return f"{self.source.digest()}/{self.step}"

    def batches(self, size: int) -> Iterator[Batch]:
        seen = 0
        for batch in self.source.batches(max(size, 32)):
            picked = np.arange((-seen) % self.step, batch.count, self.step)
            for start in range(0, len(picked), size):
                index = picked[start : start + size]
                yield Batch({name: values[index] for name, values in batch.feeds.items()})
            seen += batch.count


class _Probe(ABC):
    """Measures the candidates of one block.

    Attributes:
        names: The values it wants to see.
        candidates: Scales; the first is all ones.
    """

    names: list[str]
    candidates: list[Float64]

    def __init__(self, limits: Ranges, search: Search, int8: Int8Support) -> None:
        self.limits, self.search, self.int8 = limits, search, int8

    @abstractmethod
    def see(self, values: Mapping[str, Array]) -> None:
        """Take in these values of one run."""

    @abstractmethod
    def relative(self) -> Float64:
        """Error of each candidate; the first is the block as it is."""

    def choice(self) -> Choice:
        errors = self.relative()
        best = int(np.argmin(errors))
        if best == 0 or errors[best] <= 0:
            return Choice(self.candidates[0], 0.0, 0.0)
        return Choice(
            self.candidates[best],
            self.search.alphas[best - 1],
            float(10 * np.log10(errors[0] / errors[best])),
        )

    def _candidates(self, activation: Float64, weight: Float64) -> list[Float64]:
        found = [smoothing_scale(activation, weight, alpha) for alpha in self.search.alphas]
        return [np.ones_like(activation), *found]


class _RowProbe(_Probe):
    """A projection's input, seen through some of its rows."""

    def __init__(self, block: Projections, limits: Ranges, search: Search, int8: Int8Support) -> None:
        super().__init__(limits, search, int8)
        self.block = block
        # Products with the last axis all see the same rows.
        self._samples = {
            view.node if view.kernel else None: _Sample(view, search.rows) for view in block.readers
        }
        self.names = [str(block.value.name)]
        self.names += [str(view.node.outputs[0].name) for view in block.readers if view.kernel]
        self._range = limits.channels(block.value)
        self.candidates = self._candidates(self._range.magnitude, _peaks(block.readers))

    def see(self, values: Mapping[str, Array]) -> None:
        x = values[self.names[0]]
        for node, sample in self._samples.items():
            y = x if node is None else values[str(node.outputs[0].name)]
            sample.see(x, y.size // y.shape[-1] if node is None else sample.view.row_count(y))

    def relative(self) -> Float64:
        total = np.zeros(len(self.candidates))
        for view in self.block.readers:
            rows = self._samples[view.node if view.kernel else None].rows
            total += linear_errors(rows, self._range, _matrix(view), self.candidates, self.int8).relative
        return total


class _Sample:
    """A uniform sample of the rows that a weighted node multiplies: those with the smallest random keys."""

    def __init__(self, view: LinearView, size: int) -> None:
        self.view = view
        self.rows: NDArray[np.float32] = np.empty((view.groups, 0, view.inputs), np.float32)
        self._size = size
        self._rng = np.random.default_rng(0)
        self._keys = np.empty(0)

    def see(self, x: Array, count: int) -> None:
        keys = np.concatenate([self._keys, self._rng.random(count)])
        kept = np.argsort(keys, kind="stable")[: self._size]
        old, new = kept[kept < len(self._keys)], kept[kept >= len(self._keys)] - len(self._keys)
        if len(new):
            self.rows = np.concatenate([self.rows[:, old], self.view.columns(x, new)], axis=1)
            self._keys = keys[np.concatenate([old, new + len(self._keys)])]


class _Operands:
    """The operands of an attention product for a few samples: some rows of the first, all of the second."""

    def __init__(self, node: ir.Node) -> None:
        self.names = [str(value.name) for value in node.inputs if value is not None]
        self.kept: list[tuple[Array, Array]] = []
        self._size = 0

    def see(self, values: Mapping[str, Array]) -> None:
        if self._size >= _OPERAND_BYTES:
            return
        left, right = (values[name] for name in self.names)
        step = -(-left.shape[-2] // _OPERAND_ROWS) or 1
        # The errors are computed when the engine has gone: its threads and those of the BLAS get in each other's way.
        self.kept.append((left[..., ::step, :].copy(), right.copy()))
        self._size += sum(part.nbytes for part in self.kept[-1])


class _ValueProbe(_Probe):
    """The values of an attention and the projection of its result."""

    def __init__(self, block: Projections, limits: Ranges, search: Search, int8: Int8Support) -> None:
        super().__init__(limits, search, int8)
        self.block = block
        product = attention_product(block)
        assert product is not None
        node, self._channels = product
        self._operands = _Operands(node)
        self.names = self._operands.names
        x = limits.channels(block.value)
        self._range = (limits.tensor(node.inputs[0]), limits.layout(node.inputs[1]), x)
        self.candidates = self._candidates(x.magnitude, _peaks(block.readers))

    def see(self, values: Mapping[str, Array]) -> None:
        self._operands.see(values)

    def relative(self) -> Float64:
        total = np.zeros(len(self.candidates))
        for view in self.block.readers:
            errors = value_errors(
                self._operands.kept, self._channels, self._range, _matrix(view), self.candidates, self.int8
            )
            total += errors.relative
        return total


class _ScoreProbe(_Probe):
    """Queries and keys."""

    def __init__(self, block: Scores, limits: Ranges, search: Search, int8: Int8Support) -> None:
        super().__init__(limits, search, int8)
        self.block = block
        self._operands = _Operands(block.node)
        self.names = self._operands.names
        # Both layouts count heads and channels in the same order.
        self._range = limits.layout(block.node.inputs[0]), limits.layout(block.node.inputs[1])
        self.candidates = self._candidates(self._range[0].magnitude, self._range[1].magnitude)

    def see(self, values: Mapping[str, Array]) -> None:
        self._operands.see(values)

    def relative(self) -> Float64:
        errors = Errors(len(self.candidates))
        layouts = self.block.query_channels, self.block.key_channels
        for q, k in self._operands.kept:
            score_errors(errors, q, k, layouts, self._range, self.candidates, self.int8)
        return errors.relative


def _probe(block: Block, limits: Ranges, search: Search, int8: Int8Support) -> _Probe:
    if isinstance(block, Scores):
        return _ScoreProbe(block, limits, search, int8)
    if attention_product(block) is None:
        return _RowProbe(block, limits, search, int8)
    return _ValueProbe(block, limits, search, int8)


def _peaks(views: Sequence[LinearView]) -> Float64:
    """Largest magnitude of the weights that each channel meets in any of the nodes."""
    found: Float64 = np.max([_matrix(view).peaks for view in views], axis=0)
    return found


def _matrix(view: LinearView) -> Matrix:
    tensor = constant_tensor(view.node.inputs[1])
    assert tensor is not None
    values = np.array(view.matrix(tensor.numpy()), np.float32)
    release(tensor)
    return Matrix(values, column_channels(view))
