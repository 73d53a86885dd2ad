"""Remove nodes that return their input as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.rules.common import (
    collapse_slice2_rule,
    collapse_slice_rule,
    expand_before_binary_op_rules,
)

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._rewriter import (
    Edit,
    OnnxscriptRule,
    Rule,
    Scope,
    apply_rules,
    bypass,
    node_name,
    remove,
    route_around,
)
from greencc.passes.fuse_pad import read_padding

_INT_MAX = 2**31 - 1
_SINGLE = frozenset({"Concat", "Sum", "Max", "Min", "Mean"})
_SHAPE_ONLY = frozenset({"Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten"})

_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Equal", "Greater", "Less", "And", "Or", "Xor")
_ARITHMETIC = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}
"""The neutral element. It must match exactly: an epsilon of 1e-12 that is added is there for a reason."""


class _EliminateNoOp(Rule):
    name = "eliminate-no-op"
    ops = (
        _SINGLE
        | _SHAPE_ONLY
        | frozenset(_ARITHMETIC)
        | {"Identity", "Dropout", "Cast", "CastLike", "Transpose", "Pad", "Slice", "Tile", "Split"}
    )

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        old = node.outputs[0]
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        source = _neutral_operand(node) if is_op(node, *_ARITHMETIC) else input_at(node, 0)
        if source is None or not (is_op(node, *_ARITHMETIC) or returns_its_input(node, scope)):
            return None
        if not bypass(old, source, scope.graph):
            return None

        def apply() -> None:
            route_around(old, source)
            remove(node)

        return Edit(node_name(node), apply)


class _DropZeroState(Rule):
    """A recurrent layer starts from zeros when no initial state is given."""

    name = "drop-zero-state"
    ops = frozenset({"RNN", "GRU", "LSTM"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        zero = [index for index in (5, 6) if is_zero(input_at(node, index))]
        if not zero:
            return None

        def apply() -> None:
            for index in zero:
                node.replace_input_with(index, None)

        return Edit(node_name(node), apply)


def is_zero(value: ir.Value | None) -> bool:
    """Whether all elements are provably zero, whatever the shape."""
    array = constant_of(value)
    if value is None or array is not None:
        return array is not None and array.dtype.kind in "fiu" and not array.any()
    node = value.producer()
    if is_op(node, "ConstantOfShape") and node is not None:
        fill = node.attributes.get("value")
        return fill is None or (not fill.is_ref() and not fill.as_tensor().numpy().any())
    views = ("Slice", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Gather", "Split", "Tile")
    return node is not None and is_op(node, *views) and is_zero(node.inputs[0])


def returns_its_input(node: ir.Node, scope: Scope) -> bool:
    """Whether output 0 always equals input 0, shape and type included."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return False
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        return _drops_nothing(node, scope)
    if is_op(node, "Cast", "CastLike"):
        return x.dtype is not None and x.dtype == y.dtype
    if is_op(node, *_SINGLE):
        return len(node.inputs) == 1
    if is_op(node, "Split"):
        return len(node.outputs) == 1
    if is_op(node, *_SHAPE_ONLY):
        return same_shape(x, y)
    if is_op(node, "Transpose"):
        perm = attribute_ints(node, "perm", ())
        return bool(perm) and list(perm) == sorted(perm)
    if is_op(node, "Pad"):
        padding = read_padding(node, scope)
        # All modes add nothing when all amounts are zero, but only a constant pad is read.
        return not isinstance(padding, str) and not any((*padding.begin, *padding.end))
    if is_op(node, "Tile"):
        repeats = constant_of(input_at(node, 1))
        return repeats is not None and bool(np.all(repeats == 1))
    return _slices_everything(node, scope)


def _neutral_operand(node: ir.Node) -> ir.Value | None:
    """x of x * 1, x / 1, x + 0 and x - 0, when the constant does not widen x."""
    neutral = _ARITHMETIC[node.op_type]
    for index, other in ((1, 0), (0, 1)):
        if index == 0 and not is_op(node, "Mul", "Add"):
            continue
        array, source = constant_of(input_at(node, index)), input_at(node, other)
        if array is None or source is None or array.dtype.kind not in "fiuV":
            continue
        if bool(np.all(array.astype(np.float64) == neutral)) and same_shape(source, node.outputs[0]):
            return source
    return None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values provably have the same shape: equal numbers, or the same named dimension."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    unknown = 0
    for p, q in zip(a.shape, b.shape, strict=True):
        if isinstance(p, int) and isinstance(q, int):
            if p != q:
                return False
        elif isinstance(p, int) or isinstance(q, int) or p.value is None or p.value != q.value:
            unknown += 1
    # One dimension may be unknown when the others agree and none is 0: the element count is the same.
    return unknown == 0 or (unknown == 1 and all(dim != 0 for dim in a.shape) and _keeps_count(b))


def _keeps_count(value: ir.Value) -> bool:
    return is_op(value.producer(), "Reshape", "Squeeze", "Unsqueeze", "Flatten")


def _drops_nothing(node: ir.Node, scope: Scope) -> bool:
    if scope.opset() >= 12:
        if input_at(node, 2) is None:
            return True
        training = constant_of(node.inputs[2])
        return training is not None and not bool(training.reshape(-1)[0])
    if scope.opset() < 7:
        return bool(attribute_int(node, "is_test", 0))
    return True


def _slices_everything(node: ir.Node, scope: Scope) -> bool:
    x = node.inputs[0]
    if scope.opset() < 10:
        starts = list(attribute_ints(node, "starts", ()))
        ends = list(attribute_ints(node, "ends", ()))
        axes = list(attribute_ints(node, "axes", range(len(starts))))
        steps = [1] * len(starts)
    else:
        parts = [constant_of(input_at(node, index)) for index in range(1, 5)]
        present = [input_at(node, index) is not None for index in range(1, 5)]
        if any(part is None and there for part, there in zip(parts, present, strict=True)):
            return False
        if parts[0] is None or parts[1] is None:
            return False
        starts, ends = parts[0].tolist(), parts[1].tolist()
        axes = list(range(len(starts))) if parts[2] is None else parts[2].tolist()
        steps = [1] * len(starts) if parts[3] is None else parts[3].tolist()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = x.shape[axis] if x is not None and x.shape is not None else None
        reaches = end >= _INT_MAX or (isinstance(dim, int) and end >= dim)
        if start != 0 or step != 1 or not reaches:
            return False
    return True


@dataclass(frozen=True)
class EliminateNoOps(Pass):
    """Remove Identity, inference Dropout, casts to the same type, and everything else that changes nothing."""

    name: ClassVar[str] = "eliminate-no-ops"
    summary: ClassVar[str] = "remove nodes that return their input as it is"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        expand = [
            OnnxscriptRule(rule, _BINARY, "drop-expand") for rule in expand_before_binary_op_rules.rules
        ]
        slices = [
            OnnxscriptRule(rule, ("Slice",), "drop-slice")
            for rule in (collapse_slice_rule, collapse_slice2_rule)
        ]
        return apply_rules(model, ctx, (_EliminateNoOp(), _DropZeroState(), *expand, *slices))
