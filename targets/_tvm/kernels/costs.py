"""A simple model of a core, in operations of vectors: what the schedules are chosen by."""

from __future__ import annotations

from math import gcd

from greencc.targets._tvm.machine import Machine

LATENCY = 8
"""Operations that must be on their way to hide how long one takes."""
TASK = 1 << 15
"""Operations that are worth a task."""
LINE = 64
"""Bytes of a cache line."""
_WAYS = 8
"""Lines that a set of the level-1 cache holds, at least on most processors."""


def item_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return 4 if dtype == "float32" else 1


def crowded(distance: int, pixels: int, machine: Machine) -> bool:
    """True if so many addresses, `distance` bytes apart, push each other out of the level-1 cache."""
    way = machine.l1_bytes // _WAYS
    lines = _WAYS * way // max(gcd(distance, way), LINE)
    return 2 * pixels > lines


def step_cost(pixels: int, vectors: int, depth: int) -> float:
    """Operations, or loads, or the wait for sums; and a little for the loop.

    An input is part of a float32 operation, but must be spread over a register for an INT8 one.
    """
    loads = pixels + 1.2 * vectors if depth == 1 else 1.75 * pixels + vectors
    return max(pixels * vectors, loads, LATENCY) + 0.5


def fits(pixels: int, vectors: int, machine: Machine) -> bool:
    """True if a tile's sums, its weights and an input have registers."""
    return pixels * vectors + vectors + 1 <= machine.registers


def burden(pixels: int, vectors: int, weights: int, machine: Machine) -> float:
    """How much longer a step takes than its operations.

    Args:
        pixels: Of a tile.
        vectors: Of a tile; LLVM likes to load all inputs of a step first, and spills sums if they do not fit.
        weights: Bytes of a block's weights, which had better stay in the level-2 cache.
        machine: What for.
    """
    spilled = vectors > 1 and pixels * vectors + vectors + pixels > machine.registers
    return (1.15 if spilled else 1.0) * (1.0 if weights <= machine.l2_bytes // 2 else 1.2)


def parts_of(sums: int, steps: int) -> int:
    """Partial sums of each sum, so that enough additions do not wait for each other."""
    parts = 1
    while parts * sums < LATENCY and 2 * parts <= steps:
        parts *= 2
    return parts
