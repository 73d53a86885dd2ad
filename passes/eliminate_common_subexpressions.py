"""Compute the same thing once, and store the same weights once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS, graphs_of, subgraphs_of
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._evaluate import is_random
from greencc.passes._rewriter import node_name, remove

_HEAD = 256
_DOMAINS = ONNX_DOMAINS | {"ai.onnx.ml"}
# Deterministic operators of com.microsoft, which also has random ones (BiasDropout, Sampling, RandomNormal...).
_MICROSOFT = frozenset(
    {
        "BiasGelu", "DequantizeLinear", "DynamicQuantizeMatMul", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul",
        "Gelu", "LayerNormalization", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QGemm",
        "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
        "QLinearMul", "QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "QuickGelu", "RotaryEmbedding",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge equal initializers, then nodes with the same operator, attributes and inputs.

    Only operators known to be deterministic are merged: those of ONNX except the random ones and Dropout in
    training mode, and the runtime's fused operators. Calls of functions, operators of other domains, nodes with
    subgraphs and nodes that compute a graph output are left alone.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"
    summary: ClassVar[str] = "compute equal expressions and store equal weights once"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        changed = 0
        for graph in graphs_of(model):
            if isinstance(graph, ir.Graph):
                changed += _merge_initializers(graph, ctx)
            changed += _merge_nodes(graph, frozenset(model.functions), ctx)
        return Outcome(changed)


def _merge_initializers(graph: ir.Graph, ctx: Context) -> int:
    changed = 0
    groups: dict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if tensor.dtype == ir.DataType.STRING:
            continue
        # A look at the first elements spares hashing most of the large weights.
        head = tensor.numpy().reshape(-1)[:_HEAD].tobytes()
        groups[tensor.dtype, tuple(tensor.shape.numpy()), head].append(value)
    for group in groups.values():
        first_of: dict[bytes, ir.Value] = {}
        for value in group if len(group) > 1 else ():
            first = first_of.setdefault(_digest(value), value)
            if first is value:
                continue
            if not ctx.rewrites.allow("merge-initializers", value.name or ""):
                return changed
            value.replace_all_uses_with(first)
            del graph.initializers[value.name or ""]
            changed += 1
    return changed


def _merge_nodes(
    graph: ir.Graph | ir.Function, functions: frozenset[ir.OperatorIdentifier], ctx: Context
) -> int:
    changed = 0
    seen: dict[Hashable, ir.Node] = {}
    for node in list(graph):
        if node.op_identifier() in functions or not _is_deterministic(node):
            continue
        if subgraphs_of(node) or not node.outputs:
            continue
        if any(value.is_graph_output() for value in node.outputs):
            continue
        first = seen.setdefault(_key(node), node)
        if first is node:
            continue
        if not ctx.rewrites.allow("merge-nodes", node_name(node)):
            return changed
        for old, new in zip(node.outputs, first.outputs, strict=True):
            old.replace_all_uses_with(new)
        remove(node)
        changed += 1
    return changed


def _is_deterministic(node: ir.Node) -> bool:
    if node.domain == "com.microsoft":
        return node.op_type in _MICROSOFT
    return node.domain in _DOMAINS and not is_random(node)


def _key(node: ir.Node) -> Hashable:
    attributes = tuple(
        sorted((name, _attribute_key(attribute)) for name, attribute in node.attributes.items())
    )
    # Absent trailing outputs matter (a Dropout with a mask is another node than one without).
    outputs = tuple(bool(value.name) for value in node.outputs)
    return node.op_identifier(), tuple(id(value) for value in node.inputs), attributes, outputs


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"ref:{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.value
        if tensor.dtype == ir.DataType.STRING:
            return f"strings:{tensor.shape}:{tensor.numpy().tolist()!r}"
        return f"tensor:{tensor.dtype}:{tensor.shape}:{hashlib.sha256(tensor.tobytes()).hexdigest()}"
    return f"{attribute.type}:{attribute.value!r}"


def _digest(value: ir.Value) -> bytes:
    tensor = value.const_value
    return b"" if tensor is None else hashlib.sha256(tensor.tobytes()).digest()
