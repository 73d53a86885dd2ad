"""Feeds of any number of samples for models whose batch size is fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import InputError


@dataclass(frozen=True)
class Chunking:
    """How `count` samples are fed to a model whose first axis is fixed to `batch`."""

    batch: int
    count: int
    split: frozenset[str]

    def chunks(self, feeds: Feeds) -> Iterator[tuple[dict[str, Array], int]]:
        """Yield (feeds of exactly `batch` samples, how many are real); the last is padded with its last sample."""
        for start in range(0, self.count, self.batch):
            valid = min(self.batch, self.count - start)
            yield {name: self._part(name, array, start, valid) for name, array in feeds.items()}, valid

    def _part(self, name: str, array: Array, start: int, valid: int) -> Array:
        if name not in self.split:
            return array
        part = array[start : start + valid]
        if valid == self.batch:
            return part
        return np.concatenate([part, np.repeat(part[-1:], self.batch - valid, axis=0)])


def plan_chunks(feeds: Feeds, specs: Sequence[TensorSpec]) -> Chunking | None:
    """Decide whether the feeds must be split, or None when they fit the model's first axes as they are.

    An input takes part when its first axis is fixed and its feed has another length; all of those must agree on
    both numbers. Inputs that fit are passed along with every chunk.

    Raises:
        InputError: The inputs disagree about the number of samples, or there are none.
    """
    misfits = {
        spec.name: (spec.batch, len(feeds[spec.name]))
        for spec in specs
        if spec.batch is not None and len(feeds[spec.name]) != spec.batch
    }
    if not misfits:
        return None
    if len(set(misfits.values())) > 1:
        listing = ", ".join(f"{name!r} wants {batch}, got {got}" for name, (batch, got) in misfits.items())
        raise InputError(
            f"the inputs disagree about the number of samples (first axis): {listing}",
            hint="give every input the same number of samples",
        )
    batch, count = next(iter(misfits.values()))
    assert batch is not None
    if batch == 0 or count == 0:
        raise InputError(
            f"input {next(iter(misfits))!r} has {count} samples and the model's first axis is {batch}"
        )
    return Chunking(batch, count, frozenset(misfits))


def run_chunks(
    plan: Chunking,
    feeds: Feeds,
    run: Callable[[Feeds], dict[str, Array]],
    batched_outputs: Mapping[str, bool],
) -> dict[str, Array]:
    """Run chunk by chunk and join the outputs along the first axis.

    Args:
        plan: From `plan_chunks`.
        feeds: All samples.
        run: Runs one chunk.
        batched_outputs: Per output, whether its first axis must be the batch. Those are trimmed to the real samples.
            The others (inner values) are trimmed in proportion where their first axis is a multiple of the batch.

    Raises:
        InputError: An output that must be batched is not.
    """
    parts: dict[str, list[Array]] = {}
    for chunk, valid in plan.chunks(feeds):
        for name, array in run(chunk).items():
            parts.setdefault(name, []).append(
                _trim(name, array, plan.batch, valid, strict=batched_outputs.get(name, False))
            )
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _trim(name: str, array: Array, batch: int, valid: int, *, strict: bool) -> Array:
    rows = array.shape[0] if array.ndim else None
    if strict and rows != batch:
        raise InputError(
            f"the model's batch is fixed to {batch} and output {name!r} has shape {array.shape}, without that batch",
            hint=f"feed exactly {batch} samples at a time, or export the model with a dynamic batch",
        )
    if rows is None:
        return array.reshape(1)
    if valid == batch or rows % batch:
        return array
    return array[: rows // batch * valid]
