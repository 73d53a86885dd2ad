"""Depthwise kernels against numpy: integers exactly, floats to their rounding."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.targets._tvm.epilogue import Clip, Epilogue, Quantize
from greencc.targets._tvm.kernels.depthwise import DEPTHWISE
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.numbers import number_arguments
from greencc.targets._tvm.workload import Depthwise, Window, form_of

from .window_runs import ARM, X86, assembly, on_every_machine, on_the_best_machine, run, taps

pytest.importorskip("tvm")

FULL = pytest.mark.full
WINDOWS = {
    "3x3": Window(6, 9, (3, 3), pads=(1, 1, 1, 1)),
    "stride": Window(7, 11, (3, 3), (2, 2), pads=(0, 1, 1, 0)),
    "strides": Window(5, 12, (2, 3), (1, 3), pads=(1, 0, 0, 2)),
    "5x5": Window(6, 13, (5, 5), pads=(2, 2, 2, 2)),
    "7x7": Window(9, 8, (7, 7), (2, 1), pads=(3, 3, 3, 3)),
    "dilated": Window(9, 10, (3, 3), dilations=(2, 3), pads=(2, 3, 2, 3)),
    "column": Window(5, 6, (3, 1), pads=(1, 0, 1, 0)),
    "row": Window(3, 6, (1, 4), pads=(0, 2, 0, 1)),
    "wide pads": Window(2, 2, (5, 5), pads=(2, 4, 4, 2)),
    "no pads": Window(5, 7, (3, 3)),
}


def expected_sums(workload, data, weights, bias):
    exact = np.float64 if workload.data == "float32" else np.int64
    total = np.broadcast_to(bias.astype(exact), (len(data), *workload.window.output, workload.channels))
    for (i, j), values in taps(workload.window, data.astype(exact), workload.zero_point):
        total = total + values * weights[:, 0, i, j].astype(exact)
    return total


def integers(window, channels, machine, *, batch=1, zero_point=None, schedule=None, seed=0, near=False):
    dtype = machine.activation
    limits = np.iinfo(dtype)
    zero_point = (131 if dtype == "uint8" else -5) if zero_point is None else zero_point
    quantize = Quantize("uint8", 1.0, 7, near)
    epilogue = Epilogue(bias=True, multiplier=True, quantize=quantize)
    workload = Depthwise(window, channels, dtype, zero_point, epilogue)
    schedule = schedule or DEPTHWISE.default(workload, machine)
    rng = np.random.default_rng(seed)
    data = rng.integers(limits.min, limits.max + 1, (batch, window.height, window.width, channels)).astype(
        dtype
    )
    weights = rng.integers(-128, 128, (channels, 1, *window.kernel)).astype(np.int8)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    multiplier = rng.uniform(1e-4, 1e-2, channels).astype(np.float32)
    packed = DEPTHWISE.pack(workload, schedule, machine, weights)
    function = DEPTHWISE.build(form_of(workload), schedule, machine, "depthwise")
    shape = (batch, *window.output, channels)
    inputs = [data, *packed, bias, multiplier, *number_arguments(workload)]
    got = run(function, machine, inputs, shape, "uint8")
    sums = expected_sums(workload, data, weights, bias).astype(np.float32)
    want = np.clip(np.rint(sums * multiplier) + 7, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(got, want)


def floats(window, channels, machine, *, batch=1, schedule=None):
    workload = Depthwise(window, channels, epilogue=Epilogue(bias=True, steps=(Clip(0.0, 6.0),)))
    schedule = schedule or DEPTHWISE.default(workload, machine)
    rng = np.random.default_rng(1)
    data = rng.standard_normal((batch, window.height, window.width, channels)).astype(np.float32)
    weights = rng.standard_normal((channels, 1, *window.kernel)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    packed = DEPTHWISE.pack(workload, schedule, machine, weights)
    function = DEPTHWISE.build(workload, schedule, machine, "depthwise")
    got = run(function, machine, [data, *packed, bias], (batch, *window.output, channels), "float32")
    want = np.clip(expected_sums(workload, data, weights, bias), 0.0, 6.0)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", WINDOWS)
@on_the_best_machine
def test_windows(name, machine):
    integers(WINDOWS[name], 18, machine)
    if name in ("stride", "dilated", "wide pads"):
        floats(WINDOWS[name], 18, machine)


@on_every_machine
def test_rows_and_columns_that_differ(machine):
    integers(WINDOWS["strides"], 18, machine)


@pytest.mark.parametrize("channels", [1, 31, pytest.param(7, marks=FULL), pytest.param(109, marks=FULL)])
@on_the_best_machine
def test_channels_that_fill_no_vector(channels, machine):
    integers(WINDOWS["3x3"], channels, machine)
    floats(WINDOWS["3x3"], channels, machine)


@pytest.mark.parametrize("channels", [32, pytest.param(64, marks=FULL), 112, pytest.param(224, marks=FULL)])
@on_every_machine
def test_channels_dealt_out(channels, machine):
    """Blocks of four vectors, whole and half."""
    integers(WINDOWS["3x3"], channels, machine, near=True)
    integers(WINDOWS["stride"], channels, machine)


@pytest.mark.parametrize("batch", [0, 3])
@on_the_best_machine
def test_any_batch(batch, machine):
    integers(WINDOWS["stride"], 20, machine, batch=batch)
    floats(WINDOWS["stride"], 20, machine, batch=batch)


@pytest.mark.parametrize("zero_point", [0, 100])
@on_the_best_machine
def test_zero_points(zero_point, machine):
    integers(WINDOWS["3x3"], 24, machine, zero_point=zero_point)


@pytest.mark.parametrize(("columns", "vectors", "band"), [(5, 1, 1), (2, 3, 4), (1, 4, 6)])
@on_the_best_machine
def test_schedules_compute_the_same(columns, vectors, band, machine):
    schedule = Schedule(1, columns, vectors, band)
    integers(WINDOWS["3x3"], 42, machine, schedule=schedule)
    floats(WINDOWS["3x3"], 42, machine, schedule=schedule)


@on_every_machine
def test_default_comes_first_in_a_small_space(machine):
    workload = Depthwise(Window(28, 28, (3, 3), pads=(1, 1, 1, 1)), 96, machine.activation)
    space = DEPTHWISE.space(workload, machine)
    assert space[0] == DEPTHWISE.default(workload, machine)
    assert len(set(space)) == len(space) <= 64


def test_a_schedule_that_does_not_fit():
    workload = Depthwise(WINDOWS["3x3"], 8)
    for schedule in (Schedule(2, 1, 1, 1), Schedule(1, 10, 1, 1), Schedule(1, 1, 1, 7), Schedule(1, 1, 0, 1)):
        with pytest.raises(ValueError, match="Schedule"):
            DEPTHWISE.build(workload, schedule, X86["avx2"], "depthwise")


@pytest.mark.parametrize(
    ("machine_of", "name", "kernel", "instruction"),
    [
        (X86, "avx512vnni", (3, 3), "vpdpbusd"),
        (X86, "avx512vnni", (3, 1), "vpdpwssd"),
        (X86, "avx2", (3, 3), "vpmaddwd"),
        (ARM, "neon", (3, 3), "smlal"),
        (ARM, "dotprod", (3, 3), "sdot"),
    ],
)
def test_integer_instructions(machine_of, name, kernel, instruction):
    machine = machine_of[name]
    workload = Depthwise(Window(14, 14, kernel), 64, machine.activation)
    function = DEPTHWISE.build(workload, DEPTHWISE.default(workload, machine), machine, "depthwise")
    lines = [line.split() for line in assembly(function, machine).splitlines()]
    used = [words[0] for words in lines if words]
    assert used.count(instruction) + used.count(f"{instruction}2") >= 8
