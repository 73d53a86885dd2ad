"""Engines made of NumPy functions, and data held in arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from greencc.core.data import Array, Batch, Feeds, TensorSpec

Function = Callable[[Array], Mapping[str, Array]]


@dataclass
class FakeEngine:
    """Runs a function of the one input "x". `batch` fixes the first axis; `sizes` records what was fed."""

    function: Function
    batch: int | None = None

    def __post_init__(self) -> None:
        self.sizes: list[int] = []
        self.outputs: Sequence[TensorSpec] = ()
        self.inputs = (TensorSpec("x", np.dtype(np.float32), (self.batch or "N", "d")),)

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        x = feeds["x"]
        if self.batch is not None:
            assert len(x) == self.batch
        self.sizes.append(len(x))
        found = dict(self.function(x))
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        pass


@dataclass
class FakeData:
    x: Array
    labels: Array | None = None
    synthetic: bool = False
    name: str = "data.npz"

    @property
    def count(self) -> int:
        return len(self.x)

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    def digest(self) -> str:
        return "0" * 64

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self.x), size):
            rows = slice(start, start + size)
            yield Batch({"x": self.x[rows]}, None if self.labels is None else self.labels[rows])


class Fakes:
    """What tests build comparisons from."""

    engine = FakeEngine
    data = FakeData

    @staticmethod
    def one_hot(classes: Any, width: int) -> Array:
        return np.eye(width, dtype=np.float32)[np.asarray(classes)]

    @staticmethod
    def pair(worse: int, better: int, both: int, neither: int) -> tuple[FakeEngine, FakeEngine, FakeData]:
        """Two classifiers of two classes with exactly these paired outcomes; the label is always 0."""
        kinds = np.repeat([0, 1, 2, 3], [worse, better, both, neither])
        kinds = np.random.default_rng(0).permutation(kinds)
        x = kinds.astype(np.float32)[:, None]

        def baseline(x: Array) -> dict[str, Array]:
            return {"scores": Fakes.one_hot(np.isin(x[:, 0], (1, 3)).astype(int), 2)}

        def artifact(x: Array) -> dict[str, Array]:
            return {"scores": Fakes.one_hot(np.isin(x[:, 0], (0, 3)).astype(int), 2)}

        return FakeEngine(baseline), FakeEngine(artifact), FakeData(x, np.zeros(len(x), np.int64))


@pytest.fixture
def fakes() -> type[Fakes]:
    return Fakes
