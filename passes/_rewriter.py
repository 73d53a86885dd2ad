"""Applies local rewrite rules, one announced rewrite at a time.

A rule looks at one node and answers with an `Edit` (what to do), a `Refusal` (why something that looks
foldable was left alone) or None. Rules written for onnxscript's rewriter take part through `OnnxscriptRule`.
All of them are run by `apply_rules`, in every graph, subgraph and function of the model, until none applies.
Each edit is announced to the rewrite log right before it happens; once the log says no, nothing more is done,
so that the pipeline can bisect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.optimizer import basic_constant_propagation
from onnxscript.rewriter import RewriteRule

from greencc.core.graph import (
    Names,
    add_initializer,
    constant_of,
    default_node_name,
    ensure_names,
    graphs_of,
    is_op,
    label,
    subgraphs_of,
)
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome

MAX_REFUSALS = 8
_MAX_SWEEPS = 200


@dataclass(frozen=True)
class Edit:
    """A rewrite that is ready: `node` is announced, then `apply` changes the graph."""

    node: str
    apply: Callable[[], None]


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite was not done; `node` names the node it is about."""

    node: str
    reason: str


@dataclass(frozen=True)
class Scope:
    """Where a rule works.

    Attributes:
        model: The model being edited.
        graph: The graph, subgraph or function body that holds the node.
        function: The function `graph` is (part of) the body of, if any.
        names: Hands out unused names.
    """

    model: ir.Model
    graph: ir.Graph
    function: ir.Function | None
    names: Names

    def opset(self, domain: str = "") -> int:
        """The version of an operator set here; 0 when it is not imported."""
        imports = self.model.opset_imports if self.function is None else self.function.opset_imports
        return int(imports.get(domain, 0))

    def import_opset(self, domain: str, version: int = 1) -> None:
        """Import an operator set where it is not imported yet."""
        self.model.opset_imports.setdefault(domain, version)
        if self.function is not None:
            self.function.opset_imports.setdefault(domain, version)

    def constant(self, array: NDArray[Any], name: str, before: ir.Node) -> ir.Value:
        """A new constant: an initializer, or in functions (which have none) a `Constant` node."""
        name = self.names.value(name)
        if self.function is None:
            # Arithmetic on 0-d arrays yields NumPy scalars; they are constants as well.
            return add_initializer(self.graph, name, np.asarray(array))
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        node = ir.Node(
            "", "Constant", [], [ir.AttrTensor("value", tensor)], name=self.names.node(f"{name}/Constant")
        )
        output = node.outputs[0]
        output.name, output.type, output.shape = (
            name,
            ir.TensorType(tensor.dtype),
            ir.Shape(tensor.shape.numpy()),
        )
        output.const_value = tensor
        self.graph.insert_before(before, node)
        return output

    def set_constant(self, node: ir.Node, index: int, array: NDArray[Any], suffix: str) -> None:
        """Make input `index` of `node` hold `array`; an initializer nobody else reads keeps its name."""
        old = node.inputs[index] if index < len(node.inputs) else None
        owned = (
            old is not None
            and old.is_initializer()
            and old.graph is self.graph
            and len(old.uses()) == 1
            and not old.is_graph_output()
            and not old.is_graph_input()
        )
        if old is not None and owned:
            old.const_value = ir.tensor(np.asarray(array, order="C"), name=old.name)
            old.type = ir.TensorType(old.const_value.dtype)
            old.shape = ir.Shape(array.shape)
            return
        base = old.name if old is not None and old.name else f"{node_name(node)}/{suffix}"
        value = self.constant(array, base, node)
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        like: ir.Value,
        name: str,
        attributes: Sequence[ir.Attr] = (),
        domain: str = "",
        before: ir.Node,
    ) -> ir.Value:
        """Insert a one-output node whose output takes the type and shape of `like`; return the output."""
        node = ir.Node(domain, op_type, inputs, attributes, name=self.names.node(name))
        output = node.outputs[0]
        output.type, output.shape = like.type, like.shape
        output.name = self.names.value(f"{node.name}_output")
        self.graph.insert_before(before, node)
        return output


