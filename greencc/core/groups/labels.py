"""Labels of coordinates: what must be kept or cut together has one label (a disjoint-set forest)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
# One label per coordinate of an axis, or None where the axis has nothing that could be cut.
AxisLabels = Ints | None


class Labels:
    """Makes labels, unites them, and remembers which must stay and why."""

    def __init__(self) -> None:
        self._parents = np.zeros(0, np.int64)
        self._count = 0
        self._locked: dict[int, str] = {}

    def __len__(self) -> int:
        return self._count

    def fresh(self, size: int) -> Ints:
        """`size` labels of their own."""
        start, self._count = self._count, self._count + size
        if self._count > len(self._parents):
            room = max(1024, 2 * self._count)
            self._parents = np.concatenate([self._parents[:start], np.arange(start, room)])
        return np.arange(start, self._count)

    def roots(self, labels: Ints) -> Ints:
        """The representatives of labels, in the same shape."""
        found = self._parents[labels]
        while True:
            parents = self._parents[found]
            if np.array_equal(parents, found):
                break
            found = parents
        self._parents[labels] = found
        return found

    def unite(self, first: Ints, second: Ints) -> None:
        """What `first` and `second` name, place by place, belongs together from now on."""
        # Within one call the roots change as pairs are united, so each pair looks them up anew.
        pairs = np.stack([self.roots(first).ravel(), self.roots(second).ravel()])
        for a, b in np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).T:
            low, high = sorted((self._root(int(a)), self._root(int(b))))
            if low == high:
                continue
            self._parents[high] = low
            reason = self._locked.pop(high, None)
            if reason is not None:
                self._locked.setdefault(low, reason)

    def merge(self, labels: Ints, axis: int) -> Ints:
        """Unite along one axis of an array of labels; what is left without that axis."""
        first = np.take(labels, [0], axis=axis)
        self.unite(labels, np.broadcast_to(first, labels.shape))
        return np.asarray(np.take(labels, 0, axis=axis))

    def lock(self, labels: Ints, reason: str) -> None:
        """These must stay; the first reason given is kept."""
        for root in np.unique(self.roots(labels)):
            self._locked.setdefault(int(root), reason)

    def reason(self, root: int) -> str | None:
        """Why a representative must stay, or None where it may be cut."""
        return self._locked.get(root)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            label = int(self._parents[label])
        return label


def concatenate(parts: Sequence[AxisLabels], sizes: Sequence[int], labels: Labels, reason: str) -> AxisLabels:
    """The labels of an axis put together from parts; parts without labels get ones that must stay."""
    if all(part is None for part in parts):
        return None
    found = []
    for part, size in zip(parts, sizes, strict=True):
        if part is None:
            part = labels.fresh(size)
            labels.lock(part, reason)
        found.append(part)
    return np.concatenate(found)
