"""Run two engines over the same batches, whatever batch sizes and output shapes they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from greencc.core.data import Array, Batch, DataSource
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.progress import Progress, silent


class UnalignedOutputsError(Exception):
    """An output's first axis is not the batch, so that its samples cannot be told apart in a batch."""


def batch_size(engines: tuple[Engine, ...], wanted: int) -> tuple[int, bool]:
    """The batch to run with, and whether the model fixes it.

    Raises:
        InputError: The engines are fixed to different batch sizes.
    """
    fixed = {spec.batch for engine in engines for spec in engine.inputs} - {None}
    if len(fixed) > 1:
        raise InputError(f"the inputs are fixed to different batch sizes: {sorted(n for n in fixed if n)}")
    only = fixed.pop() if fixed else None
    return (wanted, False) if only is None else (only, True)


def paired_batches(
    baseline: Engine, artifact: Engine, data: DataSource, wanted: int, progress: Progress = silent
) -> Iterator[tuple[Batch, dict[str, Array], dict[str, Array]]]:
    """Yield (batch, baseline outputs, artifact outputs); the first axis of every output is the sample.

    Models with a fixed batch get their last batch padded, and the padding's outputs are cut off.

    Raises:
        UnalignedOutputsError: An output's first axis is not the batch; run again with `wanted` = 1.
        InputError: The same, in a model whose batch is fixed above 1; or the outputs' names differ.
    """
    size, fixed = batch_size((baseline, artifact), wanted)
    total = -(-data.count // size)
    for batch in progress(data.batches(size), label="Verify", total=total):
        padding = size - batch.count if fixed else 0
        feeds = _padded(batch.feeds, padding) if padding > 0 else batch.feeds
        runs = [engine.run(feeds) for engine in (baseline, artifact)]
        if list(runs[0]) != list(runs[1]):
            missing = sorted(set(runs[0]) ^ set(runs[1]))
            if missing:
                raise InputError(f"baseline and artifact differ in their outputs: {', '.join(missing)}")
        rows = batch.count + padding
        first, second = ({name: runs[0][name] for name in runs[0]}, {name: runs[1][name] for name in runs[0]})
        yield batch, _aligned(first, rows, batch.count, fixed), _aligned_to(second, rows, batch.count)


def _padded(feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Repeat the last sample `rows` times."""
    return {
        name: np.concatenate([value, np.repeat(value[-1:], rows, axis=0)]) for name, value in feeds.items()
    }


def _aligned(outputs: dict[str, Array], rows: int, count: int, fixed: bool) -> dict[str, Array]:
    odd = next((n for n, v in outputs.items() if v.ndim == 0 or v.shape[0] != rows), None)
    if odd is None:
        return {name: value[:count] for name, value in outputs.items()}
    if rows == 1:
        return _aligned_to(outputs, rows, count)
    if fixed:
        raise InputError(
            f"output {odd!r} has shape {list(outputs[odd].shape)} for a batch fixed to {rows}: "
            "its samples cannot be told apart",
            hint="export the model with a dynamic batch or a batch of 1",
        )
    raise UnalignedOutputsError(odd)


def _aligned_to(outputs: dict[str, Array], rows: int, count: int) -> dict[str, Array]:
    """Cut the padding off; for single samples, an output without a batch axis gets one."""
    if rows > 1:
        return {name: value[:count] if value.ndim else value for name, value in outputs.items()}
    return {n: v if v.ndim and v.shape[0] == 1 else v[np.newaxis] for n, v in outputs.items()}
