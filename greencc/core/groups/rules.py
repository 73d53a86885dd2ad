"""Which rule takes labels through which operator."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS
from greencc.core.groups import rules_attention as attention
from greencc.core.groups import rules_convolution as convolution
from greencc.core.groups import rules_elementwise as elementwise
from greencc.core.groups import rules_linear as linear
from greencc.core.groups import rules_normalize as normalize
from greencc.core.groups import rules_quantized as quantized
from greencc.core.groups import rules_reshape as reshape
from greencc.core.groups import rules_shape as shape
from greencc.core.groups.analysis import Rule
from greencc.core.groups.rules_einsum import einsum
from greencc.core.groups.rules_recurrent import recurrent
from greencc.core.groups.sizes import constant_of_shape

_ONNX: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.JOINING, elementwise.joining),
    **dict.fromkeys(elementwise.POOLING, elementwise.pooling),
    **dict.fromkeys(elementwise.ALONG, elementwise.along),
    **dict.fromkeys(quantized.QUANTIZED, quantized.quantized),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), normalize.per_channel),
    **dict.fromkeys(
        (
            "LRN",
            "LayerNormalization",
            "MeanVarianceNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
        ),
        normalize.over_channels,
    ),
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ),
        elementwise.reduction,
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent),
    **dict.fromkeys(("Flatten", "Reshape"), reshape.reshape),
    **dict.fromkeys(("Resize", "Upsample"), shape.resize),
    "Attention": attention.attention,
    "Concat": shape.concat,
    "ConstantOfShape": constant_of_shape,
    "Conv": convolution.convolution,
    "ConvTranspose": convolution.transposed_convolution,
    "DepthToSpace": reshape.depth_to_space,
    "Einsum": einsum,
    "Expand": shape.expand,
    "Gather": linear.gather,
    "Gemm": linear.gemm,
    "GroupNormalization": normalize.group_normalization,
    "MatMul": linear.matmul,
    "Pad": shape.pad,
    "Size": shape.size_of,
    "Slice": shape.slice_,
    "SpaceToDepth": reshape.space_to_depth,
    "Split": shape.split,
    "Squeeze": shape.squeeze,
    "Tile": shape.tile,
    "Transpose": shape.transpose,
    "Trilu": elementwise.triangle,
    "Unsqueeze": shape.unsqueeze,
}
_MICROSOFT: dict[str, Rule] = {
    **dict.fromkeys(quantized.QUANTIZED, quantized.quantized),
    **dict.fromkeys(quantized.PACKED, quantized.packed),
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), normalize.skip_normalization
    ),
    "Attention": attention.packed_attention,
    "BiasGelu": elementwise.joining,
    "FastGelu": elementwise.joining,
    "FusedConv": convolution.fused_convolution,
    "FusedGemm": linear.gemm,
    "FusedMatMul": linear.matmul,
    "Gelu": elementwise.unary,
    "MultiHeadAttention": attention.multi_head_attention,
    "QuickGelu": elementwise.unary,
}


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a node, or None where there is none."""
    if node.domain in ONNX_DOMAINS:
        return _ONNX.get(node.op_type)
    return _MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None
