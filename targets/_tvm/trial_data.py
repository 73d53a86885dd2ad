"""What a kernel is tried on: random arguments in aligned buffers, with guards around what it writes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.numbers import number_arguments
from greencc.targets._tvm.workload import BatchedProduct, Conv, Dense, Depthwise, Pool, Workload

ALIGNMENT = 64
_GUARD = 64
_CANARY = 0xA5
# Weights of 7 bits: instructions that sum through saturating INT16 pairs are exact with them, too.
_WEIGHT = 63
_HEADS = 4
"""How many products a `BatchedProduct` is tried on, as attention has heads."""


def leading(workload: Workload, batch: int = 1) -> int:
    """The symbolic dimension for a batch."""
    if isinstance(workload, Dense):
        return batch * workload.rows
    return batch * _HEADS if isinstance(workload, BatchedProduct) else batch


def random_weights(workload: Workload, rng: np.random.Generator) -> Array | None:
    """Weights in the order that `Template.pack` takes; None of workloads that have none."""
    shape = weight_shape(workload)
    if shape is None:
        return None
    assert not isinstance(workload, BatchedProduct | Pool)
    if workload.data == "float32":
        return np.asarray(rng.uniform(-1.0, 1.0, shape) / math.sqrt(_summed(workload)), dtype=np.float32)
    return rng.integers(-_WEIGHT, _WEIGHT + 1, shape, dtype=np.int8)


def weight_shape(workload: Workload) -> tuple[int, ...] | None:
    """See `Template.pack`; None of workloads without weights."""
    if isinstance(workload, Conv):
        inputs, outputs = workload.channels
        return (outputs, inputs // workload.groups, *workload.window.kernel)
    if isinstance(workload, Depthwise):
        return (workload.channels, 1, *workload.window.kernel)
    return workload.channels if isinstance(workload, Dense) else None


def random_arguments(
    workload: Workload, specs: list[tuple[tuple[int, ...], str]], rng: np.random.Generator
) -> list[Array]:
    """Arguments but weights and output: data, then those of the epilogue, then the numbers.

    Multipliers spread INT32 sums over the steps of the output, so that a wrong sum shows.

    Args:
        workload: What the kernel computes.
        specs: Shape and type of each argument.
        rng: Random numbers.
    """
    epilogue = workload.epilogue
    datas = 2 if isinstance(workload, BatchedProduct) else 1
    integers = not isinstance(workload, BatchedProduct) and workload.data != "float32"
    arguments = [_random(*spec, rng) for spec in specs[:datas]]
    numbers = number_arguments(workload)
    for index, (shape, dtype) in enumerate(specs[datas : len(specs) - len(numbers)]):
        if index == int(epilogue.bias) and epilogue.multiplier:
            step = 1.0 if epilogue.quantize is None else epilogue.quantize.scale
            spread = 40.0 * step / (math.sqrt(_summed(workload)) * 73.0 * 37.0) if integers else 1.0
            values: Array = np.asarray(spread * rng.uniform(0.5, 1.5, shape), dtype=np.float32)
        elif dtype == "int32":
            values = rng.integers(-1000, 1001, shape, dtype=np.int32)
        else:
            values = _random(shape, dtype, rng)
        arguments.append(values)
    return [*arguments, *numbers]


def _summed(workload: Workload) -> int:
    """How many products one output sums."""
    if isinstance(workload, BatchedProduct):
        return workload.shape[1]
    if isinstance(workload, Pool):
        return 1
    shape = weight_shape(workload)
    assert shape is not None
    return shape[0] if isinstance(workload, Dense) else math.prod(shape[1:])


def _random(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    if dtype.startswith("float"):
        return rng.uniform(-1.0, 1.0, shape).astype(dtype)
    bounds = np.iinfo(dtype)
    return rng.integers(bounds.min, bounds.max, shape, dtype=dtype, endpoint=True)


class Buffer:
    """An array at an address that kernels may rely on, with guards on both sides.

    Attributes:
        array: To be used like any other.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._all = np.full(size + 2 * _GUARD + ALIGNMENT, _CANARY, dtype=np.uint8)
        self._start = _GUARD + -(self._all.ctypes.data + _GUARD) % ALIGNMENT
        self._end = self._start + size
        self.array: Array = self._all[self._start : self._end].view(dtype).reshape(shape)

    @property
    def intact(self) -> bool:
        """Whether nothing was written outside of the array."""
        outside = (self._all[: self._start], self._all[self._end :])
        return all(bool((part == _CANARY).all()) for part in outside)


def aligned(values: Any) -> Buffer:
    """A copy of an array."""
    array = np.asarray(values)
    buffer = Buffer(array.shape, str(array.dtype))
    buffer.array[...] = array
    return buffer


def difference(found: Array, expected: Array) -> str | None:
    """How a candidate's output differs from the default's, or None where it does not.

    Integers are to be the same. Sums of floats may be rounded in another order: 1e-4 of the largest value.
    """
    if found.dtype.kind != "f":
        differing = int((found != expected).sum())
        return f"{differing} of {found.size} outputs differ" if differing else None
    if not np.isfinite(found).all():
        return "outputs are not finite"
    worst = float(np.abs(found - expected).max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))
    return f"outputs differ by {worst:.3g} of {scale:.3g}" if worst > 1e-4 * max(scale, 1e-6) else None
