"""A layer to be rounded, rows of what it sees and should give, and the quadratic form of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """What is to be rounded: matrices as in `LinearView`.

    Attributes:
        weight: float32, (groups, outputs, inputs).
        scales: (groups, outputs, 1).
        limit: Largest magnitude of an integer.
        bias: What the quantized layer adds, (groups, 1, outputs).
        low: The smallest output that counts: 0 before a Relu.
        high: The largest.
    """

    weight: Float32
    scales: Float32
    limit: int
    bias: Float32
    low: float = -math.inf
    high: float = math.inf

    def floor(self) -> Float32:
        """The lower neighbour of each weight, inside the range."""
        lower: Float32 = np.floor(self.weight / self.scales)
        return np.clip(lower, -self.limit, self.limit, out=lower)

    def step(self) -> Float32:
        """1 where there is an upper neighbour inside the range, else 0."""
        ratio = self.weight / self.scales
        return ((ratio >= -self.limit) & (ratio < self.limit)).astype(np.float32)

    def outputs(self, inputs: Float32, integers: Float32) -> Float32:
        """f(z (s q)^T + b), (groups, rows, outputs)."""
        found: Float32 = np.matmul(inputs, (integers * self.scales).swapaxes(1, 2))
        found += self.bias
        return self.clipped(found)

    def clipped(self, values: Float32) -> Float32:
        if self.low == -math.inf and self.high == math.inf:
            return values
        return np.clip(values, np.float32(self.low), np.float32(self.high))


@dataclass(frozen=True)
class Rows:
    """Observed rows.

    Attributes:
        inputs: Of the quantized model, (groups, rows, inputs).
        targets: Of the float model before f, (groups, rows, outputs).
    """

    inputs: Float32
    targets: Float32

    @property
    def count(self) -> int:
        return int(self.inputs.shape[1])


@dataclass(frozen=True)
class Statistics:
    """H over its mean diagonal, (groups, inputs, inputs), and C / s likewise, (groups, outputs, inputs)."""

    gram: Float32
    cross: Float32


def error(layer: Layer, rows: Rows, integers: Float32) -> NDArray[np.float64]:
    """Mean square error of each output channel, (groups, outputs)."""
    difference = layer.outputs(rows.inputs, integers) - layer.clipped(rows.targets)
    found: NDArray[np.float64] = np.mean(np.square(difference, dtype=np.float64), axis=1)
    return found


def statistics(layer: Layer, rows: Rows, damping: float) -> Statistics:
    """The quadratic form of a layer's error.

    Where every group has one output (depthwise), f counts: rows that are cut off in both models are left out, and
    the target of the others is what is left of it.
    """
    inputs = rows.inputs
    residual = np.matmul(inputs, layer.weight.swapaxes(1, 2)) + layer.bias
    if layer.weight.shape[1] == 1 and (layer.low > -math.inf or layer.high < math.inf):
        before = residual
        counts = counted(layer, before) | counted(layer, rows.targets)
        goal = np.where(counted(layer, before), layer.clipped(rows.targets), rows.targets)
        residual = np.where(counts, goal - before, np.float32(0))
        inputs = np.where(counts, inputs, np.float32(0))
    else:
        residual = np.subtract(rows.targets, residual, out=residual)
    gram = np.matmul(inputs.swapaxes(1, 2), inputs)
    cross = np.matmul(residual.swapaxes(1, 2), inputs)
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2).reshape(-1, 1, 1) / np.float32(size)
    mean = np.where(mean > 0, mean, np.float32(1))
    gram /= mean
    cross /= mean
    cross /= layer.scales
    gram[:, np.arange(size), np.arange(size)] += np.float32(damping)
    return Statistics(gram, cross)


def counted(layer: Layer, values: Float32) -> NDArray[np.bool_]:
    """Where f lets a change of the output through."""
    inside: NDArray[np.bool_] = (values > layer.low) & (values < layer.high)
    return inside
