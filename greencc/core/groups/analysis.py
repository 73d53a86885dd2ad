"""Find the prune groups of a graph by labelling coordinates and uniting what depends on each other.

Every axis of every value carries one label per coordinate. A weight gives its output axis fresh labels; operators hand
them on, permute, repeat and concatenate them; where two values meet, their labels are united. In the end all
coordinates with one label must be cut together, and labels with the same places form a group. Where channels cannot
be cut (inputs and outputs of the model, operators without a rule, normalisations over the channels) the labels are
locked, with the reason: an unknown operator ends a group, it never causes a wrong cut.

Same purpose as the dependency graph of DepGraph (Fang et al., CVPR 2023, arXiv 2301.12900, section 3) and the channel
propagation of SPA (arXiv 2403.18955, section 3.2); labels make concatenations, splits, shuffles and
heads no special case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS, constant_tensor, is_op, label, subgraphs_of
from greencc.core.groups.edits import Edit
from greencc.core.groups.labels import AxisLabels, Ints, Labels
from greencc.core.groups.roles import Role

Axes = tuple[AxisLabels, ...]
MODEL_INPUT = "it comes from an input of the model"
MODEL_OUTPUT = "it is an output of the model"


class Analysis:
    """What rules read and write: the labels of values, the sites of constants, edits of nodes."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.labels = Labels()
        self.sites: list[tuple[ir.Node, ir.Value, int, Role]] = []
        self.readers: list[tuple[ir.Node, ir.Value, int]] = []
        self.edits: list[Edit] = []
        self.kinds: dict[int, str] = {}
        self.unknown: dict[str, list[str]] = defaultdict(list)
        self._axes: dict[ir.Value, Axes] = {}
        self._constants: dict[ir.Value, list[AxisLabels]] = {}
        self._handled: set[tuple[ir.Node, int, int]] = set()

    # What is known of values.

    def rank(self, value: ir.Value | None) -> int | None:
        return None if value is None or value.shape is None else len(value.shape)

    def dim(self, value: ir.Value, axis: int) -> int | None:
        """The static size of an axis, or None."""
        if value.shape is None:
            return None
        found = value.shape[axis]
        return found if isinstance(found, int) else None

    def is_constant(self, value: ir.Value | None) -> bool:
        return constant_tensor(value) is not None

    def axes(self, value: ir.Value | None) -> Axes:
        """The labels of each axis of a value that is computed; () where the rank is unknown."""
        if value is None:
            return ()
        return self._axes.get(value, (None,) * (self.rank(value) or 0))

    def has_labels(self, value: ir.Value | None) -> bool:
        return any(labels is not None for labels in self.axes(value))

    # What rules do.

    def give(self, value: ir.Value, axes: Sequence[AxisLabels]) -> None:
        """Set the labels of an output."""
        if any(labels is not None for labels in axes):
            self._axes[value] = tuple(axes)

    def constant(self, node: ir.Node, index: int, axis: int, role: Role) -> AxisLabels:
        """The labels along one axis of the constant that a node reads; None along an axis of one."""
        value = node.inputs[index]
        assert value is not None
        base = _base(value)
        tensor = constant_tensor(value)
        assert tensor is not None
        rank = len(tensor.shape)
        axis %= rank
        size = int(tensor.shape.numpy()[axis])
        self._handled.add((node, index, axis))
        if size <= 1:
            return None
        known = self._constants.setdefault(base, [None] * rank)
        labels = known[axis]
        if labels is None:
            labels = known[axis] = self.labels.fresh(size)
        self.sites.append((node, base, axis, role))
        return labels

    def read(self, node: ir.Node, value: ir.Value, axis: int) -> None:
        """A weighted node sums over this axis of an activation."""
        self.readers.append((node, value, axis % (self.rank(value) or 1)))

    def unite(self, first: AxisLabels, second: AxisLabels, reason: str) -> AxisLabels:
        """What meets coordinate by coordinate; where only one side has labels they must stay."""
        if first is None or second is None:
            self.lock(first, reason)
            self.lock(second, reason)
            return first if second is None else second
        if len(first) != len(second):
            self.lock(first, reason)
            self.lock(second, reason)
            return first
        self.labels.unite(first, second)
        return first

    def lock(self, labels: AxisLabels, reason: str) -> None:
        if labels is not None:
            self.labels.lock(labels, reason)

    def lock_value(self, value: ir.Value | None, reason: str) -> None:
        for labels in self.axes(value):
            self.lock(labels, reason)

    def refuse(self, node: ir.Node, reason: str) -> None:
        """The node ends every group that reaches it."""
        for value in node.inputs:
            self.lock_value(value, reason)

    def name_kind(self, labels: AxisLabels, kind: str) -> None:
        """What the channels with these labels are called."""
        if labels is not None:
            for item in labels:
                self.kinds[int(item)] = kind

    # The whole.

    def run(self, rules: Callable[[ir.Node], Rule | None]) -> None:
        """Walk the graph."""
        for node in self.graph:
            inner = {value for sub in subgraphs_of(node) for value in _captured(sub, self.graph)}
            for value in inner:
                self.lock_value(value, f"{label(node)} reads it in a subgraph")
            if not any(self.has_labels(value) for value in node.inputs) and not _weighted(node):
                continue
            rule = None if inner or subgraphs_of(node) else rules(node)
            if rule is None:
                domain = "" if node.domain in ONNX_DOMAINS else f"{node.domain}::"
                self.unknown[f"{domain}{node.op_type}"].append(label(node))
                self.refuse(node, f"{label(node)}: no rule for {domain}{node.op_type}")
            elif any(value is not None and value.shape is None for value in (*node.inputs, *node.outputs)):
                self.refuse(node, f"{label(node)}: the number of axes is not known")
            else:
                rule(self, node)
        for value in self.graph.outputs:
            self.lock_value(value, MODEL_OUTPUT)
        self._close_constants()

    def constants(self) -> dict[ir.Value, list[AxisLabels]]:
        """Every constant with labels, and those of its axes."""
        return self._constants

    def _close_constants(self) -> None:
        """Lock what is also read in ways that no rule saw."""
        for base, axes in self._constants.items():
            for axis, labels in enumerate(axes):
                if labels is not None and (reason := self._unseen(base, axis)) is not None:
                    self.lock(labels, reason)

    def _unseen(self, base: ir.Value, axis: int) -> str | None:
        for value in _names_of(base):
            if value.is_graph_output():
                return "its weight is an output of the model"
            for usage in value.uses():
                inside = usage.node.graph is self.graph
                if is_op(usage.node, "Identity") and inside:
                    continue
                if (usage.node, usage.idx, axis) not in self._handled:
                    return f"its weight is also read by {label(usage.node)}"
        return None


