"""Fold inference BatchNormalization into the linear operators around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.graph import is_op
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._affine import batch_norm_of
from greencc.passes._fold_linear import fold_after, fold_before
from greencc.passes._rewriter import Edit, Refusal, Rule, Scope, apply_rules, refuse
from greencc.passes.fold_affine import FoldIntoLinear


class _FoldBatchNorm(Rule):
    name = "fold-batch-norm"
    ops = frozenset({"BatchNormalization"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        read = batch_norm_of(node, scope)
        if isinstance(read, str):
            return refuse(node, read)
        affine, channels = read
        backward = fold_after(affine, scope, channels)
        if isinstance(backward, Edit):
            return backward
        forward = fold_before(affine, scope, channels)
        if isinstance(forward, Edit):
            return forward
        return backward or forward or refuse(node, "has no convolution or matrix product next to it")


class _FoldNeighbour(FoldIntoLinear):
    """A constant next to a BatchNormalization is folded as well: it may be all that is in the way."""

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        before = [value.producer() for value in node.inputs if value is not None]
        after = [use.node for use in node.outputs[0].uses()]
        if not any(is_op(other, "BatchNormalization") for other in [*before, *after]):
            return None
        return super().match(node, scope)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into Conv, ConvTranspose, Gemm or MatMul(+Add), before or after it.

    The algebra is in `_linear`; the method is the usual inference-time folding (Jacob et al., arXiv:1712.05877,
    section 3.2). A normalization before a padded convolution is refused unless its shift is zero.
    """

    name: ClassVar[str] = "fold-batch-norm"
    summary: ClassVar[str] = "fold BatchNormalization into neighbouring convolutions and matrix products"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return apply_rules(model, ctx, (_FoldBatchNorm(), _FoldNeighbour()))
