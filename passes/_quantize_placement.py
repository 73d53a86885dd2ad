"""Where QuantizeLinear/DequantizeLinear pairs go: which nodes run as integers, which values become INT8.

The decision is a fixed point over the main graph, from facts of the target alone:

* *weighted* nodes (Conv, ConvTranspose, Gemm, MatMul) run as integers whenever they can be expressed so;
* *movement* nodes (Reshape, MaxPool, ...) give out values of their input, so input and output share one scale;
  they follow an integer producer, or let a quantized consumer pull the quantization above them;
* *arithmetic* nodes (Add, Concat, Sigmoid, ...) run as integers when all their operands are there as
  integers already, or when one is and the result is needed as integers: then nothing is converted more often
  than it would be in float;
* Relu and Clip are *absorbed*: the quantization sits after them, never between them and their producer, and a
  runtime drops them because the quantized range does the same.

Runtimes that fuse around the pairs instead (`quantize_outputs` unset; NVIDIA, TensorRT developer guide, "Q/DQ layer
placement recommendations") get pairs at the inputs of weighted nodes, of pools and of Concat, and at the operand
of a residual Add that is not the convolution's; nothing behind a weighted node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from greencc.core.capabilities import Int8Support
from greencc.core.graph import ONNX_DOMAINS
from greencc.core.passes import Finding
from greencc.passes._quantize_nodes import (
    FIXED_RANGES,
    MOVEMENT,
    WEIGHTED,
    Weighted,
    constant,
    data_inputs,
    describe,
    is_absorbable,
    is_expressible,
    is_float,
    quantized_already,
    unquantized_product,
)

__all__ = [
    "FIXED_RANGES",
    "MOVEMENT",
    "Placement",
    "Weighted",
    "constant",
    "data_inputs",
    "place",
    "quantized_already",
]

_RULE = "quantize"


@dataclass
class Placement:
    """The decision.

    Attributes:
        weighted: Weighted nodes that run as integers.
        others: Movement and arithmetic nodes that run as integers or read some of their inputs so.
        absorbed: Relu and Clip nodes whose input stays unquantized in favour of their output.
        values: Values to quantize, in graph order, each with whether every consumer, not just the integer
            ones, reads the dequantized value (true where the producer only exists as an integer kernel).
        findings: Weighted nodes left in float, with their reasons; float operators between integer ones.
        skips: Residual Adds, with the one input that they read quantized.
    """

    weighted: dict[ir.Node, Weighted] = field(default_factory=dict)
    others: set[ir.Node] = field(default_factory=set)
    absorbed: set[ir.Node] = field(default_factory=set)
    values: dict[ir.Value, bool] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    skips: dict[ir.Node, int] = field(default_factory=dict)

    def nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """The integer nodes in graph order."""
        return [node for node in graph if node in self.weighted or node in self.others]

    def reads(self, node: ir.Node) -> tuple[int, ...]:
        """Indices of the inputs that an integer node reads quantized, without the weight and the bias."""
        if node in self.weighted:
            return self.weighted[node].activations
        if node in self.skips:
            return (self.skips[node],)
        return tuple(data_inputs(node))


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
        self.ops = ops
        self.excluded = excluded
        self.plan = Placement()
        self.candidates: list[ir.Node] = []
        opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
        for node in graph:
            if node.domain in ONNX_DOMAINS and node.op_type in WEIGHTED:
                described = self._describe(node)
                if isinstance(described, Weighted):
                    self.plan.weighted[node] = described
                else:
                    self._left_in_float(node, described)
            elif (reason := unquantized_product(node)) is not None:
                self._left_in_float(node, reason)
            elif node.domain not in ONNX_DOMAINS or node.name in excluded:
                continue
            elif node.op_type in ops and is_expressible(node, int8, opset):
                self.candidates.append(node)
            elif is_absorbable(node, int8):
                self.plan.absorbed.add(node)
        for node in graph.all_nodes():
            if node.graph is not graph and (
                (node.domain in ONNX_DOMAINS and node.op_type in WEIGHTED) or unquantized_product(node)
            ):
                self._left_in_float(node, "it is inside the body of a control-flow operator")

    def run(self) -> Placement:
        changed = True
        while changed:
            changed = False
            # Backwards and forwards in turn, so that long chains settle in few rounds.
            for node in (*reversed(self.candidates), *self.candidates):
                if node not in self.plan.others and self._gains(node):
                    self.plan.others.add(node)
                    changed = True
        if self.int8.quantize_skips and not self.int8.quantize_outputs:
            self._place_skips()
        self._collect()
        self._note_float_neighbours()
        return self.plan

    def _left_in_float(self, node: ir.Node, reason: str) -> None:
        self.plan.findings.append(
            Finding("left-in-float", f"{node.op_type} {node.name!r}: {reason}", node.name, _RULE)
        )

    def _describe(self, node: ir.Node) -> Weighted | str:
        """How the node is quantized, or why it is left in float."""
        if node.name in self.excluded:
            return "excluded by the options"
        if node.op_type not in self.int8.ops:
            return f"the target has no integer kernel for {node.op_type}"
        if node.op_type not in self.ops:
            return "not among the operators asked for"
        return describe(node, self.int8)

    def _gains(self, node: ir.Node) -> bool:
        operands = [node.inputs[index] for index in data_inputs(node)]
        moving = [value for value in operands if value is not None and constant(value) is None]
        wanted = any(self._wanted(value) for value in node.outputs)
        if not self.int8.quantize_outputs:
            if node.op_type in self.int8.input_ops:
                return bool(moving) and (wanted or any(self._from_integers(value) for value in moving))
            # Such runtimes fuse arithmetic into the producer; a quantized operand there would part the two.
            return node.op_type in MOVEMENT and bool(moving) and wanted
        here = [self._available(value) for value in moving]
        if node.op_type in MOVEMENT:
            return any(here) or (wanted and bool(here) and node.op_type not in self.int8.follow_only)
        return bool(here) and (all(here) or (any(here) and wanted))

    def _source(self, value: ir.Value) -> ir.Node | None:
        """The node that computes a value, an absorbed Relu or Clip looked through."""
        node = value.producer()
        if node in self.plan.absorbed:
            assert node is not None
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        return node

    def _from_integers(self, value: ir.Value) -> bool:
        node = self._source(value)
        return node in self.plan.weighted or node in self.plan.others

    def _available(self, value: ir.Value) -> bool:
        """True when the producer delivers integers, so that quantizing the value costs nothing."""
        node = self._source(value)
        if node is None or not self.int8.quantize_outputs:
            return False
        if node in self.plan.others:
            return True
        if node not in self.plan.weighted:
            return False
        # Read by integer and float nodes alike, the output is quantized for all: ONNX Runtime finds no integer
        # kernel for a product whose result goes both ways.
        return node.op_type not in self.int8.float_output or self._wanted(value)

    def _wants(self, node: ir.Node, index: int) -> bool:
        """True when the node reads its input `index` as integers."""
        if node in self.plan.weighted or node in self.plan.others:
            return index in self.plan.reads(node)
        return node in self.plan.absorbed and index == 0 and self._wanted(node.outputs[0])

    def _wanted(self, value: ir.Value) -> bool:
        return any(self._wants(use.node, use.idx) for use in value.uses())

    def _place_skips(self) -> None:
        """Residual Adds read the operand that is not a convolution's own output quantized.

        Of two convolutions the one further from the inputs gets the Add fused; the other is the shortcut.
        """
        depth = _depths(self.graph)
        for node in self.graph:
            if node.op_type != "Add" or node.domain not in ONNX_DOMAINS or node.name in self.excluded:
                continue
            if "Add" not in self.ops or any(constant(value) is not None for value in node.inputs):
                continue
            branches = [
                (depth[producer], index)
                for index, value in enumerate(node.inputs)
                if value is not None
                and (producer := value.producer()) in self.plan.weighted
                and producer is not None
                and len(value.uses()) == 1
                and not value.is_graph_output()
            ]
            if branches:
                self.plan.skips[node] = 1 - max(branches)[1]
                self.plan.others.add(node)

    def _collect(self) -> None:
        """Name the values to quantize: what integer nodes read, and what they can only write as integers."""
        chosen: set[ir.Value] = set()
        for node in self.plan.nodes(self.graph):
            for index in self.plan.reads(node):
                value = node.inputs[index]
                if value is not None and constant(value) is None:
                    chosen.add(value)
            for value in node.outputs if self.int8.quantize_outputs else ():
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

    def _note_float_neighbours(self) -> None:
        """Say which operators without integer kernels stand between integers: each costs two conversions."""
        if not self.int8.quantize_outputs:
            return
        between: Counter[str] = Counter()
        first: dict[str, ir.Node] = {}
        for node in self.graph:
            if node in self.plan.weighted or node in self.plan.others or node in self.plan.absorbed:
                continue
            if node.op_type in self.int8.ops or node.op_type in WEIGHTED or node.domain not in ONNX_DOMAINS:
                continue
            if unquantized_product(node) is not None or not all(
                is_float(value, self.int8) for value in node.outputs
            ):
                continue
            reads = any(value is not None and self.plan.values.get(value) for value in node.inputs)
            feeds = any(value in self.plan.values for value in node.outputs)
            if reads or feeds:
                between[node.op_type] += 1
                first.setdefault(node.op_type, node)
        for kind, count in between.items():
            name = first[kind].name
            which = f"{kind} {name!r} stays" if count == 1 else f"{count} {kind} nodes ({name!r}, ...) stay"
            self.plan.findings.append(
                Finding("note", f"{which} in float: no integer kernel worth using", name, _RULE)
            )


def _depths(graph: ir.Graph) -> dict[ir.Node, int]:
    """Number of nodes on the longest path from the inputs to each node."""
    depth: dict[ir.Node, int] = {}
    for node in graph:
        producers = [value.producer() for value in node.inputs if value is not None]
        depth[node] = 1 + max((depth.get(producer, 0) for producer in producers if producer), default=0)
    return depth


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
