"""What has to change in nodes, beside their weights, when channels are cut: sizes, splits, indices, group counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import constant_of, input_at
from greencc.core.groups.labels import Ints

Bools = NDArray[np.bool_]
# Gives a new constant a name and a place.
NewConstant = Callable[[NDArray[np.int64]], ir.Value]


@dataclass(frozen=True)
class Kept:
    """Which labels are kept.

    Attributes:
        mask: For an array of labels, whether each is kept.
        constant: Registers an integer constant.
    """

    mask: Callable[[Ints], Bools]
    constant: NewConstant

    def count(self, labels: Ints) -> int:
        return int(self.mask(labels).sum())


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """A change to `node`."""

    node: ir.Node

    @abstractmethod
    def apply(self, kept: Kept) -> None: ...

    def _replace(self, index: int, values: NDArray[np.int64], kept: Kept) -> None:
        """Give the node its own constant: the old one may serve others too."""
        old = constant_of(input_at(self.node, index))
        if old is not None and np.array_equal(old, values):
            return
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
    """Entries of a constant shape (Reshape, Expand, sizes of a Resize)."""

    index: int
    entries: Mapping[int, Ints]

    def apply(self, kept: Kept) -> None:
        values = np.array(constant_of(input_at(self.node, self.index)), np.int64)
        for place, labels in self.entries.items():
            if values[place] > 0:
                values[place] = kept.count(labels)
        self._replace(self.index, values, kept)


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
            values = np.array(constant_of(input_at(self.node, index)), np.int64)
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
