"""Recognize GELU written out, in its exact and its tanh form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._polynomial import Polynomial, matches, operands, path_from, polynomial
from greencc.passes._rewriter import Edit, Rule, Scope, apply_rules, node_name, replace_path
from greencc.passes.eliminate_no_ops import same_shape

_ROOT = math.sqrt(2.0 / math.pi)
_INNER: dict[str, Polynomial] = {
    "Erf": {(1,): math.sqrt(0.5)},
    "Tanh": {(1,): _ROOT, (3,): _ROOT * 0.044715},
}
_OUTER: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_GELU_OPSET = 20


class _RecoverGelu(Rule):
    """x/2 (1 + erf(x / sqrt 2)) and x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), however they are associated."""

    name = "recover-gelu"
    ops = frozenset({"Erf", "Tanh"})

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        form = self._form(node.op_type, scope)
        if form is None:
            return None
        gate = node.outputs[0]
        path = path_from(gate, scope)
        for x in operands(path):
            if not matches(polynomial(node.inputs[0], (x,)), _INNER[node.op_type]):
                continue
            for last in path:
                result = last.outputs[0]
                if matches(polynomial(result, (x, gate)), _OUTER) and same_shape(x, result):
                    return Edit(node_name(node), partial(self._emit, node, x, last, form, scope))
        return None

    def _form(self, op_type: str, scope: Scope) -> tuple[str, str, list[ir.Attr]] | None:
        """Domain, operator and attributes the target can run, or None."""
        capabilities = self.ctx.capabilities
        if scope.opset() >= _GELU_OPSET and capabilities.runs("", "Gelu"):
            return "", "Gelu", [ir.AttrString("approximate", "tanh")] if op_type == "Tanh" else []
        fused = "Gelu" if op_type == "Erf" else "FastGelu"
        return ("com.microsoft", fused, []) if capabilities.runs("com.microsoft", fused) else None

    @staticmethod
    def _emit(
        node: ir.Node, x: ir.Value, last: ir.Node, form: tuple[str, str, list[ir.Attr]], scope: Scope
    ) -> None:
        domain, op_type, attributes = form
        scope.import_opset(domain)
        result = scope.node(
            op_type,
            [x],
            like=last.outputs[0],
            name=f"{node_name(node)}/{op_type}",
            attributes=attributes,
            domain=domain,
            before=last,
        )
        replace_path(last, result, node)


@dataclass(frozen=True)
class RecoverGelu(Pass):
    """Turn GELU (Hendrycks and Gimpel, arXiv:1606.08415) written out into one operator.

    ai.onnx Gelu from opset 20 on, else com.microsoft Gelu or FastGelu; only what the target declares it runs.
    """

    name: ClassVar[str] = "recover-gelu"
    summary: ClassVar[str] = "recognize GELU written out as elementwise operators"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return apply_rules(model, ctx, (_RecoverGelu(ctx),))
