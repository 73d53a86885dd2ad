"""What an offer is, and how offers are kept between runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from greencc.core.cache import cache_key
from greencc.core.data import Array
from greencc.core.passes import Context
from greencc.core.serialization import digest
from greencc.passes._capture import require_data
from greencc.passes._prune_costs import macs_per_sample
from greencc.passes._repair_split import spread

Over = Callable[[], bool]
"""Whether the time is over: what has been found until then is all there is."""

_VERSION = 1
# Multiply-accumulates of one pass over the data, and samples to look at all the same.
_WORK, _FEWEST = 4e10, 64
# Of all that is tried out, likewise for each trial, and samples that are always enough.
_TRIALS, _LEAST, _MOST = 1e11, 12, 32
T = TypeVar("T")


class OfferKind(Enum):
    """What is done to a model."""

    CHANNELS = "channels"
    RANK = "rank"
    BLOCK = "block"


@dataclass(frozen=True)
class Offer:
    """Something that can be done to a part of a model, and what it would do to the outputs.

    Attributes:
        kind: What is done.
        unit: Name of the group of channels, of the layer's node, or of the Add that a block ends in.
        option: Channels that stay ("48"), form and ranks ("svd:16"), or "removed".
        error: Predicted divergence of the outputs from the model's own when this alone is done and repaired: the unit
            of `_score_loss.change`, the mean over samples.
        nodes: Names of the nodes of the model whose work or shape it changes.
        saved_macs: Multiply-accumulates that it saves of one inference on the samples of the context, alone.
    """

    kind: OfferKind
    unit: str
    option: str
    error: float
    nodes: tuple[str, ...]
    saved_macs: float


def until(over: Over, items: Iterator[T]) -> Iterator[T]:
    """The items until the time is over; the next one is not begun then."""
    while not over():
        try:
            item = next(items)
        except StopIteration:
            return
        yield item


def fewer(model: ir.Model, ctx: Context) -> Context:
    """The context with as many calibration samples as one may look at where a model is large."""
    source = require_data(ctx)
    work = macs_per_sample(model, ctx.samples)
    return replace(ctx, calibration=spread(source, max(_FEWEST, int(_WORK / max(work, 1.0)))))


def trial_samples(model: ir.Model, ctx: Context, trials: int) -> int:
    """On how many samples each of some variants of a model is tried out."""
    work = macs_per_sample(model, ctx.samples) * max(1, trials)
    return min(_MOST, max(_LEAST, int(_TRIALS / max(work, 1.0))))


def kept_offers(
    what: str,
    model: ir.Model,
    ctx: Context,
    options: Mapping[str, object],
    over: Over,
    find: Callable[[], list[Offer]],
) -> list[Offer]:
    """The offers that an earlier call has found, or those of `find`, which are kept if it was not cut short.

    Args:
        what: Plain word for the kind of entry.
        model: What they are of.
        ctx: Gives the data and the cache.
        options: All that decides what is found beside the model and the data.
        over: Whether the time is over.
        find: Finds them.
    """
    source = require_data(ctx)
    shapes = [{name: list(np.shape(values)) for name, values in feeds.items()} for feeds in ctx.samples[:1]]
    key = cache_key(_VERSION, what, digest(model), source.digest(), source.count, shapes, dict(options))
    entry = ctx.cache.get("offers", key)
    if entry is not None:
        return _read(entry)
    found = find()
    if not over():
        ctx.cache.put("offers", key, _written(found))
    return found


def _written(offers: list[Offer]) -> dict[str, Array]:
    rows = [[item.kind.value, item.unit, item.option, list(item.nodes)] for item in offers]
    return {
        "texts": np.frombuffer(json.dumps(rows).encode(), np.uint8),
        "numbers": np.array([[item.error, item.saved_macs] for item in offers], np.float64).reshape(-1, 2),
    }


def _read(entry: Mapping[str, Array]) -> list[Offer]:
    rows = json.loads(entry["texts"].tobytes())
    return [
        Offer(OfferKind(kind), unit, option, float(error), tuple(nodes), float(saved))
        for (kind, unit, option, nodes), (error, saved) in zip(rows, entry["numbers"], strict=True)
    ]
