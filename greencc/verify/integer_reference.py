"""Runs a QuantizeLinear/DequantizeLinear graph as an integer runtime does: the oracle for kernels.

A float value between the pairs is r = s (q - z) (Jacob et al., CVPR 2018, section 2.1). Operators whose operands are
all quantized compute on the integers (section 2.2, equation 4):

* Conv, ConvTranspose, Gemm and MatMul: n = sum (q_x - z_x)(q_w - z_w) + q_b in INT32, exact, with q_b the INT32 bias
  of scale s_x s_w; then q_y = saturate(round(m n) + z_y), m = s_x s_w / s_y. `m` is a float32, computed from left to
  right, the product m n is a float32, and halves round to even, as in ONNX Runtime and in NVIDIA's float multipliers;
  Jacob's fixed-point m rounds halves up. A float bias b adds b / s_y before the rounding.
* Add and Sub: round((s_a / s_y)(q_a - z_a) + (s_b / s_y)(q_b - z_b)); Mul: m = s_a s_b / s_y.
* AveragePool and GlobalAveragePool: the mean of q - z, then m = s_x / s_y.
* Movements (Reshape, MaxPool, ...): the integers themselves.
* Relu and Clip behind one of these: bounds before the same, single rounding (section 2.4).

What reads such a value without quantizing it reads s n as float32. Everything else is computed in float by ONNX's
reference implementation, on dequantized operands: Concat, Sigmoid, LeakyRelu and other element-wise operators, for
which that is what the lookup tables of a runtime hold.

How far a runtime may be away, per quantized value and given the same inputs:

* 0: Conv, ConvTranspose, Gemm, MatMul with Relu or Clip, movements, Concat, where the runtime multiplies by the same
  float32 m (ONNX Runtime's integer kernels).
* one step, where a sum lies within float32 rounding of a half: Add, Mul, averages and functions, whose order of float
  operations differs from kernel to kernel; fixed-point m; and any operator in a float simulation of the pairs.

x86 without VNNI sums otherwise, on request (`Sums.PAIRS`).

Steps do not add up when each value is judged on the runtime's own inputs: see `given` of `run_integer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import partial

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Feeds
from greencc.core.errors import InputError
from greencc.core.graph import (
    ONNX_DOMAINS,
    attribute_int,
    constant_tensor,
    is_op,
    label,
    opset_of,
    subgraphs_of,
)
from greencc.verify._integer_float import compute
from greencc.verify._integer_kernels import KERNELS, MOVEMENT, Kernel, Operand, move, product
from greencc.verify._integer_pairs import PAIRED, saturating_sums
from greencc.verify._integer_values import Byte, Quantity, Term, along, quantizes_to, saturated

__all__ = ["Sums", "run_integer"]


class Sums(Enum):
    """How products are summed.

    EXACT: in 32 bits, as AVX-VNNI, AVX512-VNNI and ARM's dot products do. PAIRS: x86 without those instructions adds
    two products of an unsigned and a signed byte in 16 bits, where they saturate (`_integer_pairs`).
    """

    EXACT = "exact"
    PAIRS = "pairs"


_KERNELS: Mapping[Sums, Mapping[str, Kernel]] = {
    Sums.EXACT: KERNELS,
    Sums.PAIRS: {**KERNELS, **dict.fromkeys(PAIRED, partial(product, sums=saturating_sums))},
}


def run_integer(
    model: ir.Model,
    feeds: Feeds,
    outputs: Sequence[str] | None = None,
    *,
    given: Feeds | None = None,
    sums: Sums = Sums.EXACT,
) -> dict[str, Array]:
    """Evaluate a model with integer arithmetic wherever it is quantized.

    Args:
        model: With QuantizeLinear/DequantizeLinear pairs; not changed. Bodies of control flow run in float.
        feeds: The inputs.
        outputs: Names of the values wanted, inner ones too; default: the model's outputs.
        given: Values by name that readers get instead of what is computed here, such as the integers that a runtime
            gave. What is returned is what is computed, so every value is judged on its own.
        sums: How products are summed.

    Raises:
        InputError: An input is missing or unknown, a value wanted does not exist, or an operator has no reference.
    """
    return _Evaluation(model, feeds, given or {}, _KERNELS[sums]).run(outputs)


class _Evaluation:
    def __init__(self, model: ir.Model, feeds: Feeds, given: Feeds, kernels: Mapping[str, Kernel]) -> None:
        self.model = model
        self.kernels = kernels
        self.opset = opset_of(model)
        self.given = given
        self.functions = [ir.to_proto(function) for function in model.functions.values()]
        self.values: dict[ir.Value, Quantity | Array] = {}
        # What the caller gets; what readers get, `values`, differs where a value is given.
        self.computed: dict[str, Quantity | Array] = {}
        inputs = {str(value.name): value for value in model.graph.inputs}
        unknown = sorted(set(feeds) - set(inputs))
        if unknown:
            raise InputError(
                f"{unknown[0]!r} is no input of the model", hint=f"inputs: {', '.join(sorted(inputs))}"
            )
        for name, value in inputs.items():
            if name in feeds:
                self._set(value, np.asarray(feeds[name]))
            elif value.const_value is None:
                raise InputError(f"input {name!r} is missing")

    def run(self, outputs: Sequence[str] | None) -> dict[str, Array]:
        for node in self.model.graph:
            results = self._node(node)
            for value, result in zip(node.outputs, results, strict=False):
                if value.name:
                    self._set(value, result)
        names = [str(value.name) for value in self.model.graph.outputs] if outputs is None else outputs
        return {name: self._wanted(name) for name in names}

    def _set(self, value: ir.Value, result: Quantity | Array) -> None:
        name = str(value.name)
        self.computed[name] = result
        self.values[value] = np.asarray(self.given[name]) if name in self.given else result

    def _wanted(self, name: str) -> Array:
        if name in self.computed:
            return _real(self.computed[name])
        initializer = self.model.graph.initializers.get(name)
        if initializer is None or initializer.const_value is None:
            raise InputError(f"the model has no value {name!r}")
        return initializer.const_value.numpy()

    def _get(self, value: ir.Value | None) -> Operand:
        if value is None:
            return None
        if value in self.values:
            return self.values[value]
        tensor = value.const_value if value.is_graph_input() else constant_tensor(value)
        if tensor is None:
            raise InputError(f"value {value.name!r} is never computed")
        return tensor.numpy()

    def _node(self, node: ir.Node) -> Iterable[Quantity | Array]:
        operands = [self._get(value) for value in node.inputs]
        if is_op(node, "DequantizeLinear"):
            return [self._dequantize(node, operands)]
        if is_op(node, "QuantizeLinear"):
            return [self._quantize(node, operands)]
        if node.domain in ONNX_DOMAINS:
            if node.op_type in MOVEMENT and (moved := move(node, operands, self.opset)) is not None:
                return moved
            kernel = self.kernels.get(node.op_type)
            if kernel is not None and (result := kernel(node, operands, self.opset)) is not None:
                return [result]
        return self._float(node, operands)

    def _dequantize(self, node: ir.Node, operands: Sequence[Operand]) -> Quantity | Array:
        integers, scale, zero_point = self._parameters(node, operands)
        rank, axis = integers.ndim, attribute_int(node, "axis", 1)
        block = attribute_int(node, "block_size", 0)
        shifted = integers.astype(np.float64)
        if block:
            size = integers.shape[axis]
            scales, zeros = (
                np.repeat(part, block, axis).take(np.arange(size), axis) for part in (scale, zero_point)
            )
            blocks = (shifted - zeros.astype(np.float64)).astype(np.float32) * scales.astype(np.float32)
            return blocks.astype(scale.dtype)
        shifted = shifted - along(zero_point, axis, rank).astype(np.float64)
        shaped = along(scale, axis, rank).astype(np.float32)
        byte = None
        if zero_point.size == 1 and integers.dtype in (np.uint8, np.int8):
            byte = Byte(integers.dtype == np.int8, float(zero_point.reshape(())))
        elif integers.dtype == np.int8 and not zero_point.any():
            byte = Byte(signed=True, zero=0.0)
        return Quantity((Term(shifted, shaped),), scale.dtype, stored=True, byte=byte)

    def _quantize(self, node: ir.Node, operands: Sequence[Operand]) -> Array:
        value, scale = operands[0], _real(operands[1])
        if len(operands) > 2 and operands[2] is not None:
            zero_point = _real(operands[2])
        else:
            kind = attribute_int(node, "output_dtype", 0) or ir.DataType.UINT8.value
            zero_point = np.zeros(scale.shape, ir.DataType(kind).numpy())
        if not quantizes_to(zero_point) or attribute_int(node, "block_size", 0):
            raise InputError(f"{label(node)}: only 8 and 16 bit integers without blocks have a reference")
        rank = (value.term.integers if isinstance(value, Quantity) else np.asarray(value)).ndim
        axis = attribute_int(node, "axis", 1)
        step = along(scale, axis, rank).astype(np.float32)
        zero = along(zero_point, axis, rank)
        try:
            if isinstance(value, Quantity):
                return value.quantized(step, zero)
            return saturated(np.asarray(value).astype(np.float32) / step, zero)
        except InputError as error:
            raise InputError(f"{label(node)}: {error.message}") from error

    def _parameters(self, node: ir.Node, operands: Sequence[Operand]) -> tuple[Array, Array, Array]:
        integers, scale = operands[0], _real(operands[1])
        if not isinstance(integers, np.ndarray) or integers.dtype.kind == "f":
            raise InputError(f"{label(node)} reads floats")
        if len(operands) > 2 and operands[2] is not None:
            return integers, scale, _real(operands[2])
        return integers, scale, np.zeros(scale.shape, integers.dtype)

    def _float(self, node: ir.Node, operands: Sequence[Operand]) -> list[Array]:
        arrays = [None if value is None else _real(value) for value in operands]
        captured = {str(value.name): _real(self._get(value)) for value in self._captured(node)}
        if node.domain not in ONNX_DOMAINS and node.op_identifier() not in self.model.functions:
            raise InputError(
                f"{label(node)} has no reference",
                hint="give the model with operators of the default domain only",
            )
        imports = dict(self.model.opset_imports)
        return compute(node, arrays, self.opset, captured=captured, functions=self.functions, domains=imports)

    def _captured(self, node: ir.Node) -> list[ir.Value]:
        """What the bodies of a node read from the main graph."""
        found: dict[ir.Value, None] = {}
        for body in subgraphs_of(node):
            for graph in (body, *body.subgraphs()):
                reads = [value for inner in graph for value in inner.inputs]
                for value in (*reads, *graph.outputs):
                    if value is not None and value.graph is self.model.graph:
                        found[value] = None
        return list(found)


def _real(value: Operand) -> Array:
    assert value is not None
    return value.real() if isinstance(value, Quantity) else value
