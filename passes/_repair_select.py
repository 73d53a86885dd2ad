"""Which layers of a model need repair after channels were cut, and what each should give."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_tensor, input_at, is_op, sole_consumer
from greencc.core.groups import Role, Site, Structure
from greencc.core.passes import Finding
from greencc.passes._linear_view import LINEAR, linear_view
from greencc.passes._repair_order import Join, Refit, Source

# What leaves channels where they are.
_CHANNELWISE = frozenset(
    [
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Elu",
        "Erf",
        "Gelu",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Mul",
        "PRelu",
        "Pad",
        "Relu",
        "Resize",
        "Sigmoid",
        "Softplus",
        "Tanh",
    ]
)

_RECURRENT = ("GRU", "LSTM", "RNN")


def kept_outputs(structure: Structure, removed: Mapping[str, Collection[int]]) -> dict[str, tuple[int, ...]]:
    """The output channels that weighted nodes keep, for those that lose some.

    Args:
        structure: Of the model, before or after the cut.
        removed: As for `cut`.
    """
    analysis = structure.analysis
    groups = {group.name: group for group in structure.groups}
    gone = [groups[name].labels[sorted(set(channels))] for name, channels in removed.items()]
    lost = np.zeros(len(analysis.labels), bool)
    lost[np.concatenate([np.zeros(0, np.int64), *gone])] = True
    found: dict[str, tuple[int, ...]] = {}
    for node in analysis.graph:
        view = linear_view(node)
        axes = analysis.axes(node.outputs[0]) if view is not None else ()
        if view is None or not axes:
            continue
        labels = axes[1] if view.kernel else axes[-1]
        if labels is None:
            continue
        cut = lost[analysis.labels.roots(labels)]
        if cut.any():
            found[str(node.name)] = tuple(np.flatnonzero(~cut).tolist())
    return found


def layers_after_cut(
    original: ir.Model,
    compressed: ir.Model,
    *,
    later: bool = False,
    keep: Mapping[str, Sequence[int]] | None = None,
) -> list[Refit]:
    """The weighted nodes that lost inputs, in the order of the graph.

    A node whose output is added to another branch is to make up for that branch as well.

    Args:
        original: The model before the cut; nodes are matched by name.
        compressed: The model after it.
        later: All weighted nodes after the first one that lost inputs as well: they see what could not be mended.
        keep: From `kept_outputs`; of several cuts, in coordinates of the original.
    """
    keep = keep or {}
    before = {str(node.name): node for node in original.graph}
    found: list[Refit] = []
    ready: set[ir.Value] = set(compressed.graph.inputs)
    reached: set[ir.Value] = set()
    for node in compressed.graph:
        old, view = before.get(str(node.name)), linear_view(node)
        past = None if old is None or old.op_type != node.op_type else linear_view(old)
        after = any(value in reached for value in node.inputs)
        if old is not None and view is not None and past is not None:
            shrunk = view.inputs != past.inputs
            if shrunk or (later and after):
                found.append(replace(_refit(node, old, ready, keep), inherits=not shrunk))
                after = True
        if after:
            reached.update(node.outputs)
        ready.update(node.outputs)
    return found


def unrepaired(
    structure: Structure, removed: Mapping[str, Collection[int]], layers: Sequence[Refit]
) -> list[Finding]:
    """The nodes that lost inputs and that no layer to repair stands for, in the order of the graph.

    Args:
        structure: Of the model, before or after the cut.
        removed: As for `cut`.
        layers: From `layers_after_cut`.
    """
    covered = {item.node for item in layers}
    nodes = {str(node.name): node for node in structure.analysis.graph}
    losing = {
        site.node
        for group in structure.groups
        if len(removed.get(group.name, ()))
        for site in group.sites
        if site.node in nodes and _sums_over(nodes[site.node], site)
    }
    findings = []
    for name, node in nodes.items():
        if name in losing and name not in covered:
            form = f"this {node.op_type}" if is_op(node, *LINEAR) else node.op_type
            message = f"{name!r}: lost inputs, but is not refit: no form for {form}"
            findings.append(Finding("refused", message, name, "refit"))
    return findings


def _sums_over(node: ir.Node, site: Site) -> bool:
    """Whether a node's outputs lack something once channels of the site are cut."""
    if is_op(node, *_RECURRENT):
        # W over features, R over the units themselves: with them goes what they passed on to the other units.
        return site.axis == 2
    # Of a ConvTranspose in groups that lost inputs within its groups there is a layer; else whole groups went.
    whole = is_op(node, "ConvTranspose") and attribute_int(node, "group", 1) > 1
    return site.role is Role.CONSUMER and not (whole and linear_view(node) is not None)


def _refit(
    node: ir.Node, old: ir.Node, ready: Collection[ir.Value], keep: Mapping[str, Sequence[int]]
) -> Refit:
    stay = keep.get(str(node.name))
    plain = Refit(
        str(node.name),
        str(old.outputs[0].name),
        None if stay is None else tuple(int(place) for place in stay),
        source=source_of(node, old, keep, axis=1 if node.op_type in ("Conv", "ConvTranspose") else -1),
    )
    join = _join(node)
    past = None if join is None else _join(old)
    if join is None or past is None or join[0].name != past[0].name:
        return plain
    other = join[1]
    if other not in ready or not _same_shape(other, node.outputs[0]) or _follows(other, node):
        # Of two branches that are both refit the first one cannot know what the second will be.
        return plain
    return replace(plain, join=Join(str(past[0].outputs[0].name), str(other.name)))


def source_of(node: ir.Node, old: ir.Node, keep: Mapping[str, Sequence[int]], *, axis: int) -> Source | None:
    """The value a node reads and what is left of it; None where that cannot be told from the nodes before it."""
    value, past = node.inputs[0], old.inputs[0]
    assert value is not None
    assert past is not None
    if value.shape is None or past.shape is None or len(value.shape) != len(past.shape):
        return None
    here, there = value.shape[axis], past.shape[axis]
    if not isinstance(here, int) or not isinstance(there, int):
        return None
    if here == there:
        return Source(str(past.name))
    walked: ir.Value | None = value
    while walked is not None and (producer := walked.producer()) is not None:
        stay = keep.get(str(producer.name))
        if stay is not None:
            # A Flatten in between would have other coordinates: then the numbers do not agree.
            fits = len(stay) == here and max(stay) < there
            return Source(str(past.name), tuple(int(place) for place in stay)) if fits else None
        if not is_op(producer, *_CHANNELWISE):
            return None
        walked = producer.inputs[0]
    return None


def _join(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that joins a node's output to another branch, and that branch."""
    value = node.outputs[0]
    add = sole_consumer(value)
    if node.op_type == "MatMul" and add is not None and is_op(add, "Add"):
        rest = _addend(add, value)
        if constant_tensor(rest) is not None:
            value = add.outputs[0]
            add = sole_consumer(value)
    if add is None or not is_op(add, "Add"):
        return None
    other = _addend(add, value)
    if other is None or constant_tensor(other) is not None:
        return None
    return add, other


def _addend(add: ir.Node, value: ir.Value) -> ir.Value | None:
    first, second = input_at(add, 0), input_at(add, 1)
    return second if first is value else first


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    """As far as it is known: the other branch is not broadcast."""
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    return all(
        a == b for a, b in zip(tuple(first.shape), tuple(second.shape), strict=True) if isinstance(a, int)
    )


def _follows(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value depends on what a node computes."""
    seen: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        producer = waiting.pop().producer()
        if producer is node:
            return True
        if producer is not None and producer not in seen:
            seen.add(producer)
            waiting += [item for item in producer.inputs if item is not None]
    return False
