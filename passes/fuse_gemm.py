"""MatMul + Add of matrices becomes Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._linear import Linear, linear_of
from greencc.passes._rewriter import Edit, Rule, Scope, apply_rules, node_name, remove, take_over


class _FuseGemm(Rule):
    name = "fuse-gemm"
    ops = frozenset({"MatMul"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        linear = linear_of(node)
        if (
            not isinstance(linear, Linear)
            or linear.bias is None
            or linear.bias_node is None
            or linear.rank != 2
        ):
            return None
        add, bias = linear.bias_node, linear.bias

        def apply() -> None:
            constant = scope.constant(bias.astype(linear.weight.dtype), f"{node_name(node)}/bias", node)
            node.op_type = "Gemm"
            node.resize_inputs(3)
            node.replace_input_with(2, constant)
            take_over(node.outputs[0], add.outputs[0])
            remove(add)

        return Edit(node_name(node), apply)


@dataclass(frozen=True)
class FuseGemm(Pass):
    """Turn MatMul + Add with constant weights and rank 2 into Gemm, for targets that gain by it."""

    name: ClassVar[str] = "fuse-gemm"
    summary: ClassVar[str] = "turn MatMul + Add into Gemm where the target gains"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        if not ctx.capabilities.gemm_gains:
            return Outcome()
        return apply_rules(model, ctx, (_FuseGemm(),))
