"""Cut the channels that a group lasso has emptied.

A channel whose trained weights are all zero, all those that read it included, can be cut without changing the outputs.
Where no weight reads it (the products of attention sum over two computed values), everything that computes it must be
trained and zero.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from greencc.core.graph import ensure_names
from greencc.core.groups import PruneGroup, Role, analyse, cut
from greencc.core.model import infer_shapes
from greencc.torch_graph.parameters import find_parameters


def can_empty(group: PruneGroup, trained: Collection[str]) -> bool:
    """Whether zeros in the trained constants cut the channels of a group off.

    Args:
        group: The group.
        trained: Names of the trained constants.
    """
    decisive = group.having(Role.CONSUMER) or group.sites
    return bool(decisive) and all(site.tensor in trained for site in decisive)


def cut_empty(model: ir.Model) -> int:
    """Cut the channels of a model, in place, whose weights are all zero; return how many there were.

    A channel stays when it is the last of its group.
    """
    ensure_names(model)
    infer_shapes(model)
    structure = analyse(model)
    trained = find_parameters(model)
    removed: dict[str, list[int]] = {}
    for group in structure.prunable:
        if not can_empty(group, trained):
            continue
        size = np.zeros(group.size)
        for site in group.sites:
            if site.tensor not in trained:
                continue
            rows = np.moveaxis(np.abs(trained[site.tensor].start), site.axis, 0)
            for channel, places in enumerate(site.positions):
                size[channel] += float(rows[places].sum())
        empty = np.flatnonzero(size == 0.0).tolist()
        if len(empty) == group.size:
            empty = empty[1:]
        if empty:
            removed[group.name] = empty
    cut(model, structure, removed)
    infer_shapes(model)
    return sum(map(len, removed.values()))
