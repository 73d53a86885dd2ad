"""Whether a repair of many layers brings the outputs of the whole model nearer to the original's.

Each layer is judged on its own outputs while it is refit, on samples kept aside. That need not add up: with few samples
for wide layers (feed-forward blocks of transformers) small gains of every layer can move the outputs away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch
from greencc.core.describe import nodes_cost
from greencc.core.passes import Context
from greencc.passes._capture import checked, require_data, rows, run_one
from greencc.passes._quantized_pair import HELD_OUT
from greencc.passes._score_loss import change

_SAMPLES = 64
# Multiply-accumulates to spend on one model, and samples to look at all the same.
_WORK, _FEWEST = 2e11, 8


def divergence(original: ir.Model, models: list[ir.Model], ctx: Context) -> list[float]:
    """How far the outputs of each model are from the original's: the mean over samples no refit has learned from.

    Args:
        original: The model they stand for.
        models: Models with its inputs and outputs.
        ctx: Gives the calibration data and the engines.
    """
    work = sum(float(cost.macs or 0) for cost in nodes_cost(original))
    batches = _held_out(ctx, max(_FEWEST, min(_SAMPLES, int(_WORK / max(work, 1.0)))))
    exact = _outputs(original, batches, ctx)
    found = []
    for model in models:
        pairs = zip(exact, _outputs(model, batches, ctx), strict=True)
        found.append(float(np.mean([change(before, after) for before, after in pairs])))
    return found


def _held_out(ctx: Context, wanted: int) -> list[Batch]:
    """Every fifth sample, one by one; all there are where these are fewer than five."""
    source = require_data(ctx)
    step = HELD_OUT if source.count >= HELD_OUT else 1
    picked: list[Batch] = []
    first = 0
    for item in checked(source, 32):
        for offset in range(item.count):
            if (first + offset) % step == step - 1 and len(picked) < wanted:
                picked.append(rows(item, offset, offset + 1))
        first += item.count
    return picked


def _outputs(model: ir.Model, batches: list[Batch], ctx: Context) -> list[dict[str, Array]]:
    engine = (ctx.observe or ctx.build)(model)
    try:
        return [run_one(engine, batch) for batch in batches]
    finally:
        engine.close()
