"""From labels to prune groups, and the cut itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import Names, add_initializer, constant_tensor, opset_of
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.edits import Kept
from greencc.core.groups.labels import Ints
from greencc.core.groups.model import PruneGroup, Reader, Site, Structure
from greencc.core.groups.roles import Role
from greencc.core.groups.rules import rule_of

_ALONE = "it has one channel"


def analyse(model: ir.Model) -> Structure:
    """Find the prune groups of the main graph.

    Shapes must have been inferred. What is in subgraphs is left alone.
    """
    analysis = Analysis(model.graph, opset_of(model))
    analysis.run(rule_of)
    groups = _groups(analysis)
    return Structure(groups, dict(analysis.unknown), analysis)


def _groups(analysis: Analysis) -> tuple[PruneGroup, ...]:
    """Gather labels that have the same places in the same tensors."""
    places: dict[int, dict[int, list[int]]] = defaultdict(dict)
    sites = list(dict.fromkeys(analysis.sites))
    constants = analysis.constants()
    for number, (_, value, axis, _) in enumerate(sites):
        labels = constants[value][axis]
        if labels is not None:
            _note(places, number, analysis.labels.roots(labels))
    offset = len(sites)
    for number, (_, value, axis) in enumerate(analysis.readers, offset):
        labels = analysis.axes(value)[axis]
        if labels is not None:
            _note(places, number, analysis.labels.roots(labels))
    members: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for root, found in places.items():
        # Channels of different locks are different groups: a model's inputs beside what a layer computes.
        signature = (
            analysis.labels.reason(root),
            *sorted((number, len(where)) for number, where in found.items()),
        )
        members[signature].append(root)
    result = []
    for roots in members.values():
        roots.sort(key=lambda root: min(min(where) for where in places[root].values()))
        result.append((min(places[roots[0]]), _group(analysis, sites, offset, places, roots)))
    names: Counter[str] = Counter()
    ordered = []
    for _, group in sorted(result, key=lambda pair: pair[0]):
        if group is None:
            continue
        names[group.name] += 1
        if names[group.name] > 1:
            group = PruneGroup(**{**group.__dict__, "name": f"{group.name}#{names[group.name]}"})
        ordered.append(group)
    return tuple(ordered)


def _note(places: dict[int, dict[int, list[int]]], number: int, roots: Ints) -> None:
    for position, root in enumerate(roots.tolist()):
        places[root].setdefault(number, []).append(position)


def _group(
    analysis: Analysis,
    sites: list[tuple[ir.Node, ir.Value, int, Role]],
    offset: int,
    places: Mapping[int, Mapping[int, list[int]]],
    roots: list[int],
) -> PruneGroup | None:
    found: list[Site] = []
    readers: list[Reader] = []
    for number in places[roots[0]]:
        positions = np.array([places[root][number] for root in roots], np.int64)
        if number < offset:
            node, value, axis, role = sites[number]
            found.append(Site(str(value.name), axis, positions, role, str(node.name)))
        else:
            node, value, axis = analysis.readers[number - offset]
            readers.append(Reader(str(node.name), str(value.name), axis, positions))
    producers = [site for site in found if site.role is Role.PRODUCER]
    if not producers:
        return None
    reason = analysis.labels.reason(roots[0])
    if reason is None and len(roots) == 1:
        reason = _ALONE
    return PruneGroup(
        producers[0].node,
        analysis.kinds.get(roots[0], "channels"),
        len(roots),
        tuple(found),
        tuple(readers),
        np.array(roots, np.int64),
        reason,
    )


def cut(model: ir.Model, structure: Structure, removed: Mapping[str, Collection[int]]) -> None:
    """Remove channels of a model in place: every tensor of their groups shrinks.

    Args:
        model: The model that `structure` was found in.
        structure: From `analyse`.
        removed: For groups by name, the numbers of the channels to remove.

    Raises:
        ValueError: A group is unknown or must stay, a channel does not exist, or all of a group are to be removed.
    """
    by_name = {group.name: group for group in structure.groups}
    gone: list[int] = []
    for name, channels in removed.items():
        group = by_name.get(name)
        if group is None or group.reason is not None:
            raise ValueError(f"{name} cannot be cut: {'no such group' if group is None else group.reason}")
        chosen = sorted(set(channels))
        if chosen and not 0 <= chosen[0] <= chosen[-1] < group.size:
            raise ValueError(f"{name} has {group.size} channels, not {chosen[-1] + 1}")
        if len(chosen) >= group.size:
            raise ValueError(f"all {group.size} channels of {name} are to be removed: one must stay")
        gone += group.labels[chosen].tolist()
    if not gone:
        return
    analysis, names = structure.analysis, Names(model)
    lost = np.zeros(len(analysis.labels), bool)
    lost[gone] = True

    def mask(labels: Ints) -> NDArray[np.bool_]:
        return np.asarray(~lost[analysis.labels.roots(labels)])

    def constant(values: NDArray[np.int64]) -> ir.Value:
        return add_initializer(model.graph, names.value("pruned_size"), values)

    kept = Kept(mask, constant)
    for edit in analysis.edits:
        edit.apply(kept)
    for value, axes in analysis.constants().items():
        masks = [None if labels is None else mask(labels) for labels in axes]
        if all(item is None or item.all() for item in masks):
            continue
        tensor = constant_tensor(value)
        assert tensor is not None
        array = tensor.numpy()
        for axis, item in enumerate(masks):
            if item is not None:
                array = np.compress(item, array, axis=axis)
        _store(model, value, np.ascontiguousarray(array))


def _store(model: ir.Model, value: ir.Value, array: NDArray[Any]) -> None:
    """Give a constant a new tensor, be it an initializer or the output of a Constant node."""
    producer = value.producer()
    if producer is None:
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    replacement = add_initializer(model.graph, Names(model).value(f"{value.name}_pruned"), array)
    ir.convenience.replace_all_uses_with(value, replacement)
    model.graph.remove(producer, safe=True)
