"""A model whose channels can be switched off from outside: masks as extra inputs.

Between a value and each weighted node that reads it comes `Mul(value, mask)`, with a mask of one number per channel:
zeros have the same effect on the outputs as cutting the channels. One engine serves all groups. Where samples
stay apart (each row of the outputs depends on its row of the inputs and of the mask alone) many masks go through in one
run, a row each; that is tried out rather than assumed, and where it fails one mask goes through at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError
from greencc.core.graph import Names
from greencc.core.groups import Reader
from greencc.core.passes import Context
from greencc.passes._capture import graph_values, sample_bytes

# Of the largest value of the graph for all masks of one run.
_RUN_BYTES = 64 << 20
_MOST_MASKS = 64
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask: it has `size` numbers, as `shape`, and belongs to the readers of one value.

    Attributes:
        name: Of the input.
        shape: Of one mask, rank and all: 1 but for the channel axis.
        dtype: Of the value.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        return max(self.shape)

    def ones(self) -> Array:
        return np.ones(self.shape, self.dtype)


Key = tuple[str, int]
# The coordinates that are switched off, by the value that is read.
Off = Mapping[Key, Array]


def add_masks(model: ir.Model, readers: Sequence[Reader]) -> dict[Key, Mask]:
    """Put a mask before each reader, in place; the masks by name and axis of the value."""
    names = Names(model)
    values = {str(value.name): value for value in graph_values(model.graph)}
    nodes = {str(node.name): node for node in model.graph}
    order = {name: place for place, name in enumerate(nodes)}
    masks: dict[Key, Mask] = {}
    masked: dict[Key, ir.Value] = {}
    for reader in sorted(readers, key=lambda item: order[item.node]):
        key, node, value = (reader.value, reader.axis), nodes[reader.node], values[reader.value]
        if key not in masks:
            assert value.shape is not None
            axis, dtype = reader.axis % len(value.shape), value.dtype or ir.DataType.FLOAT
            dims = [1] * len(value.shape)
            dims[axis] = int(value.shape.numpy()[axis]) if value.shape.is_static() else _size(value, axis)
            given = ir.Value(
                name=names.value("greencc.mask"),
                type=ir.TensorType(dtype),
                # Either one mask for all rows, or one for each.
                shape=ir.Shape([f"{reader.value}.masks" if axis else dims[0], *dims[1:]]),
            )
            model.graph.inputs.append(given)
            product = ir.Value(name=names.value(f"{reader.value}.masked"), type=ir.TensorType(dtype))
            multiply = ir.node("Mul", [value, given], outputs=[product], name=names.node("greencc.Mul"))
            model.graph.insert_before(node, multiply)
            masks[key] = Mask(str(given.name), tuple(dims), dtype.numpy())
            masked[key] = product
        for index, found in enumerate(node.inputs):
            if found is value:
                node.replace_input_with(index, masked[key])
    return masks


def _size(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape is not None else None
    assert isinstance(size, int)
    return size


class MaskedRuns:
    """Runs a model with channels switched off; close it after use."""

    def __init__(self, model: ir.Model, readers: Sequence[Reader], ctx: Context) -> None:
        largest = max(sample_bytes(model, [str(value.name) for value in graph_values(model.graph)]).values())
        changed = model.clone()
        self.masks = add_masks(changed, readers)
        self._inputs = [str(value.name) for value in model.graph.inputs]
        self._engine: Engine = (ctx.observe or ctx.build)(changed)
        specs = [spec for spec in self._engine.inputs if spec.name in self._inputs]
        self._fixed = next((spec.batch for spec in specs if spec.batch is not None), None)
        self._rows = self._fixed or max(1, min(_MOST_MASKS, _RUN_BYTES // max(largest, 1)))
        self._apart: dict[Key, bool] = {}

    def close(self) -> None:
        self._engine.close()

    def baseline(self, sample: Batch) -> dict[str, Array]:
        """The outputs with all channels on."""
        return self._one(sample, {})

    def outputs(self, sample: Batch, masks: Sequence[Off]) -> Iterator[tuple[int, dict[str, Array]]]:
        """For each mask its number and the outputs, samples on the first axis.

        Args:
            sample: A batch of one.
            masks: Boolean arrays over the coordinates, true where they are off; all of the same values.
        """
        if len(masks) > 1 and self._rows > 1 and all(self._can_share(sample, key) for key in masks[0]):
            for start in range(0, len(masks), self._rows):
                part = masks[start : start + self._rows]
                results = self._many(sample, part)
                for row in range(len(part)):
                    yield start + row, {name: array[row : row + 1] for name, array in results.items()}
            return
        for number, mask in enumerate(masks):
            yield number, self._one(sample, mask)

    def _one(self, sample: Batch, off: Off) -> dict[str, Array]:
        """One mask for the whole run."""
        feeds = {name: np.repeat(values, self._fixed or 1, axis=0) for name, values in sample.feeds.items()}
        for key, mask in self.masks.items():
            feeds[mask.name] = mask.ones()
            if key in off:
                feeds[mask.name][off[key].reshape(mask.shape)] = 0
        results = self._engine.run(feeds)
        return {name: array[:1] if self._fixed and array.ndim else array for name, array in results.items()}

    def _many(self, sample: Batch, part: Sequence[Off]) -> dict[str, Array]:
        """A mask for each row."""
        count = self._fixed or len(part)
        feeds = {name: np.repeat(values, count, axis=0) for name, values in sample.feeds.items()}
        for key, mask in self.masks.items():
            feeds[mask.name] = mask.ones()
            if key in part[0]:
                rows = np.repeat(feeds[mask.name], count, axis=0)
                for row, off in enumerate(part):
                    rows[row][off[key].reshape(mask.shape[1:])] = 0
                feeds[mask.name] = rows
        return self._engine.run(feeds)

    def _can_share(self, sample: Batch, key: Key) -> bool:
        """Whether a row of the mask of a value acts on one row of the outputs and no other."""
        if key not in self._apart:
            self._apart[key] = self._try(sample, key)
        return self._apart[key]

    def _try(self, sample: Batch, key: Key) -> bool:
        mask = self.masks[key]
        if mask.shape[0] != 1:
            return False
        count = self._fixed or 3
        kept, half = np.zeros(mask.size, bool), np.arange(mask.size) % 2 == 0
        tried: list[Off] = [{key: kept if row != 1 else half} for row in range(count)]
        expected = [self._one(sample, tried[0]), self._one(sample, tried[1])]
        try:
            results = self._many(sample, tried)
        except GreenccError:
            return False
        for name, array in results.items():
            if array.shape[:1] != (count,) or expected[0][name].shape[:1] != (1,):
                return False
            for row, wanted in ((0, expected[0]), (1, expected[1]), (count - 1, expected[count == 2])):
                if not close_to(wanted[name][0], array[row]):
                    return False
        return True


def close_to(expected: Array, got: Array) -> bool:
    """Equal up to rounding (other batch sizes take other kernels)."""
    if expected.shape != got.shape:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool(np.mean(expected != got) <= _TOLERANCE) if expected.size else True
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return bool(np.allclose(expected, got, rtol=0.0, atol=_TOLERANCE * max(scale, 1e-6), equal_nan=True))
