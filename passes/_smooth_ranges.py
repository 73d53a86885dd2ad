"""Ranges per channel of the values that blocks compare, over all calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import Names, add_initializer, is_op
from greencc.core.passes import Context
from greencc.passes._calibrate_channels import ChannelStats, observe_channels
from greencc.passes._capture import graph_values
from greencc.passes._quantize_placement import FIXED_RANGES
from greencc.passes._ranges import Range
from greencc.passes._smooth_blocks import Block, Scores, attention_product
from greencc.passes._smooth_layout import Channels
from greencc.passes._smooth_search import Limits


class Ranges:
    """Ranges per channel of everything the blocks compare."""

    def __init__(self, model: ir.Model, blocks: Sequence[Block], ctx: Context, batch: int) -> None:
        axes: dict[str, int] = {}
        layouts: dict[str, Channels] = {}
        whole: dict[str, None] = {}
        for block in blocks:
            if isinstance(block, Scores):
                for value, channels in zip(
                    block.node.inputs, (block.query_channels, block.key_channels), strict=True
                ):
                    layouts[str(value.name)] = channels  # type: ignore[union-attr]
                continue
            axes[str(block.value.name)] = block.axis
            product = attention_product(block)
            if product is not None:
                node, channels = product
                layouts[str(node.inputs[1].name)] = channels  # type: ignore[union-attr]
                if _fixed_range(node.inputs[0]) is None:
                    whole[str(node.inputs[0].name)] = None  # type: ignore[union-attr]
        flat = model.clone()
        renamed = _append_flat(flat, {**layouts, **dict.fromkeys(whole, np.zeros((), np.int64))})
        stats = observe_channels(flat, {**axes, **dict.fromkeys(renamed.values(), -1)}, ctx, batch)
        self._stats = {**{name: stats[name] for name in axes}}
        self._flat = {name: stats[new] for name, new in renamed.items()}

    def channels(self, value: ir.Value) -> Limits:
        return _limits(self._stats[str(value.name)])

    def layout(self, value: ir.Value | None) -> Limits:
        """Per element of the channels the value was observed with."""
        return _limits(self._flat[str(value.name)])  # type: ignore[union-attr]

    def tensor(self, value: ir.Value | None) -> Range:
        fixed = _fixed_range(value)
        if fixed is not None:
            return fixed
        limits = self.layout(value)
        return Range(float(limits.low[0]), float(limits.high[0]))


def _limits(stats: ChannelStats) -> Limits:
    return Limits(stats.low, stats.high)


def _fixed_range(value: ir.Value | None) -> Range | None:
    node = value.producer() if value is not None else None
    return FIXED_RANGES.get(node.op_type) if node is not None and is_op(node, *FIXED_RANGES) else None


def _append_flat(model: ir.Model, layouts: Mapping[str, Channels]) -> dict[str, str]:
    """Append to the graph each value as (positions, channels); return the names of these by those of the values."""
    names = Names(model)
    values = {value.name: value for value in graph_values(model.graph)}
    renamed: dict[str, str] = {}
    for name, channels in layouts.items():
        value = values[name]
        along = [axis for axis, size in enumerate(channels.shape) if size != 1]
        rest = [axis for axis in range(channels.ndim) if axis not in along]
        if along:
            value = _append(model, names, "Transpose", [value], {"perm": [*rest, *along]})
        shape = np.array([-1, channels.size], np.int64)
        target = add_initializer(model.graph, names.value(f"{name}/channels/shape"), shape)
        value = _append(model, names, "Reshape", [value, target], {})
        value.shape = ir.Shape([None, channels.size])
        renamed[name] = str(value.name)
    return renamed


def _append(
    model: ir.Model, names: Names, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, list[int]]
) -> ir.Value:
    name = names.value(f"{inputs[0].name}/channels")
    result = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.append(
        ir.node(op_type, inputs, dict(attributes), outputs=[result], name=names.node(f"{name}/{op_type}"))
    )
    return result
