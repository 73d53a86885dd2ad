"""Operators that end groups, with a reason that says what to do or why."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import label
from greencc.core.groups.analysis import Analysis

# Their scales, zero points and integer weights belong together; cutting comes before quantization.
QUANTIZED = frozenset(
    [
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMatMul",
        "QLinearMul",
        "QLinearSigmoid",
        "QAttention",
        "QGemm",
        "QuantizeLinear",
    ]
)
# Attention with caches or layouts of its own.
PACKED = frozenset(
    [
        "DecoderMaskedMultiHeadAttention",
        "DecoderMaskedSelfAttention",
        "GroupQueryAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
    ]
)


def quantized(state: Analysis, node: ir.Node) -> None:
    state.refuse(node, f"{label(node)} is quantized already: channels are cut before quantization")


def packed(state: Analysis, node: ir.Node) -> None:
    state.refuse(node, f"{label(node)}: heads of this form of attention cannot be cut")
