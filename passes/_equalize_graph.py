"""Which channels of a model can be scaled without changing what it computes: equalization groups.

Every channel of every value carries a *label*. An operator that commutes with a positive scale hands the labels of
its input on; one that needs its operands scaled alike (Add, Concat along another axis) merges their labels; one that
does neither merges them with `FIXED`, whose scale is 1. A weighted layer starts new labels at its output and absorbs
any at its input: W'[o, i] = W[o, i] * s[out label of o] / s[in label of i]. After one walk over the graph any positive
scale per label, 1 for `FIXED`, leaves the function as it is; residual joins need no special case.

Labels are arrays that broadcast against the value, so that transposes, reshapes, splits and channel shuffles are the
NumPy operations of the same names. Cross-layer equalization: Nagel et al. 2019, arXiv 1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import constant_tensor, input_at
from greencc.passes._linear_view import LinearView, linear_view

Labels = NDArray[np.int64]
FIXED = 0
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
# A constant may grow to one number per channel, but not to one per channel and position.
_MAX_GROWTH = 4


@dataclass(frozen=True)
class Layer:
    """A weighted node between labels.

    Attributes:
        view: The node as a matrix.
        before: Labels of the input channels, (groups, inputs per group).
        after: Labels of the output channels, (groups, outputs per group).
    """

    view: LinearView
    before: Labels
    after: Labels

    @property
    def node(self) -> ir.Node:
        return self.view.node

    def cube(self, weight: NDArray[np.generic]) -> NDArray[np.float64]:
        """The weight as (groups, outputs, inputs, taps)."""
        groups, outputs = self.view.groups, self.view.outputs
        matrix = self.view.matrix(weight)
        return matrix.reshape(groups, outputs, self.before.shape[1], -1).astype(np.float64)

    def stored(self, cube: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `cube`."""
        return self.view.stored(cube.reshape(self.view.groups, self.view.outputs, self.view.inputs))


@dataclass(frozen=True)
class ScaledConstant:
    """Input `index` of `node`, a constant added to labelled values: it scales with them."""

    node: ir.Node
    index: int
    labels: Labels


@dataclass
class Labelling:
    """Labels of a graph's values; make it with `label_channels`.

    Attributes:
        labels: Labels of each value that has any, broadcasting against it; call `roots` before comparing them.
        layers: The weighted nodes with free channels before or after them, in graph order.
        constants: What else has to be scaled.
        joined: Values that meet in an Add or a Concat, in graph order.
    """

    graph: ir.Graph
    labels: dict[ir.Value, Labels] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    constants: list[ScaledConstant] = field(default_factory=list)
    joined: list[ir.Value] = field(default_factory=list)
    _parents: list[int] = field(default_factory=lambda: [FIXED])

    @property
    def count(self) -> int:
        """How many labels were handed out, `FIXED` included."""
        return len(self._parents)

    def fresh(self, channels: int) -> Labels:
        start = len(self._parents)
        self._parents.extend(range(start, start + channels))
        return np.arange(start, start + channels)

    def of(self, value: ir.Value | None) -> Labels | None:
        """Labels of a value; None where all its channels are fixed."""
        return None if value is None else self.labels.get(value)

    def carry(self, value: ir.Value, labels: Labels | None) -> None:
        """Give a value its labels, which are fixed where something outside of the graph's nodes reads it."""
        if labels is None:
            return
        escapes = value.is_graph_output() or any(
            node.graph is not self.graph for node, _ in value.uses() if node is not None
        )
        if escapes or value.dtype not in FLOATS or value.shape is None or len(value.shape) != labels.ndim:
            self.pin(labels)
            return
        self.labels[value] = labels

    def pin(self, labels: Labels | None) -> None:
        """These channels keep their scale."""
        if labels is not None:
            for label in np.unique(labels):
                self._join(int(label), FIXED)

    def merge(self, first: Labels, second: Labels) -> None:
        """Two arrays of one shape scale alike, element by element."""
        for one, other in zip(first.ravel().tolist(), second.ravel().tolist(), strict=True):
            self._join(one, other)

    def scale_constant(self, node: ir.Node, index: int, labels: Labels) -> bool:
        """Let a constant operand scale with the labels; False when that would blow it up or it is no float."""
        tensor = constant_tensor(input_at(node, index))
        if tensor is None or tensor.dtype not in FLOATS:
            return False
        shape = tuple(int(dim) for dim in tensor.shape.numpy())
        try:
            grown = int(np.prod(np.broadcast_shapes(shape, labels.shape)))
        except ValueError:
            return False
        if grown > _MAX_GROWTH * max(int(np.prod(shape)), labels.size):
            return False
        self.constants.append(ScaledConstant(node, index, labels))
        return True

    def roots(self) -> NDArray[np.int64]:
        """The representative of every label; that of fixed ones is `FIXED`."""
        return np.array([self._root(label) for label in range(len(self._parents))], np.int64)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def _join(self, first: int, second: int) -> None:
        # The smallest label stands for its set, so that FIXED always does.
        low, high = sorted((self._root(first), self._root(second)))
        self._parents[high] = low


