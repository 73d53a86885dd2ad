"""Move transposes through elementwise operators where that leaves fewer of them.

A region is a connected set of operators that treat all elements alike. Seen from inside, the region may as well
work in another layout: transposes that enter it are dropped, constants are transposed ahead of time, transposes
that leave it absorb the permutation, and the remaining outputs get one each. The move is done only when
the number of transposes falls, so it comes to an end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_ints, constant_of, constant_tensor, is_op
from greencc.core.passes import Context, Outcome, Pass
from greencc.passes._rewriter import Edit, Rule, Scope, apply_rules, node_name, remove, take_over

_UNARY = frozenset(
    {
        "Abs",
        "Cast",
        "Ceil",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
    }
    | {
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
    }
    | {"Softsign", "Sqrt", "Tanh", "ThresholdedRelu"}
)
_BROADCAST = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu", "Where"])
_AXIS = frozenset({"Concat"})
_LAYOUT_FREE = _UNARY | _BROADCAST | _AXIS


@dataclass
class _Region:
    perm: tuple[int, ...]
    nodes: list[ir.Node] = field(default_factory=list)
    members: set[ir.Node] = field(default_factory=set)
    entering: list[ir.Node] = field(default_factory=list)
    leaving: list[ir.Node] = field(default_factory=list)
    exposed: list[ir.Value] = field(default_factory=list)
    constants: list[tuple[ir.Node, int]] = field(default_factory=list)

    @property
    def gain(self) -> int:
        """How many transposes fewer there are afterwards."""
        dropped = sum(
            1
            for node in self.entering
            if not node.outputs[0].is_graph_output()
            and all(use.node in self.members for use in node.outputs[0].uses())
        )
        cancelled = sum(
            1 for node in self.leaving if _compose(self.perm, _perm(node)) == _identity(len(self.perm))
        )
        return dropped + cancelled - len(self.exposed)


class _MoveTranspose(Rule):
    name = "move-transpose"
    ops = frozenset({"Transpose"})

    def match(self, node: ir.Node, scope: Scope) -> Edit | None:
        perm = _perm(node)
        if not perm or list(perm) == sorted(perm):
            return None
        for use in node.outputs[0].uses():
            if use.node.graph is not scope.graph or not is_op(use.node, *_LAYOUT_FREE):
                continue
            region = _grow(use.node, perm, scope)
            if region is not None and region.gain > 0:
                return Edit(node_name(node), partial(_relayout, region, scope))
        return None


def _grow(seed: ir.Node, perm: tuple[int, ...], scope: Scope) -> _Region | None:
    """The largest region around `seed` in which every input is such a transpose, a constant or inside."""
    region = _Region(perm)
    members = region.members
    pending, candidates = [seed], set[ir.Node]()
    while pending:
        node = pending.pop()
        if node in candidates or not _fits(node, perm, scope):
            continue
        candidates.add(node)
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.graph is scope.graph and is_op(producer, *_LAYOUT_FREE):
                pending.append(producer)
        pending.extend(
            use.node
            for use in node.outputs[0].uses()
            if use.node.graph is scope.graph and is_op(use.node, *_LAYOUT_FREE)
        )
    # A node with an input from elsewhere leaves the region, and with it what reads that node's result.
    while True:
        foreign = [node for node in candidates if not _closed(node, candidates, perm)]
        if not foreign:
            break
        candidates.difference_update(foreign)
    if seed not in candidates:
        return None
    members.update(_connected(seed, candidates))
    region.nodes = [node for node in scope.graph if node in members]
    for node in region.nodes:
        _classify(node, region)
    return region


def _connected(seed: ir.Node, candidates: set[ir.Node]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    pending = [seed]
    while pending:
        node = pending.pop()
        if node in found or node not in candidates:
            continue
        found.add(node)
        pending.extend(p for v in node.inputs if v is not None and (p := v.producer()) is not None)
        pending.extend(use.node for use in node.outputs[0].uses())
    return found


def _fits(node: ir.Node, perm: tuple[int, ...], scope: Scope) -> bool:
    """Whether the result has the rank of the permutation and no attribute is bound elsewhere."""
    if node.graph is not scope.graph or not is_op(node, *_LAYOUT_FREE) or len(node.outputs) != 1:
        return False
    if any(attribute.is_ref() for attribute in node.attributes.values()) or "broadcast" in node.attributes:
        return False
    shape = node.outputs[0].shape
    return shape is not None and len(shape) == len(perm)


def _closed(node: ir.Node, candidates: set[ir.Node], perm: tuple[int, ...]) -> bool:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        tensor = constant_tensor(value)
        if tensor is not None:
            if is_op(node, "Clip") and index > 0:
                continue
            if is_op(node, *_AXIS) and len(tensor.shape) != len(perm):
                return False
            if len(tensor.shape) > len(perm):
                return False
            continue
        producer = value.producer()
        if producer is None:
            return False
        if producer not in candidates and not (is_op(producer, "Transpose") and _perm(producer) == perm):
            return False
    return True


def _classify(node: ir.Node, region: _Region) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        producer = value.producer()
        if constant_tensor(value) is not None:
            if not (is_op(node, "Clip") and index > 0):
                region.constants.append((node, index))
        elif producer is not None and producer not in region.members and producer not in region.entering:
            region.entering.append(producer)
    result = node.outputs[0]
    outside = dict.fromkeys(use.node for use in result.uses() if use.node not in region.members)
    leaving = [n for n in outside if n.graph is node.graph and is_op(n, "Transpose") and _perm(n)]
    region.leaving.extend(leaving)
    if result.is_graph_output() or len(leaving) < len(outside):
        region.exposed.append(result)


def _relayout(region: _Region, scope: Scope) -> None:
    """Let the region work in the layout before the permutation."""
    perm = region.perm
    inverse = tuple(int(axis) for axis in np.argsort(perm))
    # Results that others read as they were get a transpose, which keeps their name.
    for value in region.exposed:
        producer = value.producer()
        if producer is None:
            continue
        following = ir.Node("", "Transpose", [value], [ir.AttrInt64s("perm", perm)])
        following.name = scope.names.node(f"{node_name(producer)}/Transpose")
        result = following.outputs[0]
        scope.graph.insert_after(producer, following)
        inside = [use for use in value.uses() if use.node in region.members or use.node in region.leaving]
        keep = {(use.node, use.idx) for use in inside} | {(following, 0)}
        for use in list(value.uses()):
            if (use.node, use.idx) not in keep:
                use.node.replace_input_with(use.idx, result)
        if value.is_graph_output():
            for index, output in enumerate(scope.graph.outputs):
                if output is value:
                    scope.graph.outputs[index] = result
        result.name, result.type, result.shape = value.name, value.type, value.shape
        value.name = scope.names.value(f"{result.name}_moved")
    for node, index in region.constants:
        array = constant_of(node.inputs[index])
        if array is None or array.size == 1:
            continue
        widened = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
        scope.set_constant(node, index, np.ascontiguousarray(np.transpose(widened, inverse)), "constant")
    for node in region.nodes:
        for index, entry in enumerate(node.inputs):
            producer = entry.producer() if entry is not None else None
            if producer is not None and producer in region.entering:
                node.replace_input_with(index, producer.inputs[0])
        if is_op(node, *_AXIS):
            axis = node.attributes["axis"].as_int()
            node.attributes.add(ir.AttrInt64("axis", perm[axis]))
        moved = node.outputs[0]
        if moved.shape is not None:
            moved.shape = ir.Shape([moved.shape[axis] for axis in inverse])
    for node in region.leaving:
        node.attributes.add(ir.AttrInt64s("perm", _compose(perm, _perm(node))))
    for node in region.leaving:
        source, last = node.inputs[0], node.outputs[0]
        if source is None or _perm(node) != _identity(len(perm)) or source.is_graph_output():
            continue
        if last.is_graph_output():
            take_over(source, last)
        else:
            last.replace_all_uses_with(source)
        remove(node)
    for node in region.entering:
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            remove(node)


def _perm(node: ir.Node) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    return () if attribute is None or attribute.is_ref() else attribute_ints(node, "perm", ())


def _compose(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(first[axis] for axis in second)


def _identity(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


@dataclass(frozen=True)
class MoveTransposes(Pass):
    """Drop and cancel transposes around elementwise regions, as channels-last exports have them."""

    name: ClassVar[str] = "move-transposes"
    summary: ClassVar[str] = "move transposes through elementwise operators where fewer remain"

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        return apply_rules(model, ctx, (_MoveTranspose(),))
