"""Machines, compiled kernels between guard pages, and numpy's word on what they compute."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from greencc.core.data import Array
from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    Function,
    ScaleChannels,
)
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.numbers import number_arguments
from greencc.targets._tvm.workload import BatchedProduct, Conv, Dense, form_of

_AVX2 = ("sse4.1", "avx", "avx2", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
MACHINES = {
    "vnni512": Machine("x86_64-linux-gnu", "x86-64", frozenset((*_AVX512, "avx512vnni")), cores=2),
    "avx512bw": Machine("x86_64-linux-gnu", "x86-64", frozenset(_AVX512), cores=1),
    "vnni256": Machine("x86_64-linux-gnu", "x86-64", frozenset((*_AVX2, "avxvnni")), cores=2),
    "avx2": Machine("x86_64-linux-gnu", "x86-64", frozenset(_AVX2), cores=3),
    "plain": Machine("x86_64-linux-gnu", "x86-64", frozenset(), cores=1),
    "dotprod": Machine("aarch64-linux-gnu", "cortex-a76", frozenset({"neon", "dotprod"}), cores=4),
    "neon": Machine("aarch64-linux-gnu", "cortex-a72", frozenset({"neon"}), cores=4),
}


def runnable() -> list[str]:
    """Names in `MACHINES` of what this processor runs."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = {"sse4_1": "sse4.1", "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni"}
    flags = {names.get(flag, flag) for flag in text.split()}
    return [
        name
        for name, machine in MACHINES.items()
        if machine.x86 and "sse2" in flags and machine.features <= flags
    ]


def cases(names: Iterable[str], best: Collection[str], others: Collection[str]) -> list[object]:
    """Machine and name: on the best machine those of `best`, on each other one those of `others`; all of them in the
    full run."""
    names = list(names)
    return [
        pytest.param(machine, name, marks=() if name in (others if number else best) else pytest.mark.full)
        for number, machine in enumerate(runnable())
        for name in names
    ]


def some(machines: Iterable[str], core: Collection[str]) -> list[object]:
    """Machines, those of `core` in every run."""
    return [pytest.param(name, marks=() if name in core else pytest.mark.full) for name in machines]


