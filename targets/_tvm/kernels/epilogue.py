"""Code of an `Epilogue`: from a vector of sums in registers to what is stored.

Every product is rounded by itself before anything is added to it, as in `greencc.verify.integer_reference`: a fused
multiply-add would round once where the reference rounds twice.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from greencc.targets._tvm.numbers import (
    HIGH,
    LOW,
    OUTPUT_SCALE,
    OUTPUT_ZERO_POINT,
    ZERO_POINT,
    added_scale,
    added_zero_point,
    numbers_of,
)
from greencc.targets._tvm.workload import Workload


class EpilogueCode:
    """Writes one epilogue: `arguments`, in their place among the function's; `begin` in every task; `start`, `finish`.

    Attributes:
        epilogue: What is written: that of the workload.
        channels: Output channels.
        sums: Type of the sums, ``float32`` or ``int32``.
        heavy: It takes so many operations that it had better be written in a loop.
    """

    def __init__(self, emit: Emit, workload: Workload, channels: int, sums: str) -> None:
        self.epilogue: Epilogue = workload.epilogue
        self.channels = channels
        self.sums = sums
        self.heavy = any(heavy(step) for step in self.epilogue.steps)
        self._emit = emit
        self._constants: dict[str, Expr] = {}
        self._steps: list[Expr | None] = []
        self._names = tuple(numbers_of(workload))
        self._border: Expr = None

    def arguments(self, shape: Sequence[Index]) -> None:
        """Declares the epilogue's arguments and the numbers; `shape` is the output's, channels last."""
        epilogue, channels = self.epilogue, (self.channels,)
        for name, wanted, dtype in (
            ("bias", epilogue.bias, self.sums),
            ("multiplier", epilogue.multiplier, "float32"),
            ("offset", epilogue.offset, "float32"),
        ):
            if wanted:
                self._constants[name] = self._emit.argument(name, channels, dtype)
        for number, step in enumerate(epilogue.written_steps):
            match step:
                case AddTensor():
                    self._steps.append(self._emit.argument(f"added{number}", shape, step.dtype))
                case ScaleChannels() | AddChannels():
                    self._steps.append(self._emit.argument(f"channels{number}", channels, "float32"))
                case _:
                    self._steps.append(None)
        if self._names:
            self._numbers = self._emit.argument("numbers", (len(self._names),), "int32")

    def begin(self) -> None:
        """In every task, before `border` is called."""
        if ZERO_POINT in self._names:
            self._border = self._emit.bind(self._number(ZERO_POINT))

    def border(self, dtype: str, lanes: int) -> Expr:
        """Integer data outside the image."""
        return self._emit.broadcast(self._emit.cast(self._border, dtype), lanes)

    def _number(self, name: str, dtype: str = "int32") -> Expr:
        """A scalar. It is loaded where it is used: processors broadcast operands from memory at no cost."""
        value = self._emit.load(self._numbers, [self._names.index(name)], 1)
        return value if dtype == "int32" else self._emit.bits(value, dtype, 1)

    def _splat(self, name: str, dtype: str, lanes: int) -> Expr:
        return self._emit.broadcast(self._number(name, dtype), lanes)

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
        for number, (step, buffer) in enumerate(zip(self.epilogue.written_steps, self._steps, strict=True)):
            match step:
                case AddTensor():
                    value = value + self._added(number, step, emit.load(buffer, at, lanes))
                case Clip():
                    value = emit.clip(value, step.low, step.high)
                case Apply():
                    value = apply(emit, step, value)
                case ScaleChannels():
                    value = emit.rounded(value * emit.load(buffer, [channel], lanes))
                case AddChannels():
                    value = value + emit.load(buffer, [channel], lanes)
        return value if self.epilogue.quantize is None else self._quantized(value, self.epilogue.quantize)

    def _quantized(self, value: Expr, quantize: Quantize) -> Expr:
        """Clamped to the output's range, rounded (halves to even), and narrowed."""
        emit, lanes = self._emit, self._emit.lanes(value)
        if quantize.scale != 1.0:
            value = value / self._splat(OUTPUT_SCALE, "float32", lanes)
        value = emit.minimum(value, self._splat(HIGH, "float32", lanes))
        value = emit.maximum(value, self._splat(LOW, "float32", lanes))
        integers = emit.rounding(value, self._splat(OUTPUT_ZERO_POINT, "int32", lanes))
        return emit.cast(integers, quantize.dtype)

    def _added(self, number: int, step: AddTensor, value: Expr) -> Expr:
        emit, lanes = self._emit, self._emit.lanes(value)
        if step.dtype != "float32":
            value = emit.cast(value, "int32") - self._splat(added_zero_point(number), "int32", lanes)
            value = emit.cast(value, "float32")
        return (
            value
            if step.scale == 1.0
            else emit.rounded(value * self._splat(added_scale(number), "float32", lanes))
        )
