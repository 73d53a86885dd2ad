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
        self._locks: list[tuple[Ints, str]] = []
        # For every label the number of its root's first lock, once somebody asks.
        self._resolved: Ints | None = None

    def __len__(self) -> int:
        return self._count

    def fresh(self, size: int) -> Ints:
        """`size` labels of their own."""
        start, self._count = self._count, self._count + size
        if self._count > len(self._parents):
            room = max(1024, 2 * self._count)
            self._parents = np.concatenate([self._parents[:start], np.arange(start, room)])
        self._resolved = None
        return np.arange(start, self._count)

    def roots(self, labels: Ints) -> Ints:
        """The representatives of labels, in the same shape."""
        found = self._parents[labels]
        if not np.array_equal(self._parents[found], found):
            self._flatten()
            found = self._parents[labels]
        return found

    def unite(self, first: Ints, second: Ints) -> None:
        """What `first` and `second` name, place by place, belongs together from now on."""
        self._resolved = None
        first, second = np.ravel(first), np.ravel(second)
        while True:
            a, b = self.roots(first), self.roots(second)
            differ = a != b
            if not differ.any():
                return
            first, second, a, b = first[differ], second[differ], a[differ], b[differ]
            # A root that meets several lower ones hangs below the lowest; the next round joins the others.
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))

    def merge(self, labels: Ints, axis: int) -> Ints:
        """Unite along one axis of an array of labels; what is left without that axis."""
        first = np.take(labels, [0], axis=axis)
        self.unite(labels, np.broadcast_to(first, labels.shape))
        return np.asarray(np.take(labels, 0, axis=axis))

    def lock(self, labels: Ints, reason: str) -> None:
        """These must stay; the first reason given is kept."""
        self._locks.append((labels, reason))
        self._resolved = None

    def reason(self, root: int) -> str | None:
        """Why a representative must stay, or None where it may be cut."""
        number = int(self.locks()[root])
        return self._locks[number][1] if number >= 0 else None

    def locks(self) -> Ints:
        """For every representative a number that says why it must stay, equal for equal reasons; -1 where it may go."""
        if self._resolved is None:
            numbers: dict[str, int] = {}
            for number, (_, reason) in enumerate(self._locks):
                numbers.setdefault(reason, number)
            found = np.full(self._count, -1, np.int64)
            for labels, reason in reversed(self._locks):
                found[self.roots(labels)] = numbers[reason]
            self._resolved = found
        return self._resolved

    def _flatten(self) -> None:
        """Hang every label directly below its root, halving the distance each time."""
        parents = self._parents[: self._count]
        while True:
            above = parents[parents]
            if np.array_equal(above, parents):
                return
            parents[:] = above


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
