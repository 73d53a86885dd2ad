"""Checkpoints of training in greencc's cache: plain arrays, read without unpickling.

The key covers everything that training depends on, so a run with the same inputs goes on where it was interrupted, and
one with others begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from greencc.core.cache import Cache
from greencc.core.data import Array

KIND = "recover"
_PARTS = ("weights", "first", "second")


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after an epoch.

    Attributes:
        epoch: Epochs done.
        steps: Steps of the optimizer done.
        weights: The parameters by name.
        first: The optimizer's first moments by name; empty before its first step.
        second: Its second moments (Adam).
        loss: Mean loss of each epoch done.
    """

    epoch: int
    steps: int
    weights: Mapping[str, Array]
    first: Mapping[str, Array]
    second: Mapping[str, Array]
    loss: tuple[float, ...]


def save(cache: Cache, key: str, state: Checkpoint) -> None:
    """Replace the checkpoint under a key."""
    arrays: dict[str, Array] = {
        "counts": np.array([state.epoch, state.steps], np.int64),
        "loss": np.array(state.loss, np.float64),
    }
    for part in _PARTS:
        named: Mapping[str, Array] = getattr(state, part)
        # An archive may not take every name a graph has: numbers are safe.
        arrays[f"{part}.names"] = np.array(list(named), np.str_)
        arrays |= {f"{part}.{index}": array for index, array in enumerate(named.values())}
    cache.put(KIND, key, arrays)


def load(cache: Cache, key: str, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint | None:
    """The checkpoint under a key, or None when there is none that fits the parameters."""
    arrays = cache.get(KIND, key)
    if arrays is None:
        return None
    try:
        epoch, steps = (int(value) for value in arrays["counts"])
        parts = {
            part: {str(name): arrays[f"{part}.{index}"] for index, name in enumerate(arrays[f"{part}.names"])}
            for part in _PARTS
        }
        loss = tuple(float(value) for value in arrays["loss"])
    except (KeyError, ValueError):
        return None
    for part, named in parts.items():
        if (part == "weights" or named) and {name: array.shape for name, array in named.items()} != dict(
            shapes
        ):
            return None
    return Checkpoint(epoch, steps, loss=loss, **parts)
