"""How the output of a sliding window is cut: columns into tiles, channels into blocks of vectors.

A tile that touches the left or right border is written with the columns it stands on, so that what lies outside the
image is known when code is generated; all others are one loop without any test. Rows outside are left out of the loop
over the kernel's rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from greencc.targets._tvm.kernels.emit import Emit, Expr, Index
from greencc.targets._tvm.kernels.epilogue import EpilogueCode
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.workload import Window


@dataclass(frozen=True)
class Block:
    """`count` times `vectors` vectors of `lanes` channels from channel `start` on."""

    start: int
    count: int
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        """Channels of one repetition."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Tile:
    """`columns` output columns from `first` on, `count` times; `border`: some of its taps are outside the image."""

    first: int
    count: int
    columns: int
    border: bool


def blocks(channels: int, lanes: int, vectors: int, keep: bool = False) -> tuple[Block, ...]:
    """Wide blocks first; what is left takes fewer vectors, then ever narrower ones, then one channel at a time.

    Args:
        channels: All.
        lanes: Of the widest vector.
        vectors: Of the widest block.
        keep: Half a block takes as many, but narrower vectors.
    """
    found = []
    start, left, width, number = 0, channels, lanes, vectors
    while left:
        if keep and number * width // 2 <= left < number * width and width > 4:
            found.append(Block(start, 1, number, width // 2))
            start, left = start + number * width // 2, left - number * width // 2
            continue
        if number > 1 and left < number * width:
            number = max(1, left // width)
            continue
        if left < width:
            width = width // 2 if width > 4 else 1
            continue
        count = left // (number * width)
        found.append(Block(start, count, number, width))
        start, left = start + count * number * width, left - count * number * width
    return tuple(found)


def tiles(window: Window, columns: int) -> tuple[Tile, ...]:
    """Cuts the output columns; border tiles one by one, all between them as one."""
    total = window.output[1]
    found: list[Tile] = []
    for first in range(0, total, columns):
        size = min(columns, total - first)
        border = _border(window, first, size)
        last = found[-1] if found else None
        if last is not None and not border and not last.border and last.columns == size:
            found[-1] = Tile(last.first, last.count + 1, size, False)
        else:
            found.append(Tile(first, 1, size, border))
    return tuple(found)


def kernel_rows(emit: Emit, window: Window, row: Expr) -> tuple[Index, Index]:
    """First and one past the last kernel row inside the image, for an output row."""
    words = emit.T
    size, dilation = window.kernel[0], window.dilations[0]
    first = row * window.strides[0] - window.pads[0]
    low: Index = 0
    high: Index = size
    if window.pads[0]:
        low = words.min(
            words.max(words.floordiv(dilation - 1 - first, dilation), emit.index(0)), emit.index(size)
        )
    if window.pads[2]:
        beyond = words.floordiv(window.height - 1 - first + dilation, dilation)
        high = words.max(words.min(beyond, emit.index(size)), emit.index(0))
    return low, high


def _border(window: Window, first: int, size: int) -> bool:
    stride, left = window.strides[1], window.pads[1]
    reach = (window.kernel[1] - 1) * window.dilations[1]
    return first * stride - left < 0 or (first + size - 1) * stride - left + reach >= window.width


@contextmanager
def each_band(
    emit: Emit, epilogue: EpilogueCode, batch: Expr, rows: int, band: int
) -> Iterator[tuple[Expr, Expr, Index]]:
    """Inside the loop over tasks, one per band of each sample: the sample, the band's first row and how many it has."""
    bands = -(-rows // band)
    with emit.loop(batch * bands, parallel=True) as task:
        epilogue.begin()
        sample = emit.T.floordiv(task, emit.index(bands))
        first = emit.T.floormod(task, emit.index(bands)) * band
        yield sample, first, emit.T.min(emit.index(band), rows - first) if rows % band else band


def each_tile(emit: Emit, window: Window, columns: int) -> Iterator[tuple[Tile, Index]]:
    """Tiles with their first column, inside their loops: a number for border tiles."""
    for tile in tiles(window, columns):
        if tile.border:
            yield tile, tile.first
        else:
            with emit.loop(tile.count) as turn:
                yield tile, tile.first + turn * tile.columns


def valid_schedule(schedule: Schedule, window: Window) -> None:
    """Raises ValueError unless a schedule of a tile of one row fits."""
    rows, columns = window.output
    if schedule.rows != 1 or not 1 <= schedule.columns <= columns or not 1 <= schedule.band <= rows:
        raise ValueError(f"{schedule} does not fit an output of {rows} x {columns}, in tiles of one row")
    if schedule.vectors < 1 or schedule.unroll < 1:
        raise ValueError(f"{schedule}: vectors and unroll are positive")


def evenly(size: int, most: int) -> int:
    """Parts of at most `most` that cut `size` into the fewest pieces, as even as can be."""
    return -(-size // -(-size // most))


def band_of(rows: int, tasks: int) -> int:
    """Rows of a band that makes at most `tasks` of them."""
    return -(-rows // tasks)


def inside(window: Window, column: int) -> bool:
    """True for a column of the image."""
    return 0 <= column < window.width