class Rule(ABC):
    """A local rewrite. `ops` limits the nodes it is shown to these operators of the default domain."""

    name: str
    ops: frozenset[str]

    @abstractmethod
    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        """Look at one node; must not change anything."""


class OnnxscriptRule(Rule):
    """An onnxscript `RewriteRule`, announced and named like our own.

    The replacement's main node takes the name of the matched node with the same operator, else of the matched
    root. New initializers never overwrite existing ones, and matches that reach out of the graph are left alone.
    """

    def __init__(self, rule: RewriteRule, ops: Sequence[str], name: str | None = None) -> None:
        self.rule = rule
        self.ops = frozenset(ops)
        self.name = name or rule.name or type(rule).__name__

    def match(self, node: ir.Node, scope: Scope) -> Edit | Refusal | None:
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            return None
        owner = scope.graph if scope.function is None else scope.function
        delta = self.rule.try_rewrite(scope.model, owner, node)
        if delta is None or any(matched.graph is not scope.graph for matched in delta.match.nodes):
            return None
        matched = list(delta.match.nodes)

        def apply() -> None:
            for initializer in delta.new_initializers:
                tensor = initializer.const_value
                if tensor is None:
                    raise AssertionError(f"{self.name} made an initializer without a value")
                if scope.function is None:
                    initializer.name = scope.names.value(initializer.name or "constant")
                    scope.graph.register_initializer(initializer)
                else:
                    constant = scope.constant(tensor.numpy(), initializer.name or "constant", node)
                    initializer.replace_all_uses_with(constant)
            basic_constant_propagation(delta.new_nodes)
            for new in delta.new_nodes:
                source = next((old for old in matched if old.op_type == new.op_type), node)
                taken = any(other.name == source.name for other in delta.new_nodes if other is not new)
                new.name = scope.names.node(f"{source.name}/{new.op_type}") if taken else source.name
                for output in new.outputs:
                    output.name = scope.names.value(output.name or f"{new.name}_output")
            ir.convenience.replace_nodes_and_values(
                scope.graph,
                node,
                matched if self.rule.remove_nodes else [],
                delta.new_nodes,
                delta.match.outputs,
                delta.new_outputs,
            )

        return Edit(node_name(node), apply)


def apply_rules(model: ir.Model, ctx: Context, rules: Sequence[Rule]) -> Outcome:
    """Apply the rules everywhere until none applies; `changed` counts edits, findings hold refusals."""
    ensure_names(model)
    ensure_shapes(model)
    names = Names(model)
    outcome = Outcome()
    for _ in range(_MAX_SWEEPS):
        refusals: dict[tuple[str, str], Finding] = {}
        edits = 0
        for scope in scopes(model, names):
            for node in list(scope.graph):
                for rule in rules:
                    if node.graph is not scope.graph:
                        break
                    if rule.ops and not is_op(node, *rule.ops):
                        continue
                    found = rule.match(node, scope)
                    if isinstance(found, Refusal):
                        refusals[rule.name, found.node] = Finding(
                            "refused", found.reason, node=found.node, rule=rule.name
                        )
                    if not isinstance(found, Edit):
                        continue
                    if not ctx.rewrites.allow(rule.name, found.node):
                        return _with_refusals(outcome, refusals)
                    found.apply()
                    edits += 1
        outcome.changed += edits
        if not edits:
            return _with_refusals(outcome, refusals)
    raise AssertionError(f"rules {[rule.name for rule in rules]} do not come to an end")


