"""Which input channels of a layer to duplicate, by the predicted noise of rounding its activations and weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from greencc.core.capabilities import Int8Support
from greencc.passes._calibrate_channels import ChannelStats
from greencc.passes._quantize_scales import weight_limit

Float = NDArray[np.float64]
# Falls smaller than this are rounding, not reasons to copy a channel.
_LEAST = 1e-3


@dataclass(frozen=True)
class Split:
    """Input channels after splitting: channel j is `front[j]` times channel `source[j]`, its weights `back[j]` times.

    The products front * back of all copies of a channel sum to 1.
    """

    source: NDArray[np.int64]
    front: Float
    back: Float

    @classmethod
    def none(cls, channels: int) -> Split:
        return cls(np.arange(channels), np.ones(channels), np.ones(channels))

    def halved(self, position: int, activation: bool) -> Split:
        """Duplicate one channel; its activation or its weights are halved in both."""
        front, back = np.append(self.front, self.front[position]), np.append(self.back, self.back[position])
        changed = front if activation else back
        changed[[position, -1]] /= 2.0
        return Split(np.append(self.source, self.source[position]), front, back)


class SplitNoise:
    """Predicted noise at the output of a layer, with a step of d giving the variance d^2 / 12.

    Args:
        weight: (outputs, inputs, taps), finite.
        stats: Of the input channels.
        int8: Steps and symmetry; None: 8 bits, one scale per output channel.
    """

    def __init__(self, weight: Float, stats: ChannelStats, int8: Int8Support | None) -> None:
        self._tops = np.abs(weight).max(axis=2)
        self._columns = np.sqrt(np.square(weight).sum(axis=(0, 2)))
        self._loud = np.sqrt(stats.mean_square * weight.shape[2])
        self._high, self._low = np.maximum(stats.high, 0.0), np.maximum(-stats.low, 0.0)
        if int8 is not None and int8.symmetric_activations:
            self._high = self._low = np.maximum(self._high, self._low)
        self._per_channel = int8 is None or int8.per_channel
        self._weight_steps = weight_limit(8 if int8 is None else int8.weight_bits)

    def of(self, split: Split) -> float:
        """The copies of a channel round alike: their errors add up before they are squared."""
        rows = (self._tops[:, split.source] * split.back).max(axis=1)
        if not self._per_channel:
            rows = np.full_like(rows, rows.max())
        step = (
            (self._high[split.source] * split.front).max() + (self._low[split.source] * split.front).max()
        ) / 255
        signal, gain = np.zeros_like(self._loud), np.zeros_like(self._loud)
        np.add.at(signal, split.source, self._loud[split.source] * split.front)
        np.add.at(gain, split.source, self._columns[split.source] * split.back)
        weights = (np.square(rows / self._weight_steps)).sum() * np.square(signal).sum()
        return float((weights + step**2 * np.square(gain).sum()) / 12.0)

    def best(self, most: int, activations: bool) -> Split:
        """Duplicate up to `most` channels, greedily, as long as the noise falls.

        Args:
            most: How many copies may be made.
            activations: Activations may be halved, not just weights.
        """
        found = split = Split.none(len(self._loud))
        least = self.of(split)
        for _ in range(most):
            options = [split.halved(self._loudest_weight(split), False)]
            if activations:
                options.append(split.halved(self._loudest_activation(split), True))
            split = min(options, key=self.of)
            # Of two channels that are equally loud the first one alone gains nothing: go on looking.
            if (noise := self.of(split)) < (1 - _LEAST) * least:
                found, least = split, noise
        return found

    def _loudest_weight(self, split: Split) -> int:
        """The channel that sets the range in the rows that matter most."""
        scaled = self._tops[:, split.source] * split.back
        score = np.zeros(len(split.source))
        if self._per_channel:
            np.add.at(score, scaled.argmax(axis=1), np.square(scaled.max(axis=1)))
            return int(score.argmax())
        return int(scaled.max(axis=0).argmax())

    def _loudest_activation(self, split: Split) -> int:
        return int((np.maximum(self._high, self._low)[split.source] * split.front).argmax())
