"""Kernel times between measured ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from greencc.compiler.kernel_grid import channels_of, grids, interpolate, leave_one_out, resized
from greencc.compiler.signatures import Absorbed, Operand, Signature


def conv(ins: int, outs: int, kernel: int = 3, group: int = 1) -> Signature:
    operands = (
        Operand("FLOAT", (1, ins, 8, 8), constant=False),
        Operand("FLOAT", (outs, ins // group, kernel, kernel), constant=True),
        Operand("FLOAT", (outs,), constant=True),
    )
    attributes = (("group", group),) if group > 1 else ()
    return Signature("Conv", "", attributes, operands, (Absorbed("Relu"),), 20)


def product(kind: str, ins: int, outs: int) -> Signature:
    transposed = kind == "Gemm"
    weight = (outs, ins) if transposed else (ins, outs)
    operands = (Operand("FLOAT", (1, 5, ins), constant=False), Operand("FLOAT", weight, constant=True))
    bias = Absorbed("Add", operands=(Operand("FLOAT", (outs,), constant=True),))
    return Signature(kind, "", (("transB", 1),) if transposed else (), operands, (bias,), 20)


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda ins, outs: conv(ins, outs), (16, 32)),
        (lambda ins, outs: conv(ins, ins, group=ins), (16, 16)),
        (lambda ins, outs: product("MatMul", ins, outs), (16, 32)),
        (lambda ins, outs: product("Gemm", ins, outs), (16, 32)),
    ],
)
def test_resized_is_the_operation_with_other_channels(
    make: Callable[[int, int], Signature], channels: tuple[int, int]
) -> None:
    assert channels_of(make(16, 32)) == channels
    other = (48, 64) if channels[0] != channels[1] else (48, 48)
    assert resized(make(16, 32), *other) == make(*other)


def test_what_cannot_have_other_channels_has_none() -> None:
    assert channels_of(conv(16, 32, group=4)) is None
    assert channels_of(conv(16, 32, group=16)) is None, "two outputs for each input"


def time_of(signature: Signature, bend: float = 0.0) -> tuple[float, float, float]:
    channels = channels_of(signature)
    assert channels is not None
    ins, outs = channels
    us = 2.0 + 0.01 * ins * outs + bend * outs**2
    return 0.9 * us, us, 1.1 * us


def test_a_bilinear_time_is_interpolated_exactly() -> None:
    family = [conv(ins, outs) for ins in range(16, 129, 16) for outs in range(16, 257, 16)]
    (grid,) = grids(family, 16, 24, 4)
    assert (grid.ins, grid.outs) == ((16, 48, 96, 128), (16, 96, 176, 256))
    assert len(grid.points()) + len(grid.checks) + len(grid.between) == len(family)
    found = interpolate(grid, {point: time_of(point) for point in (*grid.points(), *grid.checks)})
    assert set(found) == set(grid.between)
    for signature, guess in found.items():
        low, middle, high = time_of(signature)
        assert (guess.low, guess.middle, guess.high) == pytest.approx((low, middle, high))
        assert guess.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_the_interpolation_widens_it_and_holds_what_is_true() -> None:
    family = [conv(64, outs) for outs in range(16, 16 * 41, 16)]
    (grid,) = grids(family, 16, 24, 5)
    assert grid.ins == (64,)
    measured = (*grid.points(), *grid.checks)
    found = interpolate(grid, {point: time_of(point, bend=2e-4) for point in measured})
    assert len(found) == 29
    inside = 0
    for signature, guess in found.items():
        low, true, high = time_of(signature, bend=2e-4)
        assert guess.error > 0.0
        assert guess.high - guess.low > high - low
        inside += guess.low <= true <= guess.high
    assert inside == len(found)


def test_leaving_one_out_gives_the_root_mean_square_of_the_relative_errors() -> None:
    (grid,) = grids([conv(64, outs) for outs in range(16, 16 * 31, 16)], 16, 24, 4)
    times = {point: time_of(point, bend=1e-3)[1] for point in grid.points()}
    import numpy as np

    table = np.array([times[point] for point in grid.points()]).reshape(1, 4)
    expected = []
    for place in (1, 2):
        left, right = grid.outs[place - 1], grid.outs[place + 1]
        share = (grid.outs[place] - left) / (right - left)
        guess = (1 - share) * table[0, place - 1] + share * table[0, place + 1]
        expected.append(guess / table[0, place] - 1.0)
    assert leave_one_out(grid, table) == pytest.approx(math.sqrt(sum(error**2 for error in expected) / 2))


def test_channels_that_do_not_fill_blocks_are_a_family_of_their_own() -> None:
    aligned = [conv(64, outs) for outs in range(16, 16 * 31, 16)]
    others = [conv(64, outs) for outs in range(20, 20 + 16 * 30, 16)]
    found = grids([*aligned, *others], 16, 24, 4)
    assert [
        set(grid.points()) <= set(family) for grid, family in zip(found, (aligned, others), strict=True)
    ] == [
        True,
        True,
    ]
    assert not grids([*aligned[:15], *others[:15]], 16, 24, 4), "neither is large enough"


def test_depthwise_convolutions_lie_on_a_line() -> None:
    family = [conv(channels, channels, group=channels) for channels in range(16, 16 * 31, 16)]
    (grid,) = grids(family, 16, 24, 4)
    assert grid.outs == ()
    assert len(grid.points()) == 4
    measured = (*grid.points(), *grid.checks)
    assert len(interpolate(grid, dict.fromkeys(measured, (1.0, 2.0, 3.0)))) == 20


def test_small_families_and_other_operations_are_measured_as_they_are() -> None:
    assert grids([conv(16, 16 * index) for index in range(1, 25)], 16, 24, 4) == []
    kernels = [conv(16, 16, kernel) for kernel in range(1, 60, 2)]
    assert grids(kernels, 16, 24, 4) == []


def test_a_period_that_the_grid_cannot_see_shows_in_the_checks() -> None:
    """Every fourth block is quick, and all points of the grid are such blocks."""
    family = [conv(64, outs) for outs in range(64, 64 * 13 + 1, 16)]
    (grid,) = grids(family, 16, 24, 5)
    assert all(outs % 64 == 0 for outs in grid.outs)

    def time(signature: Signature) -> tuple[float, float, float]:
        _, us, _ = time_of(signature)
        channels = channels_of(signature)
        assert channels is not None
        us *= 1.0 if channels[1] % 64 == 0 else 1.3
        return us, us, us

    found = interpolate(grid, {point: time(point) for point in (*grid.points(), *grid.checks)})
    for signature, guess in found.items():
        assert guess.error > 0.15
        assert guess.low <= time(signature)[1] <= guess.high * 1.1
