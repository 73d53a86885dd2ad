"""A register tile: the sums of some pixels (or rows) by the output channels of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greencc.targets._tvm.kernels.blocks import Block
from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode, Piece
from greencc.targets._tvm.kernels.products import Products, Source


@dataclass(frozen=True)
class Run:
    """Neighbouring inputs in memory.

    Attributes:
        buffer: Where.
        dtype: Of the inputs.
        length: How many.
        slack: What is behind them, to the end of a step, may be read (weights of zero make nothing of it).
    """

    buffer: Expr
    dtype: str
    length: int
    slack: bool = False


class Tile:
    """Sums in registers. Written in the order `start`, `step` (in loops), `finish`.

    Args:
        emit: Where to write.
        products: How products are summed.
        code: What happens to the sums.
        block: Output channels.
        pixels: How many.
        parts: Each sum is that many partial ones: with few sums, one addition need not wait for the one before.
    """

    def __init__(
        self, emit: Emit, products: Products, code: EpilogueCode, block: Block, pixels: int, parts: int = 1
    ) -> None:
        self._emit = emit
        self._products = products
        self._code = code
        self._block = block
        self._pixels = pixels
        self._parts = parts
        self._elements = block.elements(products)
        self._width = sum(vector.lanes for vector in block.vectors)
        self._sums = emit.registers(products.sums, parts * pixels * self._width)

    def start(self, channel: Index) -> None:
        """Sums start at the bias of the block's channels, which begin at `channel`."""
        emit = self._emit
        for part in range(self._parts):
            for pixel in range(self._pixels):
                for vector in self._block.vectors:
                    whole = vector.valid == vector.lanes and part == 0
                    value = (
                        self._code.start(channel + vector.channel, vector.lanes)
                        if whole
                        else emit.splat(self._products.sums, 0, vector.lanes)
                    )
                    emit.store(self._sums, [self._at(part, pixel, vector.channel)], value, vector.lanes)

    def step(self, sources: Sequence[Source], packed: Expr, at: Index, part: int = 0) -> None:
        """Adds a step's products: its inputs of every pixel by the packed weights that begin at `at`."""
        emit = self._emit
        for pixel, source in enumerate(sources):
            for vector, offset in zip(self._block.vectors, self._elements, strict=False):
                place = [self._at(part, pixel, vector.channel)]
                sums = emit.load(self._sums, place, vector.lanes)
                value = self._products.add(emit, sums, source, packed, at + offset, vector.lanes)
                emit.store(self._sums, place, value, vector.lanes)

    def run(
        self, data: Run, places: Sequence[Sequence[Index]], packed: Expr, at: Index, unroll: int = 1
    ) -> None:
        """Adds the products of a run of neighbouring inputs.

        Args:
            data: The inputs.
            places: Where the run begins, for every pixel.
            packed: Weights.
            at: Where the run's begin.
            unroll: How many steps of the loop are written out.
        """
        emit, depth = self._emit, self._products.depth
        full = -(-data.length // depth) if data.slack else data.length // depth
        unroll = max(1, min(max(unroll, self._parts), full))

        def step(number: Index, valid: int, part: int) -> None:
            sources = [
                Source(data.buffer, [*outer, last + number * depth], valid, data.dtype)
                for *outer, last in places
            ]
            self.step(sources, packed, at + number * self.step_elements, part % self._parts)

        if full:
            with emit.loop(full // unroll) as number:
                for part in range(unroll):
                    step(number * unroll + part, depth, part)
        for number in range(full - full % unroll, full):
            step(number, depth, number)
        if full * depth < data.length:
            step(full, data.length - full * depth, full)

    @property
    def step_elements(self) -> int:
        """Packed weights of a step."""
        return self._elements[-1]

    def finish(self, output: Expr, at: Callable[[Index], Sequence[Index]], channel: Index) -> None:
        """Stores every pixel.

        Args:
            output: The output.
            at: Its indices, but the channel, of a pixel's number: an int, or an expression if the code is heavy.
            channel: First of the block.
        """
        emit = self._emit
        if self._parts > 1:
            self._join()
        if not self._code.heavy or self._pixels == 1:
            self._store(
                self._sums, self._at(0, 0, 0), output, [at(pixel) for pixel in range(self._pixels)], channel
            )
            return
        spilled = emit.scratch(self._products.sums, self._pixels * self._width)
        for pixel in range(self._pixels):
            for vector in self._block.vectors:
                place = [self._at(0, pixel, vector.channel)]
                emit.store(spilled, place, emit.load(self._sums, place, vector.lanes), vector.lanes)
        with emit.loop(self._pixels) as number:
            self._store(spilled, number * self._width, output, [at(number)], channel)

    def _join(self) -> None:
        emit = self._emit
        for pixel in range(self._pixels):
            for vector in self._block.vectors:
                places = [[self._at(part, pixel, vector.channel)] for part in range(self._parts)]
                parts = [emit.load(self._sums, place, vector.lanes) for place in places]
                while len(parts) > 1:
                    parts = [sum(parts[i : i + 2][1:], parts[i]) for i in range(0, len(parts), 2)]
                emit.store(self._sums, places[0], parts[0], vector.lanes)

    def _store(
        self, sums: Expr, first: Index, output: Expr, pixels: Sequence[Sequence[Index]], channel: Index
    ) -> None:
        """Stores neighbouring pixels of `sums`, which begin at `first`."""
        emit, pieces = self._emit, []
        for pixel, outer in enumerate(pixels):
            for vector in self._block.vectors:
                whole = vector.valid == vector.lanes
                for lane in range(1 if whole else vector.valid):
                    lanes = vector.lanes if whole else 1
                    at = [*outer, channel + (vector.channel + lane)]
                    place = first + (pixel * self._width + vector.channel + lane)
                    value = emit.load(sums, [place], lanes)
                    if not whole:
                        value = value + self._code.start(at[-1], 1)
                    pieces.append(Piece(value, at, lanes, pixel))
        self._code.store(output, pieces)

    def _at(self, part: int, pixel: int, channel: int) -> int:
        return (part * self._pixels + pixel) * self._width + channel
