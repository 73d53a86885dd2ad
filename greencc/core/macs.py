"""Multiply-accumulate operations of single operators.

One MAC is one multiplication whose product is added to a sum, as in Sze et al., "Efficient Processing of
Deep Neural Networks" (2017), section III: convolutions, matrix products, recurrent cells, attention and
Einsum. Element-wise operators, normalisations, pooling and activations count 0; a bias counts 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS, attribute_int

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]
Counter = Callable[[ir.Node, Shapes, Shapes], "int | None"]


class UnknownOperatorError(Exception):
    """The cost of a custom operator is not known."""


def macs_of(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """MACs of one execution of a node without subgraphs.

    Args:
        node: The operator.
        inputs: Shapes of its inputs, None where one is absent or not fully known.
        outputs: Likewise of its outputs.

    Returns:
        The count, or None when a shape it depends on is unknown.

    Raises:
        UnknownOperatorError: An operator of a custom domain that is not listed here.
    """
    if node.domain in ONNX_DOMAINS or node.domain == "ai.onnx.ml":
        counter = _ONNX.get(node.op_type)
    elif node.domain == "com.microsoft" and (node.op_type in _MICROSOFT or node.op_type in _FREE):
        counter = _MICROSOFT.get(node.op_type)
    else:
        raise UnknownOperatorError(f"{node.domain}::{node.op_type}")
    return 0 if counter is None else counter(node, inputs, outputs)


def _at(shapes: Shapes, index: int) -> Shape | None:
    return shapes[index] if index < len(shapes) else None


def _convolution(weight: int) -> Counter:
    """Each output element sums over the weights [M, C/group, k...] of its channel."""

    def count(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
        kernel, result = _at(inputs, weight), _at(outputs, 0)
        return None if kernel is None or result is None else math.prod(result) * math.prod(kernel[1:])

    return count


def _transposed_convolution(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """Each input element is multiplied with the weights [C, M/group, k...] of its channel."""
    source, kernel = _at(inputs, 0), _at(inputs, 1)
    return None if source is None or kernel is None else math.prod(source) * math.prod(kernel[1:])


def _product(left: int, right: int) -> Counter:
    """Each output element sums over the inner dimension, the last axis of A or, transposed, the one before."""

    def count(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
        a, b, result = _at(inputs, left), _at(inputs, right), _at(outputs, 0)
        if result is None or (a is None and b is None):
            return None
        if a is not None:
            inner = a[-2] if attribute_int(node, "transA", 0) and len(a) > 1 else a[-1]
        else:
            assert b is not None
            inner = b[-2] if len(b) > 1 and not attribute_int(node, "transB", 0) else b[-1]
        return math.prod(result) * inner

    return count


def _packed_product(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """MatMulNBits and alike hold the inner dimension in attribute K, the weights being packed."""
    result, inner = _at(outputs, 0), attribute_int(node, "K", 0)
    return None if result is None or not inner else math.prod(result) * inner


def _recurrent(weight: int, recurrence: int) -> Counter:
    """Every step and sample multiplies the input with W and the state with R, in each direction."""

    def count(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
        source, w, r = _at(inputs, 0), _at(inputs, weight), _at(inputs, recurrence)
        if source is None or w is None or r is None:
            return None
        return source[0] * source[1] * (math.prod(w) + math.prod(r))

    return count


def _einsum(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """The product of all index ranges, once per multiplication (operands - 1)."""
    if len(inputs) < 2:
        return 0
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    ranges: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        if shape is None:
            return None
        head, dots, tail = term.partition("...")
        middle = len(shape) - len(head) - len(tail)
        labels = [*head, *(f"...{middle - i}" for i in range(middle if dots else 0)), *tail]
        for axis, size in zip(labels, shape, strict=True):
            ranges[axis] = max(ranges.get(axis, 1), size)
    return math.prod(ranges.values()) * (len(inputs) - 1)


def _attention(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """ONNX Attention: scores Q K^T and their product with V, for every query head.

    Q is [batch, heads, length, size] or [batch, length, heads * size]; the keys include the cached ones.
    """
    query, key, value = _at(inputs, 0), _at(inputs, 1), _at(inputs, 2)
    if query is None or key is None or value is None:
        return None
    past = _at(inputs, 4)
    cached = past[2] if past is not None else 0
    if len(query) == 4:
        return query[0] * query[1] * query[2] * (key[2] + cached) * (query[3] + value[3])
    heads = attribute_int(node, "q_num_heads", 1)
    value_size = value[2] // max(1, attribute_int(node, "kv_num_heads", heads))
    return query[0] * query[1] * (key[1] + cached) * (query[2] + heads * value_size)


def _projected_attention(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """com.microsoft Attention: the projection [batch, length, hidden] x [hidden, qkv], then attention."""
    source, weight, result = _at(inputs, 0), _at(inputs, 1), _at(outputs, 0)
    if source is None or weight is None or result is None:
        return None
    batch, length, hidden = source
    inner, projected = result[2], weight[1]
    keys = length
    past = _at(inputs, 8 if node.op_type == "QAttention" else 4)
    if past is not None:
        keys += past[3]
    query = projected - 2 * inner if projected > 2 * inner else inner
    return batch * length * (hidden * projected + keys * (query + inner))


def _multi_head_attention(node: ir.Node, inputs: Shapes, outputs: Shapes) -> int | None:
    """com.microsoft MultiHeadAttention and GroupQueryAttention, separate or packed operands."""
    query, key, result = _at(inputs, 0), _at(inputs, 1), _at(outputs, 0)
    if query is None or result is None:
        return None
    batch, length, width = result[0], result[1], result[2]
    if key is None:
        keys = length
    elif len(key) == 4:
        keys = key[2]
    else:
        keys = key[1]
    past = next(
        (shape for shape in (_at(inputs, 6), _at(inputs, 3)) if shape is not None and len(shape) == 4), None
    )
    if past is not None:
        keys += past[2]
    return 2 * batch * length * keys * width


_ONNX: dict[str, Counter] = {
    "Attention": _attention,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _convolution(1),
    "Einsum": _einsum,
    "GRU": _recurrent(1, 2),
    "Gemm": _product(0, 1),
    "LSTM": _recurrent(1, 2),
    "MatMul": _product(0, 1),
    "MatMulInteger": _product(0, 1),
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _product(0, 3),
    "RNN": _recurrent(1, 2),
}

_MICROSOFT: dict[str, Counter] = {
    "Attention": _projected_attention,
    "DynamicQuantizeLSTM": _recurrent(1, 2),
    "DynamicQuantizeMatMul": _product(0, 1),
    "FusedConv": _convolution(1),
    "FusedGemm": _product(0, 1),
    "FusedMatMul": _product(0, 1),
    "FusedMatMulActivation": _product(0, 1),
    "GemmFastGelu": _product(0, 1),
    "GroupQueryAttention": _multi_head_attention,
    "MatMulBnb4": _packed_product,
    "MatMulInteger16": _product(0, 1),
    "MatMulIntegerToFloat": _product(0, 1),
    "MatMulNBits": _packed_product,
    "MultiHeadAttention": _multi_head_attention,
    "NhwcConv": _convolution(1),
    "NhwcFusedConv": _convolution(1),
    "QAttention": _projected_attention,
    "QGemm": _product(0, 3),
    "QLinearConv": _convolution(3),
    "TransposeMatMul": _product(0, 1),
}

_FREE = frozenset(
    {
        "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "DequantizeLinear",
        "EmbedLayerNormalization", "ExpandDims", "FastGelu", "Gelu", "GroupNorm", "Inverse", "LayerNormalization",
        "NhwcMaxPool", "Pad", "QEmbedLayerNormalization", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
        "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid",
        "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "RemovePadding", "RestorePadding",
        "RotaryEmbedding", "SimplifiedLayerNormalization", "SkipGroupNorm", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
"""com.microsoft operators without products that are summed."""
