"""The float part of a quantized graph in FP16, where its values are certain to fit (`bounds`).

With strong typing the graph's own types are what is computed in, and the FP32 that a QDQ graph has between its pairs
would be computed in FP32. Pairs take either type at no cost: Q reads what it is given, DQ gives what its scale is. So
regions between pairs become FP16 whole, and a Cast stands only where such a region meets FP32: at the model's inputs
and outputs, at what sums or exponentiates (`KEPT`), and at what has no bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from greencc.core.graph import (
    ONNX_DOMAINS,
    Names,
    add_initializer,
    constant_of,
    constant_tensor,
    drop_unused,
    is_op,
)
from greencc.targets._tensorrt.bounds import bounds_of
from greencc.targets._tensorrt.capabilities import HALF_OPS

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# They stay FP32, as in `ConvertFloat16`: sums lose what FP16 has not the digits for, exponentials make more of it.
KEPT = frozenset(
    {
        "Exp",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "Softmax",
    }
)
# They give the values they read, so they go with their neighbours.
_MOVEMENT = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Half of FP16's range: what is added up inside a kernel has room.
LIMIT = 32752.0
# Inputs that are no data of the operator: shapes, indices, conditions.
_DATA: dict[str, tuple[int, ...]] = {
    "Expand": (0,),
    "Gather": (0,),
    "Pad": (0, 2),
    "ReduceMax": (0,),
    "ReduceMin": (0,),
    "Reshape": (0,),
    "Resize": (0,),
    "Slice": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}


def halve(model: ir.Model) -> int:
    """Compute in FP16 what is safe to, in place; how many nodes do.

    Args:
        model: Quantized, of opset 19 or newer, with shapes and types inferred; without functions.
    """
    graph = model.graph
    chosen = _chosen(graph)
    if chosen:
        _Halver(model, chosen).run()
    return len(chosen)


def float32_nodes(graph: ir.Graph) -> list[str]:
    """Names of the nodes that compute on floats and are not certain to fit FP16, in graph order.

    Without those that read pairs alone: their kernels are integer ones.
    """
    bounds = bounds_of(graph)
    return [
        str(node.name)
        for node in graph
        if node.domain in ONNX_DOMAINS
        and (node.op_type in HALF_OPS or node.op_type in KEPT)
        and any(value.dtype is _FLOAT for value in node.outputs)
        and not _fits(node, bounds)
        and not all(is_op(node.inputs[index].producer(), "DequantizeLinear") for index in _data(node)[:2])  # type: ignore[union-attr]
    ]


def _data(node: ir.Node) -> list[int]:
    """Inputs that change type with the node."""
    wanted = _DATA.get(node.op_type, range(len(node.inputs)))
    return [index for index in wanted if index < len(node.inputs) and node.inputs[index] is not None]


def _fits(node: ir.Node, bounds: Mapping[ir.Value, float]) -> bool:
    if node.domain not in ONNX_DOMAINS or node.op_type in KEPT:
        return False
    if node.op_type not in HALF_OPS and node.op_type not in _MOVEMENT:
        return False
    values = [node.inputs[index] for index in _data(node)] + list(node.outputs)
    for value in values:
        if value is None or value.dtype is not _FLOAT or not bounds.get(value, np.inf) <= LIMIT:
            return False
        if constant_tensor(value) is None and value.is_initializer():
            return False
    return True


def _pair_of(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives a value, whose scale FP16 holds exactly."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    return node if _storable(node) else None


def _storable(node: ir.Node) -> bool:
    scale = constant_of(node.inputs[1])
    if scale is None:
        return False
    with np.errstate(over="ignore"):
        return bool((scale.astype(np.float16).astype(np.float32) == scale.astype(np.float32)).all())


def _chosen(graph: ir.Graph) -> set[ir.Node]:
    """The nodes to compute in FP16: those that can, without islands that need more casts than they spare."""
    bounds = bounds_of(graph)
    chosen = {node for node in graph if _fits(node, bounds) and not _reads_inexact(node)}
    changed = True
    while changed:
        changed = False
        for node in graph:
            if node in chosen and node.op_type not in _PRODUCTS and _casts(node, chosen) > 0:
                chosen.discard(node)
                changed = True
    return chosen


def _reads_inexact(node: ir.Node) -> bool:
    """True for a reader of a pair whose scale FP16 does not hold."""
    return any(
        value is not None and is_op(value.producer(), "DequantizeLinear") and _pair_of(value) is None
        for value in node.inputs
    )


def _casts(node: ir.Node, chosen: set[ir.Node]) -> int:
    """Casts that the node needs in FP16, less those that its neighbours would need without it."""
    balance = 0
    for index in _data(node):
        value = node.inputs[index]
        assert value is not None
        producer = value.producer()
        if constant_tensor(value) is not None or _pair_of(value) is not None:
            continue
        balance += -1 if producer in chosen else 1
    for value in node.outputs:
        readers = {use.node for use in value.uses()}
        if value.is_graph_output() or any(_is_float_reader(each, chosen) for each in readers):
            balance += 1
        if readers & chosen:
            balance -= 1
    return balance


def _is_float_reader(node: ir.Node, chosen: set[ir.Node]) -> bool:
    """True for one that must be given FP32: Q takes either, where its scale fits."""
    if is_op(node, "QuantizeLinear"):
        return not _storable(node)
    return node not in chosen and not is_op(node, "Cast", "Shape", "Size")


class _Halver:
    def __init__(self, model: ir.Model, chosen: set[ir.Node]) -> None:
        self.graph = model.graph
        self.chosen = chosen
        self.names = Names(model)
        self.copies: dict[ir.Value, ir.Value] = {}
        self.scales: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        order = [node for node in self.graph if node in self.chosen]
        for node in order:
            for index in _data(node):
                value = node.inputs[index]
                assert value is not None
                if value.producer() not in self.chosen:
                    node.replace_input_with(index, self._half(value))
        for node in order:
            for value in node.outputs:
                self._type(value)
        for old in self.copies:
            self._drop(old)

    def _half(self, value: ir.Value) -> ir.Value:
        """A value that FP32 nodes or nobody make, as FP16."""
        if value not in self.copies:
            self.copies[value] = self._make(value)
        return self.copies[value]

    def _make(self, value: ir.Value) -> ir.Value:
        tensor = constant_tensor(value)
        if tensor is not None:
            name = self.names.value(f"{value.name}_float16")
            return add_initializer(self.graph, name, tensor.numpy().astype(np.float16))
        pair = _pair_of(value)
        result = ir.Value(
            name=self.names.value(f"{value.name}_float16"), type=ir.TensorType(_HALF), shape=value.shape
        )
        if pair is not None:
            self._behind_pair(pair, result)
            return result
        self._cast(value, result)
        return result

    def _behind_pair(self, pair: ir.Node, result: ir.Value) -> None:
        """A second DequantizeLinear of FP16; the first goes when nobody reads it."""
        source = pair.inputs[0]
        assert source is not None
        scale = pair.inputs[1]
        assert scale is not None
        copy = ir.Node(
            "",
            "DequantizeLinear",
            [source, self._scale(scale), pair.inputs[2]],
            tuple(pair.attributes.values()),
            outputs=[result],
            name=self.names.node(f"{pair.name}_float16"),
            metadata_props=dict(pair.metadata_props),
        )
        self.graph.insert_after(pair, copy)

    def _scale(self, scale: ir.Value) -> ir.Value:
        if scale not in self.scales:
            array = constant_of(scale)
            assert array is not None
            name = self.names.value(f"{scale.name}_float16")
            self.scales[scale] = add_initializer(self.graph, name, array.astype(np.float16))
        return self.scales[scale]

    def _type(self, value: ir.Value) -> None:
        """Make a chosen node's result FP16; who needs FP32 reads a cast of it."""
        wide = []
        for use in tuple(value.uses()):
            reader = use.node
            if is_op(reader, "QuantizeLinear") and use.idx == 0 and _storable(reader):
                scale = reader.inputs[1]
                assert scale is not None
                reader.replace_input_with(1, self._scale(scale))
                drop_unused(self.graph, scale)
            elif _is_float_reader(reader, self.chosen):
                wide.append(use)
        value.type = ir.TensorType(_HALF)
        if not wide and not value.is_graph_output():
            return
        restored = ir.Value(name=None, type=ir.TensorType(_FLOAT), shape=value.shape)
        name = str(value.name)
        for use in wide:
            use.node.replace_input_with(use.idx, restored)
        if value.is_graph_output():
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = restored
            value.name = self.names.value(f"{name}_float16")
            restored.name = name
        else:
            restored.name = self.names.value(f"{name}_float32")
        self._cast(value, restored)

    def _cast(self, source: ir.Value, result: ir.Value) -> None:
        assert result.dtype is not None
        name = self.names.node(f"{result.name}_Cast")
        cast = ir.node("Cast", [source], {"to": result.dtype.value}, outputs=[result], name=name)
        producer = source.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)

    def _drop(self, value: ir.Value) -> None:
        """Remove a constant or a DequantizeLinear that has its copy in every reader's place."""
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            return
        producer = value.producer()
        if producer is None:
            drop_unused(self.graph, value)
        elif is_op(producer, "DequantizeLinear"):
            sources = [each for each in producer.inputs if each is not None]
            self.graph.remove(producer, safe=True)
            for each in sources:
                if each.is_initializer():
                    drop_unused(self.graph, each)
