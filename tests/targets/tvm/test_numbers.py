"""Workloads that differ in numbers alone share a kernel, which is told the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.targets._tvm.epilogue import AddTensor, Clip, Epilogue, Quantize
from greencc.targets._tvm.kernels.emit import ROUNDER_BITS
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.numbers import (
    HIGH,
    LEAST,
    LOW,
    MOST,
    OUTPUT_ZERO_POINT,
    SHIFT,
    number_arguments,
    numbers_of,
)
from greencc.targets._tvm.workload import (
    BatchedProduct,
    Conv,
    Dense,
    Depthwise,
    Pool,
    PoolKind,
    Window,
    Workload,
    form_of,
    key_of,
)

MACHINE = Machine("x86_64-linux-gnu", "x86-64", frozenset({"sse4.1", "avx", "avx2", "fma"}), cores=2)
WINDOW = Window(6, 6, (3, 3), pads=(1, 1, 1, 1))


def epilogue(number: int) -> Epilogue:
    """The same one with other numbers."""
    return Epilogue(
        multiplier=True,
        steps=(AddTensor("uint8", 0.1 * number, number),),
        quantize=Quantize("uint8", 0.3 * number, 2 * number),
    )


def clipped(number: int) -> Epilogue:
    return Epilogue(
        multiplier=True, steps=(Clip(0.0, 20.0 * number),), quantize=Quantize("int8", 1.0, number)
    )


def clipped_twice(number: int) -> Epilogue:
    """The second alone would let through what the first does not."""
    return Epilogue(
        multiplier=True,
        steps=(Clip(-5.0 * number, 20.0 * number), Clip(-90.0, 30.0)),
        quantize=Quantize("int8", 1.0, number),
    )


PAIRS = {
    "conv": [Conv(WINDOW, (8, 8), 1, "uint8", each, epilogue=epilogue(each)) for each in (1, 2)],
    "conv, clipped": [Conv(WINDOW, (8, 8), 1, "uint8", each, epilogue=clipped(each)) for each in (0, 2)],
    "conv, clipped twice": [
        Conv(WINDOW, (8, 8), 1, "uint8", each, epilogue=clipped_twice(each)) for each in (1, 2)
    ],
    "depthwise": [Depthwise(WINDOW, 8, "uint8", each, epilogue(each)) for each in (1, 2)],
    "dense": [Dense((8, 8), 1, "uint8", each, epilogue=epilogue(each)) for each in (1, 2)],
    "pool": [
        Pool(WINDOW, 8, PoolKind.AVERAGE, "uint8", False, each, epilogue=epilogue(each)) for each in (1, 2)
    ],
    "product": [
        BatchedProduct((4, 4, 8), epilogue=Epilogue(quantize=Quantize("int8", 0.1 * each, each)))
        for each in (1, 2)
    ],
}


@pytest.mark.parametrize("name", PAIRS)
def test_code_depends_on_the_form_alone(name: str) -> None:
    tvm = pytest.importorskip("tvm")
    first, second = PAIRS[name]
    assert first != second
    assert form_of(first) == form_of(second) == form_of(form_of(first))
    assert key_of(first) == key_of(second)
    template = template_of(first)
    schedule = template.default(first, MACHINE)
    built = [template.build(each, schedule, MACHINE, "kernel") for each in (first, second, form_of(first))]
    for other in built[1:]:
        tvm.ir.assert_structural_equal(built[0], other)
    (told,), (also,), (form,) = map(number_arguments, (first, second, form_of(first)))
    assert told.shape == also.shape == form.shape
    assert not np.array_equal(told, also)
    assert list(numbers_of(first)) == list(numbers_of(second)) == list(numbers_of(form_of(first)))


def test_a_clip_narrows_the_range_of_the_output() -> None:
    assert numbers_of(PAIRS["conv, clipped"][1]) == {
        **numbers_of(Conv(WINDOW, (8, 8), 1, "uint8", 2)),
        LOW: 0.0,
        HIGH: 40.0,
        OUTPUT_ZERO_POINT: 2 - ROUNDER_BITS,
        SHIFT: 0x00020002,
        LEAST: 0x02020202,
        MOST: 0x2A2A2A2A,
    }


def test_clips_narrow_the_range_one_after_the_other() -> None:
    numbers = numbers_of(PAIRS["conv, clipped twice"][1])
    assert (numbers[LOW], numbers[HIGH]) == (-10.0, 30.0)
    assert form_of(PAIRS["conv, clipped twice"][0]) == form_of(PAIRS["conv, clipped"][1])


@pytest.mark.parametrize("first", [(-3.0, 2.0), (4.0, 6.0), (5.0, 1.0), (0.0, float("inf"))])
@pytest.mark.parametrize("second", [(-1.0, 9.0), (3.0, 4.5), (2.0, -2.0), (-float("inf"), -1.0)])
def test_two_clips_are_one(first: tuple[float, float], second: tuple[float, float]) -> None:
    values = np.linspace(-9.0, 12.0, 85)
    both = Clip(*first).then(Clip(*second))
    assert both.low <= both.high
    np.testing.assert_array_equal(
        np.clip(values, both.low, both.high), np.clip(np.clip(values, *first), *second)
    )


@pytest.mark.parametrize(
    ("clip", "dtype", "bounded"),
    [
        (Clip(0.0, np.inf), "uint8", False),
        (Clip(-3.0, 300.0), "uint8", False),
        (Clip(-2.0, np.inf), "uint8", True),
        (Clip(0.0, np.inf), "int8", True),
    ],
)
def test_only_bounds_within_the_range_are_in_the_form(clip: Clip, dtype: str, bounded: bool) -> None:
    epilogue = Epilogue(steps=(clip,), quantize=Quantize(dtype, 1.0, 3 if clip.low else 0, near=True))
    assert epilogue.bounded is bounded
    assert (LEAST in numbers_of(Dense((8, 8), epilogue=epilogue))) is bounded
    form = form_of(Dense((8, 8), epilogue=epilogue)).epilogue
    assert form.quantize == Quantize(dtype, 1.0, 0, near=True)
    assert form.bounded is bounded is bool(form.steps)


def test_words_are_integers_and_the_bits_of_floats() -> None:
    workload: Workload = Dense((8, 8), data="uint8", epilogue=Epilogue(quantize=Quantize("int8", 0.5, -3)))
    (words,) = number_arguments(workload)
    assert words.dtype == np.int32
    np.testing.assert_array_equal(words[:3].view(np.float32), np.float32([0.5, -125.0, 130.0]))
    assert words[3] == -3 - ROUNDER_BITS


def test_forms_differ_where_the_code_does() -> None:
    plain = Depthwise(WINDOW, 8, "uint8", 0)
    assert form_of(plain) != form_of(Depthwise(WINDOW, 8, "uint8", 5))
    assert form_of(Dense((8, 8), epilogue=Epilogue(quantize=Quantize("int8", 1.0, 0)))) != form_of(
        Dense((8, 8), epilogue=Epilogue(quantize=Quantize("int8", 0.9, 0)))
    )
    assert number_arguments(Conv(WINDOW, (8, 8), epilogue=Epilogue(steps=(Clip(0.0, 6.0),)))) == ()
