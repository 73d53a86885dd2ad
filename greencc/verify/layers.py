"""Error of every layer: SQNR of the artifact's activations against the float model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from greencc.core.data import DataSource
from greencc.core.engine import Engine
from greencc.core.errors import InputError
from greencc.core.kl import is_float
from greencc.core.report import LayerError
from greencc.verify.outputs import OutputStats, sqnr_db

# float32 rounding alone is about 144 dB; beyond this two activations are the same for every purpose.
CEILING_DB = 150.0
# Non-finite activations and noise this far above the signal are equally useless.
FLOOR_DB = -50.0


@dataclass(frozen=True)
class LayerPair:
    """One activation in both models: `reference` and `artifact` are value names, `name` the layer's."""

    name: str
    op_type: str
    reference: str
    artifact: str


def layer_errors(
    reference: Engine,
    artifact: Engine,
    layers: Sequence[LayerPair],
    data: DataSource,
    *,
    batches: int = 4,
    size: int = 8,
) -> tuple[LayerError, ...]:
    """SQNR in dB of every layer over the first `batches` batches of `size` samples, in the order given.

    Both engines must expose the values named in `layers` (`Target.reference` with `outputs`). Errors include
    what the layers before added, as in deployment. Layers that are not float in both models are left out.

    Raises:
        InputError: A layer's activations have different shapes in the two models.
    """
    stats = [OutputStats(layer.name, tolerance=0.1) for layer in layers]
    inexact: set[int] = set()
    wanted = [
        list(dict.fromkeys(names)) for names in zip(*((p.reference, p.artifact) for p in layers), strict=True)
    ]
    for batch in islice(data.batches(size), batches if layers else 0):
        old = reference.run(batch.feeds, wanted[0])
        new = artifact.run(batch.feeds, wanted[1])
        for index, layer in enumerate(layers):
            a, b = np.atleast_1d(old[layer.reference]), np.atleast_1d(new[layer.artifact])
            if not (is_float(a) and is_float(b)):
                inexact.add(index)
                continue
            if a.shape != b.shape:
                raise InputError(
                    f"layer {layer.name!r} has shape {list(a.shape)} in the float model and {list(b.shape)} "
                    "in the artifact"
                )
            stats[index].add(a, b)
    return tuple(
        LayerError(layer.name, layer.op_type, _decibels(stats[index]))
        for index, layer in enumerate(layers)
        if index not in inexact
    )


def _decibels(stats: OutputStats) -> float:
    if stats.broken:
        return FLOOR_DB
    value = sqnr_db(stats.signal, stats.noise)
    if value is None:
        return CEILING_DB if stats.noise == 0.0 else FLOOR_DB
    return float(np.clip(value, FLOOR_DB, CEILING_DB))
