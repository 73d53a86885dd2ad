"""The numbers that equalization scales depend on: weight ranges, activation ranges and gains per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import Int8Support
from greencc.core.graph import constant_tensor
from greencc.passes._calibrate_channels import ChannelStats
from greencc.passes._equalize_graph import FIXED, Labelling, Layer, value_axis
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_scales import weight_limit

Float = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class LayerRanges:
    """What the scales need to know of a layer.

    Attributes:
        tops: Largest magnitude over the kernel, float32 (groups, outputs, inputs).
        taps: Kernel size.
        before: Roots of the input channels, (groups, inputs).
        after: Roots of the output channels, (groups, outputs).
        energy: Mean square of the input channels, (groups, inputs); None where it was not observed.
        gain: Of noise in the output channels, see `_Gains`, (groups, outputs).
    """

    tops: NDArray[np.float32]
    taps: int
    before: Index
    after: Index
    energy: Float | None
    gain: Float


@dataclass(frozen=True)
class ValueRanges:
    """A quantized activation: roots, range on either side of 0 and gain of noise, per channel."""

    roots: Index
    high: Float
    low: Float
    gain: Float

    @property
    def peak(self) -> Float:
        return np.maximum(self.high, self.low)


@dataclass(frozen=True)
class Problem:
    """Everything the scales depend on.

    Attributes:
        size: Number of labels; roots index a vector of this size.
        layers: In graph order.
        values: Quantized activations.
        per_channel: Weights have one scale per output channel.
        limit: Scales stay within [1/limit, limit].
        weight_steps: Steps from 0 to the largest weight.
        activation_steps: Steps over the whole range of an activation.
    """

    size: int
    layers: Sequence[LayerRanges]
    values: Sequence[ValueRanges]
    per_channel: bool
    limit: float
    weight_steps: float = 127.0
    activation_steps: float = 255.0


def observed_axes(labelling: Labelling) -> dict[ir.Value, int]:
    """The activations to observe, with their channel axis: inputs of layers, and what meets in joins."""
    found: dict[ir.Value, int] = {}
    for layer in _free(labelling):
        x = layer.node.inputs[0]
        if x is not None:
            found[x] = 1 if layer.view.kernel else -1
    for value in labelling.joined:
        axis = value_axis(labelling.labels[value]) if value in labelling.labels else None
        if axis is not None:
            found.setdefault(value, axis)
    return found


def build_problem(
    labelling: Labelling, stats: Mapping[ir.Value, ChannelStats], int8: Int8Support | None, limit: float
) -> Problem:
    """Read the weights of every layer with free channels; weights that are not finite fix their channels."""
    for layer in _free(labelling):
        if not np.isfinite(_weight(layer)).all():
            labelling.pin(layer.before)
            labelling.pin(layer.after)
        release(_tensor(layer))
    roots = labelling.roots()
    gains = _Gains(labelling, roots)
    ranges: list[LayerRanges] = []
    # Backwards: what a layer's noise does depends on the layers behind it.
    for layer in reversed(_free(labelling)):
        cube = layer.cube(_weight(layer))
        release(_tensor(layer))
        energy = _energy(layer, stats)
        gain = gains.pass_back(layer, cube, energy)
        tops = np.abs(cube).max(axis=3).astype(np.float32)
        ranges.append(LayerRanges(tops, cube.shape[3], roots[layer.before], roots[layer.after], energy, gain))
    ranges.reverse()
    values = []
    for value, gain in gains.values.items():
        found = stats.get(value)
        if found is None or found.low.size != gain.size:
            continue
        high, low = np.maximum(found.high, 0.0), np.maximum(-found.low, 0.0)
        if int8 is not None and int8.symmetric_activations:
            high = low = np.maximum(high, low)
        values.append(ValueRanges(gains.roots_of(value), high, low, gain))
    return Problem(
        labelling.count,
        ranges,
        values,
        int8 is None or int8.per_channel,
        limit,
        weight_limit(8 if int8 is None else int8.weight_bits),
    )


class _Gains:
    """How much a unit of noise variance in a channel adds to the noise of the chains' ends.

    The noise of elements counts as independent: a layer passes variance on with the squares of its weights, a join
    adds it up, and where the scales are fixed behind a layer, noise counts relative to that layer's signal.
    """

    def __init__(self, labelling: Labelling, roots: Index) -> None:
        self._labelling, self._roots = labelling, roots
        self._gains = np.zeros(labelling.count)
        self._joined = dict.fromkeys(labelling.joined)
        self.values: dict[ir.Value, Float] = {}

    def roots_of(self, value: ir.Value) -> Index:
        labels = self._labelling.of(value)
        size = self.values[value].size
        if labels is None or labels.size != size:
            return np.full(size, FIXED)
        return self._roots[labels.ravel()]

    def pass_back(self, layer: Layer, cube: Float, energy: Float | None) -> Float:
        """The gain of the layer's output channels, (groups, outputs); that of its input channels is added up."""
        before, after = self._roots[layer.before], self._roots[layer.after]
        squares = np.square(cube).sum(axis=3)
        signal = 0.0 if energy is None else float(np.einsum("goi,gi->", squares, energy))
        end = 1.0 / signal if signal > 0 else 0.0
        gain: Float = np.where(after == FIXED, end, self._gains[after])
        y, x = layer.node.outputs[0], layer.node.inputs[0]
        if y in self._joined:
            self.values[y] = self._gains[after].ravel()
        passed = np.einsum("goi,go->gi", squares, gain)
        np.add.at(self._gains, before, passed)
        self._gains[FIXED] = 0.0
        if x is not None:
            own = self.values.get(x, 0.0) + passed.ravel()
            # Earlier readers of what shares the label see less of this value's noise than all of them.
            self.values[x] = np.where(before.ravel() == FIXED, own, self._gains[before.ravel()])
        return gain


def _free(labelling: Labelling) -> list[Layer]:
    roots = labelling.roots()
    return [layer for layer in labelling.layers if roots[layer.before].any() or roots[layer.after].any()]


def _tensor(layer: Layer) -> ir.TensorProtocol:
    tensor = constant_tensor(layer.node.inputs[1])
    assert tensor is not None
    return tensor


def _weight(layer: Layer) -> NDArray[np.generic]:
    weight: NDArray[np.generic] = _tensor(layer).numpy()
    return weight


def _energy(layer: Layer, stats: Mapping[ir.Value, ChannelStats]) -> Float | None:
    x = layer.node.inputs[0]
    found = None if x is None else stats.get(x)
    if found is None or found.mean_square.size != layer.before.size:
        return None
    return found.mean_square.reshape(layer.before.shape)
