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
from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from greencc.core.graph import ONNX_DOMAINS, constant_of, constant_tensor, is_op, label, subgraphs_of
from greencc.core.groups.edits import Edit
from greencc.core.groups.labels import AxisLabels, Labels
from greencc.core.groups.parts import (
    LONGEST_SHAPE,
    Axes,
    Entries,
    base_of,
    captured,
    is_used,
    names_of,
)
from greencc.core.groups.roles import Role

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
        # Vectors of sizes that the graph computes.
        self.sizes: dict[ir.Value, Entries] = {}
        self._axes: dict[ir.Value, Axes] = {}
        self._given: set[ir.Value] = set()
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

    def entries(self, value: ir.Value | None) -> Entries | None:
        """What is known of a vector of sizes, be it constant or computed."""
        if value is None or value in self.sizes:
            return None if value is None else self.sizes[value]
        tensor = constant_tensor(value)
        if tensor is None or tensor.size > LONGEST_SHAPE or not tensor.dtype.is_integer():
            return None
        array = constant_of(value)
        return None if array is None or array.ndim > 1 else tuple(int(item) for item in array.reshape(-1))

    def labelled(self) -> Iterator[tuple[ir.Value, Axes]]:
        """Every computed value with labels."""
        yield from self._axes.items()

    def constants(self) -> dict[ir.Value, list[AxisLabels]]:
        """Every constant with labels, and those of its axes."""
        return self._constants

    # What rules do.

    def give(self, value: ir.Value, axes: Sequence[AxisLabels]) -> None:
        """Set the labels of an output. What does not fit its shape must stay."""
        self._given.add(value)
        same_rank = value.shape is not None and len(value.shape) == len(axes)
        found: list[AxisLabels] = []
        for place, labels in enumerate(axes):
            if labels is not None and len(labels) == 1:
                self.lock(labels, f"{value.name} has one channel")
                labels = None
            elif labels is not None and not (same_rank and self.dim(value, place) in (None, len(labels))):
                self.lock(labels, f"{value.name}: its shape is not known")
                labels = None
            found.append(labels)
        if any(labels is not None for labels in found):
            self._axes[value] = tuple(found)
        else:
            self._axes.pop(value, None)

    def constant(self, node: ir.Node, index: int, axis: int, role: Role) -> AxisLabels:
        """The labels along one axis of the constant that a node reads; None along an axis of one."""
        value = node.inputs[index]
        assert value is not None
        base = base_of(value)
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
        """Everything that a value shows must stay."""
        for labels in self.axes(value):
            self.lock(labels, reason)
        self.lock_sizes(value, reason)

    def lock_sizes(self, value: ir.Value | None, reason: str) -> None:
        """What a vector of sizes counts must stay."""
        for entry in self.sizes.get(value, ()) if value is not None else ():
            if not isinstance(entry, int):
                self.lock(entry, reason)

    def refuse(self, node: ir.Node, reason: str) -> None:
        """The node ends every group that reaches it."""
        for value in node.inputs:
            self.lock_value(value, reason)

    def name_kind(self, labels: AxisLabels, kind: str) -> None:
        """What the channels with these labels are called."""
        if labels is not None:
            self.kinds.update(dict.fromkeys(labels.tolist(), kind))

    # The whole.

    def run(
        self, rules: Callable[[ir.Node], Rule | None], follow: Callable[[Analysis, ir.Node], bool]
    ) -> None:
        """Walk the graph.

        Args:
            rules: The rule of a node, or None.
            follow: Hands on sizes that the graph computes; whether a node needs no rule.
        """
        for node in self.graph:
            self._visit(node, rules, follow)
        for value in self.graph.outputs:
            self.lock_value(value, MODEL_OUTPUT)
        self._close_constants()

    def _visit(
        self,
        node: ir.Node,
        rules: Callable[[ir.Node], Rule | None],
        follow: Callable[[Analysis, ir.Node], bool],
    ) -> None:
        subgraphs = subgraphs_of(node)
        inner = {value: None for sub in subgraphs for value in captured(sub, self.graph)}
        for value in inner:
            self.lock_value(value, f"{label(node)} reads it in a subgraph")
        if not subgraphs and follow(self, node):
            return
        reached = any(self.has_labels(value) or value in self.sizes for value in (*node.inputs, *inner))
        if not reached and not _starts(node):
            return
        rule = None if subgraphs else rules(node)
        if rule is None:
            domain = "" if node.domain in ONNX_DOMAINS else f"{node.domain}::"
            if reached or _weighted(node):
                self.unknown[f"{domain}{node.op_type}"].append(label(node))
            self.refuse(node, f"{label(node)}: no rule for {domain}{node.op_type}")
            return
        read = [value for value in node.inputs if value is not None]
        if any(value.shape is None for value in (*read, *filter(is_used, node.outputs))):
            self.refuse(node, f"{label(node)}: the number of axes is not known")
            return
        rule(self, node)
        if any(is_used(value) and value not in self._given for value in node.outputs):
            self.refuse(node, f"{label(node)}: one of its outputs cannot be cut")

    def _close_constants(self) -> None:
        """Lock what is also read in ways that no rule saw."""
        for base, axes in self._constants.items():
            for axis, labels in enumerate(axes):
                if labels is not None and (reason := self._unseen(base, axis)) is not None:
                    self.lock(labels, reason)

    def _unseen(self, base: ir.Value, axis: int) -> str | None:
        for value in names_of(base):
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


def _starts(node: ir.Node) -> bool:
    """Whether a node may start a group: it has constants among its inputs, or makes them."""
    return is_op(node, "ConstantOfShape") or any(constant_tensor(value) is not None for value in node.inputs)


def _weighted(node: ir.Node) -> bool:
    """Whether a node has a weight, a constant of two axes or more."""
    tensors = (constant_tensor(value) for value in node.inputs)
    return any(tensor is not None and len(tensor.shape) > 1 for tensor in tensors)
