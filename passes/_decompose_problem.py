"""A weighted layer as an approximation problem: its matrix, and the norm in which an approximation is judged.

With X the rows of inputs of the layer (`_linear_view`), the squared error of the outputs when the weights W become
V is ``tr((W - V) M (W - V)^T)`` with the second moment ``M = X^T X``: a quadratic norm on the weights, and all that
factorisation needs from the data. Its Cholesky factor whitens: ``M = S S^T`` makes the error the Frobenius norm of
``(W - V) S`` (SVD-LLM, arXiv 2403.07378, section 3.1; for responses of convolutions Zhang et al. 2015, section 3.1.1).

Where M itself would be too large, the taps of a kernel count as uncorrelated and alike: ``M = C (x) I`` with
the second moment C of the input channels. Without data M is the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from greencc.passes._linear_view import LinearView

Matrix = NDArray[np.float64]

# Inputs that the data never shows still count a little: that keeps S regular and the weights of dead inputs small.
_RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Metric:
    """The norm of one layer, group by group.

    Attributes:
        moment: (groups, size, size); None: the identity.
        size: What the matrix goes over: all weights of an output channel, or the input channels alone.
        taps: Weights per row of the matrix: 1, or the kernel's size.
    """

    moment: Matrix | None
    size: int
    taps: int = 1

    def times(self, rows: Matrix) -> Matrix:
        """``rows M`` for rows (groups, r, size * taps)."""
        return rows if self.moment is None else self._apply(rows, self.moment)

    def whitened(self, rows: Matrix) -> Matrix:
        """``rows S``."""
        return rows if self.moment is None else self._apply(rows, self.root)

    def solved(self, rows: Matrix) -> Matrix:
        """``rows M^-1``."""
        if self.moment is None:
            return rows
        parts = self._parts(rows)
        result = np.empty_like(parts)
        for index, root in enumerate(self.root):
            flat = parts[index].transpose(1, 0, 2).reshape(self.size, -1)
            half = solve_triangular(root, flat, lower=True)
            full = solve_triangular(root.T, half, lower=False)
            result[index] = full.reshape(self.size, -1, self.taps).transpose(1, 0, 2)
        return result.reshape(rows.shape)

    def projected(self, projection: Matrix, taps: int) -> Metric:
        """The norm behind ``projection`` (r, channels) of the input channels of a layer with one group."""
        if self.moment is None or self.taps == taps:
            inner = projection @ self.channels(taps) @ projection.T
            return Metric(inner[np.newaxis], len(projection), taps)
        channels = self.size // taps
        moment = self.moment[0].reshape(channels, taps, channels, taps)
        half = np.tensordot(projection, moment, axes=(1, 0))
        both = np.tensordot(half, projection, axes=(2, 1)).transpose(0, 1, 3, 2)
        size = len(projection) * taps
        return Metric(both.reshape(1, size, size), size)

    def channels(self, taps: int) -> Matrix:
        """The second moment of the input channels of a layer with one group: the mean over its `taps`."""
        return self.blocks(taps, 1) if self.moment is not None else np.eye(self.size * self.taps // taps)

    def blocks(self, taps: int, kept: int) -> Matrix:
        """The second moment over (channels, the first `kept` positions of a tap), the mean over the rest.

        Args:
            taps: The kernel's size, `kept` times what is averaged over.
            kept: 1, or the size of the kernel's leading axes.
        """
        if self.moment is None:
            return np.eye(self.size * self.taps // taps * kept)
        if self.taps == taps and taps > 1:
            return np.kron(self.moment[0], np.eye(kept))
        channels, rest = self.size // taps, taps // kept
        moment = self.moment[0].reshape(channels * kept, rest, channels * kept, rest)
        return np.asarray(np.einsum("itjt->ij", moment) / rest)

    @cached_property
    def root(self) -> Matrix:
        """Lower triangular S."""
        assert self.moment is not None
        return np.stack([cholesky(part) for part in self.moment])

    def _parts(self, rows: Matrix) -> Matrix:
        return rows.reshape(len(rows), -1, self.size, self.taps)

    def _apply(self, rows: Matrix, matrix: Matrix) -> Matrix:
        if self.taps == 1:
            return rows @ matrix
        return np.asarray(
            np.einsum("grct,gcd->grdt", self._parts(rows), matrix, optimize=True).reshape(rows.shape)
        )


def metric_of(view: LinearView, moment: Matrix | None) -> Metric:
    """The norm of a layer.

    Args:
        view: The layer.
        moment: (groups, inputs, inputs) or, of the input channels, (groups, channels, channels); None: unknown.
    """
    if moment is None or not np.trace(moment, axis1=1, axis2=2).max() > 0:
        return Metric(None, view.inputs)
    size = moment.shape[1]
    scale = np.trace(moment, axis1=1, axis2=2).mean() / size
    # Scaled to a mean of 1: the ridge and thresholds below mean the same for every layer.
    return Metric(moment / scale + _RIDGE * np.eye(size), size, view.inputs // size)


def cholesky(moment: Matrix) -> Matrix:
    """A lower triangular root of a second moment, whatever its rank."""
    level = max(float(np.trace(moment)) / len(moment), np.finfo(np.float64).tiny)
    for ridge in (0.0, 1e-12, 1e-9):
        try:
            return np.asarray(np.linalg.cholesky(moment + ridge * level * np.eye(len(moment))), np.float64)
        except np.linalg.LinAlgError:
            continue
    values, vectors = np.linalg.eigh(moment)
    root = vectors * np.sqrt(np.maximum(values, 1e-9 * level))
    # root = L Q: the triangular factor is a root as well.
    lower = np.asarray(np.linalg.qr(root.T, mode="r")).T
    return np.asarray(lower * np.where(np.diag(lower) < 0, -1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer to factorise.

    Attributes:
        view: The layer.
        weight: (groups, outputs, inputs).
        metric: How errors count.
        before: Spatial sizes of its input, (rows,) for products.
        after: Likewise of its output.
        opset: Of the model.
    """

    view: LinearView
    weight: Matrix
    metric: Metric
    before: tuple[int, ...]
    after: tuple[int, ...]
    opset: int = 17

    @property
    def taps(self) -> int:
        return math.prod(self.view.kernel)

    @property
    def channels(self) -> int:
        """Input channels of a group."""
        return self.view.inputs // self.taps

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference of one sample."""
        places = self.before if self.view.node.op_type == "ConvTranspose" else self.after
        return math.prod(places) * self.params

    @property
    def params(self) -> int:
        return math.prod(self.view.weight_shape)

    @cached_property
    def total(self) -> float:
        """Squared norm of the outputs."""
        return float(np.sum(self.metric.times(self.weight) * self.weight))

    def error(self, approximation: Matrix) -> float:
        """Squared output error of other weights, relative to the outputs."""
        difference = self.weight - approximation
        error = float(np.sum(self.metric.times(difference) * difference))
        return max(error, 0.0) / self.total if self.total > 0 else 0.0

    def regress(self, basis: Matrix) -> Matrix:
        """The F (outputs, r) that makes ``F basis`` the nearest to the weights; one group, basis (r, inputs)."""
        weighted = self.metric.times(basis[np.newaxis])[0]
        gram = weighted @ basis.T
        cross = self.weight[0] @ weighted.T
        root = cholesky(gram)
        half = solve_triangular(root, cross.T, lower=True)
        return np.asarray(solve_triangular(root.T, half, lower=False).T)
