"""Where QuantizeLinear/DequantizeLinear pairs go: which nodes run as integers, which values become INT8.

The decision is a fixed point over the main graph, from facts of the target alone:

* *weighted* nodes (Conv, ConvTranspose, Gemm, MatMul) run as integers whenever they can be expressed so;
* *movement* nodes (Reshape, MaxPool, ...) give out values of their input, so input and output share one scale;
  they follow an integer producer, or let a quantized consumer pull the quantization above them;
* *arithmetic* nodes (Add, Concat, AveragePool, ...) run as integers when all their operands are there as
  integers already, or when one is and the result is needed as integers: then nothing is converted more often
  than it would be in float;
* Relu and Clip are *absorbed*: the quantization sits after them, never between them and their producer, and a
  runtime drops them because the quantized range does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from greencc.core.capabilities import Int8Support
from greencc.core.graph import attribute_int
from greencc.core.passes import Finding
from greencc.passes._ranges import Range

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVEMENT = (
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
ARITHMETIC = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Sub")
ABSORBED = ("Clip", "Relu")
FIXED_RANGES = {"Sigmoid": Range(0.0, 1.0), "Softmax": Range(0.0, 1.0)}
_CUSTOM_QUANTIZED = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "MatMulNBits", "DynamicQuantize")


@dataclass(frozen=True)
class Weighted:
    """How one weighted node is expressed with quantized inputs.

    Attributes:
        activations: Input indices that take quantized activations.
        weight: Input index of the constant weight, None for a product of two activations.
        axis: Axis of the output channels in the weight; None for one scale per tensor.
        bias: Input index of the constant bias, if there is one.
    """

    activations: tuple[int, ...]
    weight: int | None = None
    axis: int | None = None
    bias: int | None = None


@dataclass
class Placement:
    """The decision.

    Attributes:
        weighted: Weighted nodes that run as integers.
        others: Movement and arithmetic nodes that run as integers.
        absorbed: Relu and Clip nodes whose input stays unquantized in favour of their output.
        values: Values to quantize, in graph order, each with whether every consumer, not just the integer
            ones, reads the dequantized value (true where the producer only exists as an integer kernel).
        findings: Weighted nodes left in float, with their reasons.
    """

    weighted: dict[ir.Node, Weighted] = field(default_factory=dict)
    others: set[ir.Node] = field(default_factory=set)
    absorbed: set[ir.Node] = field(default_factory=set)
    values: dict[ir.Value, bool] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """The integer nodes in graph order."""
        return [node for node in graph if node in self.weighted or node in self.others]


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a value nobody can change: an initializer that is not an input, or a Constant node."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def quantized_already(graph: ir.Graph) -> ir.Node | None:
    """The first node of a graph that is quantized already, if any."""
    for node in graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type.startswith(
            _CUSTOM_QUANTIZED
        ):
            return node
    return None


def data_inputs(node: ir.Node) -> list[int]:
    """Indices of the inputs of a movement or arithmetic node that carry activations or constant operands."""
    if node.op_type in MOVEMENT:
        return [0]
    return [index for index, value in enumerate(node.inputs) if value is not None]


def place(graph: ir.Graph, int8: Int8Support, ops: frozenset[str], excluded: frozenset[str]) -> Placement:
    """Decide which nodes run as integers.

    Args:
        graph: The main graph, with shapes and types inferred.
        int8: What the target's integer kernels want.
        ops: Operators to quantize, a subset of `int8.ops`.
        excluded: Names of nodes to leave in float.
    """
    return _Placer(graph, int8, ops, excluded).run()


class _Placer:
    def __init__(
        self, graph: ir.Graph, int8: Int8Support, ops: frozenset[str], excluded: frozenset[str]
    ) -> None:
        self.graph = graph
        self.int8 = int8
        self.plan = Placement()
        self.candidates: list[ir.Node] = []
        for node in graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type in WEIGHTED:
                reason = self._weighted(node, ops, excluded)
                if reason is not None:
                    self.plan.findings.append(
                        Finding(
                            "left-in-float", f"{node.op_type} {node.name!r}: {reason}", node.name, "quantize"
                        )
                    )
            elif node.op_type in ops and node.name not in excluded and _expressible(node):
                self.candidates.append(node)
            elif node.op_type in ABSORBED and _absorbable(node) and node.name not in excluded:
                self.plan.absorbed.add(node)

    def run(self) -> Placement:
        changed = True
        while changed:
            changed = False
            # Backwards and forwards in turn, so that long chains settle in few rounds.
            for node in (*reversed(self.candidates), *self.candidates):
                if node not in self.plan.others and self._gains(node):
                    self.plan.others.add(node)
                    changed = True
        self._collect()
        return self.plan

    def _weighted(self, node: ir.Node, ops: frozenset[str], excluded: frozenset[str]) -> str | None:
        """Record how the node is quantized, or return why it is left in float."""
        if node.name in excluded:
            return "excluded by the options"
        if node.op_type not in self.int8.ops:
            return f"the target has no integer kernel for {node.op_type}"
        if node.op_type not in ops:
            return "not among the operators asked for"
        described = _describe(node, self.int8.per_channel)
        if isinstance(described, str):
            return described
        self.plan.weighted[node] = described
        return None

    def _gains(self, node: ir.Node) -> bool:
        operands = [node.inputs[index] for index in data_inputs(node)]
        here = [self._available(value) for value in operands if value is not None and constant(value) is None]
        wanted = any(self._wanted(value) for value in node.outputs)
        if node.op_type in MOVEMENT:
            return any(here) or (wanted and bool(here))
        if not self.int8.quantize_outputs:
            # Such runtimes fuse arithmetic into the producer; a quantized operand there would part the two.
            return False
        return bool(here) and (all(here) or (any(here) and wanted))

    def _available(self, value: ir.Value) -> bool:
        """True when the producer delivers integers, so that quantizing the value costs nothing."""
        node = value.producer()
        if node in self.plan.absorbed:
            node = node.inputs[0].producer() if node is not None and node.inputs[0] is not None else None
        if node is None:
            return False
        if node in self.plan.others:
            return True
        if node not in self.plan.weighted or not self.int8.quantize_outputs:
            return False
        # Read by integer and float nodes alike, the output is quantized for all: ONNX Runtime finds no integer
        # kernel for a product whose result goes both ways.
        return node.op_type not in self.int8.float_output or self._wanted(value)

    def _wants(self, node: ir.Node, index: int) -> bool:
        """True when the node reads its input `index` as integers."""
        if node in self.plan.weighted:
            return index in self.plan.weighted[node].activations
        if node in self.plan.others:
            return index in data_inputs(node)
        return node in self.plan.absorbed and index == 0 and self._wanted(node.outputs[0])

    def _wanted(self, value: ir.Value) -> bool:
        return any(self._wants(use.node, use.idx) for use in value.uses())

    def _collect(self) -> None:
        """Name the values to quantize: what integer nodes read, and what they can only write as integers."""
        chosen: set[ir.Value] = set()
        for node in self.plan.nodes(self.graph):
            if node in self.plan.weighted:
                inputs: Iterable[int] = self.plan.weighted[node].activations
            else:
                inputs = data_inputs(node)
            for index in inputs:
                value = node.inputs[index]
                if value is not None and constant(value) is None:
                    chosen.add(value)
            for value in node.outputs:
                if not value.uses() and not value.is_graph_output():
                    continue
                final = self._after_absorbed(value)
                if node.op_type in MOVEMENT or self._available(final):
                    chosen.add(final)
        self.plan.absorbed = {node for node in self.plan.absorbed if node.outputs[0] in chosen}
        for value in _values(self.graph):
            if value in chosen:
                self.plan.values[value] = self._available(value)

    def _after_absorbed(self, value: ir.Value) -> ir.Value:
        uses = list(value.uses())
        if len(uses) == 1 and uses[0].node in self.plan.absorbed:
            return uses[0].node.outputs[0]
        return value


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _absorbable(node: ir.Node) -> bool:
    """True for a Relu or Clip that is the only reader of a value which is free to take another scale."""
    value = node.inputs[0]
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    producer = value.producer()
    # The output of a movement shares the scale of its input, where negative values still need room.
    return producer is not None and producer.op_type not in MOVEMENT


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (ir.DataType.FLOAT, None)


def _expressible(node: ir.Node) -> bool:
    """True for movement and arithmetic nodes that integer kernels compute as the float ones would."""
    if node.op_type not in MOVEMENT and node.op_type not in ARITHMETIC:
        return False
    if not all(_is_float(node.inputs[index]) for index in data_inputs(node)):
        return False
    if not all(value.dtype is ir.DataType.FLOAT for value in node.outputs if value.uses()):
        return False
    if node.op_type in ("Add", "Mul", "Sub") and any(constant(value) is not None for value in node.inputs):
        # Chains of these (a hand-written hard-swish, a learnable affine) would be rounded at every step. Clean-up
        # folds most of them into weights; what is left is cheap in float.
        return False
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return False
    if node.op_type == "Resize":
        return str(_text(node, "mode", "nearest")) == "nearest"
    if node.op_type == "Gather":
        return constant(node.inputs[0]) is None
    return True


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def _describe(node: ir.Node, per_channel: bool) -> Weighted | str:
    """How a weighted node is quantized, or why it cannot be."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return "an operand is missing"
    first, second = node.inputs[0], node.inputs[1]
    tensor = constant(second)
    if constant(first) is not None:
        return "its first operand is constant"
    if not _is_float(first) or not _is_float(second) or (tensor and tensor.dtype is not ir.DataType.FLOAT):
        return "its operands are not float32"
    if tensor is None:
        if node.op_type != "MatMul":
            return "its weight is computed, or can be overridden by an input"
        if any(value.shape is not None and value.shape.rank() < 2 for value in (first, second)):
            return "it multiplies by a vector"
        return Weighted(activations=(0, 1))
    if tensor.size == 0:
        return "its weight is empty"
    bias = None
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias_tensor = constant(node.inputs[2])
        if bias_tensor is None:
            return "its bias is computed, or can be overridden by an input"
        bias = 2
    rank = len(tensor.shape)
    axis: int | None
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "ConvTranspose":
        # With groups, axis 1 holds the channels of one group only: a scale there would be shared wrongly.
        axis = 1 if attribute_int(node, "group", 1) == 1 else None
    elif node.op_type == "Gemm":
        axis = 0 if attribute_int(node, "transB", 0) else 1
        if attribute_int(node, "transA", 0):
            return "it transposes its activations"
        if _number(node, "alpha") <= 0:
            return "its alpha is not positive"
        channels = int(tensor.shape[axis])  # type: ignore[arg-type]
        if bias is not None and bias_tensor is not None:
            shape = [int(dim) for dim in bias_tensor.shape]  # type: ignore[arg-type]
            if any(dim != 1 for dim in shape[:-1]) or (shape and shape[-1] not in (1, channels)):
                return f"its bias of shape {shape} is not one value per output channel"
    else:
        if rank < 2:
            return "it multiplies by a vector"
        axis = 1 if rank == 2 else None
    return Weighted(activations=(0,), weight=1, axis=axis if per_channel else None, bias=bias)
