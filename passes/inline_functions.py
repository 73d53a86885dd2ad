"""Replace calls of model-local functions by their bodies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from greencc.core.graph import all_nodes
from greencc.core.passes import Context, Finding, Outcome, Pass


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Inline model-local functions, one function at a time, at all its calls.

    A function that imports another version of an operator set than the model is left alone.
    """

    name: ClassVar[str] = "inline-functions"
    summary: ClassVar[str] = "replace calls of model-local functions by their bodies"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        outcome = Outcome()
        for identifier in list(model.functions):
            function = model.functions.get(identifier)
            if function is None or all(node.op_identifier() != identifier for node in all_nodes(model)):
                continue
            name = "::".join(part for part in identifier if part)
            differs = [
                domain
                for domain, version in function.opset_imports.items()
                if model.opset_imports.get(domain, version) != version
            ]
            if differs:
                reason = (
                    f"function {name} imports another version of operator set {differs[0] or 'ai.onnx'!r}"
                )
                outcome.findings.append(Finding("refused", reason, rule="inline-function"))
                continue
            if not ctx.rewrites.allow("inline-function", name):
                return outcome
            InlinePass(criteria=partial(_is, identifier=identifier))(model)
            outcome.changed += 1
        return outcome


def _is(function: ir.Function, identifier: ir.OperatorIdentifier) -> bool:
    return function.identifier() == identifier
