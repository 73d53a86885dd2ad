"""The weights with which nodes read the channels of a prune group.

A weighted node that reads a value multiplies each coordinate along the channel axis by some weights: by its row of a
MatMul's matrix, by (outputs x kernel) numbers of a convolution. As rows of a matrix, (coordinates, weights), all of
them look alike. Taps of a kernel count as outputs of their own, which is exact where neighbouring positions are not
correlated. Convolutions in groups read each coordinate with the weights of its group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import attribute_int, constant_tensor, is_op
from greencc.core.groups import PruneGroup, Reader, Role, Site
from greencc.passes._capture import graph_values
from greencc.passes._quantize_insert import release

Float64 = NDArray[np.float64]


class Weights:
    """Reads the constants of a model that prune groups name."""

    def __init__(self, model: ir.Model) -> None:
        self.nodes = {str(node.name): node for node in model.graph}
        self._values: dict[str, ir.Value] = {str(value.name): value for value in graph_values(model.graph)}
        self._values |= {str(name): value for name, value in model.graph.initializers.items()}

    def rows(self, site: Site) -> Array:
        """A site's constant with its axis first and the others flattened: (coordinates, the rest)."""
        tensor = constant_tensor(self._values.get(site.tensor))
        assert tensor is not None, site.tensor
        array = np.asarray(tensor.numpy())
        if not np.isfinite(array).all():
            raise InputError(
                f"weight {site.tensor!r} of {site.node!r} holds NaN or infinity",
                hint="repair the model: channels cannot be ranked by such weights",
            )
        moved = np.array(np.moveaxis(array, site.axis, 0), order="C")
        release(tensor)
        return moved.reshape(len(moved), -1)

    def energy(self, site: Site) -> Float64:
        """Sum of the squared weights of each channel at a site."""
        squares = np.square(self.rows(site).astype(np.float64)).sum(axis=1)
        return np.asarray(squares[site.positions].sum(axis=1))

    def read(self, group: PruneGroup, reader: Reader) -> Array:
        """The weights of a reader, (coordinates of the value's axis, weights): those outside the group as well."""
        site = next(site for site in group.having(Role.CONSUMER) if site.node == reader.node)
        rows = self.rows(site)
        groups = self._groups(reader.node)
        if groups == 1:
            return rows
        # Conv: (inside, groups * outputs * kernel) -> (groups * inside, outputs * kernel)
        inside = len(rows)
        return rows.reshape(inside, groups, -1).swapaxes(0, 1).reshape(groups * inside, -1)

    def readers(self, group: PruneGroup) -> list[Reader]:
        """The readers of a group with weights, convolutions in groups among them."""
        sites = {site.node: site for site in reversed(group.having(Role.CONSUMER))}
        found = [reader for reader in group.readers if reader.node in sites]
        known = {reader.node for reader in found}
        for name, site in sites.items():
            groups = self._groups(name)
            node = self.nodes[name]
            if name in known or groups == 1 or node.inputs[0] is None:
                continue
            # Each channel is at the same place in all groups.
            tensor = constant_tensor(self._values.get(site.tensor))
            assert tensor is not None, site.tensor
            width = int(tensor.shape.numpy()[site.axis])
            places = site.positions[:, np.newaxis, :] + np.arange(groups)[:, np.newaxis] * width
            positions = places.reshape(len(site.positions), -1)
            found.append(Reader(name, str(node.inputs[0].name), 1, positions))
        order = {name: place for place, name in enumerate(self.nodes)}
        return sorted(found, key=lambda reader: order[reader.node])

    def all_readers(self, groups: Sequence[PruneGroup]) -> list[Reader]:
        """Those of several groups; a node that reads several of them comes once."""
        distinct = {reader.node: reader for group in groups for reader in self.readers(group)}
        return list(distinct.values())

    def _groups(self, name: str) -> int:
        node = self.nodes[name]
        return attribute_int(node, "group", 1) if is_op(node, "Conv") else 1


def shares(parts: Float64, total: float) -> Float64:
    """Parts of a total; zeros where there is nothing to share."""
    if not total > 0.0:
        return np.zeros_like(parts)
    return np.asarray(np.maximum(parts, 0.0) / total)