def add_layer(node: ir.Node, labelling: Labelling) -> bool:
    """Label a weighted node; False when it is none, or its weight cannot be changed."""
    view = linear_view(node)
    weight = input_at(node, 1)
    x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
    if view is None or weight is None or x is None or weight.dtype not in FLOATS:
        return False
    # Scaling a weight that others read as well would need a copy of it.
    if len(weight.uses()) != 1 or weight.is_graph_output() or x is weight:
        return False
    rank = len(y.shape) if y.shape is not None else None
    axis = 1 if view.kernel else -1
    taps = int(np.prod(view.kernel)) if view.kernel else 1
    inputs = view.inputs // taps
    before = _along(labelling.of(x), axis, view.groups * inputs)
    if before is None:
        labelling.pin(labelling.of(x))
        before = np.full(view.groups * inputs, FIXED)
    if rank is None or rank < 2 or len(y.uses()) == 0:
        after = np.full(view.groups * view.outputs, FIXED)
    else:
        after = labelling.fresh(view.groups * view.outputs)
        bias = input_at(node, 2)
        if bias is not None and not labelling.scale_constant(node, 2, after):
            labelling.pin(labelling.of(bias))
            labelling.pin(after)
        spread = [1] * rank
        spread[axis] = len(after)
        labelling.carry(y, after.reshape(spread))
    labelling.layers.append(
        Layer(view, before.reshape(view.groups, -1), after.reshape(view.groups, -1)),
    )
    return True


def _along(labels: Labels | None, axis: int, channels: int) -> Labels | None:
    """The labels as a vector over the channel axis, or None where they are fixed or differ along another one."""
    if labels is None or labels.size != labels.shape[axis]:
        return None
    vector = labels.reshape(-1)
    if vector.size not in (1, channels):
        return None
    return np.broadcast_to(vector, (channels,)).copy()


def components(labelling: Labelling) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Equalization groups: free roots that meet in one value or layer side, with the first layer's name.

    One group is one rewrite: its scales are right whatever those of the others are.
    """
    roots = labelling.roots()
    leader: dict[int, int] = {}

    def find(label: int) -> int:
        while leader.setdefault(label, label) != label:
            leader[label] = leader.setdefault(leader[label], leader[label])
            label = leader[label]
        return label

    sides = [side for layer in labelling.layers for side in (layer.before, layer.after)]
    for side in (*sides, *labelling.labels.values()):
        free = [int(root) for root in np.unique(roots[side]) if root != FIXED]
        for root in free[1:]:
            low, high = sorted((find(free[0]), find(root)))
            leader[high] = low
        if free:
            find(free[0])
    names: dict[int, str] = {}
    for layer in labelling.layers:
        for side in (layer.after, layer.before):
            for root in np.unique(roots[side]):
                if root != FIXED:
                    names.setdefault(find(int(root)), str(layer.node.name))
    members: dict[int, list[int]] = {}
    for label in sorted(leader):
        members.setdefault(find(label), []).append(label)
    for top, labels in members.items():
        if top in names:
            yield names[top], np.array(labels, np.int64)


def value_axis(labels: Labels) -> int | None:
    """The only axis along which labels differ, or None."""
    axes = [axis for axis, size in enumerate(labels.shape) if size > 1]
    return axes[0] if len(axes) == 1 else None
