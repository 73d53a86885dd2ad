"""The operators that TensorRT's ONNX parser reads, by version, and the types that it documents for them.

Source: onnx-tensorrt, docs/operators.md of 8.4, 8.5, 9.2 and 10.15; what came in between is dated by docs/Changelog.md,
and what 8.2 lacks is what 8.4's and 8.5's entries there add (but Reciprocal, which 8.4's table denies and the source of
every parser has). "Restrictions" are rules of `rules.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping

from greencc.targets._tensorrt.machine import OLDEST, TensorRtVersion

_V = TensorRtVersion

SINCE: Mapping[str, TensorRtVersion] = {
    name: version
    for version, names in (
        (
            OLDEST,
            """
            Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu
            Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
            Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm
            GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If ImageScaler
            InstanceNormalization IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool
            MatMul Max MaxPool Mean Min Mul Neg NonMaxSuppression Not Or PRelu Pad ParametricSoftplus Pow
            QuantizeLinear RNN RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
            ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
            ReverseSequence Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh
            Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile
            TopK Transpose Unsqueeze Upsample Where
            """,
        ),
        (_V(8, 4), "Shrink Xor"),
        (
            _V(8, 5),
            """
            GridSample HardSwish MeanVarianceNormalization Mod NonZero OneHot RandomNormal RandomNormalLike RoiAlign
            Trilu
            """,
        ),
        (_V(8, 6), "GroupNormalization IsInf LayerNormalization"),
        (_V(9, 0), "CastLike"),
        (_V(9, 2), "Hardmax"),
        (_V(10, 1), "DeformConv"),
        (_V(10, 4), "BlackmanWindow HammingWindow HannWindow"),
        (_V(10, 5), "STFT"),
        (_V(10, 14), "Attention"),
        (_V(10, 15), "RMSNormalization RotaryEmbedding TensorScatter"),
        # Not dated by the changelog and missing in 9.2: taken to have come with the opsets of 10.0.
        (_V(10, 0), "Gelu Mish"),
    )
    for name in names.split()
}
"""Operators of the default domain, by the first version that reads them."""

FLOAT_ONLY = frozenset({"Einsum", "Gemm", "MatMul", "PRelu", "Resize"})
"""Operators that ONNX lets read integers and the parser does not (tried with TensorRT-RTX 1.7)."""

INTEGERS_SINCE: Mapping[str, TensorRtVersion] = {
    name: version
    for version, names in (
        (_V(8, 6), "ArgMax ArgMin TopK"),
        (
            _V(9, 0),
            """
            ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
            ReduceSumSquare Relu ReverseSequence
            """,
        ),
        (_V(10, 12), "Pow"),
    )
    for name in names.split()
}
"""Operators that take INT32 (and INT64, since 9.0) only from a version on."""

RTX_LACKS = frozenset({"DeformConv", "NonMaxSuppression", "NonZero", "RoiAlign"})
"""Operators that are plugins of TensorRT, or have no kernel, in TensorRT-RTX (tried with 1.7)."""

MAX_OPSET: tuple[tuple[TensorRtVersion, int], ...] = (
    (_V(10, 15), 24),
    (_V(10, 11), 23),
    (_V(10, 6), 22),
    (_V(10, 0), 20),
    (_V(9, 0), 19),
    (_V(8, 5), 17),
    (OLDEST, 13),
)
"""Newest opset that a parser knows. Said by operators.md, of 10.6 and 10.11 by the ONNX release they moved to."""


def max_opset(version: TensorRtVersion) -> int:
    """The newest opset that the parser of a version knows."""
    return next(opset for since, opset in MAX_OPSET if version >= since)
