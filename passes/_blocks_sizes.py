"""What is known of the sizes in a model for one sample: shapes, and the share of its work that a block has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.core.describe import nodes_cost
from greencc.core.errors import GreenccError
from greencc.core.graph import static_shape
from greencc.core.model import bind_dims, infer_shapes
from greencc.core.passes import Context
from greencc.core.shapes import bind_sizes
from greencc.passes._blocks import Block, Shape
from greencc.passes._capture import graph_values, require_data

# Of com.microsoft, made by the clean-up.
_ELEMENTWISE = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")


@dataclass(frozen=True)
class Sizes:
    """What is known for one sample: shapes of values, work of nodes by name."""

    shapes: Mapping[str, Shape]
    macs: Mapping[str, int | None]

    @property
    def total(self) -> int:
        return sum(count or 0 for count in self.macs.values())

    def share(self, block: Block) -> float | None:
        """The block's part of the model's MACs, or None when it is not known."""
        counts = [self.macs.get(str(node.name)) for node in block.nodes]
        known = [count for count in counts if count is not None]
        return sum(known) / self.total if len(known) == len(counts) and self.total else None


def sizes_of(model: ir.Model, ctx: Context, *, needed: bool = True) -> Sizes:
    """Shapes and work for the sizes of a calibration sample; where none is needed and there is none, for another one.

    Raises:
        InputError: There is no calibration data, and it is needed.
    """
    if needed or ctx.calibration is not None:
        first = next(iter(require_data(ctx).batches(1)), None)
        feeds: Feeds | None = None if first is None else first.feeds
    else:
        feeds = next(iter(ctx.samples), None)
    if feeds is not None:
        sized = _bound(model, feeds)
    elif needed:
        sized = model
    else:
        sized = bind_sizes(model, {}, batch=2)
    while _through_custom_operators(sized.graph):
        infer_shapes(sized)
    shapes = {
        str(value.name): tuple(int(dim) for dim in value.shape.numpy())
        for value in graph_values(sized.graph)
        if value.shape is not None and value.shape.is_static()
    }
    return Sizes(shapes, {cost.name: cost.macs for cost in nodes_cost(sized)})


def _bound(model: ir.Model, feeds: Feeds) -> ir.Model:
    """The model for two such samples, so that a dimension of 1 is one that broadcasts; else for one."""
    inputs = {value.name: value for value in model.graph.inputs}
    shapes = {
        name: (_dynamic_batch(inputs.get(name), array.shape[0]), *array.shape[1:])
        for name, array in feeds.items()
    }
    try:
        return bind_dims(model, shapes)
    except GreenccError:
        # Exporters write a batch of 1 into reshapes of graphs that declare a dynamic batch.
        return bind_dims(model, {name: array.shape for name, array in feeds.items()})


def _through_custom_operators(graph: ir.Graph) -> bool:
    """Give results of fused activations the shape of what they read, as inference does not; whether any was new."""
    found = False
    for node in graph:
        if node.domain == "com.microsoft" and node.op_type in _ELEMENTWISE:
            shape = static_shape(node.inputs[0])
            if shape is not None and static_shape(node.outputs[0]) is None:
                node.outputs[0].shape = ir.Shape(shape)
                found = True
    return found


def _dynamic_batch(value: ir.Value | None, size: int) -> int:
    if value is None or value.shape is None or not len(value.shape):
        return size
    first = value.shape[0]
    return first if isinstance(first, int) else 2
