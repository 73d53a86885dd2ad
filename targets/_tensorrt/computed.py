"""A weakly typed graph as the engine of it computes: the file says float32, the builder's flags say less.

Emission writes such a file in float32; the settings beside it (``device.json``) hold what the builder is told: what is
allowed, and which nodes are not. For a deep-learning accelerator FP16 is allowed to all. What is certified must not be
better than what the device computes, so the graph that runs here rounds the values where an engine has them in half
precision: weights and inputs of the nodes that may be half, and what they give. Sums within a kernel stay float32, as
in NVIDIA's kernels; an activation is part of the kernel before it; and so is the quantization behind an integer kernel.
The builder may also leave a node in float32 where that is faster, which is more exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from greencc.core.graph import Names, add_initializer, is_op

_HALVES = {
    "FP16": (ir.DataType.FLOAT16, np.dtype(np.float16)),
    "BF16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
_EXACT = frozenset({"Cast", "Constant", "DequantizeLinear", "QuantizeLinear", "Shape"})
_JOINING = frozenset({"BatchNormalization", "Clip", "LeakyRelu", "Relu"})


def as_computed(model: ir.Model, settings: Mapping[str, Any]) -> ir.Model | None:
    """A clone that rounds; None where the file computes as it is written.

    Args:
        model: As emitted.
        settings: What the builder is told of it, as in ``device.json``: ``builder_flags`` and ``float32_nodes``.
    """
    allowed = [half for flag, half in _HALVES.items() if flag in settings["builder_flags"]]
    if not allowed:
        return None
    clone = model.clone()
    _Rounding(clone, *allowed[0]).run(frozenset(settings["float32_nodes"]))
    return clone


class _Rounding:
    """Rounds values of a graph to half precision, in place."""

    def __init__(self, model: ir.Model, kind: ir.DataType, dtype: np.dtype[np.generic]) -> None:
        self._graph = model.graph
        self._kind = kind
        self._dtype = dtype
        self._names = Names(model)
        self._weights: dict[int, ir.Value] = {}

    def run(self, wide: frozenset[str]) -> None:
        nodes = [node for node in self._graph if node.op_type not in _EXACT and node.name not in wide]
        halved = set(map(id, nodes))
        for node in nodes:
            self._round_weights(node)
        for value in list(self._graph.inputs):
            if value.dtype is ir.DataType.FLOAT and any(id(use.node) in halved for use in value.uses()):
                self._round(value)
        for node in nodes:
            for value in node.outputs:
                if value.dtype is ir.DataType.FLOAT and not self._within_kernel(value):
                    self._round(value)

    def _round_weights(self, node: ir.Node) -> None:
        if any(value is not None and is_op(value.producer(), "DequantizeLinear") for value in node.inputs):
            return  # An integer kernel: its bias stays as it is.
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value.const_value.dtype is not ir.DataType.FLOAT:
                continue
            if id(value) not in self._weights:
                rounded = value.const_value.numpy().astype(self._dtype).astype(np.float32)
                name = self._names.value(f"{value.name}_rounded")
                self._weights[id(value)] = add_initializer(self._graph, name, rounded)
            node.replace_input_with(index, self._weights[id(value)])

    @staticmethod
    def _within_kernel(value: ir.Value) -> bool:
        """Nobody sees it but the quantizer or the activation that is computed along with it."""
        readers = [use.node for use in value.uses()]
        if value.is_graph_output() or not readers:
            return False
        if all(reader.op_type == "QuantizeLinear" for reader in readers):
            return True
        return len(readers) == 1 and readers[0].op_type in _JOINING

    def _round(self, value: ir.Value) -> None:
        """Let everything that reads a value read it rounded."""
        uses = list(value.uses())
        down = self._cast(value, self._kind)
        up = self._cast(down, ir.DataType.FLOAT)
        for use in uses:
            use.node.replace_input_with(use.idx, up)
        if value.is_graph_output():
            name = value.name
            value.name, up.name = self._names.value(f"{name}_exact"), name
            up.shape = value.shape
            outputs = self._graph.outputs
            outputs[list(outputs).index(value)] = up

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": kind}, name=self._names.node(f"{value.name}_to_{kind.name}"))
        result = node.outputs[0]
        result.name = self._names.value(f"{value.name}_{kind.name}")
        result.type, result.shape = ir.TensorType(kind), value.shape
        if (producer := value.producer()) is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return result
