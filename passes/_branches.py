"""An If whose condition is known is replaced by the branch taken."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import constant_of, graphs_of, subgraphs_of
from greencc.passes._rewriter import Edit, Rule, Scope, node_name, remove


class InlineBranch(Rule):
    """`If` with a constant condition: the nodes of the branch taken move to where the If was."""

    name = "inline-branch"
    ops = frozenset({"If"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        condition = constant_of(node.inputs[0])
        if condition is None or condition.size != 1:
            return None
        attribute = node.attributes.get("then_branch" if bool(condition.reshape(())) else "else_branch")
        if attribute is None or attribute.is_ref():
            return None
        branch = attribute.as_graph()
        if len(branch.outputs) != len(node.outputs):
            return None
        if any(out.producer() is None or out.producer().graph is not branch for out in branch.outputs):  # type: ignore[union-attr]
            # An output that is an initializer or an outer value: it needs a node to carry the If's output name.
            return self._with_identities(node, branch, scope)
        if len(set(branch.outputs)) != len(branch.outputs):
            return None
        return Edit(node_name(node), lambda: _inline(node, branch, scope))

    def _with_identities(self, node: ir.Node, branch: ir.Graph, scope: Scope) -> Edit:
        def apply() -> None:
            for index, value in enumerate(branch.outputs):
                producer = value.producer()
                if producer is not None and producer.graph is branch:
                    continue
                carry = ir.Node("", "Identity", [value], name=scope.names.node(f"{node_name(node)}/Identity"))
                carry.outputs[0].name = scope.names.value(f"{node_name(node)}/output_{index}")
                carry.outputs[0].type, carry.outputs[0].shape = value.type, value.shape
                branch.append(carry)
                branch.outputs[index] = carry.outputs[0]
            _inline(node, branch, scope)

        return Edit(node_name(node), apply)


def _inline(node: ir.Node, branch: ir.Graph, scope: Scope) -> None:
    results = list(branch.outputs)
    taken = _names_outside(node, scope)
    branch.outputs.clear()
    initializers = list(branch.initializers.values())
    branch.initializers.clear()
    nodes = list(branch)
    branch.remove(nodes)
    for value in [*initializers, *(output for inner in nodes for output in inner.outputs)]:
        # The two branches of an If may use the same names, and so may two Ifs.
        if value.name and value.name in taken:
            value.name = scope.names.value(value.name)
    for value in initializers:
        scope.graph.register_initializer(value)
    scope.graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, results, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, new.type = old.name, old.type if old.type is not None else new.type
    remove(node)


def _names_outside(node: ir.Node, scope: Scope) -> set[str]:
    """Names of the values that are not inside the subgraphs of `node`."""
    inside: set[int] = set()
    pending = list(subgraphs_of(node))
    while pending:
        graph = pending.pop()
        inside.add(id(graph))
        for child in graph:
            pending.extend(subgraphs_of(child))
    names: set[str] = set()
    for other in graphs_of(scope.model):
        if id(other) in inside:
            continue
        values = [*other.inputs, *(output for inner in other for output in inner.outputs)]
        if isinstance(other, ir.Graph):
            values.extend(other.initializers.values())
        names.update(value.name for value in values if value.name)
    return names