Rule = Callable[[Analysis, ir.Node], None]


def _weighted(node: ir.Node) -> bool:
    """Whether a node may start a group: it has constants among its inputs."""
    return any(constant_tensor(value) is not None for value in node.inputs)


def _base(value: ir.Value) -> ir.Value:
    """The constant behind Identity nodes."""
    while value.const_value is None and (producer := value.producer()) is not None:
        if not is_op(producer, "Identity") or producer.inputs[0] is None:
            break
        value = producer.inputs[0]
    return value


def _names_of(base: ir.Value) -> list[ir.Value]:
    """A constant and the values that are the same through Identity nodes."""
    found = [base]
    for value in found:
        found += [usage.node.outputs[0] for usage in value.uses() if is_op(usage.node, "Identity")]
    return found


def _captured(inner: ir.Graph, outer: ir.Graph) -> set[ir.Value]:
    """Values of the outer graph that a subgraph reads, at any depth."""
    found = set()
    for node in inner.all_nodes():
        for value in node.inputs:
            if value is None:
                continue
            producer = value.producer()
            owner = producer.graph if producer is not None else value.graph
            if owner is outer:
                found.add(value)
    for value in inner.outputs:
        producer = value.producer()
        if producer is not None and producer.graph is outer:
            found.add(value)
    return found


def roots_of(analysis: Analysis, labels: Ints) -> Ints:
    return np.asarray(analysis.labels.roots(labels))
