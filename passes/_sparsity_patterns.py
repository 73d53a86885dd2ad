"""Which weights may be zero: unstructured sparsity, or N of every M consecutive input channels kept (N:M).

Sparse kernels (NVIDIA's 2:4, Mishra et al. 2021, arXiv 2104.08378) want the M weights of a group next to each other
along the summed axis: input channels of a convolution at one kernel position, K of a matrix product. `Columns` puts a
layer's matrix in that order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.passes._linear_view import LinearView


class Pattern(Enum):
    """Where zeros are."""

    UNSTRUCTURED = "unstructured"
    TWO_OF_FOUR = "2:4"
    ONE_OF_FOUR = "1:4"


_KEPT = {Pattern.TWO_OF_FOUR: (2, 4), Pattern.ONE_OF_FOUR: (1, 4)}


@dataclass(frozen=True)
class Rule:
    """How much is pruned.

    Attributes:
        sparsity: Share of all weights of a layer, where there is no pattern.
        keep: N of N:M, 0 where there is no pattern.
        of: M of N:M, 0 where there is no pattern.
    """

    sparsity: float
    keep: int = 0
    of: int = 0

    @classmethod
    def make(cls, pattern: Pattern, sparsity: float) -> Rule:
        """The rule of a pattern; `sparsity` counts for `unstructured` alone."""
        keep, of = _KEPT.get(pattern, (0, 0))
        return cls(1.0 - keep / of if of else sparsity, keep, of)

    def count(self, elements: int) -> int:
        """How many of so many weights are zero, at least."""
        # Rounding up errors of the product first: 0.3 of 10 are 3.
        return math.ceil(self.sparsity * elements - 1e-9 * elements)

    def holds(self, matrix: Array) -> bool:
        """Whether a matrix (groups, outputs, inputs) has the zeros already."""
        if not self.of:
            return int(matrix.size - np.count_nonzero(matrix)) >= self.count(matrix.size)
        kept = np.count_nonzero(matrix.reshape(*matrix.shape[:2], -1, self.of), axis=-1)
        return bool((kept <= self.keep).all())


@dataclass(frozen=True)
class Columns:
    """The columns of a layer's matrix ordered by kernel position, then input channel."""

    positions: int
    channels: int

    @classmethod
    def of(cls, view: LinearView) -> Columns:
        positions = math.prod(view.kernel)
        return cls(positions, view.inputs // positions)

    def order(self) -> NDArray[np.int64]:
        """Indices into the columns of `LinearView.matrix`, which go by channel, then position."""
        return np.arange(self.positions * self.channels).reshape(self.channels, self.positions).T.reshape(-1)

    def ordered(self, matrix: Array) -> Array:
        """`matrix`, (groups, outputs, inputs), with its columns in order."""
        return matrix if self.positions == 1 else matrix[:, :, self.order()]

    def moments(self, hessian: Array) -> Array:
        """(groups, inputs, inputs) likewise."""
        if self.positions == 1:
            return hessian
        order = self.order()
        return hessian[:, order[:, np.newaxis], order]

    def restored(self, matrix: Array) -> Array:
        """The inverse of `ordered`."""
        if self.positions == 1:
            return matrix
        back = np.empty_like(matrix)
        back[:, :, self.order()] = matrix
        return back


def magnitude_mask(matrix: Array, rule: Rule) -> NDArray[np.bool_]:
    """Marks the smallest weights, of every group or of the whole matrix."""
    size = np.abs(matrix)
    if not rule.of:
        return least(size, rule.count(matrix.size))
    groups = size.reshape(*size.shape[:2], -1, rule.of)
    order = np.argsort(groups, axis=-1, kind="stable")[..., : rule.of - rule.keep]
    chosen = np.zeros(groups.shape, bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return chosen.reshape(size.shape)


def least(values: Array, count: int) -> NDArray[np.bool_]:
    """Marks exactly the `count` smallest, the first ones among equals."""
    chosen = np.zeros(values.shape, bool)
    if count <= 0:
        return chosen
    if count >= values.size:
        return ~chosen
    flat = values.reshape(-1)
    edge = np.partition(flat, count - 1)[count - 1]
    marks: NDArray[np.bool_] = flat < edge
    ties = np.flatnonzero(flat == edge)
    marks[ties[: count - int(marks.sum())]] = True
    return marks.reshape(values.shape)