def compiled(function, machine: Machine):
    """TVM's module of one function."""
    import tvm

    target = {"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu}
    if machine.features:
        target["mattr"] = [f"+{feature}" for feature in sorted(machine.features)]
    module = tvm.IRModule({function.attrs["global_symbol"]: function})
    return tvm.tirx.build(module, target=tvm.target.Target(target))


class Guarded:
    """An array of its own pages: accesses far outside end the process, near ones change the canary."""

    _canary = 0xFF  # NaN in every float32

    def __init__(self, array: Array, *, at_end: bool) -> None:
        page = mmap.PAGESIZE
        room = -(-max(array.nbytes, 1) // page) * page
        self._map = mmap.mmap(-1, room + 2 * page)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._bytes = np.frombuffer(self._map, np.uint8)[page : page + room]
        self._bytes[:] = self._canary
        offset = room - -(-array.nbytes // 64) * 64 if at_end else 0
        self._rest = np.ones(room, bool)
        self._rest[offset : offset + array.nbytes] = False
        self.array = np.ndarray(array.shape, array.dtype, self._bytes[offset:].data)
        self.array[...] = array
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (begin, begin + page + room):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0

    def check(self) -> None:
        assert (self._bytes[self._rest] == self._canary).all(), "written out of bounds"


def call(kernel, arrays: Sequence[Array], shape: tuple[int, ...], dtype: str) -> Array:
    """The output of a compiled kernel, twice: with the guards close before and close behind its buffers."""
    import tvm

    results = []
    for at_end in (False, True):
        output = np.full(shape, 77, dtype)
        buffers = [Guarded(np.ascontiguousarray(array), at_end=at_end) for array in (*arrays, output)]
        kernel(*(tvm.runtime.from_dlpack(buffer.array) for buffer in buffers))
        for buffer in buffers:
            buffer.check()
        results.append(buffers[-1].array.copy())
    np.testing.assert_array_equal(results[0], results[1])
    return results[0]


def run(
    workload: Conv | Dense | BatchedProduct,
    machine: Machine,
    data: Array,
    weights: Array,
    arguments: Sequence[Array],
    schedule: Schedule | None = None,
) -> Array:
    """The output of a workload's kernel; `weights` of a batched product are its second operand."""
    template = template_of(workload)
    chosen = schedule or template.default(workload, machine)
    kernel = compiled(template.build(form_of(workload), chosen, machine, "kernel"), machine)["kernel"]
    if isinstance(workload, BatchedProduct):
        packed, shape = (weights,), (len(data), workload.shape[0], workload.shape[2])
    else:
        packed = template.pack(workload, chosen, machine, weights)
        inner = workload.window.output if isinstance(workload, Conv) else ()
        shape = (len(data), *inner, workload.channels[1])
    return call(
        kernel, [data, *packed, *arguments, *number_arguments(workload)], shape, workload.epilogue.dtype
    )


def convolved(workload: Conv, data: Array, weights: Array) -> Array:
    """Sums in float64, exact for quantized data: borders hold the zero point."""
    window = workload.window
    top, left, bottom, right = window.pads
    borders = ((0, 0), (top, bottom), (left, right), (0, 0))
    image = np.pad(data.astype(np.float64), borders, constant_values=workload.zero_point)
    (rows, columns), groups = window.output, workload.groups
    split = image.reshape(*image.shape[:3], groups, image.shape[-1] // groups)
    filters = weights.astype(np.float64).reshape(groups, -1, *weights.shape[1:])
    total = np.zeros((len(data), rows, columns, groups, filters.shape[1]))
    for y in range(window.kernel[0]):
        for x in range(window.kernel[1]):
            first = y * window.dilations[0], x * window.dilations[1]
            part = split[
                :,
                first[0] : first[0] + (rows - 1) * window.strides[0] + 1 : window.strides[0],
                first[1] : first[1] + (columns - 1) * window.strides[1] + 1 : window.strides[1],
            ]
            total += np.einsum("nhwgi,goi->nhwgo", part, filters[..., y, x])
    return total.reshape(len(data), rows, columns, workload.channels[1])


def finished(epilogue: Epilogue, sums: Array, arguments: Sequence[Array]) -> Array:
    """The epilogue in float32, operation by operation; `sums` are float64."""
    rest = list(arguments)
    if epilogue.bias:
        sums = sums + rest.pop(0)
    value = sums.astype(np.float32)
    if epilogue.multiplier:
        value = value * rest.pop(0)
    if epilogue.offset:
        value = value + rest.pop(0)
    for step in epilogue.steps:
        match step:
            case AddTensor():
                added = rest.pop(0).astype(np.float32) - np.float32(step.zero_point)
                value = value + added * np.float32(step.scale)
            case Clip():
                value = np.clip(value, np.float32(step.low), np.float32(step.high))
            case Apply():
                value = function(step, value.astype(np.float64)).astype(np.float32)
            case ScaleChannels():
                value = value * rest.pop(0)
            case AddChannels():
                value = value + rest.pop(0)
    assert not rest
    if epilogue.quantize is None:
        return value
    limits, zero_point = np.iinfo(epilogue.quantize.dtype), epilogue.quantize.zero_point
    steps = np.rint(value / np.float32(epilogue.quantize.scale)).astype(np.float64) + zero_point
    return np.clip(steps, limits.min, limits.max).astype(epilogue.quantize.dtype)


def function(step: Apply, x: Array) -> Array:
    """An element-wise function in float64."""
    match step.function:
        case Function.HARD_SWISH:
            return x * np.clip(x / 6 + 0.5, 0, 1)
        case Function.HARD_SIGMOID:
            return np.clip(step.alpha * x + step.beta, 0, 1)
        case Function.LEAKY_RELU:
            return np.where(x >= 0, x, step.alpha * x)
        case Function.SIGMOID:
            return 1 / (1 + np.exp(-x))
        case Function.SILU:
            return x / (1 + np.exp(-x))
        case Function.TANH:
            return np.tanh(x)
        case Function.GELU:
            return x / 2 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def epilogue_arguments(
    epilogue: Epilogue, shape: tuple[int, ...], sums: str, rng: np.random.Generator
) -> list[Array]:
    """Arguments of the right shapes and types; sums of up to some thousands become some tens of steps."""
    channels, arguments = shape[-1], []
    if epilogue.bias:
        bias = rng.integers(-2000, 2000, channels) if sums == "int32" else rng.normal(size=channels)
        arguments.append(bias.astype(sums))
    if epilogue.multiplier:
        arguments.append(rng.uniform(1e-3, 2e-2, channels).astype(np.float32))
    if epilogue.offset:
        arguments.append(rng.normal(size=channels).astype(np.float32))
    for step in epilogue.steps:
        if isinstance(step, AddTensor):
            added = rng.normal(size=shape) if step.dtype == "float32" else rng.integers(0, 120, shape)
            arguments.append(added.astype(step.dtype))
        elif isinstance(step, ScaleChannels | AddChannels):
            arguments.append(rng.normal(size=channels).astype(np.float32))
    return arguments


def inputs(
    workload: Conv | Dense, samples: int, rng: np.random.Generator, widest: int = 127
) -> tuple[Array, Array]:
    """Data and weights, integers of the whole range (weights to +-`widest`) or normal floats."""
    if isinstance(workload, Conv):
        window = workload.window
        data_shape: tuple[int, ...] = (samples, window.height, window.width, workload.channels[0])
        weights_shape: tuple[int, ...] = (
            workload.channels[1],
            workload.channels[0] // workload.groups,
            *window.kernel,
        )
    else:
        data_shape, weights_shape = (samples, workload.channels[0]), workload.channels
    if workload.data == "float32":
        return (
            rng.normal(size=data_shape).astype(np.float32),
            rng.normal(size=weights_shape).astype(np.float32),
        )
    limits = np.iinfo(workload.data)
    data = rng.choice([limits.min, limits.max, *rng.integers(limits.min, limits.max, 6)], data_shape)
    return data.astype(workload.data), rng.integers(-widest - 1, widest + 1, weights_shape).astype(np.int8)
