"""Which rule takes labels through which operator."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS
from greencc.core.groups import rules_elementwise as elementwise
from greencc.core.groups import rules_linear as linear
from greencc.core.groups import rules_reshape as reshape
from greencc.core.groups import rules_shape as shape
from greencc.core.groups.analysis import Rule
from greencc.core.groups.rules_attention import multi_head_attention
from greencc.core.groups.rules_recurrent import recurrent

_ONNX: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.JOINING, elementwise.joining),
    **dict.fromkeys(elementwise.POOLING, elementwise.pooling),
    **dict.fromkeys(elementwise.ALONG, elementwise.along),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), elementwise.per_channel),
    **dict.fromkeys(
        ("GroupNormalization", "LRN", "LayerNormalization", "MeanVarianceNormalization", "RMSNormalization"),
        elementwise.normalization,
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
    **dict.fromkeys(("Shape", "Size"), shape.shape_of),
    "Attention": multi_head_attention,
    "Concat": shape.concat,
    "Conv": linear.convolution,
    "ConvTranspose": linear.transposed_convolution,
    "DepthToSpace": reshape.depth_to_space,
    "Expand": shape.expand,
    "Gather": linear.gather,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "Pad": shape.pad,
    "Slice": shape.slice_,
    "SpaceToDepth": reshape.space_to_depth,
    "Split": shape.split,
    "Squeeze": shape.squeeze,
    "Tile": shape.tile,
    "Transpose": shape.transpose,
    "Unsqueeze": shape.unsqueeze,
}
_MICROSOFT: dict[str, Rule] = {
    "FastGelu": elementwise.unary,
    "Gelu": elementwise.unary,
    "MultiHeadAttention": multi_head_attention,
    "QuickGelu": elementwise.unary,
}


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a node, or None where there is none."""
    if node.domain in ONNX_DOMAINS:
        return _ONNX.get(node.op_type)
    return _MICROSOFT.get(node.op_type) if node.domain == "com.microsoft" else None
