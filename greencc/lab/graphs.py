"""Small graphs that ask one thing of a device, for the calibration benchmarks.

A graph is a chain (every operator reads the one before) or a fan (all read the input), with weights of its own for each
operator. It ends in a slice of a few elements: a large output would be copied out of the runtime, which is not what is
to be measured. Weights and inputs are uniform random numbers from a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.data import Array
from greencc.core.model import infer_shapes

OPSET = 17
_SCALE = 0.02
_KEPT = 8
"""Elements of the output."""
_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.FLOAT}


@dataclass
class GraphMaker:
    """Builds one benchmark graph.

    Attributes:
        dtype: ``float32``, ``float16`` or ``int8``.
        shape: Of the input.
        int8: How the target wants integers; needed for ``int8``.
        seed: Of weights and input.
    """

    dtype: str
    shape: tuple[int, ...]
    int8: Int8Support | None = None
    seed: int = 0
    _nodes: list[ir.Node] = field(default_factory=list)
    _weights: list[ir.Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._element = self._stored() if self.dtype == "int8" else _TYPES[self.dtype]
        self._input = ir.Value(name="x", type=ir.TensorType(self._element), shape=ir.Shape(self.shape))
        self.start = self._dequantized(self._input) if self.dtype == "int8" else self._input
        """What the first operator reads."""

    def operator(
        self,
        op_type: str,
        data: Sequence[ir.Value],
        weight: tuple[int, ...] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """Append an operator, its weight as the last input; with ``int8`` between quantizers.

        Args:
            op_type: Of the default domain.
            data: Values it reads.
            weight: Shape of a constant that it reads as well.
            attributes: Of the node.
        """
        inputs = [*data] if weight is None else [*data, self._weight(weight)]
        result = self._add(op_type, inputs, attributes or {})
        if self.dtype != "int8":
            return result
        return self._dequantized(self._quantized(result))

    def model(self, results: Sequence[ir.Value]) -> ir.Model:
        """The finished graph: a few elements of each result, joined.

        Args:
            results: Ends of the chains.
        """
        ends = [1] * (len(self.shape) - 1) + [min(_KEPT, self.shape[-1])]
        window = [self._constant(np.array(bounds, np.int64)) for bounds in ([0] * len(ends), ends)]
        parts = [self._add("Slice", [value, *window], {}) for value in results]
        output = parts[0] if len(parts) == 1 else self._add("Concat", parts, {"axis": 0})
        output.name = "y"
        graph = ir.Graph(
            [self._input], [output], nodes=self._nodes, initializers=self._weights, name="benchmark",
            opset_imports={"": OPSET},
        )  # fmt: skip
        model = ir.Model(graph, ir_version=8)
        infer_shapes(model)
        return model

    def feeds(self) -> dict[str, Array]:
        """An input."""
        return {"x": self._numbers(self.shape, self._element)}

    def _stored(self) -> ir.DataType:
        assert self.int8 is not None
        return ir.DataType.UINT8 if self.int8.activation is ElementType.UINT8 else ir.DataType.INT8

    def _numbers(self, shape: tuple[int, ...], element: ir.DataType) -> Array:
        if element in (ir.DataType.UINT8, ir.DataType.INT8):
            low = 0 if element is ir.DataType.UINT8 else -127
            return self._random.integers(low, low + 255, shape, dtype=element.numpy())
        return self._random.uniform(-1.0, 1.0, shape).astype(element.numpy())

    def _weight(self, shape: tuple[int, ...]) -> ir.Value:
        if self.dtype != "int8":
            return self._constant(self._numbers(shape, self._element))
        limit = 63 if self.int8 is not None and self.int8.weight_bits == 7 else 127
        numbers = self._random.integers(-limit, limit + 1, shape, dtype=np.int8)
        return self._add("DequantizeLinear", [self._constant(numbers), *self._parameters(np.int8(0))], {})

    def _parameters(self, zero_point: Any) -> list[ir.Value]:
        return [self._constant(np.float32(_SCALE)), self._constant(np.asarray(zero_point))]

    def _zero(self) -> Any:
        return np.uint8(128) if self._element is ir.DataType.UINT8 else np.int8(0)

    def _quantized(self, value: ir.Value) -> ir.Value:
        return self._add("QuantizeLinear", [value, *self._parameters(self._zero())], {})

    def _dequantized(self, value: ir.Value) -> ir.Value:
        return self._add("DequantizeLinear", [value, *self._parameters(self._zero())], {})

    def _constant(self, array: Any) -> ir.Value:
        name = f"w{len(self._weights)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self._weights.append(value)
        return value

    def _add(self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any]) -> ir.Value:
        name = f"n{len(self._nodes)}"
        node = ir.node(op_type, inputs, attributes=attributes, name=name)
        node.outputs[0].name = f"{name}_out"
        self._nodes.append(node)
        return node.outputs[0]
