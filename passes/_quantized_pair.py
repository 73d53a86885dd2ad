"""A float model beside the QDQ model made of it: the same nodes in both, and both run on the same samples.

Quantization keeps the names of the nodes. What repairs a quantized model afterwards (rounding, biases) asks here
which integer weight, scales and bias stand for those of a float node, and what both nodes compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array, Batch
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError
from greencc.core.graph import constant_of, constant_tensor, input_at, is_op, sole_consumer
from greencc.core.passes import Context, Finding
from greencc.passes._capture import (
    BUDGET_BYTES,
    checked,
    no_samples,
    require_data,
    rows,
    run_split,
    sample_bytes,
)
from greencc.passes._linear_view import LinearView, linear_view
from greencc.passes._quantize_insert import release

Float32 = NDArray[np.float32]
# Every fifth sample judges a repair; the others make it.
HELD_OUT = 5


@dataclass(frozen=True)
class QuantizedNode:
    """A weighted node of the float model and what became of it. Matrices are as in `LinearView`.

    Attributes:
        view: The node in the float model.
        node: The node in the quantized model.
        dequantize: The DequantizeLinear of its weight there.
        integers: Its INT8 initializer.
        scales: float32, (output channels,): what an integer is worth, Gemm's alpha included.
    """

    view: LinearView
    node: ir.Node
    dequantize: ir.Node
    integers: ir.Value
    scales: Float32

    @property
    def name(self) -> str:
        return str(self.node.name)

    @property
    def channels(self) -> int:
        return self.view.groups * self.view.outputs

    @property
    def shared(self) -> bool:
        """Whether somebody else reads the same dequantized weight."""
        return len(tuple(self.dequantize.outputs[0].uses())) != 1

    @property
    def float_output(self) -> ir.Value:
        return self.view.node.outputs[0]

    @property
    def source(self) -> ir.Value:
        """The activation the quantized node reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def weight(self) -> Float32:
        """The float weight as a matrix, times Gemm's alpha."""
        tensor = constant_tensor(self.view.node.inputs[1])
        assert tensor is not None
        matrix = np.array(self.view.matrix(tensor.numpy()), np.float32)
        release(tensor)
        alpha = self.view.node.attributes.get("alpha") if self.view.node.op_type == "Gemm" else None
        return matrix if alpha is None else matrix * np.float32(alpha.as_float())

    def integer_matrix(self) -> Float32:
        """The integers as a matrix of whole float32 numbers."""
        tensor = self.integers.const_value
        assert tensor is not None
        return np.array(self.view.matrix(tensor.numpy()), np.float32)

    def scale_column(self) -> Float32:
        """The scales, (groups, outputs, 1)."""
        return self.scales.reshape(self.view.groups, self.view.outputs, 1)

    def bias(self) -> Float32:
        """The bias the quantized node adds, (output channels,); zeros when it has none."""
        value = input_at(self.node, 2) if self.node.op_type != "MatMul" else None
        if value is None:
            return np.zeros(self.channels, np.float32)
        return np.broadcast_to(dequantized(value).reshape(-1), (self.channels,)).astype(np.float32)

    def clip(self) -> tuple[float, float]:
        """What the Relu or Clip right after the float node keeps; (-inf, inf) without one."""
        node = sole_consumer(self.float_output)
        if node is None or not is_op(node, "Relu", "Clip") or node.inputs[0] is not self.float_output:
            return -math.inf, math.inf
        if node.op_type == "Relu":
            return 0.0, math.inf
        low, high = (_bound(node, index, name) for index, name in ((1, "min"), (2, "max")))
        return (-math.inf if low is None else low), (math.inf if high is None else high)

    def replace(self, matrix: Array) -> None:
        """Put other integers, given as a matrix, in the place of the weight's."""
        stored = np.ascontiguousarray(self.view.stored(matrix)).astype(np.int8)
        self.integers.const_value = ir.tensor(stored, name=self.integers.name)


def find_pairs(float_model: ir.Model, quantized: ir.Model) -> tuple[list[QuantizedNode], list[Finding]]:
    """The weighted nodes with INT8 weights, in the order of the float graph, and why others are left out."""
    nodes = {str(node.name): node for node in quantized.graph}
    pairs: list[QuantizedNode] = []
    findings: list[Finding] = []
    for original in float_model.graph:
        node = nodes.get(str(original.name))
        if node is None or node.op_type != original.op_type or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        if weight is None or not is_op(weight.producer(), "DequantizeLinear"):
            continue
        found = _pair(original, node, weight)
        if isinstance(found, QuantizedNode):
            pairs.append(found)
        elif found is not None:
            findings.append(
                Finding("note", f"{node.op_type} {node.name!r} is not repaired: {found}", node.name)
            )
    return pairs, findings


