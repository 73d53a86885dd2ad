"""From labels to prune groups: labels with the same places in the same tensors are one group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.groups.analysis import Analysis
from greencc.core.groups.labels import Ints
from greencc.core.groups.model import PruneGroup, Reader, Site
from greencc.core.groups.roles import Role

_ALONE = "it has one channel"


def groups_of(analysis: Analysis) -> tuple[PruneGroup, ...]:
    """The prune groups of an analysis, in the order of the graph.

    Every axis that a model has either holds a whole group or none of it: while one channel of each group stays, no
    axis becomes empty.
    """
    sites = list(dict.fromkeys(analysis.sites))
    constants = analysis.constants()
    found = [constants[value][axis] for _, value, axis, _ in sites]
    found += [analysis.axes(value)[axis] for _, value, axis in analysis.readers]
    places = [None if labels is None else analysis.labels.roots(labels) for labels in found]
    parts = _partition(analysis, places)
    ranks = _ranks(places, len(analysis.labels))
    members: dict[int, list[tuple[int, Ints]]] = defaultdict(list)
    for number, roots in enumerate(places):
        if roots is not None:
            for part, where in _by_part(parts[roots], ranks[roots]):
                members[part].append((number, where))
    order = np.argsort(ranks, kind="stable")
    order = order[ranks[order] >= 0]
    labels_of: dict[int, list[int]] = defaultdict(list)
    for root in order.tolist():
        labels_of[int(parts[root])].append(root)
    names: Counter[str] = Counter()
    groups = []
    # Parts come in the order in which their first label is met.
    for part, labels in labels_of.items():
        group = _group(analysis, sites, members[part], np.array(labels, np.int64), names)
        if group is not None:
            groups.append(group)
    return tuple(groups)


def _partition(analysis: Analysis, places: Sequence[Ints | None]) -> Ints:
    """A number for every label: equal where two have the same places everywhere, and are locked alike."""
    labels = analysis.labels
    parts, top = np.zeros(len(labels), np.int64), 1
    locks = labels.locks()

    def refine(roots: Ints, keys: Ints) -> None:
        nonlocal top
        pairs = parts[roots] * (int(keys.max()) + 1) + keys
        _, numbers = np.unique(pairs, return_inverse=True)
        parts[roots] = top + numbers.reshape(-1)
        top += int(numbers.max()) + 1

    for roots in places:
        if roots is not None:
            refine(*np.unique(roots, return_counts=True))
    seen: set[int] = set()
    for _, axes in analysis.labelled():
        for item in axes:
            if item is not None and id(item) not in seen:
                seen.add(id(item))
                which = np.unique(labels.roots(item))
                refine(which, np.zeros(len(which), np.int64))
    if len(locks):
        # Channels of different locks are different groups: a model's inputs beside what a layer computes.
        every = np.arange(len(labels))
        refine(every, locks + 1)
    return parts


def _ranks(places: Sequence[Ints | None], count: int) -> Ints:
    """The order in which labels are met; -1 for those that are in no place."""
    ranks, top = np.full(count, -1, np.int64), 0
    for roots in places:
        if roots is None:
            continue
        which, first = np.unique(roots, return_index=True)
        new = ranks[which] < 0
        which, first = which[new], first[new]
        ranks[which[np.argsort(first)]] = np.arange(top, top + len(which))
        top += len(which)
    return ranks


def _by_part(parts: Ints, ranks: Ints) -> list[tuple[int, Ints]]:
    """The positions of every part, (channels, n), channels in the order of their ranks."""
    order = np.lexsort((ranks, parts))
    bounds = np.flatnonzero(np.diff(parts[order])) + 1
    found = []
    for where in np.split(order, bounds):
        count = 1 + int((np.diff(ranks[where]) != 0).sum())
        found.append((int(parts[where[0]]), where.reshape(count, -1)))
    return found


def _group(
    analysis: Analysis,
    sites: Sequence[tuple[ir.Node, ir.Value, int, Role]],
    members: Sequence[tuple[int, Ints]],
    labels: Ints,
    names: Counter[str],
) -> PruneGroup | None:
    found: list[Site] = []
    readers: list[Reader] = []
    for number, positions in members:
        if number < len(sites):
            node, value, axis, role = sites[number]
            found.append(Site(str(value.name), axis, positions, role, str(node.name)))
        else:
            node, value, axis = analysis.readers[number - len(sites)]
            readers.append(Reader(str(node.name), str(value.name), axis, positions))
    producers = [site for site in found if site.role is Role.PRODUCER]
    if not producers:
        return None
    reason = analysis.labels.reason(int(labels[0]))
    if reason is None and len(labels) == 1:
        reason = _ALONE
    name = producers[0].node
    names[name] += 1
    return PruneGroup(
        name if names[name] == 1 else f"{name}#{names[name]}",
        analysis.kinds.get(int(labels[0]), "channels"),
        len(labels),
        tuple(found),
        tuple(readers),
        labels,
        reason,
    )
