"""The generated code holds the instructions that it is meant to: INT8 is computed by integer kernels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from greencc.targets._tvm.epilogue import Apply, Clip, Epilogue, Function, Quantize
from greencc.targets._tvm.kernels.products import pairs_fit
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.workload import BatchedProduct, Conv, Dense, Window, Workload

from .product_runs import MACHINES, compiled, some

_INTEGER = {
    "vnni512": ["vpdpbusd", "zmm"],
    "avx512bw": ["vpmaddubsw", "vpmaddwd", "zmm"],
    "vnni256": ["vpdpbusd", "ymm"],
    "avx2": ["vpmaddubsw", "vpmaddwd", "ymm"],
    "dotprod": ["sdot"],
    "neon": ["smull", "smlal", "sadalp"],
}
_FLOAT = {
    "vnni512": ["vfmadd", "zmm"],
    "avx2": ["vfmadd", "ymm"],
    "plain": ["mulps", "addps"],
    "dotprod": ["fmla"],
    "neon": ["fmla"],
}
_QUANTIZED = Epilogue(
    bias=True, multiplier=True, offset=True, steps=(Clip(0.0, 9.0),), quantize=Quantize("uint8", 1.0, 3)
)


def _assembly(workload: Workload, name: str) -> str:
    machine, template = MACHINES[name], template_of(workload)
    function = template.build(workload, template.default(workload, machine), machine, "kernel")
    return str(compiled(function, machine).inspect_source("asm"))


@pytest.mark.parametrize("name", some(_INTEGER, ["vnni512", "avx2", "neon"]))
def test_int8_uses_integer_instructions(name: str) -> None:
    data = MACHINES[name].activation
    window = Window(8, 8, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    for workload in (
        Conv(window, (32, 64), data=data, pairs_fit=True, epilogue=_QUANTIZED),
        Dense((64, 64), data=data, pairs_fit=True, epilogue=_QUANTIZED),
    ):
        text = _assembly(workload, name)
        for instruction in _INTEGER[name]:
            assert instruction in text
        # The multiplier's product is rounded before the offset is added.
        assert not re.search(r"\b(vfn?m(add|sub)\w+|fml[as])\b", text)


@pytest.mark.parametrize("name", some(_FLOAT, ["vnni512", "neon"]))
def test_floats_use_vectors(name: str) -> None:
    window = Window(8, 8, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    for workload in (Conv(window, (32, 64)), Dense((64, 64)), BatchedProduct((16, 16, 64))):
        text = _assembly(workload, name)
        for instruction in _FLOAT[name]:
            assert instruction in text


@pytest.mark.parametrize("name", some(MACHINES, ["vnni512", "neon"]))
def test_no_function_is_called_lane_by_lane(name: str) -> None:
    steps = tuple(Apply(function) for function in Function)
    text = _assembly(Dense((16, 64), epilogue=Epilogue(steps=steps)), name)
    assert not re.search(r"\b(expf|tanhf|erff|fmaf|nearbyintf|rintf|fmaxf|fminf)\b", text)


def test_pairs_that_fit() -> None:
    small, large = np.full((4, 4, 1, 1), -64, np.int8), np.full((4, 4, 1, 1), -128, np.int8)
    assert pairs_fit(small, MACHINES["avx2"])
    assert not pairs_fit(-small - 1 + 2, MACHINES["avx2"])
    assert pairs_fit(large, MACHINES["vnni512"])
    assert pairs_fit(large, MACHINES["dotprod"])
    assert not pairs_fit(large, MACHINES["neon"])
    assert pairs_fit(large + 1, MACHINES["neon"])
