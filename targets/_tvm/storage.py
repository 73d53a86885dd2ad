"""Which tensors share a buffer: those that are never needed at the same time.

Best fit in the order of the steps, on the sizes that the tensors have when every symbolic dimension is 1; a buffer's
size is the maximum over its tensors, so that it fits them whatever the dimensions are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greencc.targets._tvm.dims import Dim, Op, apply, evaluate


@dataclass(frozen=True)
class Lifetime:
    """Bytes of a tensor, the step that writes it and the last that reads it."""

    size: Dim
    first: int
    last: int


def assign(lifetimes: Sequence[Lifetime], symbols: int) -> tuple[list[int], list[Dim]]:
    """The buffer of each tensor, and the size of each buffer.

    Args:
        lifetimes: In any order. A buffer is free for the step after the last that reads its tensor.
        symbols: Number of symbolic dimensions.
    """
    usual = [1] * symbols
    buffers: list[int] = [0] * len(lifetimes)
    sizes: list[Dim] = []
    usual_sizes: list[int] = []
    busy_until: list[int] = []
    for number in sorted(range(len(lifetimes)), key=lambda number: lifetimes[number].first):
        life = lifetimes[number]
        needed = evaluate(life.size, usual)
        free = [buffer for buffer, last in enumerate(busy_until) if last < life.first]
        # The smallest that is large enough, or else the largest.
        fits = [buffer for buffer in free if usual_sizes[buffer] >= needed]
        if fits:
            chosen = min(fits, key=lambda buffer: (usual_sizes[buffer], sizes[buffer] != life.size, buffer))
        elif free:
            chosen = max(free, key=lambda buffer: (usual_sizes[buffer], -buffer))
        else:
            chosen = len(sizes)
            sizes.append(life.size)
            usual_sizes.append(needed)
            busy_until.append(life.last)
        sizes[chosen] = _larger(sizes[chosen], life.size)
        usual_sizes[chosen] = max(usual_sizes[chosen], needed)
        busy_until[chosen] = max(life.last, life.first)
        buffers[number] = chosen
    return buffers, sizes


def _larger(a: Dim, b: Dim) -> Dim:
    """The maximum, without saying the same twice."""
    scaled_a, scaled_b = _scaled(a), _scaled(b)
    if scaled_a is not None and scaled_b is not None and scaled_a[1] == scaled_b[1]:
        return a if scaled_a[0] >= scaled_b[0] else b
    return a if _has_term(a, b) else apply(Op.MAX, a, b)


def _scaled(dim: Dim) -> tuple[int, Dim] | None:
    """(c, rest) of an expression ``c * rest`` as `product` writes it: dimensions are never negative."""
    if len(dim) == 2:
        return (dim[1], ()) if dim[0] == Op.CONST else (1, dim)
    simple = dim[0] == Op.CONST and dim[-1] == Op.MUL and dim[2] == Op.SYMBOL
    return (dim[1], dim[2:-1]) if simple and len(dim) == 5 else None


def _has_term(maximum: Dim, term: Dim) -> bool:
    """True where `maximum` already is the maximum of `term` and others."""
    return maximum == term or (maximum[-1] == Op.MAX and maximum[-len(term) - 1 : -1] == term)
