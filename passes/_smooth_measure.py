"""Choose the scale of every block from the calibration data.

One pass over all data gives the range of each channel. A second one, over a few samples spread through the data, gives
rows of the projections' inputs (a fixed number, chosen at random with a fixed seed) and the operands of attention
products, which are used and dropped. Memory does not depend on the amount of data; with many blocks the second pass is
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
from greencc.core.graph import Names, add_initializer, constant_tensor, is_op
from greencc.core.passes import Context
from greencc.passes._calibrate_channels import ChannelStats, observe_channels
from greencc.passes._capture import graph_values, non_finite, require_data, stream
from greencc.passes._linear_view import LinearView
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_placement import FIXED_RANGES
from greencc.passes._ranges import Range
from greencc.passes._smooth_blocks import Block, Projections, Scores, column_channels
from greencc.passes._smooth_search import (
    Errors,
    Float64,
    Limits,
    Matrix,
    linear_errors,
    score_errors,
    smoothing_scale,
    value_errors,
)
from greencc.passes._smooth_trace import Channels

_RETAINED_BYTES = 128 << 20


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
    limits = _Ranges(model, blocks, ctx, search.batch)
    source = require_data(ctx)
    subset = _Spread(source, max(1, source.count // search.samples))
    few = replace(ctx, calibration=subset)
    choices: list[Choice] = []
    for part in _parts(blocks, search.rows):
        probes = [_probe(block, limits, search, int8) for block in part]
        names = list(dict.fromkeys(name for probe in probes for name in probe.names))
        held: dict[str, Array] = {}
        for results in stream(model, names, few, 1, label="Measuring"):
            held.update(results)
            if len(held) < len(names):
                continue
            for name, values in held.items():
                if not np.isfinite(values).all():
                    raise non_finite(name)
            for probe in probes:
                probe.see(held)
            held = {}
        choices += [probe.choice() for probe in probes]
    return choices


def _parts(blocks: Sequence[Block], rows: int) -> Iterator[list[Block]]:
    """Split the blocks so that the rows kept for a part stay within the budget."""
    part: list[Block] = []
    size = 0
    for block in blocks:
        needed = 4 * rows * _columns(block)
        if part and size + needed > _RETAINED_BYTES:
            yield part
            part, size = [], 0
        part.append(block)
        size += needed
    if part:
        yield part


def _columns(block: Block) -> int:
    """Numbers in a row of everything that is kept for a block."""
    if isinstance(block, Scores):
        return 0
    return sum(view.groups * view.inputs for view in block.readers if view.kernel) + block.channels


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


class _Ranges:
    """Ranges per channel of everything the blocks compare."""

    def __init__(self, model: ir.Model, blocks: Sequence[Block], ctx: Context, batch: int) -> None:
        axes: dict[str, int] = {}
        layouts: dict[str, Channels] = {}
        whole: dict[str, None] = {}
        for block in blocks:
            if isinstance(block, Scores):
                for value, channels in zip(
                    block.node.inputs, (block.query_channels, block.key_channels), strict=True
                ):
                    layouts[str(value.name)] = channels  # type: ignore[union-attr]
                continue
            axes[str(block.value.name)] = block.axis
            product = _product(block)
            if product is not None:
                node, channels = product
                layouts[str(node.inputs[1].name)] = channels  # type: ignore[union-attr]
                if _fixed_range(node.inputs[0]) is None:
                    whole[str(node.inputs[0].name)] = None  # type: ignore[union-attr]
        flat = model.clone()
        renamed = _append_flat(flat, {**layouts, **dict.fromkeys(whole, np.zeros((), np.int64))})
        stats = observe_channels(flat, {**axes, **dict.fromkeys(renamed.values(), -1)}, ctx, batch)
        self._stats = {**{name: stats[name] for name in axes}}
        self._flat = {name: stats[new] for name, new in renamed.items()}

    def channels(self, value: ir.Value) -> Limits:
        return _limits(self._stats[str(value.name)])

    def layout(self, value: ir.Value | None) -> Limits:
        """Per element of the channels the value was observed with."""
        return _limits(self._flat[str(value.name)])  # type: ignore[union-attr]

    def tensor(self, value: ir.Value | None) -> Range:
        fixed = _fixed_range(value)
        if fixed is not None:
            return fixed
        limits = self.layout(value)
        return Range(float(limits.low[0]), float(limits.high[0]))


def _limits(stats: ChannelStats) -> Limits:
    return Limits(stats.low, stats.high)


def _fixed_range(value: ir.Value | None) -> Range | None:
    node = value.producer() if value is not None else None
    return FIXED_RANGES.get(node.op_type) if node is not None and is_op(node, *FIXED_RANGES) else None


def _append_flat(model: ir.Model, layouts: Mapping[str, Channels]) -> dict[str, str]:
    """Append to the graph each value as (positions, channels); return the names of these by those of the values."""
    names = Names(model)
    values = {value.name: value for value in graph_values(model.graph)}
    renamed: dict[str, str] = {}
    for name, channels in layouts.items():
        value = values[name]
        along = [axis for axis, size in enumerate(channels.shape) if size != 1]
        rest = [axis for axis in range(channels.ndim) if axis not in along]
        if along:
            value = _append(model, names, "Transpose", [value], {"perm": [*rest, *along]})
        shape = np.array([-1, channels.size], np.int64)
        target = add_initializer(model.graph, names.value(f"{name}/channels/shape"), shape)
        value = _append(model, names, "Reshape", [value, target], {})
        value.shape = ir.Shape([None, channels.size])
        renamed[name] = str(value.name)
    return renamed


def _append(
    model: ir.Model, names: Names, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, list[int]]
) -> ir.Value:
    name = names.value(f"{inputs[0].name}/channels")
    result = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.append(
        ir.node(op_type, inputs, dict(attributes), outputs=[result], name=names.node(f"{name}/{op_type}"))
    )
    return result


def _product(block: Projections) -> tuple[ir.Node, Channels] | None:
    """The attention product a projection's input is a rearrangement of, where its values get the scale."""
    if block.divided is None or block.source is None or block.source.product is None:
        return None
    node, channels = block.source.product, block.source.product_channels
    assert channels is not None
    operand = node.inputs[1]
    same_rank = operand is not None and operand.shape is not None and len(operand.shape) == channels.ndim
    return (node, channels) if same_rank and channels.size == block.channels else None


