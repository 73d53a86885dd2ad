"""Copies between buffers by the widest vectors that fit."""

from __future__ import annotations

from collections.abc import Callable

from greencc.targets._tvm.kernels.emit import Emit, Expr, Index

_BYTES = {"float32": 4, "uint8": 1, "int8": 1}


def copy_row(
    emit: Emit,
    target: Expr,
    at: Index,
    data: Expr,
    source: tuple[Index, Index, Index],
    *,
    inside: Expr | None,
    borders: tuple[int, int],
    shape: tuple[int, int],
    pixel: int,
    channels: int,
    fill: Callable[[int], Expr],
    dtype: str,
) -> None:
    """Copies a row of an image between borders.

    Args:
        emit: Where to write.
        target: A flat buffer.
        at: Where the row begins in it.
        data: [n, h, w, channels]
        source: Sample, row and first channel.
        inside: The row is one of the image; else all of it is filled. None: it always is.
        borders: Pixels before and behind, which are filled.
        shape: Pixels, and channels of each, to copy.
        pixel: From one pixel to the next in the target.
        channels: Of the data.
        fill: A vector of so many lanes of what borders hold.
        dtype: Of both.
    """
    sample, row, channel = source
    (before, behind), (columns, taken) = borders, shape
    body = at + before * pixel

    def filled(begin: Index, size: int) -> None:
        _pieces(
            emit,
            size,
            dtype,
            lambda offset, lanes: emit.store(target, [begin + offset], fill(lanes), lanes),
        )

    def copied() -> None:
        if taken == channels == pixel:
            _pieces(
                emit,
                columns * taken,
                dtype,
                lambda offset, lanes: emit.store(
                    target, [body + offset], emit.load(data, [sample, row, 0, offset], lanes), lanes
                ),
            )
            return
        with emit.loop(columns) as column:
            _pieces(
                emit,
                taken,
                dtype,
                lambda offset, lanes: emit.store(
                    target,
                    [body + column * pixel + offset],
                    emit.load(data, [sample, row, column, channel + offset], lanes),
                    lanes,
                ),
            )

    filled(at, before * pixel)
    filled(body + columns * pixel, behind * pixel)
    if inside is None:
        copied()
        return
    with emit.T.If(inside):
        with emit.T.Then():
            copied()
        with emit.T.Else():
            filled(body, columns * pixel)


def _pieces(emit: Emit, size: int, dtype: str, piece: Callable[[Index, int], None]) -> None:
    """Calls `piece` with offsets and lanes that cover `size` elements."""
    lanes, done = emit.machine.vector_bits // 8 // _BYTES[dtype], 0
    while done < size:
        count = (size - done) // lanes
        if count:
            begin = done
            with emit.loop(count) as number:
                piece(number * lanes + begin, lanes)
            done += count * lanes
        lanes //= 2
