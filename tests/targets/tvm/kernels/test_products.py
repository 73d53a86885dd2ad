"""Products by constants and of activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from greencc.targets._tvm.epilogue import AddTensor, Clip, Epilogue, Quantize
from greencc.targets._tvm.kernels.batched import BATCHED
from greencc.targets._tvm.kernels.dense import DENSE
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import BatchedProduct, Dense

from .product_runs import MACHINES, epilogue_arguments, finished, inputs, run, runnable, some

_QUANTIZED = Epilogue(
    bias=True, multiplier=True, steps=(Clip(-60.5, 100.0),), quantize=Quantize("int8", 1.0, 3)
)


def _dense(machine: Machine, channels: tuple[int, int], rows: int, quantized: bool) -> Dense:
    if not quantized:
        return Dense(channels, rows, epilogue=Epilogue(bias=True))
    return Dense(channels, rows, machine.activation, epilogue=_QUANTIZED)


def _check(workload: Dense, machine: Machine, rows: int, schedule: Schedule | None = None) -> None:
    rng = np.random.default_rng(5)
    data, weights = inputs(workload, rows, rng)
    sums = data.astype(np.float64) @ weights.astype(np.float64)
    kind = "float32" if workload.data == "float32" else "int32"
    arguments = epilogue_arguments(workload.epilogue, sums.shape, kind, rng)
    got = run(workload, machine, data, weights, arguments, schedule)
    wanted = finished(workload.epilogue, sums, arguments)
    if kind == "int32":
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("channels", [(1, 1), (33, 77), (130, 24)], ids=str)
@pytest.mark.parametrize("machine", some(runnable(), [runnable()[0], "plain"]))
def test_rows_of_any_number(machine: str, channels: tuple[int, int], quantized: bool) -> None:
    _check(_dense(MACHINES[machine], channels, 1, quantized), MACHINES[machine], 11)


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
def test_bands_and_chunks(quantized: bool) -> None:
    machine = replace(MACHINES[runnable()[0]], cores=3)
    workload = _dense(machine, (400, 700), 64, quantized)
    for rows in (0, 201):
        _check(workload, machine, rows)
        _check(workload, machine, rows, Schedule(5, 1, 2, 60, unroll=3))


def _batched(machine: Machine, workload: BatchedProduct, samples: int) -> None:
    rng = np.random.default_rng(6)
    rows, depth, columns = workload.shape
    left = rng.normal(size=(samples, rows, depth)).astype(np.float32)
    right = rng.normal(size=(samples, depth, columns)).astype(np.float32)
    sums = left.astype(np.float64) @ right.astype(np.float64)
    arguments = epilogue_arguments(workload.epilogue, sums.shape, "float32", rng)
    given = np.ascontiguousarray(right.swapaxes(1, 2)) if workload.transposed else right
    got = run(workload, machine, left, given, arguments)
    np.testing.assert_allclose(got, finished(workload.epilogue, sums, arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 20, 64), (9, 40, 103)], ids=str)
@pytest.mark.parametrize("machine", some(runnable(), [runnable()[0], "plain"]))
def test_products_of_activations(machine: str, shape: tuple[int, int, int], transposed: bool) -> None:
    epilogue = Epilogue(steps=(AddTensor("float32", 0.5), Clip(-3.0, 9.0)))
    _batched(MACHINES[machine], BatchedProduct(shape, transposed, epilogue), 3)


def test_columns_are_shared_among_tasks() -> None:
    machine = replace(MACHINES[runnable()[0]], cores=3)
    _batched(machine, BatchedProduct((90, 120, 290)), 2)


@pytest.mark.parametrize("template", [DENSE, BATCHED])
def test_spaces_and_wrong_schedules(template) -> None:
    for machine in MACHINES.values():
        workload = Dense((64, 100), 10) if template is DENSE else BatchedProduct((10, 64, 100))
        space = template.space(workload, machine)
        assert template.default(workload, machine) == space[0]
        assert len(set(space)) == len(space) <= 64
        with pytest.raises(ValueError, match="none of a product"):
            template.build(workload, Schedule(1, 2, 1, 1), machine, "kernel")