class _Probe(ABC):
    """Measures the candidates of one block.

    Attributes:
        names: The values it wants to see.
        candidates: Scales; the first is all ones.
    """

    names: list[str]
    candidates: list[Float64]

    def __init__(self, limits: _Ranges, search: Search, int8: Int8Support) -> None:
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

    def __init__(self, block: Projections, limits: _Ranges, search: Search, int8: Int8Support) -> None:
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


class _ValueProbe(_Probe):
    """The values of an attention and the projection of its result."""

    def __init__(self, block: Projections, limits: _Ranges, search: Search, int8: Int8Support) -> None:
        super().__init__(limits, search, int8)
        self.block = block
        product = _product(self.block)
        assert product is not None
        self._node, self._channels = product
        self.names = [str(value.name) for value in self._node.inputs if value is not None]
        x = self.limits.channels(self.block.value)
        v = self.limits.layout(self._node.inputs[1])
        self._range = (self.limits.tensor(self._node.inputs[0]), v, x)
        self.candidates = self._candidates(x.magnitude, _peaks(self.block.readers))
        self._weights = [_matrix(view) for view in self.block.readers]
        self._errors = [Errors(len(self.candidates)) for _ in self._weights]

    def see(self, values: Mapping[str, Array]) -> None:
        p, v = (values[name] for name in self.names)
        for errors, weight in zip(self._errors, self._weights, strict=True):
            value_errors(errors, p, v, self._channels, self._range, weight, self.candidates, self.int8)

    def relative(self) -> Float64:
        return sum((errors.relative for errors in self._errors), np.zeros(len(self.candidates)))


class _ScoreProbe(_Probe):
    """Queries and keys."""

    def __init__(self, block: Scores, limits: _Ranges, search: Search, int8: Int8Support) -> None:
        super().__init__(limits, search, int8)
        self.block = block
        queries, keys = self.block.node.inputs
        self.names = [str(value.name) for value in (queries, keys) if value is not None]
        # Both layouts count heads and channels in the same order.
        self._range = self.limits.layout(queries), self.limits.layout(keys)
        self.candidates = self._candidates(self._range[0].magnitude, self._range[1].magnitude)
        self._errors = Errors(len(self.candidates))

    def see(self, values: Mapping[str, Array]) -> None:
        q, k = (values[name] for name in self.names)
        layouts = self.block.query_channels, self.block.key_channels
        score_errors(self._errors, q, k, layouts, self._range, self.candidates, self.int8)

    def relative(self) -> Float64:
        return self._errors.relative


def _probe(block: Block, limits: _Ranges, search: Search, int8: Int8Support) -> _Probe:
    if isinstance(block, Scores):
        return _ScoreProbe(block, limits, search, int8)
    if _product(block) is None:
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
