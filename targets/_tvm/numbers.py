"""Numbers that kernels are told as one argument: layers that differ in nothing else share a function.

Scales, zero points and the range of the output differ from layer to layer. What is left without them is
`workload.form_of`, and all that a kernel's code depends on.
"""

from __future__ import annotations

import numpy as np

from greencc.core.data import Array
from greencc.targets._tvm.epilogue import AddTensor
from greencc.targets._tvm.kernels.emit import ROUNDER_BITS
from greencc.targets._tvm.workload import BatchedProduct, Workload, reads_zero_point

ZERO_POINT = "zero point of the data"
LOW = "least step of the output"
HIGH = "largest step of the output"
OUTPUT_ZERO_POINT = "zero point of the output"
"""Less `ROUNDER_BITS`, which a kernel subtracts anyway."""
OUTPUT_SCALE = "scale of the output"
SHIFT = "zero point of the output, two INT16"
LEAST = "least number of the output, four of it"
MOST = "largest number of the output, four of it"


def added_scale(number: int) -> str:
    """The name of the scale of step `number`, an `AddTensor`."""
    return f"scale of step {number}"


def added_zero_point(number: int) -> str:
    """Likewise of its zero point."""
    return f"zero point of step {number}"


def numbers_of(workload: Workload) -> dict[str, int | float]:
    """What the kernel is told, by name and in the order of the argument; the names follow from the form alone."""
    numbers: dict[str, int | float] = {}
    if not isinstance(workload, BatchedProduct) and reads_zero_point(workload):
        numbers[ZERO_POINT] = workload.zero_point
    epilogue = workload.epilogue
    for number, step in enumerate(epilogue.steps):
        if isinstance(step, AddTensor) and step.dtype != "float32":
            numbers[added_zero_point(number)] = step.zero_point
        if isinstance(step, AddTensor) and step.scale != 1.0:
            numbers[added_scale(number)] = step.scale
    quantize = epilogue.quantize
    if quantize is not None:
        if quantize.scale != 1.0:
            numbers[OUTPUT_SCALE] = quantize.scale
        low, high = epilogue.range
        numbers |= {LOW: low, HIGH: high, OUTPUT_ZERO_POINT: quantize.zero_point - ROUNDER_BITS}
        if not quantize.near:
            numbers[SHIFT] = _word(quantize.zero_point, "int16")
        if epilogue.bounded:
            for name, bound in ((LEAST, low), (MOST, high)):
                numbers[name] = _word(int(np.rint(np.float32(bound))) + quantize.zero_point, quantize.dtype)
    return numbers


def number_arguments(workload: Workload) -> tuple[Array, ...]:
    """The argument: INT32, and the bits of float32; none where there are no numbers."""
    numbers = numbers_of(workload).values()
    words = [np.array(each, np.float32 if isinstance(each, float) else np.int32) for each in numbers]
    return (np.array([word.view(np.int32) for word in words]),) if words else ()


def _word(number: int, dtype: str) -> int:
    """An INT32 full of the same smaller numbers."""
    return int(np.full(4 // np.dtype(dtype).itemsize, number, dtype).view(np.int32)[0])