def _pair(original: ir.Node, node: ir.Node, weight: ir.Value) -> QuantizedNode | str | None:
    dequantize = weight.producer()
    assert dequantize is not None
    integers = dequantize.inputs[0]
    tensor = None if integers is None else integers.const_value
    if integers is None or tensor is None or integers.is_graph_input():
        return None  # a product of two activations
    if tensor.dtype is not ir.DataType.INT8:
        return f"its weight is {tensor.dtype.name}"
    if len(tuple(integers.uses())) != 1:
        return "its integer weight is shared with another node"
    view = linear_view(original)
    if view is None:
        return "its weight is no matrix"
    scales, zero_point = constant_of(dequantize.inputs[1]), constant_of(input_at(dequantize, 2))
    if scales is None or scales.dtype not in (np.float32, np.float16):
        return "the scales of its weight are not constant"
    if zero_point is not None and np.any(zero_point):
        return "its weight is not symmetric"
    if tuple(tensor.shape.numpy()) != view.weight_shape:
        return "its weight has another shape now"
    # The groups of a ConvTranspose share the scales along axis 1.
    repeats = 1 if view.node.op_type == "Conv" else view.groups
    channels = view.groups * view.outputs
    if scales.size != 1:
        if scales.shape != (channels // repeats,) or _axis(dequantize) != _channel_axis(view):
            return "its scales are not one per output channel"
        scales = np.tile(scales, repeats)
    wide = np.broadcast_to(scales.astype(np.float32).reshape(-1), (channels,))
    return QuantizedNode(view, node, dequantize, integers, wide)


def _axis(dequantize: ir.Node) -> int:
    attribute = dequantize.attributes.get("axis")
    axis = 1 if attribute is None else attribute.as_int()
    weight = dequantize.inputs[0]
    assert weight is not None
    assert weight.const_value is not None
    return axis if axis >= 0 else axis + len(weight.const_value.shape)


def _channel_axis(view: LinearView) -> int:
    if view.node.op_type == "Conv":
        return 0
    if view.node.op_type == "ConvTranspose":
        return 1
    transposed = view.node.attributes.get("transB")
    return 0 if view.node.op_type == "Gemm" and transposed is not None and transposed.as_int() else 1


def dequantized(value: ir.Value) -> Float32:
    """The constant a value holds, directly or through a DequantizeLinear."""
    node = value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        constant = constant_of(value)
        assert constant is not None
        return np.asarray(constant, np.float32)
    integers, scales, zero_point = (constant_of(input_at(node, index)) for index in range(3))
    assert integers is not None
    assert scales is not None
    shifted = integers.astype(np.float64) - (0.0 if zero_point is None else zero_point.astype(np.float64))
    product: Float32 = (shifted * scales).astype(np.float32)
    return product


def _bound(node: ir.Node, index: int, name: str) -> float | None:
    """A limit of a Clip, from its input or (before opset 11) its attribute; None when it has no constant one."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return attribute.as_float()
    limit = constant_of(input_at(node, index))
    return float(limit.reshape(())) if limit is not None and limit.size == 1 else None


@dataclass(frozen=True)
class Piece:
    """What both models compute for a few samples.

    Attributes:
        first: Position of the first sample in the data.
        count: Samples.
        float_values: By name.
        quantized_values: By name.
    """

    first: int
    count: int
    float_values: dict[str, Array]
    quantized_values: dict[str, Array]

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Which samples judge rather than teach."""
        held: NDArray[np.bool_] = (self.first + np.arange(self.count)) % HELD_OUT == HELD_OUT - 1
        return held


@dataclass(frozen=True)
class Side:
    """A model and the values of its main graph that are wanted."""

    model: ir.Model
    names: Sequence[str]

    def distinct(self) -> list[str]:
        return list(dict.fromkeys(self.names))


def run_both(exact: Side, quantized: Side, ctx: Context, batch: int, label: str) -> Iterator[Piece]:
    """Run the calibration data through both models side by side, in order, in bounded memory.

    Args:
        exact: The float model. A side without names is not run.
        quantized: The quantized model.
        ctx: Gives the data and the engines.
        batch: Samples run at once at most.
        label: What the progress bar says.

    Raises:
        InputError: There is no calibration data, it is empty, or an input holds NaN or infinity.
    """
    source = require_data(ctx)
    build = ctx.observe or ctx.build
    sides = [side for side in (exact, quantized) if side.names]
    size = sum(sum(sample_bytes(side.model, side.distinct()).values()) for side in sides)
    step = max(1, min(batch, BUDGET_BYTES // max(size, 1)))
    engines: list[Engine] = []
    first = 0
    try:
        for side in sides:
            engines.append(build(side.model, outputs=side.distinct()))
        fixed = next((spec.batch for spec in engines[0].inputs if spec.batch is not None), None)
        step = fixed or step
        total = math.ceil(source.count / batch)
        for item in ctx.progress(checked(source, batch), label=label, total=total):
            done = 0
            while done < item.count:
                part = rows(item, done, done + step)
                results = _run(engines, part, single=fixed is not None or step == 1)
                if results is None:
                    # Exporters write a batch of 1 into reshapes of graphs that declare a dynamic batch.
                    step = 1
                    continue
                found = {id(side): values for side, values in zip(sides, results, strict=True)}
                # A short last piece of a fixed batch is filled up with copies of its last sample.
                yield Piece(
                    first + done, fixed or part.count, found.get(id(exact), {}), found.get(id(quantized), {})
                )
                done += part.count
            first += item.count
    finally:
        for engine in engines:
            engine.close()
    if not first:
        raise no_samples(source)


def _run(engines: Sequence[Engine], part: Batch, single: bool) -> list[dict[str, Array]] | None:
    """Results of all engines for one piece; None when several samples do not go through at once."""
    if single:
        return [next(iter(run_split(engine, part, 1))) for engine in engines]
    try:
        return [engine.run(part.feeds) for engine in engines]
    except GreenccError:
        return None
