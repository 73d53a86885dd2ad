"""What has to change in nodes, beside their weights, when channels are cut: sizes, splits, indices, group counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, constant_of, input_at
from greencc.core.groups.labels import Ints

Bools = NDArray[np.bool_]
# Gives a new constant a name and a place.
NewConstant = Callable[[NDArray[Any]], ir.Value]


@dataclass(frozen=True)
class Kept:
    """Which labels are kept.

    Attributes:
        mask: For an array of labels, whether each is kept.
        constant: Registers an integer constant.
        name: Makes a name for a value that is not taken.
    """

    mask: Callable[[Ints], Bools]
    constant: NewConstant
    name: Callable[[str], str]

    def count(self, labels: Ints) -> int:
        return int(self.mask(labels).sum())


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A change to `node`."""

    node: ir.Node

    @abstractmethod
    def apply(self, kept: Kept) -> None: ...

    def _replace(self, index: int, values: NDArray[Any], kept: Kept) -> None:
        """Give the node its own constant: the old one may serve others too."""
        old = constant_of(input_at(self.node, index))
        if old is not None:
            if np.array_equal(old, values):
                return
            # Operands of one node often have to have one type.
            values = values.astype(old.dtype)
        self.node.replace_input_with(index, kept.constant(values))


@dataclass(frozen=True, eq=False)
class AttributeCount(Edit):
    """An attribute that counts channels (`group`, `hidden_size`, `num_heads`); each has `per` labels."""

    attribute: str
    labels: Ints
    per: int = 1

    def apply(self, kept: Kept) -> None:
        count = kept.count(self.labels) // self.per
        self.node.attributes[self.attribute] = ir.AttrInt64(self.attribute, count)


@dataclass(frozen=True, eq=False)
class Sizes(Edit):
    """Entries of a shape (Reshape, Expand, sizes of a Resize): a constant, or a Concat with constant parts."""

    index: int
    entries: Mapping[int, Ints]

    def apply(self, kept: Kept) -> None:
        shape = input_at(self.node, self.index)
        assert shape is not None
        wanted = {place: kept.count(labels) for place, labels in self.entries.items()}
        self.node.replace_input_with(self.index, self._changed(shape, wanted, kept))

    def _changed(self, shape: ir.Value, wanted: Mapping[int, int], kept: Kept) -> ir.Value:
        """The vector with other entries. The node gets its own: the same shape may serve others that are not cut."""
        old = constant_of(shape)
        if old is not None:
            new = _with(old, wanted)
            return shape if np.array_equal(old, new) else kept.constant(new)
        joint = shape.producer()
        assert joint is not None
        parts: list[ir.Value | None] = []
        offset = 0
        for part in joint.inputs:
            length = part_length(part) or 0
            here = {place - offset: size for place, size in wanted.items() if 0 <= place - offset < length}
            parts.append(self._changed(part, here, kept) if here and part is not None else part)
            offset += length
        if all(new is old for new, old in zip(parts, joint.inputs, strict=True)):
            return shape
        made = ir.Value(name=kept.name(f"{shape.name}_pruned"), type=shape.type, shape=shape.shape)
        axis = ir.AttrInt64("axis", attribute_int(joint, "axis", 0))
        assert self.node.graph is not None
        self.node.graph.insert_before(
            self.node, ir.Node("", "Concat", parts, attributes=[axis], outputs=[made], name=made.name)
        )
        return made


def part_length(value: ir.Value | None) -> int | None:
    """The length of a vector, or None."""
    if value is None or value.shape is None or len(value.shape) != 1:
        return None
    size = value.shape[0]
    return size if isinstance(size, int) else None


def _with(values: NDArray[Any], places: Mapping[int, int]) -> NDArray[Any]:
    changed = np.array(values)
    for place, size in places.items():
        if changed[place] >= 0:
            changed[place] = size
    return changed


@dataclass(frozen=True, eq=False)
class SplitSizes(Edit):
    """The sizes of a Split along an axis that shrinks."""

    parts: Sequence[Ints]
    as_input: bool

    def apply(self, kept: Kept) -> None:
        sizes = [kept.count(part) for part in self.parts]
        if not self.as_input:
            self.node.attributes["split"] = ir.AttrInt64s("split", sizes)
            return
        if len(set(sizes)) == 1 and input_at(self.node, 1) is None:
            return
        self.node.attributes.pop("num_outputs", None)
        if len(self.node.inputs) < 2:
            self.node.resize_inputs(2)
        self._replace(1, np.array(sizes, np.int64), kept)


@dataclass(frozen=True, eq=False)
class SliceBounds(Edit):
    """Start and end of a Slice of step 1 along an axis that shrinks."""

    place: int
    labels: Ints
    start: int
    end: int

    def apply(self, kept: Kept) -> None:
        before = np.concatenate([[0], np.cumsum(kept.mask(self.labels))])
        for index, bound in ((1, self.start), (2, self.end)):
            values = np.array(constant_of(input_at(self.node, index)))
            values[self.place] = before[bound]
            self._replace(index, values, kept)


@dataclass(frozen=True, eq=False)
class Indices(Edit):
    """Constant indices of a Gather along an axis that shrinks."""

    labels: Ints

    def apply(self, kept: Kept) -> None:
        old = constant_of(input_at(self.node, 1))
        assert old is not None
        positions = np.where(old < 0, old + len(self.labels), old)
        mask = kept.mask(self.labels)
        moved = np.cumsum(mask) - 1
        left = positions[mask[positions]] if positions.ndim else positions
        self._replace(1, np.asarray(moved[left], np.int64), kept)
