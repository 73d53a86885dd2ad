"""Run two engines over the same batches, whatever batch sizes and output shapes they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from greencc.core.data import Array, Batch, DataSource
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.progress import Progress, silent


class SingleSamplesError(Exception):
    """Samples cannot be told apart in a batch: run again with one at a time, and `whole` as it is here.

    Attributes:
        whole: Outputs whose first axis is not the batch (detections, scalars): for a single sample, all of
            such an output belongs to it.
    """

    def __init__(self, whole: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(whole)))
        self.whole = whole


def paired_batches(
    baseline: Engine,
    artifact: Engine,
    data: DataSource,
    size: int,
    whole: frozenset[str] = frozenset(),
    progress: Progress = silent,
) -> Iterator[tuple[Batch, dict[str, Array], dict[str, Array]]]:
    """Yield (batch, baseline outputs, artifact outputs); the first axis of every output is the sample.

    Models with a fixed batch get their last batch padded, and the padding's outputs are cut off.

    Args:
        size: Samples per run, for models that do not fix it.
        whole: Outputs that get an axis for the (single) sample; see `SingleSamplesError`.

    Raises:
        SingleSamplesError: Run again with its `whole` and a `size` of 1.
        InputError: The same, in a model whose batch is fixed above 1; or the outputs' names differ.
    """
    fixed = _fixed_batch((baseline, artifact))
    size = fixed or size
    total = -(-data.count // size)
    for batch in progress(data.batches(size), label="Verifying", total=total):
        rows = fixed or batch.count
        feeds = padded(batch.feeds, rows - batch.count)
        try:
            old = baseline.run(feeds)
        except InputError:
            if rows == 1 or fixed:
                raise
            # Exports with a dynamic batch in name only exist: a reshape to a constant fails above 1.
            raise SingleSamplesError(whole) from None
        new = artifact.run(feeds)
        if missing := sorted(set(old) ^ set(new)):
            raise InputError(f"baseline and artifact differ in their outputs: {', '.join(missing)}")
        odd = {name: v for name, v in old.items() if name not in whole and (v.ndim == 0 or len(v) != rows)}
        if odd and fixed is not None and fixed > 1:
            name, value = next(iter(odd.items()))
            raise InputError(
                f"output {name!r} has shape {list(value.shape)} for a batch fixed to {fixed}: "
                "its samples cannot be told apart",
                hint="export the model with a dynamic batch or a batch of 1",
            )
        if odd:
            raise SingleSamplesError(whole | frozenset(odd))
        yield (
            batch,
            {name: _rows(value, name in whole, batch.count) for name, value in old.items()},
            {name: _rows(new[name], name in whole, batch.count) for name in old},
        )


def _fixed_batch(engines: tuple[Engine, ...]) -> int | None:
    """The batch the models fix, or None.

    Raises:
        InputError: They fix different ones.
    """
    fixed = sorted({spec.batch for engine in engines for spec in engine.inputs if spec.batch is not None})
    if len(fixed) > 1:
        raise InputError(f"the inputs are fixed to different batch sizes: {', '.join(map(str, fixed))}")
    return fixed[0] if fixed else None


def padded(feeds: Mapping[str, Array], rows: int) -> Mapping[str, Array]:
    """Repeat the last sample `rows` times."""
    if rows <= 0:
        return feeds
    return {
        name: np.concatenate([value, np.repeat(value[-1:], rows, axis=0)]) for name, value in feeds.items()
    }


def _rows(value: Array, whole: bool, count: int) -> Array:
    if whole:
        return np.asarray(value)[np.newaxis]
    return value[:count] if value.ndim else value
