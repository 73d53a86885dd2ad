"""Every step behind the sums, alone and together, on floats and exact integers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    Function,
    Quantize,
    ScaleChannels,
)
from greencc.targets._tvm.workload import Conv, Dense, Window

from .product_runs import (
    MACHINES,
    cases,
    convolved,
    epilogue_arguments,
    finished,
    inputs,
    run,
    runnable,
    some,
)

_U8 = Quantize("uint8", 1.0, 117)
_CLIP = Clip(-3.0, 8.0)
_EXACT = {
    "nothing": Epilogue(multiplier=True, quantize=_U8),
    "bias": Epilogue(bias=True, multiplier=True, quantize=Quantize("int8", 1.0, -3)),
    "offset": Epilogue(bias=True, multiplier=True, offset=True, quantize=_U8),
    "relu": Epilogue(multiplier=True, steps=(Clip(0.0, float("inf")),), quantize=Quantize("uint8", 1.0, 0)),
    "clip out of range": Epilogue(multiplier=True, steps=(Clip(1000.0, 2000.0),), quantize=_U8),
    "two clips": Epilogue(multiplier=True, steps=(Clip(-4.0, 9.0), Clip(-7.0, 5.0)), quantize=_U8),
    "two clips, another scale": Epilogue(
        multiplier=True, steps=(Clip(-4.0, 9.0), Clip(-7.0, 5.0)), quantize=Quantize("int8", 0.37, 5)
    ),
    "equal clips around a sum": Epilogue(
        multiplier=True, steps=(_CLIP, AddTensor("uint8", 0.3, 60), _CLIP), quantize=_U8
    ),
    "bounds in the wrong order": Epilogue(multiplier=True, steps=(Clip(3.0, -2.0),), quantize=_U8),
    "another scale": Epilogue(multiplier=True, steps=(Clip(-3.0, 50.0),), quantize=Quantize("int8", 0.37, 5)),
    "float output": Epilogue(bias=True, multiplier=True, offset=True),
    "add u8": Epilogue(multiplier=True, steps=(AddTensor("uint8", 0.3, 60), Clip(0.0, 99.0)), quantize=_U8),
    "add s8": Epilogue(multiplier=True, steps=(AddTensor("int8", 0.3, -6),), quantize=_U8),
    "add float": Epilogue(
        multiplier=True, steps=(AddTensor("float32"), AddTensor("float32", 0.7)), quantize=_U8
    ),
    "channels": Epilogue(multiplier=True, steps=(ScaleChannels(), AddChannels()), quantize=_U8),
}
_FUNCTIONS = {
    function.value: Epilogue(bias=True, multiplier=True, steps=(Apply(function, 0.2, 0.5),))
    for function in Function
}


@pytest.mark.parametrize(("machine", "name"), cases(_EXACT, _EXACT, ["add s8"]))
def test_integer_sums_end_bit_exact(machine: str, name: str) -> None:
    """Also with a tail of two channels, which is stored lane by lane."""
    epilogue, activation = _EXACT[name], MACHINES[machine].activation
    window = Window(5, 6, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    workload = Conv(window, (4, 22), data=activation, zero_point=7, epilogue=epilogue)
    rng = np.random.default_rng(1)
    data, weights = inputs(workload, 2, rng)
    sums = convolved(workload, data, weights)
    arguments = epilogue_arguments(epilogue, sums.shape, "int32", rng)
    got = run(workload, MACHINES[machine], data, weights, arguments)
    np.testing.assert_array_equal(got, finished(epilogue, sums, arguments))


@pytest.mark.parametrize(("machine", "name"), cases(_FUNCTIONS, _FUNCTIONS, []))
def test_functions(machine: str, name: str) -> None:
    epilogue = _FUNCTIONS[name]
    workload = Dense((8, 22), 5, MACHINES[machine].activation, epilogue=epilogue)
    rng = np.random.default_rng(2)
    data, weights = inputs(workload, 9, rng, widest=20)
    sums = data.astype(np.float64) @ weights
    arguments = epilogue_arguments(epilogue, sums.shape, "int32", rng)
    got = run(workload, MACHINES[machine], data, weights, arguments)
    np.testing.assert_allclose(got, finished(epilogue, sums, arguments), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("machine", some(runnable(), [runnable()[0], "plain"]))
def test_float_sums_through_everything(machine: str) -> None:
    steps = (
        AddTensor("float32"),
        ScaleChannels(),
        Apply(Function.SILU),
        AddChannels(),
        Clip(-1.0, 3.0),
        Clip(-0.5, 4.0),
        Apply(Function.GELU),
    )
    epilogue = Epilogue(bias=True, steps=steps)
    workload = Conv(Window(7, 9, (3, 3)), (6, 39), epilogue=epilogue)
    rng = np.random.default_rng(3)
    data, weights = inputs(workload, 2, rng)
    sums = convolved(workload, data, weights)
    arguments = epilogue_arguments(epilogue, sums.shape, "float32", rng)
    got = run(workload, MACHINES[machine], data, weights, arguments)
    np.testing.assert_allclose(got, finished(epilogue, sums, arguments), rtol=1e-5, atol=1e-5)


_BOUNDS = (
    Clip(0.0, float("inf")),
    Clip(-float("inf"), 1.0),
    Clip(-1.0, 1.0),
    Apply(Function.LEAKY_RELU, 0.1),
    Apply(Function.HARD_SIGMOID, 0.2, 0.5),
    Apply(Function.HARD_SWISH),
)


@pytest.mark.parametrize("step", _BOUNDS, ids=str)
@pytest.mark.parametrize("machine", some(runnable(), [runnable()[0], "plain"]))
def test_bounds_keep_what_is_no_number(machine: str, step: Clip | Apply) -> None:
    """Also in a tail of two channels."""
    workload = Dense((8, 22), epilogue=Epilogue(steps=(step,)))
    data, weights = inputs(workload, 5, np.random.default_rng(6))
    data[1::2, 3] = np.nan
    got = run(workload, MACHINES[machine], data, weights, [])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(data @ weights))


@pytest.mark.parametrize("machine", some(runnable(), [runnable()[0], "plain"]))
def test_a_bound_below_the_other_wins(machine: str) -> None:
    workload = Dense((8, 22), epilogue=Epilogue(steps=(Clip(2.0, -1.0),)))
    data, weights = inputs(workload, 5, np.random.default_rng(7))
    got = run(workload, MACHINES[machine], data, weights, [])
    np.testing.assert_array_equal(got, np.full((5, 22), -1.0, np.float32))


@pytest.mark.parametrize("machine", some(runnable(), runnable()[:1]))
def test_float_sums_are_quantized_within_a_step(machine: str) -> None:
    epilogue = Epilogue(bias=True, quantize=Quantize("uint8", 0.1, 100))
    workload = Dense((8, 22), epilogue=epilogue)
    rng = np.random.default_rng(4)
    data, weights = inputs(workload, 5, rng)
    sums = data.astype(np.float64) @ weights
    arguments = epilogue_arguments(epilogue, sums.shape, "float32", rng)
    got = run(workload, MACHINES[machine], data, weights, arguments)
    wanted = finished(epilogue, sums, arguments)
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1
    assert np.mean(got != wanted) < 0.02


@pytest.mark.parametrize("machine", runnable())
def test_halves_round_to_even(machine: str) -> None:
    """One input of 1 by weights 1, 3, 5, ...: multiplied by 0.5, every sum is a half."""
    epilogue = Epilogue(multiplier=True, quantize=Quantize("int8", 1.0, 1))
    workload = Dense((1, 40), data=MACHINES[machine].activation, epilogue=epilogue)
    odd = np.arange(-39, 41, 2).astype(np.int8)
    data, halves = np.ones((1, 1), workload.data), np.full(40, 0.5, np.float32)
    got = run(workload, MACHINES[machine], data, odd[None], [halves])
    np.testing.assert_array_equal(got[0], np.rint(odd / 2) + 1)
    assert {int(step) for step in np.diff(got[0])} == {0, 2}
    assert all(before <= after for before, after in pairwise(got[0]))


@pytest.mark.parametrize("outputs", [16, 32, 48, 64, 100])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("machine", runnable())
def test_sums_far_outside_saturate(machine: str, dtype: str, outputs: int) -> None:
    """Scaled sums beyond INT32 on both sides, next to small ones."""
    epilogue = Epilogue(multiplier=True, quantize=Quantize(dtype, 1.0, 3))
    workload = Dense((4, outputs), data=MACHINES[machine].activation, epilogue=epilogue)
    rng = np.random.default_rng(9)
    data, weights = inputs(workload, 7, rng)
    sums = data.astype(np.float64) @ weights
    multiplier = rng.choice(np.float32([1e-3, 3.0, 1e6, 1e9]), outputs)
    got = run(workload, MACHINES[machine], data, weights, [multiplier])
    np.testing.assert_array_equal(got, finished(epilogue, sums, [multiplier]))


@pytest.mark.parametrize("steps", [(), (Clip(-20.5, 30.5),), (Clip(0.0, float("inf")),)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("machine", runnable())
def test_sums_that_are_near(machine: str, dtype: str, steps: tuple[Clip, ...]) -> None:
    epilogue = Epilogue(multiplier=True, steps=steps, quantize=Quantize(dtype, 1.0, 3, near=True))
    workload = Dense((4, 100), data=MACHINES[machine].activation, epilogue=epilogue)
    rng = np.random.default_rng(9)
    data, weights = inputs(workload, 7, rng)
    sums = data.astype(np.float64) @ weights
    multiplier = rng.choice(np.float32([1e-3, 0.01, 15.0]), 100)
    got = run(workload, MACHINES[machine], data, weights, [multiplier])
    np.testing.assert_array_equal(got, finished(epilogue, sums, [multiplier]))
