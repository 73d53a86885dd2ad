"""A repair of many layers stays only if it brings the outputs of the whole model nearer to the original's.

Each layer is judged on its own outputs while it is refit, on samples kept aside. That need not add up: with few samples
for wide layers (feed-forward blocks of transformers) small gains of every layer can move the outputs away. The whole
is judged on samples that nothing has learned from (`_repair_split`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch
from greencc.core.passes import Context, Finding
from greencc.passes._capture import checked, require_data, rows, run_one
from greencc.passes._prune_costs import macs_per_sample
from greencc.passes._repair_split import Chosen, judges, where_judged
from greencc.passes._score_loss import change

_SAMPLES = 64
# Multiply-accumulates to spend on one model, and samples to look at all the same.
_WORK, _FEWEST = 2e11, 8


def repaired(
    original: ir.Model,
    model: ir.Model,
    ctx: Context,
    repair: Callable[[ir.Model], list[Finding]],
    rule: str,
) -> list[Finding]:
    """Repair a clone of `model`, whose graph takes the place of the model's where the outputs come nearer.

    Args:
        original: The model whose outputs are wanted.
        model: With its inputs and outputs; its graph may be replaced.
        ctx: Gives the calibration data and the engines. Rewrites of a repair that is dropped are taken back.
        repair: Changes the model it is given in place.
        rule: Of the finding that tells why a repair was dropped.

    Returns:
        The findings of the repair, or that one.
    """
    trial, announced = model.clone(), len(ctx.rewrites.applied)
    findings = repair(trial)
    chosen = _judges(original, ctx)
    before, after = divergence(original, [model, trial], chosen, ctx)
    if after <= before:
        model.graph = trial.graph
        return findings
    del ctx.rewrites.applied[announced:]
    message = (
        f"the repair was dropped: with it the outputs are further from the original's ({after:.3g} against "
        f"{before:.3g} {where_judged(chosen.judging)}); give more calibration samples"
    )
    return [Finding("warning", message, rule=rule)]


def divergence(original: ir.Model, models: list[ir.Model], samples: Chosen, ctx: Context) -> list[float]:
    """How far the outputs of each model are from the original's: the mean over the samples.

    Args:
        original: The model they stand for.
        models: Models with its inputs and outputs.
        samples: What to compare on.
        ctx: Gives the engines.
    """
    batches = [rows(item, row, row + 1) for item in checked(samples, 32) for row in range(item.count)]
    exact = _outputs(original, batches, ctx)
    found = []
    for model in models:
        pairs = zip(exact, _outputs(model, batches, ctx), strict=True)
        found.append(float(np.mean([change(before, after) for before, after in pairs])))
    return found


def _judges(original: ir.Model, ctx: Context) -> Chosen:
    work = macs_per_sample(original, ctx.samples)
    wanted = max(_FEWEST, min(_SAMPLES, int(_WORK / max(work, 1.0))))
    return judges(require_data(ctx), wanted)


def _outputs(model: ir.Model, batches: list[Batch], ctx: Context) -> list[dict[str, Array]]:
    engine = (ctx.observe or ctx.build)(model)
    try:
        return [run_one(engine, batch) for batch in batches]
    finally:
        engine.close()
