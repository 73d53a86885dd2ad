"""Machines, compiled kernels between canaries, and numpy's word on sliding windows."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from greencc.core.data import Array
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Window

_AVX2 = ("sse4.1", "avx", "avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
X86 = {
    "avx512vnni": Machine("x86_64-linux-gnu", "x86-64", frozenset(_AVX512), cores=2),
    "avx2": Machine("x86_64-linux-gnu", "x86-64", frozenset(_AVX2), cores=2),
    "plain": Machine("x86_64-linux-gnu", "x86-64", frozenset(), cores=2),
}
ARM = {
    "neon": Machine("aarch64-linux-gnu", "cortex-a72", frozenset({"neon"}), cores=2),
    "dotprod": Machine("aarch64-linux-gnu", "cortex-a76", frozenset({"neon", "dotprod"}), cores=2),
}


def runnable() -> list[str]:
    """Names in `X86` of what this processor can run."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    flags = set(text.replace("sse4_1", "sse4.1").replace("avx512_vnni", "avx512vnni").split())
    if "sse2" not in flags:
        return []
    return [name for name, machine in X86.items() if machine.features <= flags]


def _machines(core: Collection[str]) -> pytest.MarkDecorator:
    there = runnable()
    return pytest.mark.parametrize(
        "machine",
        [
            pytest.param(
                each,
                id=name,
                marks=[pytest.mark.skipif(name not in there, reason="not on this processor")]
                + [pytest.mark.full] * (name not in core),
            )
            for name, each in X86.items()
        ],
    )


on_every_machine = _machines(X86)
on_the_best_machine = _machines(runnable()[:1])
"""And on every one in the full run."""


def compiled(function, machine: Machine):
    import tvm

    target = {"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu}
    if machine.features:
        target["mattr"] = [f"+{feature}" for feature in sorted(machine.features)]
    module = tvm.IRModule({function.attrs["global_symbol"]: function})
    return tvm.tirx.build(module, target=tvm.target.Target(target))


def assembly(function, machine: Machine) -> str:
    return compiled(function, machine).inspect_source("asm")


def run(function, machine: Machine, inputs: list[Array], output: tuple[int, ...], dtype: str) -> Array:
    """The output; whatever surrounds the buffers may neither change nor matter."""
    import tvm

    kernel = compiled(function, machine)[function.attrs["global_symbol"]]
    results = []
    for canary in (0x5A, 0xFF):
        buffers = [_guarded(each, canary) for each in (*inputs, np.zeros(output, dtype))]
        # An empty array has no address that counts as aligned.
        kernel(
            *(tvm.runtime.from_dlpack(view) if view.size else tvm.runtime.tensor(view) for _, view in buffers)
        )
        for given, (whole, view) in zip(inputs, buffers, strict=False):
            np.testing.assert_array_equal(view, given)
            _check_canaries(whole, view, canary)
        _check_canaries(*buffers[-1], canary)
        results.append(buffers[-1][1].copy())
    np.testing.assert_array_equal(results[0], results[1])
    return results[0]


def taps(window: Window, data: Array, fill: float) -> Iterator[tuple[tuple[int, int], Array]]:
    """For every place of the kernel, the data [n, oh, ow, c] under it; `fill` outside the image."""
    top, left, bottom, right = window.pads
    padded = np.pad(data, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    rows, columns = window.output
    for i, j in itertools.product(range(window.kernel[0]), range(window.kernel[1])):
        y, x = i * window.dilations[0], j * window.dilations[1]
        down, across = window.strides
        yield (
            (i, j),
            padded[:, y : y + down * (rows - 1) + 1 : down, x : x + across * (columns - 1) + 1 : across],
        )


def _guarded(values: Array, canary: int) -> tuple[Array, Array]:
    """Bytes with the values in their middle, aligned to 64 bytes; and those values."""
    whole = np.full(values.nbytes + 3 * 64, canary, np.uint8)
    start = 64 + (-(whole.ctypes.data + 64)) % 64
    view = whole[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    view[...] = values
    return whole, view


def _check_canaries(whole: Array, view: Array, canary: int) -> None:
    start = view.ctypes.data - whole.ctypes.data if view.size else 0
    outside = np.concatenate([whole[:start], whole[start + view.nbytes :]])
    assert (outside == canary).all()
