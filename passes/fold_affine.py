"""Fold Mul, Add, Sub and Div by constants into linear operators and into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.graph import constant_of, is_op, sole_consumer
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._affine import AFFINE_OPS, Affine, affine_of
from greencc.passes._fold_linear import fold_after, fold_before
from greencc.passes._rewriter import Edit, Refusal, Rule, Scope, apply_rules, node_name, remove, route_around

# Features whose magnitudes differ by less than this share a quantization step without much harm.
_SPREAD = 2.0


class FoldIntoLinear(Rule):
    """A constant Mul, Add, Sub or Div next to a linear operator becomes part of its weights."""

    name = "fold-affine"
    ops = AFFINE_OPS

    def __init__(self, inputs: bool = True) -> None:
        self._inputs = inputs

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        affine = affine_of(node)
        if affine is None or (not self._inputs and normalizes_input(affine)):
            return None
        for found in (fold_after(affine, scope), fold_before(affine, scope)):
            # A constant next to a product that cannot take it is ordinary: no refusal worth reporting.
            if isinstance(found, Edit):
                return found
        return None


class _MergeConstants(Rule):
    """(x * a) * b -> x * (a * b), and the same for sums; differences and quotients count as such."""

    name = "merge-constants"
    ops = AFFINE_OPS

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        second = affine_of(node)
        inner = second.x.producer() if second is not None else None
        if (
            second is None
            or inner is None
            or inner.graph is not scope.graph
            or sole_consumer(second.x) is None
        ):
            return None
        first = affine_of(inner)
        if first is None:
            return None
        op_type = "Mul" if _scales(first) and _scales(second) else "Add"
        if op_type == "Add" and not (_shifts(first) and _shifts(second)):
            return None
        merged = first.scale * second.scale if op_type == "Mul" else first.shift + second.shift
        if merged.size > max(first.scale.size, second.scale.size):
            return None
        dtype = _dtype(node)
        with np.errstate(over="ignore"):
            cast = merged.astype(dtype)
        if not np.isfinite(cast.astype(np.float64)).all():
            return None

        def apply() -> None:
            route_around(first.output, first.x)
            remove(first.node)
            node.op_type = op_type
            constant = scope.constant(cast, f"{node_name(node)}/constant", node)
            node.replace_input_with(0, first.x)
            node.replace_input_with(1, constant)

        return Edit(node_name(inner), apply)


def normalizes_input(affine: Affine) -> bool:
    """Whether a model input gets here through constant arithmetic alone, and leaves with other relative magnitudes."""
    magnitudes = np.abs(affine.scale)
    if magnitudes.size < 2 or magnitudes.max() < _SPREAD * magnitudes.min():
        return False
    value = affine.x
    while not value.is_graph_input():
        producer = value.producer()
        before = affine_of(producer) if producer is not None else None
        if before is None:
            return False
        value = before.x
    return True


def _scales(affine: Affine) -> bool:
    return is_op(affine.node, "Mul", "Div")


def _shifts(affine: Affine) -> bool:
    # c - x is a shift of -x: it does not merge with a sum without a sign change.
    return is_op(affine.node, "Add", "Sub") and bool(np.all(affine.scale == 1.0))


def _dtype(node: ir.Node) -> np.dtype[np.generic]:
    array = next(a for a in (constant_of(value) for value in node.inputs) if a is not None)
    return array.dtype


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold constant Mul, Add, Sub and Div into Conv, ConvTranspose, Gemm and MatMul, and merge chains of them.

    Biases added after a convolution are the commonest case. Shifts before padded convolutions stay.

    Attributes:
        inputs: Fold the normalization of model inputs too. Before INT8 it is better kept where it brings features of
            very different magnitude to one scale: folded, the input would be quantized with one step for all.
    """

    name: ClassVar[str] = "fold-affine"
    summary: ClassVar[str] = "fold constant Mul/Add/Sub/Div into neighbouring linear operators"

    inputs: bool = True

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Fold in place."""
        return apply_rules(model, ctx, (FoldIntoLinear(self.inputs), _MergeConstants()))
