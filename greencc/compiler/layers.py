"""Layers before and after: which node of the source model a time or an error belongs to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from greencc.core.data import DataSource
from greencc.core.engine import NodeTime, Target
from greencc.core.report import LayerError, LayerTime
from greencc.passes.quantize_int8 import dequantized_name
from greencc.verify.layers import LayerPair, layer_errors

# What runtimes, and dynamic quantization here, append or prepend to the names of nodes and values they rewrite.
_AFFIX = re.compile(
    r"^fused |(/\w+Fusion/?|_nchwc|_token_\d+|_quant|_QuantizeLinear|_DequantizeLinear|/fused"
    r"|_(?:MatMul|Conv)Integer|_Cast|_scales|_rescale)$"
)
NOT_ATTRIBUTABLE = "(not attributable to a layer)"
_MAX_WALK = 8
# One at a time: a large model has tens of megabytes of activations for each, in both models.
_ERROR_SAMPLES = 8
_MAX_LAYERS = 200
_COMPUTE = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "LSTM",
        "GRU",
        "RNN",
        "Attention",
        "MultiHeadAttention",
        "Einsum",
    }
)


class Origins:
    """Finds the node of a graph that a runtime's node came from, by name."""

    def __init__(self, model: ir.Model) -> None:
        self._order: dict[str, int] = {}
        self._types: dict[str, str] = {}
        self._nodes: dict[str, ir.Node] = {}
        self._values: dict[str, ir.Node] = {}
        for index, node in enumerate(model.graph.all_nodes()):
            if node.name:
                self._order[node.name] = index
                self._types[node.name] = node.op_type
                self._nodes[node.name] = node
            for value in node.outputs:
                if value.name:
                    self._values[value.name] = node

    def find(self, name: str) -> str | None:
        """Name of the source node, or None when the runtime inserted the node itself."""
        node, by_value = self._writer(name)
        if node is None:
            return None
        return self._computing(node).name if by_value else node.name

    def writer(self, name: str) -> str | None:
        """Name of the node that a runtime's node is named after: itself, or the one that wrote the value."""
        node, _ = self._writer(name)
        return None if node is None else node.name

    def computing(self, name: str) -> str:
        """Name of the convolution or product whose result a node passes on or adds to; else its own."""
        return str(self._computing(self._nodes[name]).name)

    def _writer(self, name: str) -> tuple[ir.Node | None, bool]:
        """The node of a name or of the value of that name, and whether it was the value's."""
        while True:
            if name in self._nodes:
                return self._nodes[name], False
            if name in self._values:
                return self._values[name], True
            shorter = _AFFIX.sub("", name)
            if shorter == name:
                return None, False
            name = shorter

    def op_type(self, name: str) -> str:
        return self._types[name]

    def position(self, name: str) -> int:
        return self._order[name]

    def _computing(self, node: ir.Node) -> ir.Node:
        """The convolution or product that a fused value (its activation, its sum) was computed by."""
        start = node
        for _ in range(_MAX_WALK):
            if node.op_type in _COMPUTE:
                return node
            producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            if producer is None:
                break
            node = producer
        return start


def layer_times(
    source: ir.Model, baseline: Sequence[NodeTime], artifact: Sequence[NodeTime]
) -> tuple[LayerTime, ...]:
    """Match the per-node times of both profiles by the source node they came from.

    Nodes the runtime inserted (layout changes, conversions) are summed by operator, at the end; those of which a
    runtime tells no operator, as TensorRT does not, are one layer (`NOT_ATTRIBUTABLE`).
    """
    origins = Origins(source)
    before, extra_before = _by_origin(origins, baseline)
    after, extra_after = _by_origin(origins, artifact)
    names = sorted({*before, *after}, key=origins.position)
    layers = [LayerTime(name, origins.op_type(name), before.get(name), after.get(name)) for name in names]
    for op_type in sorted({*extra_before, *extra_after}):
        layers.append(
            LayerTime(runtime_layer(op_type), op_type, extra_before.get(op_type), extra_after.get(op_type))
        )
    return tuple(layers)


def layer_of(origins: Origins, name: str, op_type: str) -> str:
    """The name of the layer (`LayerTime.name`) that a node of a built graph counts to."""
    origin = None if op_type in ("QuantizeLinear", "DequantizeLinear") else origins.find(name)
    return runtime_layer(op_type) if origin is None else origin


def runtime_layer(op_type: str) -> str:
    """The layer of what the runtime did by itself; without an operator nothing more is known of it."""
    return f"({op_type}, by the runtime)" if op_type else NOT_ATTRIBUTABLE


def _by_origin(
    origins: Origins, times: Sequence[NodeTime]
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    found: dict[str, float] = defaultdict(float)
    extra: dict[str, float] = defaultdict(float)
    for row in times:
        origin = None if row.op_type in ("QuantizeLinear", "DequantizeLinear") else origins.find(row.name)
        if origin is None:
            extra[row.op_type] += row.microseconds
        else:
            found[origin] += row.microseconds
    return found, extra


def quantization_errors(
    target: Target, float_model: ir.Model, quantized: ir.Model, data: DataSource
) -> tuple[LayerError, ...]:
    """SQNR of every quantized activation against the float model, in graph order."""
    known = {value.name for node in quantized.graph for value in node.outputs}
    pairs = [
        LayerPair(node.name or value.name, node.op_type, value.name, dequantized_name(value.name))
        for node in float_model.graph
        for value in node.outputs
        if value.name and dequantized_name(value.name) in known
    ][:_MAX_LAYERS]
    if not pairs:
        return ()
    reference = target.calibration_engine(float_model, list(dict.fromkeys(pair.reference for pair in pairs)))
    try:
        artifact = target.reference(quantized, list(dict.fromkeys(pair.artifact for pair in pairs)))
        try:
            return layer_errors(reference, artifact, pairs, data, batches=_ERROR_SAMPLES, size=1)
        finally:
            artifact.close()
    finally:
        reference.close()
