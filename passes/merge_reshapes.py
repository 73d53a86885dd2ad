"""Chains of Reshape, Flatten, Squeeze, Unsqueeze and Transpose become one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter.rules.common import cast_cast_rule

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op, sole_consumer
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._rewriter import (
    Edit,
    OnnxscriptRule,
    Rule,
    Scope,
    apply_rules,
    bypass,
    local_producer,
    node_name,
    remove,
    route_around,
    take_over,
)
from greencc.passes._symbolic import dimension
from greencc.passes.eliminate_no_ops import same_shape

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that only reinterpret the shape."""


def target_shape(source: ir.Value, result: ir.Value) -> list[int] | None:
    """A constant Reshape target that takes `source` to the shape of `result`, or None.

    Dynamic dimensions are copied (0) where `source` has the same one at the same index; at most one is
    inferred (-1), and then no dimension may be 0.
    """
    if result.shape is None:
        return None
    target: list[int] = []
    known = 0 if source.shape is None else len(source.shape)
    for axis, dim in enumerate(result.shape):
        if isinstance(dim, int):
            if dim == 0:
                return None
            target.append(dim)
        elif axis < known and dimension(source, axis) == dimension(result, axis):
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


class _MergeViews(Rule):
    """view(view(x)) -> Reshape(x), or x where the shape is back to what it was."""

    name = "merge-views"
    ops = VIEWS

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        first = local_producer(node.inputs[0], scope, *VIEWS)
        if first is None or sole_consumer(first.outputs[0]) is None or first.inputs[0] is None:
            return None
        source, result = first.inputs[0], node.outputs[0]
        if same_shape(source, result) and bypass(result, source, scope.graph):

            def drop() -> None:
                route_around(result, source)
                remove(node)
                remove(first)

            return Edit(node_name(node), drop)
        target = target_shape(source, result)
        if target is None:
            return None

        def merge() -> None:
            become_reshape(node, source, target, scope)
            remove(first)

        return Edit(node_name(node), merge)


