"""Output channels in blocks of vectors, and weights packed in that order.

Channels that are no multiple of a vector end with narrower vectors (16, 8, 4); fewer than four are computed in four
lanes, of which only the valid ones are stored. So nothing outside an array is touched, and no array is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.kernels.products import Products

_NARROWEST = 4


@dataclass(frozen=True)
class Vector:
    """Lanes that hold output channels.

    Attributes:
        channel: First channel within the block.
        lanes: Lanes computed.
        valid: Lanes that hold a channel: all, or fewer than four.
    """

    channel: int
    lanes: int
    valid: int


@dataclass(frozen=True)
class Block:
    """Neighbouring output channels that a register tile computes together."""

    vectors: tuple[Vector, ...]

    @property
    def channels(self) -> int:
        return sum(vector.valid for vector in self.vectors)

    def elements(self, products: Products) -> tuple[int, ...]:
        """Where each vector's weights of a step begin, and behind the last where the next step's begin."""
        return tuple(accumulate((products.elements(vector.lanes) for vector in self.vectors), initial=0))


@dataclass(frozen=True)
class Blocks:
    """All output channels of a group: `count` equal blocks of full vectors, then the rest."""

    count: int
    main: Block
    rest: Block | None

    def size(self, products: Products, steps: int) -> int:
        """Elements of a group's packed weights."""
        return self.rest_offset(products, steps) + (
            0 if self.rest is None else steps * self.rest.elements(products)[-1]
        )

    def rest_offset(self, products: Products, steps: int) -> int:
        """Where the packed weights of the rest begin."""
        return self.count * steps * self.main.elements(products)[-1]


def blocks_of(channels: int, vectors: int, lanes: int, narrowest: int = _NARROWEST) -> Blocks:
    """Blocks of `vectors` vectors of `lanes` lanes, and a rest of full and narrower ones."""
    count = channels // (vectors * lanes)
    main = Block(tuple(Vector(number * lanes, lanes, lanes) for number in range(vectors)))
    rest, done = [], 0
    left = channels - count * vectors * lanes
    while done < left:
        while lanes > max(left - done, narrowest):
            lanes //= 2
        rest.append(Vector(done, lanes, min(lanes, left - done)))
        done += lanes
    return Blocks(count, main, Block(tuple(rest)) if rest else None)


def pack_blocks(products: Products, blocks: Blocks, weights: Array) -> Array:
    """Packed weights of all groups, one after the other: [group][block][step][vector][its elements].

    Args:
        products: How they are multiplied.
        blocks: Of a group.
        weights: [groups, steps, what a step sums, output channels of a group]
    """
    groups, steps, depth, _ = weights.shape
    width = sum(vector.lanes for vector in blocks.main.vectors)
    parts, first = [], 0
    for block in (*[blocks.main] * blocks.count, *([] if blocks.rest is None else [blocks.rest])):
        columns = []
        for vector in block.vectors:
            begin = first + vector.channel
            part = np.zeros((groups, steps, depth, vector.lanes), weights.dtype)
            part[..., : vector.valid] = weights[..., begin : begin + vector.valid]
            columns.append(products.pack(part).reshape(groups, steps, -1))
        parts.append(np.concatenate(columns, axis=-1).reshape(groups, -1))
        first += width
    packed: Array = np.ascontiguousarray(np.concatenate(parts, axis=1).reshape(-1))
    assert packed.size == groups * blocks.size(products, steps)
    return packed
