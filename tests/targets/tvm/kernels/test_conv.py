"""Convolutions: exact integers, floats within rounding, and nothing touched outside the buffers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.targets._tvm.epilogue import Clip, Epilogue, Quantize
from greencc.targets._tvm.kernels.conv import CONV
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Conv, Window

from .product_runs import MACHINES, cases, convolved, epilogue_arguments, finished, inputs, run, runnable

_QUANTIZED = Epilogue(
    bias=True, multiplier=True, steps=(Clip(-90.5, 100.0),), quantize=Quantize("uint8", 1.0, 3)
)
_SAME = (1, 1, 1, 1)
_SHAPES = {
    "rgb stride 2": Conv(Window(11, 13, (3, 3), (2, 2), (1, 1), _SAME), (3, 24)),
    "one channel": Conv(Window(9, 9, (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)), (1, 10)),
    "one channel, no borders": Conv(Window(9, 9, (5, 5)), (1, 5)),
    "wide 3x3": Conv(Window(7, 7, (3, 3), (1, 1), (1, 1), _SAME), (17, 100)),
    "1x1": Conv(Window(6, 5), (20, 33)),
    "1x1, odd channels": Conv(Window(6, 5), (10, 3)),
    "1x1 stride 2": Conv(Window(9, 8, (1, 1), (2, 2)), (24, 16)),
    "dilated": Conv(Window(12, 11, (3, 3), (1, 1), (2, 3), (2, 3, 2, 3)), (5, 17)),
    "dilated, no borders": Conv(Window(12, 11, (3, 2), (2, 1), (2, 3)), (6, 9)),
    "asymmetric": Conv(Window(8, 10, (2, 4), (3, 2), (1, 1), (0, 3, 2, 1)), (7, 12)),
    "groups": Conv(Window(6, 7, (3, 3), (1, 1), (1, 1), _SAME), (12, 30), groups=3),
    "groups, no borders": Conv(Window(6, 7, (2, 3), (1, 2)), (10, 4), groups=2),
    "groups 1x1": Conv(Window(4, 5), (24, 40), groups=4),
    "row": Conv(Window(1, 40, (1, 7), (1, 1), (1, 1), (0, 3, 0, 3)), (4, 8)),
    "column": Conv(Window(21, 1, (3, 1), (1, 1), (1, 1), (2, 0, 0, 0)), (8, 6)),
    "borders wider than the image": Conv(Window(2, 2, (5, 5), (1, 1), (1, 1), (4, 4, 4, 4)), (3, 4)),
    "crowded cache": Conv(Window(4, 14), (1024, 16)),
}


def _conv(name: str, machine: Machine, quantized: bool) -> Conv:
    shape = _SHAPES[name]
    if not quantized:
        return replace(shape, epilogue=Epilogue(bias=True))
    zero_point = 131 if machine.activation == "uint8" else -5
    return replace(shape, data=machine.activation, zero_point=zero_point, epilogue=_QUANTIZED)


def _check(
    workload: Conv, machine: Machine, samples: int, schedule: Schedule | None = None, widest: int = 127
) -> None:
    rng = np.random.default_rng(5)
    data, weights = inputs(workload, samples, rng, widest)
    sums = convolved(workload, data, weights)
    kind = "float32" if workload.data == "float32" else "int32"
    arguments = epilogue_arguments(workload.epilogue, sums.shape, kind, rng)
    got = run(workload, machine, data, weights, arguments, schedule)
    wanted = finished(workload.epilogue, sums, arguments)
    if kind == "int32":
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("machine", "name"), cases(_SHAPES, _SHAPES, ["rgb stride 2"]))
def test_every_shape_in_integers(machine: str, name: str) -> None:
    _check(_conv(name, MACHINES[machine], True), MACHINES[machine], samples=2)


_FLOATS = ("one channel", "wide 3x3", "1x1, odd channels", "dilated", "asymmetric", "groups")


@pytest.mark.parametrize(("machine", "name"), cases(_SHAPES, _FLOATS, ["groups"]))
def test_every_shape_in_floats(machine: str, name: str) -> None:
    _check(_conv(name, MACHINES[machine], False), MACHINES[machine], samples=2)


@pytest.mark.parametrize("samples", [0, 1, 3])
@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
def test_any_batch(samples: int, quantized: bool) -> None:
    machine = MACHINES[runnable()[0]]
    _check(_conv("wide 3x3", machine, quantized), machine, samples)


@pytest.mark.parametrize("machine", runnable())
def test_weights_of_seven_bits_that_fit_pairs(machine: str) -> None:
    workload = replace(_conv("wide 3x3", MACHINES[machine], True), pairs_fit=True)
    _check(workload, MACHINES[machine], samples=1, widest=63)


def test_pairs_that_do_not_fit_are_refused() -> None:
    workload = replace(_conv("1x1", MACHINES["avx2"], True), pairs_fit=True)
    weights = np.full((33, 20, 1, 1), 100, np.int8)
    with pytest.raises(ValueError, match="overflow INT16"):
        CONV.pack(workload, CONV.default(workload, MACHINES["avx2"]), MACHINES["avx2"], weights)


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(1, 1, 1, 1),
        Schedule(2, 3, 2, 4, unroll=2),
        Schedule(2, 5, 3, 100),
        Schedule(1, 9, 2, 5, unroll=100),
    ],
    ids=str,
)
def test_any_schedule_computes_the_same(schedule: Schedule, quantized: bool) -> None:
    machine = replace(MACHINES[runnable()[0]], cores=4)
    name = "rgb stride 2" if quantized else "1x1, odd channels"
    _check(_conv(name, machine, quantized), machine, 2, schedule)


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
def test_tasks_share_output_channels_and_bands(quantized: bool) -> None:
    """Work enough for threads: blocks of channels, groups and bands are split among tasks."""
    machine = replace(MACHINES[runnable()[0]], cores=3, l2_bytes=64 << 10)
    window = Window(15, 9, (3, 3), (1, 1), (1, 1), _SAME)
    for channels, groups in (((96, 136), 1), ((160, 160), 4)):
        workload = replace(_conv("1x1", machine, quantized), window=window, channels=channels, groups=groups)
        _check(workload, machine, 2, Schedule(2, 4, 2, 15 if quantized else 4))


_BORDERS = st.tuples(*[st.integers(0, 3)] * 4)


@settings(max_examples=5)
@given(
    size=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=_BORDERS,
    channels=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    groups=st.integers(1, 2),
    quantized=st.booleans(),
)
def test_any_window(size, kernel, strides, dilations, pads, channels, groups, quantized) -> None:
    machine = MACHINES[runnable()[0]]
    window = Window(*size, kernel, strides, dilations, pads)
    if min(window.output) < 1:
        window = replace(window, dilations=(1, 1))
    shape = replace(
        _conv("1x1", machine, quantized),
        window=window,
        channels=(channels[0] * groups, channels[1] * groups),
        groups=groups,
    )
    _check(shape, machine, samples=1)


def test_space_begins_with_the_default_and_is_small() -> None:
    for name, machine in MACHINES.items():
        for shape in _SHAPES:
            for quantized in (False, True):
                workload = _conv(shape, machine, quantized)
                space = CONV.space(workload, machine)
                assert CONV.default(workload, machine) == space[0], name
                assert len(set(space)) == len(space) <= 64


@pytest.mark.parametrize(
    ("schedule", "message"),
    [(Schedule(0, 1, 1, 1), "below 1"), (Schedule(2, 1, 1, 3), "does not consist of tiles")],
)
def test_schedules_that_do_not_fit(schedule: Schedule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONV.build(_conv("wide 3x3", MACHINES["plain"], False), schedule, MACHINES["plain"], "kernel")


def test_data_of_the_wrong_sign_are_refused() -> None:
    workload = replace(_conv("1x1", MACHINES["plain"], True), data="uint8")
    with pytest.raises(ValueError, match="takes int8, not uint8"):
        CONV.default(workload, MACHINES["plain"])
