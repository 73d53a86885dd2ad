"""What passes are told of a TensorRT machine, and what they make of it."""

from __future__ import annotations

from collections import Counter

import pytest

from greencc.core.capabilities import ElementType
from greencc.core.graph import is_op
from greencc.targets._tensorrt.capabilities import int8_support, tensorrt_capabilities

from .emitting import cnn, int8, machine


def test_scales_follow_the_typing() -> None:
    assert int8_support(machine("10.3")).scale_type is ElementType.FLOAT  # type: ignore[union-attr]
    assert int8_support(machine("11.4")).scale_type is ElementType.FLOAT16  # type: ignore[union-attr]


def test_gpus() -> None:
    nano = tensorrt_capabilities(machine("8.2", 53), sparse=True)
    assert nano.int8 is None
    assert nano.float16
    assert any("INT8" in note for note in nano.notes)
    assert not nano.sparse_kernels
    orin = tensorrt_capabilities(machine("10.3"), sparse=True)
    assert orin.sparse_kernels == {"2:4"}
    assert not tensorrt_capabilities(machine("10.3"), sparse=False).sparse_kernels


@pytest.mark.parametrize(
    ("version", "opset", "norm"),
    [("8.2", 13, False), ("8.5", 17, False), ("8.6", 17, True), ("11.4", 20, True)],
)
def test_opsets_and_operators(version: str, opset: int, norm: bool) -> None:
    found = tensorrt_capabilities(machine(version), sparse=False)
    assert found.max_opset == opset
    assert found.runs("", "LayerNormalization") == norm


def test_placement_by_the_rules_of_tensorrt() -> None:
    model = int8(cnn(), machine("10.3"))
    quantized = Counter(
        use.node.op_type
        for node in model.graph
        if is_op(node, "DequantizeLinear") and not node.inputs[0].is_initializer()  # type: ignore[union-attr]
        for use in node.outputs[0].uses()
    )
    # Inputs of weighted layers, pools and Concat, and the skip of the residual sum; not the stem of three channels.
    assert quantized == {
        "Conv": 3,
        "Add": 1,
        "MaxPool": 1,
        "AveragePool": 1,
        "Concat": 2,
        "ConvTranspose": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    stem = next(node for node in model.graph if node.op_type == "Conv")
    assert stem.inputs[0] is model.graph.inputs[0]
