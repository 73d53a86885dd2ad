"""Code of an `Epilogue`: from a vector of sums in registers to what is stored.

Every product is rounded by itself before anything is added to it, as in `greencc.verify.integer_reference`: a fused
multiply-add would round once where the reference rounds twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    ScaleChannels,
)
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.narrow import GROUP, Grid, dealt_order, grid_of, packed, packs
from greencc.targets._tvm.kernels.vectormath import apply, heavy


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
    """Writes one epilogue: `arguments` once, in its place among the function's, then `start` and `store`.

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
        grid = self._grid()
        whole = emit.bind(
            packed(emit, [self._value(piece) for piece in group], grid, dealt=group[0].constant is not None)
        )
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
        return value if self.epilogue.quantize is None else self._quantized(value)

    def _value(self, piece: Piece) -> Expr:
        """The float32 that is stored or quantized, but for the bounds of the output's range."""
        emit, at, lanes = self._emit, piece.at, piece.lanes
        constant = piece.constant or (lambda buffer: emit.load(buffer, [at[-1]], lanes))
        value = emit.cast(piece.sums, "float32") if self.sums == "int32" else piece.sums
        if self.epilogue.multiplier:
            value = emit.rounded(value * constant(self._constants["multiplier"]))
        if self.epilogue.offset:
            value = value + constant(self._constants["offset"])
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
                    value = emit.rounded(value * constant(buffer))
                case AddChannels():
                    value = value + constant(buffer)
        quantize = self.epilogue.quantize
        if quantize is not None and quantize.scale != 1.0:
            value = value / emit.splat("float32", quantize.scale, lanes)
        return value

    def _last_clip(self) -> Clip | None:
        """A Clip at the end, in steps of the output: it is the same clamp as that of the output's range."""
        quantize, steps = self.epilogue.quantize, self.epilogue.steps
        if quantize is None or quantize.scale != 1.0 or not steps or not isinstance(steps[-1], Clip):
            return None
        return steps[-1]

    def _grid(self) -> Grid:
        assert self.epilogue.quantize is not None
        return grid_of(self.epilogue.quantize, self._last_clip())

    def _quantized(self, value: Expr) -> Expr:
        """Clamped to the output's range, rounded (halves to even), and narrowed."""
        emit, lanes, grid = self._emit, self._emit.lanes(value), self._grid()
        value = emit.clip(value, grid.low, grid.high)
        integers = emit.nearest(value) + emit.splat("int32", grid.zero_point, lanes)
        return emit.cast(integers, grid.dtype)

    def _added(self, step: AddTensor, value: Expr, lanes: int) -> Expr:
        emit = self._emit
        if step.dtype != "float32":
            shifted = emit.cast(value, "int32") - emit.splat("int32", step.zero_point, lanes)
            value = emit.cast(shifted, "float32")
        return value if step.scale == 1.0 else emit.rounded(value * emit.splat("float32", step.scale, lanes))


def deals_out(epilogue: Epilogue) -> bool:
    """Whether vectors may be dealt out: they are packed, and nothing else is in the order of the channels."""
    return epilogue.quantize is not None and not any(isinstance(step, AddTensor) for step in epilogue.steps)


def _together(group: Sequence[Piece], count: int) -> bool:
    """True if so many pieces are there, and neighbours."""
    return len(group) == count and len({piece.pixel for piece in group}) == 1
