"""Group lasso on prune groups: whole channels are trained to zero, then cut.

The penalty is lambda sum_c sqrt(n_c) ||w_c||_2 over the channels c of all prune groups, where w_c is everything that
belongs to a channel (what computes it, what reads it, its parameters) and n_c its size (Yuan and Lin 2006; Wen et al.,
arXiv 1608.03665; over dependency groups Fang et al., arXiv 2301.12900, section 3.3). It is minimised by its proximal
step after each step of the optimizer, w_c *= max(0, 1 - rate lambda sqrt(n_c) / ||w_c||), which reaches exact zeros.
`_empty` then cuts these channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from greencc.core.groups import PruneGroup, analyse
from greencc.recover._empty import can_empty
from greencc.torch_graph.node import Tensor


@dataclass(frozen=True, eq=False)
class _Part:
    """Where the channels of a group lie in one parameter: `index` has the channel of each place along `axis`."""

    name: str
    axis: int
    places: Tensor
    channels: Tensor


class GroupLasso:
    """The penalty over the prunable groups of a float graph."""

    def __init__(self, model: ir.Model, parameters: Mapping[str, Tensor]) -> None:
        self._groups: list[tuple[int, list[_Part]]] = []
        for group in analyse(model).prunable:
            parts = _parts(group, parameters)
            if parts:
                self._groups.append((group.size, parts))

    def shrink(self, parameters: Mapping[str, Tensor], rate: float) -> None:
        """The proximal step."""
        with torch.no_grad():
            for size, parts in self._groups:
                squares, counts = torch.zeros(size), torch.zeros(size)
                for part in parts:
                    rows = _rows(parameters[part.name], part)
                    squares.index_add_(0, part.channels, rows.square().sum(dim=1))
                    counts.index_add_(
                        0, part.channels, torch.full((len(part.channels),), float(rows.shape[1]))
                    )
                norms = squares.sqrt()
                factor = torch.clamp(1.0 - rate * counts.sqrt() / torch.clamp(norms, min=1e-30), min=0.0)
                for part in parts:
                    value = parameters[part.name]
                    scale = torch.ones(value.shape[part.axis])
                    scale[part.places] = factor[part.channels]
                    shape = [-1 if axis == part.axis else 1 for axis in range(value.dim())]
                    value.mul_(scale.reshape(shape))


def _rows(value: Tensor, part: _Part) -> Tensor:
    moved = value.movedim(part.axis, 0)
    return moved.index_select(0, part.places).reshape(len(part.places), -1)


def _parts(group: PruneGroup, parameters: Mapping[str, Tensor]) -> list[_Part]:
    if not can_empty(group, parameters):
        return []
    parts: dict[tuple[str, int], _Part] = {}
    for site in group.sites:
        if site.tensor not in parameters:
            continue
        channels, width = site.positions.shape
        parts[site.tensor, site.axis] = _Part(
            site.tensor,
            site.axis,
            torch.from_numpy(site.positions.reshape(-1).copy()),
            torch.from_numpy(np.repeat(np.arange(channels), width)),
        )
    return list(parts.values())
