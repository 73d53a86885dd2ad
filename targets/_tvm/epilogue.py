"""What happens to a kernel's sums before they are stored: all in registers, in one pass.

    float sums   y = steps(sum + bias)
    INT32 sums   y = steps(multiplier * float32(sum + bias) + offset), then quantized if the output is

With `Quantize` and no `AddTensor`, everything is in steps of the output (Jacob et al., CVPR 2018, equation 4): the
multiplier is s_x s_w / s_y, the offset b / s_y, and the bounds of a Clip are divided by s_y, as in
`greencc.verify.integer_reference`, so that both round the same float32. Halves round to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

NEAR = 1 << 21
"""Steps: see `Quantize`."""


@dataclass(frozen=True)
class AddTensor:
    """Adds a tensor of the output's shape: scale * (t - zero_point), or t itself if it is float.

    One more argument of the kernel, in the order of the steps.
    """

    dtype: str
    scale: float = 1.0
    zero_point: int = 0


@dataclass(frozen=True)
class Clip:
    """min(max(x, low), high), as ONNX has it: `high` where that is below `low`. Relu is Clip(0, inf)."""

    low: float
    high: float

    def then(self, after: Clip) -> Clip:
        """One Clip that does what this one and another behind it do; its bounds are in order."""
        low, high = (
            min(max(bound, after.low), after.high) for bound in (min(self.low, self.high), self.high)
        )
        return Clip(low, high)


class Function(Enum):
    """Element-wise functions with cheap vector code."""

    HARD_SWISH = "HardSwish"
    """x * clip(x / 6 + 0.5, 0, 1)"""
    HARD_SIGMOID = "HardSigmoid"
    """clip(alpha x + beta, 0, 1)"""
    LEAKY_RELU = "LeakyRelu"
    """x if x >= 0 else alpha x"""
    SIGMOID = "Sigmoid"
    SILU = "Silu"
    """x * sigmoid(x)"""
    TANH = "Tanh"
    GELU = "Gelu"
    """x / 2 (1 + erf(x / sqrt 2))"""


@dataclass(frozen=True)
class Apply:
    """An element-wise function with its constants."""

    function: Function
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class ScaleChannels:
    """Multiplies by one float32 per channel, one more argument of the kernel (a normalisation that was not folded)."""


@dataclass(frozen=True)
class AddChannels:
    """Adds one float32 per channel, one more argument of the kernel."""


Step = AddTensor | Clip | Apply | ScaleChannels | AddChannels


@dataclass(frozen=True)
class Quantize:
    """Divides by the scale (1: values are in steps already), rounds halves to even, adds the zero point, saturates.

    Attributes:
        dtype: Of the output.
        scale: What a step is worth.
        zero_point: Of the output.
        near: No value is `NEAR` steps or more from 0, whatever the data: then they are rounded faster. False is always
            right.
    """

    dtype: str
    scale: float
    zero_point: int
    near: bool = False


@dataclass(frozen=True)
class Epilogue:
    """See the module's docstring. Arguments come in the order of the attributes: bias, multiplier, offset, steps'.

    Attributes:
        bias: Sums start at one constant per output channel, of the sums' type.
        multiplier: INT32 sums are multiplied by one float32 per output channel.
        offset: One float32 per output channel is added behind the multiplier.
        steps: In order.
        quantize: None: the output is float32.
    """

    bias: bool = False
    multiplier: bool = False
    offset: bool = False
    steps: tuple[Step, ...] = ()
    quantize: Quantize | None = None

    @property
    def dtype(self) -> str:
        """Type of the output."""
        return "float32" if self.quantize is None else self.quantize.dtype

    @property
    def written_steps(self) -> tuple[Step, ...]:
        """Steps without `range_clips`: what there is code for."""
        count = len(self.steps)
        if self.quantize is not None and self.quantize.scale == 1.0:
            while count and isinstance(self.steps[count - 1], Clip):
                count -= 1
        return self.steps[:count]

    @property
    def range_clips(self) -> tuple[Clip, ...]:
        """All Clips at the end, in steps of the output: they are the same clamp as that of the output's range."""
        return tuple(step for step in self.steps[len(self.written_steps) :] if isinstance(step, Clip))

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest step of a quantized output, but for its zero point; `range_clips` narrow it."""
        bounds = Clip(-np.inf, np.inf)
        for clip in (*self.range_clips, Clip(*self._whole_range)):
            bounds = bounds.then(clip)
        return bounds.low, bounds.high

    @property
    def bounded(self) -> bool:
        """Whether that is less than the range of the output's type."""
        return self.quantize is not None and self.range != self._whole_range

    @property
    def _whole_range(self) -> tuple[float, float]:
        assert self.quantize is not None
        limits = np.iinfo(self.quantize.dtype)
        return float(limits.min - self.quantize.zero_point), float(limits.max - self.quantize.zero_point)


NOTHING = Epilogue()