class _MergeTransposes(Rule):
    """Transpose(Transpose(x)) -> Transpose(x), or x where they cancel."""

    name = "merge-transposes"
    ops = frozenset({"Transpose"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        first = local_producer(node.inputs[0], scope, "Transpose")
        if first is None or first.inputs[0] is None:
            return None
        inner, outer = attribute_ints(first, "perm", ()), attribute_ints(node, "perm", ())
        if not inner or not outer:
            return None
        perm = [inner[axis] for axis in outer]
        source, result = first.inputs[0], node.outputs[0]
        shared = sole_consumer(first.outputs[0]) is None
        if perm == sorted(perm):
            if not bypass(result, source, scope.graph):
                return None

            def cancel() -> None:
                route_around(result, source)
                remove(node)
                if not shared:
                    remove(first)

            return Edit(node_name(node), cancel)
        if shared:
            return None

        def merge() -> None:
            node.attributes.add(ir.AttrInt64s("perm", perm))
            node.replace_input_with(0, source)
            remove(first)

        return Edit(node_name(node), merge)


class _TransposeToReshape(Rule):
    """A Transpose that only moves dimensions of size 1 copies nothing as a Reshape."""

    name = "transpose-to-reshape"
    ops = frozenset({"Transpose"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        x = node.inputs[0]
        perm = attribute_ints(node, "perm", ())
        if x is None or x.shape is None or not perm:
            return None
        moving = [axis for axis in perm if x.shape[axis] != 1]
        if moving != sorted(moving) or list(perm) == sorted(perm):
            return None
        target = target_shape(x, node.outputs[0])
        if target is None:
            return None
        return Edit(node_name(node), lambda: become_reshape(node, x, target, scope))


class _UnwrapSoftmax(Rule):
    """Reshape(Softmax(Flatten(x))) over the last axis -> Softmax(x): what opset conversion of old Softmax leaves."""

    name = "unwrap-softmax"
    ops = frozenset({"Softmax", "LogSoftmax"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        flatten = local_producer(node.inputs[0], scope, "Flatten", "Reshape")
        reshape = sole_consumer(node.outputs[0])
        if flatten is None or reshape is None or reshape.graph is not scope.graph or scope.opset() < 13:
            return None
        x, y, flat = flatten.inputs[0], reshape.outputs[0], flatten.outputs[0]
        if x is None or not is_op(reshape, "Reshape") or sole_consumer(flat) is None:
            return None
        if (
            x.shape is None
            or flat.shape is None
            or attribute_int(node, "axis", -1) not in (-1, len(flat.shape) - 1)
        ):
            return None
        last = x.shape[-1]
        flattens_rows = is_op(flatten, "Flatten") and attribute_int(flatten, "axis", 1) in (
            -1,
            len(x.shape) - 1,
        )
        if not flattens_rows and not (isinstance(last, int) and last == flat.shape[-1]):
            return None
        if not same_shape(x, y) and not _restores(reshape, x):
            return None

        def apply() -> None:
            node.attributes.add(ir.AttrInt64("axis", -1))
            node.replace_input_with(0, x)
            take_over(node.outputs[0], y)
            node.outputs[0].shape = x.shape
            remove(reshape)
            remove(flatten)

        return Edit(node_name(node), apply)


class _SliceToGather(Rule):
    """Squeeze(Slice(x)) of one element of an axis -> Gather(x, index)."""

    name = "slice-to-gather"
    ops = frozenset({"Squeeze"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        taken = local_producer(node.inputs[0], scope, "Slice")
        axes = constant_of(input_at(node, 1))
        if taken is None or axes is None or axes.size != 1 or scope.opset() < 13:
            return None
        x = taken.inputs[0]
        bounds = [constant_of(input_at(taken, index)) for index in (1, 2, 3)]
        if x is None or x.shape is None or sole_consumer(taken.outputs[0]) is None:
            return None
        if any(bound is None or bound.size != 1 for bound in bounds):
            return None
        start, end, axis = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
        step = constant_of(input_at(taken, 4))
        if len(taken.inputs) > 4 and (step is None or bool((step != 1).any())):
            return None
        size, rank = x.shape[axis], len(x.shape)
        if int(axes.reshape(-1)[0]) % rank != axis % rank or not isinstance(size, int):
            return None
        if not (0 <= start < size and end == start + 1):
            return None

        def apply() -> None:
            index = scope.constant(np.array(start, dtype=np.int64), f"{node_name(node)}/index", node)
            node.op_type = "Gather"
            node.attributes.add(ir.AttrInt64("axis", axis % rank))
            node.replace_input_with(0, x)
            node.replace_input_with(1, index)
            remove(taken)

        return Edit(node_name(node), apply)


def _restores(reshape: ir.Node, x: ir.Value) -> bool:
    """Whether the target of a Reshape is the shape of `x`."""
    shape = reshape.inputs[1].producer() if reshape.inputs[1] is not None else None
    whole = shape is not None and not shape.attributes
    return shape is not None and is_op(shape, "Shape") and whole and shape.inputs[0] is x


def become_reshape(node: ir.Node, source: ir.Value, target: list[int], scope: Scope) -> None:
    """Turn a node into `Reshape(source, target)`, keeping its name and output."""
    shape = scope.constant(np.array(target, dtype=np.int64), f"{node_name(node)}/shape", node)
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, source)
    node.replace_input_with(1, shape)


@dataclass(frozen=True)
class MergeReshapes(Pass):
    """Merge chains of shape-only operators, of transposes, and of casts."""

    name: ClassVar[str] = "merge-reshapes"
    summary: ClassVar[str] = "merge chains of Reshape, Squeeze, Flatten, Transpose and Cast"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        rules = (
            _UnwrapSoftmax(),
            _SliceToGather(),
            _MergeTransposes(),
            _TransposeToReshape(),
            _MergeViews(),
            OnnxscriptRule(cast_cast_rule, ("Cast",), "merge-casts"),
        )
        return apply_rules(model, ctx, rules)
