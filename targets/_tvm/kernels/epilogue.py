"""Code of an `Epilogue`: from a vector of sums in registers to what is stored.

Every product is rounded by itself before anything is added to it, as in `greencc.verify.integer_reference`: a fused
multiply-add would round once where the reference rounds twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    Quantize,
    ScaleChannels,
)
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.vectormath import apply, heavy


class EpilogueCode:
    """Writes one epilogue: `arguments` once, in its place among the function's, then `start` and `finish`.

    Attributes:
        epilogue: What is written.
        channels: Output channels.
        sums: Type of the sums, ``float32`` or ``int32``.
        heavy: It takes so many operations that it had better be written in a loop.
    """

    def __init__(self, emit: Emit, epilogue: Epilogue, channels: int, sums: str) -> None:
        self.epilogue = epilogue
        self.channels = channels
        self.sums = sums
        self.heavy = any(heavy(step) for step in epilogue.steps)
        self._emit = emit
        self._constants: dict[str, Expr] = {}
        self._steps: list[Expr | None] = []

    def arguments(self, shape: Sequence[Index]) -> None:
        """Declares the epilogue's arguments; `shape` is the output's, channels last."""
        epilogue, channels = self.epilogue, (self.channels,)
        for name, wanted, dtype in (
            ("bias", epilogue.bias, self.sums),
            ("multiplier", epilogue.multiplier, "float32"),
            ("offset", epilogue.offset, "float32"),
        ):
            if wanted:
                self._constants[name] = self._emit.argument(name, channels, dtype)
        for number, step in enumerate(epilogue.steps):
            match step:
                case AddTensor():
                    self._steps.append(self._emit.argument(f"added{number}", shape, step.dtype))
                case ScaleChannels() | AddChannels():
                    self._steps.append(self._emit.argument(f"channels{number}", channels, "float32"))
                case _:
                    self._steps.append(None)

    def start(self, channel: Index, lanes: int) -> Expr:
        """What sums of `lanes` channels from `channel` on start at: the bias or zeros."""
        if self.epilogue.bias:
            return self._emit.load(self._constants["bias"], [channel], lanes)
        return self._emit.splat(self.sums, 0, lanes)

    def finish(self, sums: Expr, at: Sequence[Index], lanes: int) -> Expr:
        """From sums (started by `start`) to a vector of the output's type, for its elements from `at` on."""
        emit, channel = self._emit, at[-1]
        value = emit.cast(sums, "float32") if self.sums == "int32" else sums
        if self.epilogue.multiplier:
            value = emit.rounded(value * emit.load(self._constants["multiplier"], [channel], lanes))
        if self.epilogue.offset:
            value = value + emit.load(self._constants["offset"], [channel], lanes)
        bounds = self._last_clip()
        for step, buffer in zip(self.epilogue.steps, self._steps, strict=True):
            if step is bounds:
                break
            match step:
                case AddTensor():
                    value = value + self._added(step, emit.load(buffer, at, lanes), lanes)
                case Clip():
                    value = emit.clip(value, step.low, step.high)
                case Apply():
                    value = apply(emit, step, value)
                case ScaleChannels():
                    value = emit.rounded(value * emit.load(buffer, [channel], lanes))
                case AddChannels():
                    value = value + emit.load(buffer, [channel], lanes)
        return (
            value
            if self.epilogue.quantize is None
            else self._quantized(value, self.epilogue.quantize, bounds)
        )

    def _last_clip(self) -> Clip | None:
        """A Clip at the end, in steps of the output: it is the same clamp as that of the output's range."""
        quantize, steps = self.epilogue.quantize, self.epilogue.steps
        if quantize is None or quantize.scale != 1.0 or not steps or not isinstance(steps[-1], Clip):
            return None
        return steps[-1]

    def _quantized(self, value: Expr, quantize: Quantize, clip: Clip | None) -> Expr:
        """Clamped to the output's range (and `clip`), rounded (halves to even), and narrowed."""
        emit, lanes = self._emit, self._emit.lanes(value)
        if quantize.scale != 1.0:
            value = value / emit.splat("float32", quantize.scale, lanes)
        limits = np.iinfo(quantize.dtype)
        zero_point = quantize.zero_point
        low, high = float(limits.min - zero_point), float(limits.max - zero_point)
        if clip is not None:
            low, high = (min(max(bound, low), high) for bound in (clip.low, clip.high))
        value = emit.clip(value, low, high)
        integers = emit.nearest(value) + emit.splat("int32", zero_point, lanes)
        return emit.cast(integers, quantize.dtype)

    def _added(self, step: AddTensor, value: Expr, lanes: int) -> Expr:
        emit = self._emit
        if step.dtype != "float32":
            shifted = emit.cast(value, "int32") - emit.splat("int32", step.zero_point, lanes)
            value = emit.cast(shifted, "float32")
        return value if step.scale == 1.0 else emit.rounded(value * emit.splat("float32", step.scale, lanes))
