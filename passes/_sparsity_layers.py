"""The weights of a model that can be pruned: constants that only weighted layers read, all in the same way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import attribute_int, constant_tensor, is_op
from greencc.passes._block_quantize import is_finite
from greencc.passes._linear_view import LinearView, linear_view
from greencc.passes._quantize_insert import release
from greencc.passes._sparsity_patterns import Columns, Rule

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Layer:
    """A weight.

    Attributes:
        holder: The initializer, or the output of the Constant node.
        views: The layers that read it, in graph order.
    """

    holder: ir.Value
    views: tuple[LinearView, ...]

    @property
    def view(self) -> LinearView:
        return self.views[0]

    @property
    def name(self) -> str:
        return str(self.view.node.name)

    @property
    def tensor(self) -> ir.TensorProtocol:
        tensor = constant_tensor(self.holder)
        assert tensor is not None
        return tensor

    @property
    def columns(self) -> Columns:
        return Columns.of(self.view)

    def matrix(self) -> Array:
        """The weight, (groups, outputs, inputs), columns by kernel position, then input channel."""
        return self.columns.ordered(self.view.matrix(self.tensor.numpy()))

    def stored(self, matrix: Array) -> Array:
        """A matrix like `matrix()` in the layout and type of the weight."""
        stored = self.view.stored(self.columns.restored(matrix))
        with np.errstate(over="ignore"):
            return stored.astype(self.tensor.dtype.numpy())

    def put(self, weight: Array) -> None:
        """Let the constant hold another weight."""
        old = self.tensor
        tensor = ir.tensor(weight, name=old.name)
        producer = self.holder.producer()
        if producer is not None:
            producer.attributes["value"] = ir.AttrTensor("value", tensor)
        if producer is None or self.holder.const_value is not None:
            self.holder.const_value = tensor
        release(old)


def find_layers(
    graph: ir.Graph, ops: Sequence[str], exclude: Collection[str], min_elements: int, rule: Rule
) -> Iterator[Layer | tuple[str, str]]:
    """Yield every weight of `min_elements` or more once, in graph order; else the node's name and why it is left."""
    seen: set[ir.Value] = set()
    for node in graph:
        view = linear_view(node) if is_op(node, *ops) else None
        if view is None:
            continue
        holder = _holder(node.inputs[1])
        tensor = constant_tensor(holder)
        assert tensor is not None
        if holder in seen or tensor.size < min_elements:
            continue
        seen.add(holder)
        found = _layer(holder, tensor, graph, ops, exclude, rule)
        yield found if isinstance(found, Layer) else (str(node.name), found)


def _layer(
    holder: ir.Value,
    tensor: ir.TensorProtocol,
    graph: ir.Graph,
    ops: Sequence[str],
    exclude: Collection[str],
    rule: Rule,
) -> Layer | str:
    if tensor.dtype not in _TYPES:
        return f"weights of type {tensor.dtype.name}"
    order = {node: position for position, node in enumerate(graph)}
    views: dict[ir.Node, LinearView] = {}
    for value in _same(holder):
        if value.is_graph_output():
            return "the weight is an output of the model"
        for usage in value.uses():
            node = usage.node
            if node not in order:
                return "a sub-graph reads the weight"
            if is_op(node, "Identity"):
                continue
            if node.name in exclude:
                return "excluded by the options"
            view = linear_view(node) if usage.idx == 1 and is_op(node, *ops) else None
            if view is None:
                return f"{node.op_type} reads the weight too, in another way"
            views[node] = view
    ordered = tuple(views[node] for node in sorted(views, key=lambda node: order[node]))
    if len({_layout(view) for view in ordered}) > 1:
        return "layers share the weight but read it in different ways"
    channels = Columns.of(ordered[0]).channels
    if channels == 1 and ordered[0].groups > 1:
        return "a depthwise weight: little to save, and much to lose"
    if rule.of and channels % rule.of:
        return f"the number of input channels (of a group) is no multiple of {rule.of}"
    finite = is_finite(tensor.numpy())
    release(tensor)
    return Layer(holder, ordered) if finite else "the weights hold NaN or infinity"


def _layout(view: LinearView) -> tuple[object, ...]:
    """What the layout of the matrix depends on."""
    return (
        view.node.op_type == "ConvTranspose",
        view.kernel,
        view.groups,
        view.outputs,
        view.inputs,
        view.node.op_type == "Gemm" and bool(attribute_int(view.node, "transB", 0)),
    )


def _holder(value: ir.Value | None) -> ir.Value:
    """The constant behind Identity nodes."""
    assert value is not None
    producer = value.producer()
    while producer is not None and is_op(producer, "Identity") and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _same(holder: ir.Value) -> list[ir.Value]:
    """A constant and the values that are the same through Identity nodes."""
    found = [holder]
    for value in found:
        found += [usage.node.outputs[0] for usage in value.uses() if is_op(usage.node, "Identity")]
    return found
