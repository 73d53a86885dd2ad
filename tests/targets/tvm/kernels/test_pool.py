"""Pools against numpy: maxima and quantized averages exactly."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.targets._tvm.epilogue import Clip, Epilogue, Quantize
from greencc.targets._tvm.kernels.pool import POOL
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.numbers import number_arguments
from greencc.targets._tvm.workload import Pool, PoolKind, Window, form_of

from .window_runs import X86, on_every_machine, on_the_best_machine, run, taps

pytest.importorskip("tvm")

WINDOWS = {
    "2x2": Window(6, 8, (2, 2), (2, 2)),
    "3x3": Window(7, 9, (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "asymmetric": Window(5, 8, (3, 3), pads=(0, 2, 1, 0)),
    "dilated": Window(9, 9, (3, 2), dilations=(2, 3), pads=(1, 1, 0, 2)),
    "global": Window(7, 7, (7, 7)),
    "global, wide": Window(5, 19, (5, 19)),
    "wide": Window(3, 20, (2, 11), (1, 3), pads=(1, 4, 0, 5)),
}
DTYPES = ("float32", "uint8", "int8")


def values(window, channels, dtype, batch):
    rng = np.random.default_rng(3)
    shape = (batch, window.height, window.width, channels)
    if dtype == "float32":
        return rng.standard_normal(shape).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def check_maximum(window, channels, dtype, machine, *, batch=1, schedule=None):
    workload = Pool(window, channels, PoolKind.MAX, dtype)
    data = values(window, channels, dtype, batch)
    function = POOL.build(workload, schedule or POOL.default(workload, machine), machine, "pool")
    got = run(function, machine, [data], (batch, *window.output, channels), dtype)
    least = -np.inf if dtype == "float32" else np.iinfo(dtype).min
    np.testing.assert_array_equal(got, np.max([tap for _, tap in taps(window, data, least)], axis=0))


def mean(window, data, count_borders):
    """Exact sums over counts, in float64, rounded once."""
    total = sum(tap for _, tap in taps(window, data.astype(np.float64), 0.0))
    count = sum(tap for _, tap in taps(window, np.ones(data.shape), 1.0 if count_borders else 0.0))
    return (total / count).astype(np.float32)


def check_average(window, channels, dtype, machine, *, batch=1, count_borders=False, schedule=None):
    zero_point = 0 if dtype == "float32" else 9
    data = values(window, channels, dtype, batch)
    multiplier = np.random.default_rng(4).uniform(0.5, 1.5, channels).astype(np.float32)
    epilogue = Epilogue(steps=(Clip(-0.5, 0.5),))
    if dtype != "float32":
        epilogue = Epilogue(multiplier=True, quantize=Quantize("uint8", 1.0, 3))
    workload = Pool(window, channels, PoolKind.AVERAGE, dtype, count_borders, zero_point, epilogue)
    schedule = schedule or POOL.default(workload, machine)
    function = POOL.build(form_of(workload), schedule, machine, "pool")
    inputs = [data] if dtype == "float32" else [data, multiplier, *number_arguments(workload)]
    got = run(function, machine, inputs, (batch, *window.output, channels), epilogue.dtype)
    want = mean(window, data.astype(np.float64) - zero_point, count_borders)
    if dtype == "float32":
        np.testing.assert_allclose(got, np.clip(want, -0.5, 0.5), atol=1e-6)
    else:
        np.testing.assert_array_equal(got, np.clip(np.rint(want * multiplier) + 3, 0, 255).astype(np.uint8))


@on_every_machine
def test_rows_and_columns_that_differ(machine):
    check_maximum(WINDOWS["asymmetric"], 13, "uint8", machine)
    check_average(WINDOWS["asymmetric"], 13, "uint8", machine)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("name", WINDOWS)
@on_the_best_machine
def test_windows(name, dtype, machine):
    check_maximum(WINDOWS[name], 13, dtype, machine)
    check_average(WINDOWS[name], 13, dtype, machine)


@pytest.mark.parametrize("dtype", DTYPES)
@on_every_machine
def test_borders_may_count(dtype, machine):
    check_average(WINDOWS["3x3"], 16, dtype, machine, count_borders=True)


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (38, "float32"), (150, "int8")])
@on_every_machine
def test_channels_that_fill_no_vector(channels, dtype, machine):
    check_maximum(WINDOWS["2x2"], channels, dtype, machine)
    check_average(WINDOWS["3x3"], channels, dtype, machine)


@pytest.mark.parametrize("batch", [0, 3])
@on_every_machine
def test_any_batch(batch, machine):
    check_maximum(WINDOWS["3x3"], 8, "uint8", machine, batch=batch)
    check_average(WINDOWS["global"], 8, "uint8", machine, batch=batch)


@pytest.mark.parametrize("name", ["3x3", "wide"])
@on_the_best_machine
def test_schedules_compute_the_same(name, machine):
    workload = Pool(WINDOWS[name], 40, PoolKind.AVERAGE, "uint8")
    space = POOL.space(workload, machine)
    assert space[0] == POOL.default(workload, machine)
    for schedule in (space[0], space[-1]):
        check_average(WINDOWS[name], 40, "uint8", machine, schedule=schedule)


def test_what_a_maximum_cannot_do():
    workload = Pool(WINDOWS["2x2"], 8, PoolKind.MAX, epilogue=Epilogue(steps=(Clip(0.0, 1.0),)))
    with pytest.raises(ValueError, match="maximum"):
        POOL.build(workload, Schedule(1, 1, 1, 1), X86["avx2"], "pool")
