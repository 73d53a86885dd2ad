"""Min, Max, Relu and Clip with constant bounds become as few Clip or Relu nodes as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.graph import constant_of, input_at, is_op, sole_consumer
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._affine import FLOAT_TYPES
from greencc.passes._rewriter import (
    Edit,
    Rule,
    Scope,
    apply_rules,
    float_scalar,
    node_name,
    remove,
    route_around,
)

_OPS = frozenset({"Relu", "Clip", "Min", "Max"})


@dataclass(frozen=True)
class Bounds:
    """`node` computes min(max(x, low), high) for every element."""

    node: ir.Node
    x: ir.Value
    low: float
    high: float


def bounds_of(node: ir.Node, scope: Scope) -> Bounds | None:
    """Read Relu, Clip, or Min/Max with one scalar constant, of floats."""
    if not is_op(node, *_OPS) or not node.inputs or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    if is_op(node, "Min", "Max"):
        return _min_max(node)
    if x.dtype not in FLOAT_TYPES:
        return None
    if is_op(node, "Relu"):
        return Bounds(node, x, 0.0, np.inf)
    low, high = -np.inf, np.inf
    if scope.opset() < 11:
        attributes = node.attributes
        low = attributes["min"].as_float() if "min" in attributes else low
        high = attributes["max"].as_float() if "max" in attributes else high
    else:
        for index in (1, 2):
            value = input_at(node, index)
            if value is None:
                continue
            bound = float_scalar(value)
            if bound is None:
                return None
            low, high = (bound, high) if index == 1 else (low, bound)
    # Exporters write the largest finite float for "no bound".
    limit = float(np.finfo(np.float32).max)
    low, high = (-np.inf if low <= -limit else low), (np.inf if high >= limit else high)
    return Bounds(node, x, low, high) if low <= high else None


def _min_max(node: ir.Node) -> Bounds | None:
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    numbers = float_scalar(first), float_scalar(second)
    if (numbers[0] is None) == (numbers[1] is None):
        return None
    x, bound = (second, numbers[0]) if numbers[1] is None else (first, numbers[1])
    array = constant_of(first if numbers[1] is None else second)
    if x is None or bound is None or array is None or x.dtype not in FLOAT_TYPES or np.isnan(bound):
        return None
    if array.ndim > (0 if x.shape is None else len(x.shape)):
        return None
    return Bounds(node, x, bound, np.inf) if is_op(node, "Max") else Bounds(node, x, -np.inf, bound)


class _MergeClips(Rule):
    """clip2(clip1(x)) = clip(x, clip2(low1), clip2(high1)) since clip2 never decreases."""

    name = "merge-clips"
    ops = _OPS

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        second = bounds_of(node, scope)
        inner = second.x.producer() if second is not None else None
        if (
            second is None
            or inner is None
            or inner.graph is not scope.graph
            or sole_consumer(second.x) is None
        ):
            return None
        first = bounds_of(inner, scope)
        if first is None:
            return None
        low = float(np.clip(first.low, second.low, second.high))
        high = float(np.clip(first.high, second.low, second.high))

        def apply() -> None:
            route_around(inner.outputs[0], first.x)
            remove(inner)
            _become(node, first.x, low, high, scope)

        return Edit(node_name(node), apply)


class _NormalizeClip(Rule):
    """Clip(0, inf) and Max(x, 0) -> Relu: every runtime fuses it into the operator before."""

    name = "clip-to-relu"
    ops = frozenset({"Clip", "Max"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        bounds = bounds_of(node, scope)
        if bounds is None or bounds.low != 0.0 or bounds.high != np.inf:
            return None
        return Edit(node_name(node), lambda: _become(node, bounds.x, 0.0, np.inf, scope))


def _become(node: ir.Node, x: ir.Value, low: float, high: float, scope: Scope) -> None:
    """Turn a node into the Relu or Clip with these bounds."""
    node.attributes.clear()
    relu = low == 0.0 and high == np.inf
    node.op_type = "Relu" if relu else "Clip"
    node.resize_inputs(1)
    node.replace_input_with(0, x)
    if relu:
        return
    if scope.opset() < 11:
        for name, bound in (("min", low), ("max", high)):
            if np.isfinite(bound):
                node.attributes.add(ir.AttrFloat32(name, bound))
        return
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    ends = [low, high] if np.isfinite(high) else [low]
    node.resize_inputs(1 + len(ends))
    for index, bound in enumerate(ends):
        if np.isfinite(bound):
            name = f"{node_name(node)}/{('min', 'max')[index]}"
            node.replace_input_with(index + 1, scope.constant(np.array(bound, dtype=dtype), name, node))


@dataclass(frozen=True)
class NormalizeClips(Pass):
    """Merge Relu, Clip, Min and Max with constant bounds, e.g. Min(Max(x, 0), 6) -> Clip(x, 0, 6)."""

    name: ClassVar[str] = "normalize-clips"
    summary: ClassVar[str] = "merge Relu, Clip, Min and Max with constant bounds"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return apply_rules(model, ctx, (_MergeClips(), _NormalizeClip()))