def scopes(model: ir.Model, names: Names) -> list[Scope]:
    """All places rules work in, outer graphs before inner ones."""
    found = [Scope(model, graph, None, names) for graph in graphs_of(model) if isinstance(graph, ir.Graph)]
    inside = {id(sub): function for function in model.functions.values() for sub in function.subgraphs()}
    found = [
        Scope(model, scope.graph, inside.get(id(scope.graph)), names) if id(scope.graph) in inside else scope
        for scope in found
    ]
    found.extend(Scope(model, function.graph, function, names) for function in model.functions.values())
    return found


def node_name(node: ir.Node) -> str:
    """How a node is announced."""
    return node.name or default_node_name(node)


def refuse(node: ir.Node, reason: str) -> Refusal:
    """A refusal about `node`; the message is "<node> <reason>"."""
    return Refusal(node_name(node), f"{label(node)} {reason}")


def take_over(survivor: ir.Value, last: ir.Value) -> None:
    """Let `survivor` stand for `last`, the final value of what was fused, and carry its name and type."""
    last.replace_all_uses_with(survivor, replace_graph_outputs=True)
    survivor.name = last.name
    survivor.type = last.type if last.type is not None else survivor.type
    survivor.shape = last.shape if last.shape is not None else survivor.shape


def bypass(old: ir.Value, source: ir.Value, graph: ir.Graph) -> bool:
    """Whether every use of `old` can read `source` instead without renaming or losing a graph output."""
    if not old.is_graph_output():
        return True
    producer = source.producer()
    return producer is not None and producer.graph is graph and not source.is_graph_output()


def route_around(old: ir.Value, source: ir.Value) -> None:
    """Let the users of `old` read `source`; see `bypass` for when that is allowed."""
    if old.is_graph_output():
        old.replace_all_uses_with(source, replace_graph_outputs=True)
        source.name = old.name
        return
    old.replace_all_uses_with(source)


def remove(node: ir.Node) -> None:
    """Remove a node whose outputs nobody reads any more."""
    graph = node.graph
    if graph is not None:
        graph.remove(node, safe=True)
    # Nodes of its subgraphs would go on counting as readers of outer values.
    pending = list(subgraphs_of(node))
    while pending:
        inner = pending.pop()
        for child in inner:
            pending.extend(subgraphs_of(child))
            for index in range(len(child.inputs)):
                child.replace_input_with(index, None)


def replace_path(last: ir.Node, result: ir.Value, first: ir.Node) -> None:
    """Put `result` in the place of `last`'s output and remove what nobody reads any more, back from `last`.

    The new node takes the name of `first`, the node the pattern was recognized by, when that is gone.
    """
    take_over(result, last.outputs[0])
    pending = [last]
    while pending:
        node = pending.pop()
        if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        sources = [value.producer() for value in node.inputs if value is not None]
        remove(node)
        pending.extend(source for source in sources if source is not None and source.graph is not None)
    producer = result.producer()
    if producer is not None and first.graph is None:
        producer.name = first.name


def local_producer(value: ir.Value | None, scope: Scope, *op_types: str) -> ir.Node | None:
    """The node of these operators in the same graph that computes `value`, or None."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.graph is not scope.graph or not is_op(producer, *op_types):
        return None
    return producer


def float_scalar(value: ir.Value | None) -> float | None:
    """The number held by a one-element constant, or None."""
    array = constant_of(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiuV":
        return None
    return float(array.reshape(()).astype(np.float64))


def ensure_shapes(model: ir.Model) -> None:
    """Infer shapes when some value of the main graph has none."""
    if any(value.shape is None or value.dtype is None for node in model.graph for value in node.outputs):
        infer_shapes(model)


def _with_refusals(outcome: Outcome, refusals: dict[tuple[str, str], Finding]) -> Outcome:
    found = list(refusals.values())
    outcome.findings.extend(found[:MAX_REFUSALS])
    if len(found) > MAX_REFUSALS:
        more = len(found) - MAX_REFUSALS
        outcome.findings.append(Finding("note", f"{more} more nodes were left alone for reasons like these"))
    return outcome
