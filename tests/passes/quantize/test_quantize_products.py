"""Products that a target multiplies in float stay in float, with the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.machine import parse_cpuinfo
from greencc.passes._quantize_nodes import Weighted, describe
from greencc.targets._cpu_capabilities import int8_support

CPU = parse_cpuinfo("processor : 0\nvendor_id : GenuineIntel\nmodel name : CPU\nflags : avx2 avx512_vnni\n")


def product(weight: tuple[int, ...] | None) -> ir.Node:
    """MatMul of a float activation by another one, or by a constant of the given shape."""
    kind = {"type": ir.TensorType(ir.DataType.FLOAT)}
    first = ir.Value(name="a", shape=ir.Shape([2, 4, 8]), **kind)
    second = ir.Value(name="b", shape=ir.Shape(weight or [2, 8, 4]), **kind)
    if weight is not None:
        second.const_value = ir.tensor(np.ones(weight, np.float32), name="b")
    return ir.node("MatMul", [first, second], name="product")


@pytest.mark.parametrize(
    ("flag", "weight", "reason"),
    [
        ("activation_products", None, "multiplies two activations in float"),
        ("stacked_weights", (2, 8, 4), "stacked weights in float"),
    ],
)
def test_products_the_target_lacks_stay_in_float(
    flag: str, weight: tuple[int, ...] | None, reason: str
) -> None:
    support = int8_support(CPU)
    assert support is not None
    assert isinstance(describe(product(weight), support), Weighted)
    told = describe(product(weight), replace(support, **{flag: False}))
    assert isinstance(told, str)
    assert reason in told
    assert isinstance(describe(product((8, 4)), replace(support, **{flag: False})), Weighted)
