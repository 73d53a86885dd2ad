"""The analysis of a model, and the cut itself."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import Names, add_initializer, constant_tensor, opset_of
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import Kept
from greencc.core.groups.labels import Ints
from greencc.core.groups.model import Structure
from greencc.core.groups.partition import groups_of
from greencc.core.groups.parts import names_of
from greencc.core.groups.rules import rule_of
from greencc.core.groups.sizes import follow


def analyse(model: ir.Model) -> Structure:
    """Find the prune groups of the main graph.

    Shapes must have been inferred. What is in subgraphs is left alone.
    """
    analysis = Analysis(model.graph, opset_of(model))
    analysis.run(rule_of, follow)
    return Structure(groups_of(analysis), dict(analysis.unknown), analysis)


def cut(model: ir.Model, structure: Structure, removed: Mapping[str, Collection[int]]) -> None:
    """Remove channels of a model in place: every tensor of their groups shrinks, and the shapes of values follow.

    Every tensor is read once, one at a time; memory-mapped ones are unmapped again.

    Args:
        model: The model that `structure` was found in.
        structure: From `analyse`. After a cut it no longer describes the model: analyse it again.
        removed: For groups by name, the numbers of the channels to remove.

    Raises:
        ValueError: A group is unknown or must stay, a channel does not exist, or all of a group are to be removed.
    """
    analysis, names = structure.analysis, Names(model)
    gone = _gone(structure, removed)
    if not gone:
        return
    lost = np.zeros(len(analysis.labels), bool)
    lost[gone] = True

    def mask(labels: Ints) -> NDArray[np.bool_]:
        return np.asarray(~lost[analysis.labels.roots(labels)])

    def constant(values: NDArray[Any]) -> ir.Value:
        return add_initializer(model.graph, names.value("pruned_size"), values)

    kept = Kept(mask, constant, names.value)
    for edit in analysis.edits:
        edit.apply(kept)
    for value, axes in analysis.constants().items():
        masks = [None if labels is None else mask(labels) for labels in axes]
        if any(item is not None and not item.all() for item in masks):
            _shrink(model, value, masks, names)
    for value, labelled in analysis.labelled():
        if value.shape is not None:
            counts = [None if labels is None else kept.count(labels) for labels in labelled]
            pairs = zip(value.shape, counts, strict=True)
            value.shape = ir.Shape(dim if count is None else count for dim, count in pairs)


def _gone(structure: Structure, removed: Mapping[str, Collection[int]]) -> list[int]:
    """The labels to remove."""
    by_name = {group.name: group for group in structure.groups}
    gone: list[int] = []
    for name, channels in removed.items():
        group = by_name.get(name)
        if group is None or group.reason is not None:
            raise ValueError(f"{name} cannot be cut: {'no such group' if group is None else group.reason}")
        chosen = sorted({int(channel) for channel in channels})
        if chosen and chosen[0] < 0:
            raise ValueError(f"{name} has no channel {chosen[0]}")
        if chosen and chosen[-1] >= group.size:
            raise ValueError(f"{name} has {group.size} channels, not {chosen[-1] + 1}")
        if len(chosen) >= group.size:
            raise ValueError(f"all {group.size} channels of {name} are to be removed: one must stay")
        gone += group.labels[chosen].tolist()
    return gone


def _shrink(model: ir.Model, value: ir.Value, masks: list[NDArray[np.bool_] | None], names: Names) -> None:
    """Give a constant a smaller tensor, be it an initializer or the output of a Constant node."""
    tensor = constant_tensor(value)
    assert tensor is not None
    array = tensor.numpy()
    for axis, item in enumerate(masks):
        if item is not None and not item.all():
            # This copies: nothing of the old tensor is kept.
            array = np.compress(item, array, axis=axis)
    smaller = ir.tensor(np.ascontiguousarray(array), dtype=tensor.dtype, name=value.name)
    if isinstance(tensor, ir.ExternalTensor):
        # Somebody else may still look at its pages; then they stay mapped.
        with contextlib.suppress(BufferError):
            tensor.release()
    for same in names_of(value):
        same.shape = ir.Shape(smaller.shape.numpy())
    producer = value.producer()
    if producer is None:
        value.const_value = smaller
        return
    replacement = add_initializer(model.graph, names.value(f"{value.name}_pruned"), smaller)
    ir.convenience.replace_all_uses_with(value, replacement)
    model.graph.remove(producer, safe=True)
