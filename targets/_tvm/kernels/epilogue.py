"""Code of an `Epilogue`: from a vector of sums in registers to what is stored.

Every product is rounded by itself before anything is added to it, as in `greencc.verify.integer_reference`: a fused
multiply-add would round once where the reference rounds twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    ScaleChannels,
)
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.narrow import GROUP, Grid, dealt_order, packed, packs, single
from greencc.targets._tvm.kernels.vectormath import apply, heavy
from greencc.targets._tvm.numbers import (
    OUTPUT_SCALE,
    ZERO_POINT,
    added_scale,
    added_zero_point,
    numbers_of,
)
from greencc.targets._tvm.workload import Workload


@dataclass(frozen=True)
class Piece:
    """A vector of sums.

    Attributes:
        sums: Started by `EpilogueCode.start`.
        at: Indices of its first element in the output.
        lanes: How many.
        pixel: Pieces of one pixel that follow each other are neighbours in the output.
        constant: Loads the channels' constants from a buffer. None: they are neighbours; else, four pieces are dealt
            out as `EpilogueCode.dealt` says.
    """

    sums: Expr
    at: Sequence[Index]
    lanes: int
    pixel: int
    constant: Callable[[Expr], Expr] | None = None


class EpilogueCode:
    """Writes one epilogue: `arguments`, in their place among the function's; `begin` in every task; `start`, `store`.

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

    def _number(self, name: str) -> Expr:
        """A scalar's word. It is loaded where it is used: LLVM takes it out of loops where registers allow."""
        return self._emit.load(self._numbers, [self._names.index(name)], 1)

    def _splat(self, name: str, dtype: str, lanes: int) -> Expr:
        """A number in every lane; a word has several of the smaller types."""
        emit, words = self._emit, lanes * np.dtype(dtype).itemsize // 4
        return emit.bits(emit.broadcast(self._number(name), words), dtype, lanes)

    def start(self, channel: Index, lanes: int, constant: Callable[[Expr], Expr] | None = None) -> Expr:
        """What sums of `lanes` channels from `channel` on start at: the bias or zeros. See `Piece` for `constant`."""
        if self.epilogue.bias:
            bias = self._constants["bias"]
            return self._emit.load(bias, [channel], lanes) if constant is None else constant(bias)
        return self._emit.splat(self.sums, 0, lanes)

    def dealt(self, channel: Index, lanes: int) -> list[Callable[[Expr], Expr]]:
        """Constants of four vectors from `channel` on, of which each has four channels of every sixteen.

        That is the order in which sums are packed without being moved.

        Returns:
            What loads those of each vector from a buffer.
        """
        emit = self._emit
        buffers = [*self._constants.values(), *(step for step in self._steps if step is not None)]
        copies = []
        for buffer in buffers:
            copy = emit.registers(str(buffer.dtype), GROUP * lanes)
            whole = emit.load(buffer, [channel], GROUP * lanes)
            emit.store(copy, [0], emit.shuffled([whole], dealt_order(lanes)), GROUP * lanes)
            copies.append(copy)

        def load(vector: int, buffer: Expr) -> Expr:
            number = next(index for index, known in enumerate(buffers) if known.same_as(buffer))
            return emit.load(copies[number], [vector * lanes], lanes)

        return [partial(load, vector) for vector in range(GROUP)]

    def store(self, output: Expr, pieces: Sequence[Piece]) -> None:
        """Stores pieces: several at once where the output is narrower than the sums."""
        for lanes in sorted({piece.lanes for piece in pieces}, reverse=True):
            equal = [piece for piece in pieces if piece.lanes == lanes]
            together = self.epilogue.quantize is not None and packs(self._emit.machine, lanes)
            for first in range(0, len(equal), GROUP if together else 1):
                group = equal[first : first + (GROUP if together else 1)]
                if len(group) > 1:
                    self._store_packed(output, group)
                else:
                    self._emit.store(output, group[0].at, self._single(group[0]), lanes)

    def _store_packed(self, output: Expr, group: Sequence[Piece]) -> None:
        emit, lanes = self._emit, group[0].lanes
        values = [self._value(piece) for piece in group]
        whole = emit.bind(packed(emit, values, self._grid(), dealt=group[0].constant is not None))
        first = 0
        while first < len(group):
            count = GROUP
            while not _together(group[first : first + count], count):
                count //= 2
            size = count * lanes
            emit.store(output, group[first].at, emit.part(whole, first * lanes, size), size)
            first += count

    def _single(self, piece: Piece) -> Expr:
        value = self._value(piece)
        return value if self.epilogue.quantize is None else single(self._emit, value, self._grid())

    def _grid(self) -> Grid:
        quantize = self.epilogue.quantize
        assert quantize is not None
        return Grid(quantize.dtype, quantize.near, self.epilogue.bounded, self._splat)

    def _value(self, piece: Piece) -> Expr:
        """The float32 that is stored or quantized, but for the bounds of the output's range."""
        emit, at, lanes = self._emit, piece.at, piece.lanes
        constant = piece.constant or (lambda buffer: emit.load(buffer, [at[-1]], lanes))
        value = emit.cast(piece.sums, "float32") if self.sums == "int32" else piece.sums
        if self.epilogue.multiplier:
            value = emit.rounded(value * constant(self._constants["multiplier"]))
        if self.epilogue.offset:
            value = value + constant(self._constants["offset"])
        for number, (step, buffer) in enumerate(zip(self.epilogue.written_steps, self._steps, strict=True)):
            match step:
                case AddTensor():
                    value = value + self._added(number, step, emit.load(buffer, at, lanes))
                case Clip():
                    value = emit.clip(value, step.low, step.high)
                case Apply():
                    value = apply(emit, step, value)
                case ScaleChannels():
                    value = emit.rounded(value * constant(buffer))
                case AddChannels():
                    value = value + constant(buffer)
        quantize = self.epilogue.quantize
        if quantize is not None and quantize.scale != 1.0:
            value = value / self._splat(OUTPUT_SCALE, "float32", lanes)
        return value

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


def deals_out(epilogue: Epilogue) -> bool:
    """Whether vectors may be dealt out: they are packed, and nothing else is in the order of the channels."""
    return epilogue.quantize is not None and not any(isinstance(step, AddTensor) for step in epilogue.steps)


def _together(group: Sequence[Piece], count: int) -> bool:
    """True if so many pieces are there, and neighbours."""
    return len(group) == count and len({piece.pixel for piece in group}) == 1
