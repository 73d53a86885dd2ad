"""What kernels compute: shapes, types and epilogues, without how.

Tensors of images are NHWC. The batch is always symbolic, everything else is fixed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from greencc.targets._tvm.epilogue import NOTHING, AddTensor, Clip, Epilogue

_BOUNDS = Clip(0.0, 1.0)
"""Of a form: some bounds within the range of the output."""


@dataclass(frozen=True)
class Window:
    """How a kernel slides over an image of `height` x `width` (rows, columns; all pairs are row, column)."""

    height: int
    width: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right."""

    @property
    def output(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows, columns = (
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, before, after, kernel, stride, dilation in zip(
                (self.height, self.width),
                self.pads[:2],
                self.pads[2:],
                self.kernel,
                self.strides,
                self.dilations,
                strict=True,
            )
        )
        return rows, columns


@dataclass(frozen=True)
class Conv:
    """A convolution over NHWC data, not depthwise: data [n, h, w, in], output [n, oh, ow, out].

    Attributes:
        window: Image and kernel.
        channels: Input and output channels, of all groups together.
        groups: Of channels.
        data: ``float32``, ``uint8`` or ``int8``. Weights are float32 or int8 accordingly.
        zero_point: Of quantized data; what the borders are filled with. Its share of the sums is in the bias.
        pairs_fit: The quantized weights are such that two neighbouring products never overflow INT16, as
            `kernels.products.pairs_fit` says: some instructions are faster then. False is always right.
        epilogue: On output channels.
    """

    window: Window
    channels: tuple[int, int]
    groups: int = 1
    data: str = "float32"
    zero_point: int = 0
    pairs_fit: bool = False
    epilogue: Epilogue = NOTHING


@dataclass(frozen=True)
class Depthwise:
    """A convolution of every channel by itself: data [n, h, w, c], output [n, oh, ow, c]. See `Conv`."""

    window: Window
    channels: int
    data: str = "float32"
    zero_point: int = 0
    epilogue: Epilogue = NOTHING


@dataclass(frozen=True)
class Dense:
    """A product by constant weights: data [rows, in], output [rows, out], rows symbolic. See `Conv`.

    Attributes:
        rows: How many to expect (per sample of the batch): decides the schedule, not what is computed.
    """

    channels: tuple[int, int]
    rows: int = 1
    data: str = "float32"
    zero_point: int = 0
    pairs_fit: bool = False
    epilogue: Epilogue = NOTHING


@dataclass(frozen=True)
class BatchedProduct:
    """A product of two float activations: [b, m, k] x [b, k, n] -> [b, m, n], b symbolic.

    Attributes:
        transposed: The second is given as [b, n, k].
        epilogue: On the n columns.
    """

    shape: tuple[int, int, int]
    """m, k, n"""
    transposed: bool = False
    epilogue: Epilogue = NOTHING


class PoolKind(Enum):
    """What a pool computes of its window."""

    MAX = "max"
    AVERAGE = "average"


@dataclass(frozen=True)
class Pool:
    """A pool over NHWC data. Borders take no part in a maximum.

    Attributes:
        window: Image and kernel; the whole image for a global pool.
        channels: Of data and output.
        kind: Maximum or average.
        data: ``float32``, ``uint8`` or ``int8``. A maximum keeps the type and has no epilogue; an average of
            integers is that of data - zero_point, as a float32 that the epilogue's multiplier scales.
        count_borders: Averages divide by the whole kernel's size at the borders too.
        zero_point: Of quantized data.
        epilogue: Of averages.
    """

    window: Window
    channels: int
    kind: PoolKind
    data: str = "float32"
    count_borders: bool = False
    zero_point: int = 0
    epilogue: Epilogue = NOTHING


Workload = Conv | Depthwise | Dense | BatchedProduct | Pool


def form_of(workload: Workload) -> Workload:
    """The workload without its `numbers`: what a kernel's code depends on, and so does how fast it is."""
    epilogue: Epilogue = workload.epilogue
    # Bounds within the output's range are code; their values are numbers.
    bounds = (_BOUNDS,) if epilogue.range_clips and epilogue.bounded else ()
    quantize = epilogue.quantize
    if quantize is not None:
        quantize = replace(quantize, scale=_scale_form(quantize.scale), zero_point=0)
    changes: dict[str, Any] = {
        "epilogue": replace(
            epilogue,
            steps=tuple(
                replace(step, scale=_scale_form(step.scale), zero_point=0)
                if isinstance(step, AddTensor)
                else step
                for step in epilogue.written_steps
            )
            + bounds,
            quantize=quantize,
        )
    }
    if not isinstance(workload, BatchedProduct):
        # A depthwise kernel has less to do where borders are zeros.
        changes["zero_point"] = int(isinstance(workload, Depthwise) and reads_zero_point(workload))
    return replace(workload, **changes)


def reads_zero_point(workload: Workload) -> bool:
    """Whether a kernel needs the zero point of its data: of a product, it is in the bias."""
    if isinstance(workload, BatchedProduct | Dense) or workload.data == "float32":
        return False
    if isinstance(workload, Pool):
        return workload.kind is PoolKind.AVERAGE
    borders = any(workload.window.pads)
    return borders and (isinstance(workload, Conv) or workload.zero_point != 0)


def key_of(workload: Workload) -> str:
    """A stable name of a form: kind and 16 hexadecimal digits."""
    text = json.dumps(asdict(form_of(workload)), sort_keys=True, default=str)
    return f"{type(workload).__name__.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _scale_form(scale: float) -> float:
    return 1.0 if scale == 1.0 else 0.5
