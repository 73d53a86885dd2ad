"""Kernel times between measured ones: piecewise linear in the channels, on the blocks that kernels work in.

Pruning to k channels and factorising to rank r ask for the times of one operation at many numbers of channels. Those
that differ in nothing else, and are alike in whether they fill the kernels' blocks (a convolution that does not may run
another kernel), form a family; a grid of it is measured, and the others lie between. How wrong that is, each inner
point of the grid tells when it is predicted from its neighbours (leave one out). A regular grid is blind to times that
go up and down with its own period (kernels take blocks of channels in fours), so a few signatures between its points
are measured as well: the larger of the two errors counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from greencc.compiler.signatures import Operand, Signature
from greencc.core.data import Array

_UNKNOWN = -1
_CHECKS = 6
# Ends of an interpolated time lie this many root mean square errors further out: about 95 %.
_DEVIATIONS = 2.0
_SEED = 0


@dataclass(frozen=True)
class Grid:
    """The points of a family that are measured, and the signatures that lie between.

    Attributes:
        base: One of the family.
        ins: Input channels of the points, rising; those of the family, some left out.
        outs: Output channels likewise; empty where they are the input channels (depthwise).
        checks: Signatures between the points that are measured to see how wrong the others are.
        between: What is not measured.
    """

    base: Signature
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    checks: tuple[Signature, ...]
    between: tuple[Signature, ...]

    def points(self) -> list[Signature]:
        """What to measure, input channels in the outer order."""
        if not self.outs:
            return [resized(self.base, channels, channels) for channels in self.ins]
        return [resized(self.base, first, second) for first in self.ins for second in self.outs]


@dataclass(frozen=True)
class Interpolated:
    """Microseconds of a signature that was not measured, as low, middle and high, and the relative error."""

    low: float
    middle: float
    high: float
    error: float


def channels_of(signature: Signature) -> tuple[int, int] | None:
    """Input and output channels, where a signature can have others; None where it cannot."""
    weight = _weight(signature)
    if weight is None:
        return None
    group = signature.attribute("group", 1)
    if signature.op_type in ("Conv", "ConvTranspose"):
        if group == 1:
            first, second = weight.shape[:2]
            return (second, first) if signature.op_type == "Conv" else (first, second)
        # Depthwise with one output for each input; other groups are cut as a whole.
        same = signature.op_type == "Conv" and weight.shape[:2] == (group, 1)
        return (weight.shape[0], weight.shape[0]) if same else None
    if len(weight.shape) != 2 or signature.attribute("transA", 0):
        return None
    rows, columns = weight.shape
    return (columns, rows) if signature.attribute("transB", 0) else (rows, columns)


def resized(signature: Signature, ins: int, outs: int) -> Signature:
    """The signature with other channels; it must have some (`channels_of`)."""
    weight, data = _weight(signature), signature.operands[0]
    assert weight is not None
    assert data is not None
    attributes = signature.attributes
    convolution = signature.op_type in ("Conv", "ConvTranspose")
    if convolution and signature.attribute("group", 1) != 1:
        sizes = (outs, 1)
        attributes = tuple((name, outs if name == "group" else value) for name, value in attributes)
    elif signature.op_type == "Conv" or signature.attribute("transB", 0):
        sizes = (outs, ins)
    else:
        sizes = (ins, outs)
    axis = 1 if convolution else len(data.shape) - 1
    first = replace(data, shape=(*data.shape[:axis], ins, *data.shape[axis + 1 :]))
    second = replace(weight, shape=(*sizes, *weight.shape[2:]))
    biases = tuple(_wide(operand, outs) for operand in signature.operands[2:])
    absorbed = tuple(
        replace(item, operands=tuple(_wide(operand, outs) for operand in item.operands))
        for item in signature.absorbed
    )
    return replace(signature, attributes=attributes, operands=(first, second, *biases), absorbed=absorbed)


def grids(signatures: Iterable[Signature], alignment: int, most: int, per_axis: int) -> list[Grid]:
    """Grids of the families with more than `most` members, where measuring the grid is less work.

    Args:
        signatures: All that are wanted.
        alignment: Numbers of channels that fill the kernels' blocks are multiples of this.
        most: A family of as many is measured as it is.
        per_axis: Points of a grid along each of its axes, at least 3.
    """
    families: dict[object, list[Signature]] = defaultdict(list)
    for signature in dict.fromkeys(signatures):
        channels = channels_of(signature)
        if channels is not None:
            classes = tuple((count % alignment == 0, count < alignment) for count in channels)
            families[resized(signature, _UNKNOWN, _UNKNOWN), classes].append(signature)
    found = [_grid(members, max(per_axis, 3)) for members in families.values() if len(members) > most]
    return [grid for grid in found if grid is not None]


def interpolate(
    grid: Grid, times: Mapping[Signature, tuple[float, float, float]]
) -> dict[Signature, Interpolated]:
    """Times of what lies between the points.

    Args:
        grid: Of a family.
        times: Low, middle and high of each of the points, and of the checks.
    """
    shape = (len(grid.ins), max(1, len(grid.outs)))
    table = np.array([times[point] for point in grid.points()], np.float64).reshape(*shape, 3)
    error = max(leave_one_out(grid, table[..., 1]), _checked(grid, table[..., 1], times))
    wide = _DEVIATIONS * error
    found = {}
    for signature in grid.between:
        channels = channels_of(signature)
        assert channels is not None
        low, middle, high = (_at(grid, table[..., part], channels) for part in range(3))
        found[signature] = Interpolated(low * max(0.0, 1.0 - wide), middle, high * (1.0 + wide), error)
    return found


def leave_one_out(grid: Grid, table: Array) -> float:
    """Root mean square of the relative errors with which inner points follow from their neighbours along an axis."""
    errors: list[float] = []
    for values, lines in ((grid.ins, table.T), (grid.outs, table)):
        for line in lines if len(values) > 2 else ():
            for place in range(1, len(values) - 1):
                around = [place - 1, place + 1]
                guess = np.interp(values[place], [values[item] for item in around], line[around])
                errors.append(float(guess / line[place] - 1.0))
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _checked(grid: Grid, table: Array, times: Mapping[Signature, tuple[float, float, float]]) -> float:
    """Root mean square of the relative errors of what was measured between the points."""
    errors = [
        _at(grid, table, channels) / times[signature][1] - 1.0
        for signature in grid.checks
        if (channels := channels_of(signature)) is not None
    ]
    return math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else 0.0


def _weight(signature: Signature) -> Operand | None:
    """The second operand, where it is the constant one."""
    weight = signature.operands[1]
    return weight if weight is not None and weight.constant and len(weight.shape) >= 2 else None


def _wide(operand: Operand | None, outs: int) -> Operand | None:
    """A value per output channel; one for all of them stays."""
    if operand is None or not operand.shape or operand.shape[-1] == 1:
        return operand
    return replace(operand, shape=(*operand.shape[:-1], outs))


def _grid(members: Sequence[Signature], per_axis: int) -> Grid | None:
    """None where interpolation would save nothing, or nothing could tell its error."""
    channels = {member: found for member in members if (found := channels_of(member)) is not None}
    ins = _spread([first for first, _ in channels.values()], per_axis)
    outs = _spread([second for _, second in channels.values()], per_axis)
    depthwise = members[0].op_type == "Conv" and members[0].attribute("group", 1) != 1
    grid = Grid(members[0], ins, () if depthwise else outs, (), ())
    points = frozenset(grid.points())
    between = tuple(member for member in members if member not in points)
    known = max(len(grid.ins), len(grid.outs)) > 2
    if not known or len(points) + _CHECKS >= len(members):
        return None
    # Drawn, so that they have no period.
    drawn = np.random.default_rng(_SEED).choice(len(between), min(_CHECKS, len(between) // 2), replace=False)
    checks = tuple(between[place] for place in sorted(drawn))
    return replace(grid, checks=checks, between=tuple(item for item in between if item not in checks))


def _spread(values: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of the values, first and last among them, evenly over their order."""
    found = sorted(set(values))
    if len(found) <= count:
        return tuple(found)
    picks = np.linspace(0, len(found) - 1, count).round().astype(int)
    return tuple(found[pick] for pick in picks)


def _at(grid: Grid, table: Array, channels: tuple[int, int]) -> float:
    """Linear along the output channels, then along the input channels."""
    ins, outs = channels
    if not grid.outs:
        return float(np.interp(ins, grid.ins, table[:, 0]))
    lines = [float(np.interp(outs, grid.outs, line)) for line in table]
    return float(np.interp(ins, grid.ins, lines))
