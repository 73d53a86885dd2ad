"""Lowering the opset of a graph, operator by operator.

ONNX's version converter has no way down for Relu, Reshape, Shape and others whose newer forms only take more types.
Here a node stays as it is where the older schema has everything it uses, else it is rewritten, else it is refused by
name. Sources: ONNX, "Changelog.md" (what each version of an operator changed).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import (
    ONNX_DOMAINS,
    Names,
    add_initializer,
    attribute_int,
    constant_of,
    graphs_of,
    input_at,
    label,
    opset_of,
)

# Axes became an input, for ReduceSum in 13, for the others in 18.
_REDUCTIONS = frozenset(
    {
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
    }
)
_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def lower_opset(model: ir.Model, target: int, runtime: str) -> None:
    """Bring a model down to an older opset, in place.

    Args:
        model: With shapes and types inferred; without functions.
        target: The opset of the default domain, at least 13.
        runtime: What knows no more, for messages.

    Raises:
        InputError: An operator has no older form.
    """
    current = opset_of(model)
    if current <= target:
        return
    names = Names(model)
    for graph in graphs_of(model):
        for node in tuple(graph):
            if node.domain in ONNX_DOMAINS:
                _Lowering(node, current, target, names, runtime).run()
        if isinstance(graph, ir.Graph) and graph.opset_imports:
            graph.opset_imports[""] = target
    model.opset_imports[""] = target


class _Lowering:
    def __init__(self, node: ir.Node, current: int, target: int, names: Names, runtime: str) -> None:
        self.node = node
        self.current = current
        self.target = target
        self.names = names
        self.runtime = runtime

    def run(self) -> None:
        node = self.node
        newer = onnx.defs.get_schema(node.op_type, self.current, "")
        if newer.since_version <= self.target:
            return
        if not onnx.defs.has(node.op_type, self.target, ""):
            raise self.refused("did not exist")
        rewrite = _REWRITES.get(node.op_type)
        if node.op_type in _REDUCTIONS and self.target < 18:
            rewrite = _axes_to_attribute
        if rewrite is not None:
            rewrite(self)
        self._fit(newer, onnx.defs.get_schema(node.op_type, self.target, ""))

    def refused(self, why: str) -> InputError:
        return InputError(
            f"{label(self.node)} {why} at opset {self.target}, the newest that is written for {self.runtime}",
            hint="export the model with an older opset, or choose a newer TensorRT",
        )

    def constant(self, array: Array, suffix: str) -> ir.Value:
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        return add_initializer(graph, self.names.value(f"{self.node.name}/{suffix}"), array)

    def _fit(self, newer: onnx.defs.OpSchema, older: onnx.defs.OpSchema) -> None:
        """Drop what says nothing beyond the default, and refuse what the older schema has no place for."""
        node = self.node
        for attribute in tuple(node.attributes.values()):
            if attribute.name in older.attributes:
                continue
            default = newer.attributes[attribute.name].default_value
            if not _is_default(attribute, default):
                raise self.refused(f"has no attribute {attribute.name!r}")
            del node.attributes[attribute.name]
        last = max((index for index, value in enumerate(node.inputs) if value is not None), default=-1)
        if last + 1 > older.max_input:
            raise self.refused(f"takes at most {older.max_input} inputs")
        if len(node.inputs) > last + 1:
            node.resize_inputs(last + 1)
        allowed = {item.type_param_str: item.allowed_type_strs for item in older.type_constraints}
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype is None or not older.inputs:
                continue
            formal = older.inputs[min(index, len(older.inputs) - 1)]
            spelled = f"tensor({value.dtype.name.lower()})"
            if formal.type_str in allowed and spelled not in allowed[formal.type_str]:
                raise self.refused(f"takes no {value.dtype.name} for its input {value.name!r}")


def _is_default(attribute: ir.Attr, default: onnx.AttributeProto) -> bool:
    """True for an attribute of the value it has anyway; an absent default counts as 0 or empty."""
    if attribute.is_ref():
        return False
    if default.type == onnx.AttributeProto.UNDEFINED:
        return attribute.type is ir.AttributeType.INT and attribute.as_int() == 0
    value = onnx.helper.get_attribute_value(default)
    if isinstance(value, bytes):
        value = value.decode()
    return bool(attribute.value == value)


def _axes_to_attribute(lowering: _Lowering) -> None:
    node = lowering.node
    axes = input_at(node, 1)
    empty = attribute_int(node, "noop_with_empty_axes", 0)
    node.attributes.pop("noop_with_empty_axes", None)
    if axes is None:
        if empty:
            raise lowering.refused("has no form that reduces nothing")
        return
    found = constant_of(axes)
    if found is None:
        raise lowering.refused("takes no computed axes")
    if found.size == 0 and empty:
        raise lowering.refused("has no form that reduces nothing")
    node.resize_inputs(1)
    if found.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in found.reshape(-1)])


def _split(lowering: _Lowering) -> None:
    """Split by a number of outputs: of sizes, the last one smaller where they do not come out even."""
    node = lowering.node
    if node.attributes.pop("num_outputs", None) is None:
        return
    count, value = len(node.outputs), node.inputs[0]
    assert value is not None
    axis = attribute_int(node, "axis", 0)
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        # Equal shares are the older form's default; only a remainder needs the size.
        raise lowering.refused("cannot split an axis of unknown size into equal parts")
    share = -(-size // count)
    sizes = np.array([share] * (count - 1) + [size - share * (count - 1)], np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, lowering.constant(sizes, "split"))


def _pad(lowering: _Lowering) -> None:
    """Pads of some axes become pads of all."""
    node = lowering.node
    axes = input_at(node, 3)
    if axes is None:
        return
    found, pads = constant_of(axes), constant_of(node.inputs[1])
    data = node.inputs[0]
    if found is None or pads is None or data is None or data.shape is None:
        raise lowering.refused("takes no computed axes")
    rank = data.shape.rank()
    half = pads.size // 2
    full = np.zeros(2 * rank, np.int64)
    for index, axis in enumerate(found.reshape(-1)):
        full[int(axis) % rank] = pads[index]
        full[rank + int(axis) % rank] = pads[half + index]
    node.replace_input_with(1, lowering.constant(full, "pads"))
    node.replace_input_with(3, None)


def _grid_sample(lowering: _Lowering) -> None:
    mode = lowering.node.attributes.get("mode")
    text = "linear" if mode is None else mode.as_string()
    lowering.node.attributes["mode"] = ir.AttrString("mode", _GRID_MODES.get(text, text))


def _resize(lowering: _Lowering) -> None:
    mode = lowering.node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "half_pixel_symmetric":
        raise lowering.refused("has no coordinates half_pixel_symmetric")


def _average_pool(lowering: _Lowering) -> None:
    """Windows that stick out count other elements since 19."""
    node = lowering.node
    if attribute_int(node, "ceil_mode", 0) and attribute_int(node, "count_include_pad", 0):
        raise lowering.refused("divides windows that stick out by another number")


_REWRITES: dict[str, Callable[[_Lowering], None]] = {
    "AveragePool": _average_pool,
    "GridSample": _grid_sample,
    "Pad": _pad,
    "Resize": _resize,
    "Split": _split,
}
