"""Remove what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.graph import all_nodes, graphs_of
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._rewriter import node_name, remove


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove nodes, initializers, functions and operator-set imports that nothing uses.

    Graph inputs stay, used or not: they are the model's interface.
    """

    name: ClassVar[str] = "eliminate-dead-code"
    summary: ClassVar[str] = "remove nodes, weights and functions that no output depends on"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        changed = _nodes(model, ctx)
        changed += _initializers(model, ctx)
        changed += _functions(model, ctx)
        changed += _opsets(model, ctx)
        return Outcome(changed)


def _nodes(model: ir.Model, ctx: Context) -> int:
    changed = 0
    # Outer graphs first: the subgraphs of a dead If are not visited at all.
    for graph in graphs_of(model):
        for node in reversed(list(graph)):
            if any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            if not ctx.rewrites.allow("remove-node", node_name(node)):
                return changed
            remove(node)
            changed += 1
    return changed + (_nodes(model, ctx) if changed else 0)


def _initializers(model: ir.Model, ctx: Context) -> int:
    changed = 0
    for graph in graphs_of(model):
        if not isinstance(graph, ir.Graph):
            continue
        for name, value in list(graph.initializers.items()):
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            if not ctx.rewrites.allow("remove-initializer", name):
                return changed
            del graph.initializers[name]
            changed += 1
    return changed


def _functions(model: ir.Model, ctx: Context) -> int:
    changed = 0
    used = {node.op_identifier() for node in all_nodes(model)}
    for identifier in list(model.functions):
        if identifier in used:
            continue
        if not ctx.rewrites.allow("remove-function", "::".join(identifier[:2])):
            return changed
        del model.functions[identifier]
        changed += 1
    return changed + (_functions(model, ctx) if changed else 0)


def _opsets(model: ir.Model, ctx: Context) -> int:
    changed = 0
    used = {node.domain for node in all_nodes(model)} | {""}
    for domain in list(model.opset_imports):
        if domain in used or (domain == "ai.onnx" and "" not in model.opset_imports):
            continue
        if not ctx.rewrites.allow("remove-opset", domain):
            return changed
        del model.opset_imports[domain]
        changed += 1
    return changed
