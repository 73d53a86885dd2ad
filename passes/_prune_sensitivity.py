"""How much the model's outputs mind an error in the layers that read a group.

Scores say what share of the energy of these layers' outputs is lost. What that does to the outputs of the model differs
by layer: an early error is averaged out or grows, one in front of the classifier counts in full. So each group's
readers get weights with random noise of a known relative energy, and the divergence of the model's outputs per unit
of energy is the group's weight. For small errors both are proportional (the divergence is quadratic in the error).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.describe import nodes_cost
from greencc.core.graph import Names, add_initializer, constant_tensor
from greencc.core.groups import PruneGroup, Role
from greencc.core.passes import Context
from greencc.passes._capture import require_data, run_one, single_samples
from greencc.passes._score_loss import change
from greencc.passes._score_reads import Weights

# Relative energy of the noise: about what pruning a quarter of a layer leaves after repair.
_ENERGY = 0.02
# A group whose noise does nothing at all is not free: chance, or outputs that hardly vary.
_LEAST = 1e-3
# Multiply-accumulates to spend, and samples to look at all the same.
_WORK, _FEWEST = 1e12, 8


def sensitivities(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, *, samples: int = 32, seed: int = 0
) -> dict[str, float]:
    """Divergence of the outputs per relative energy of an error in the readers of each group; 1 on average.

    Args:
        model: It is left unchanged.
        groups: Its prune groups.
        ctx: Gives the calibration data and the engines.
        samples: Looked at, evenly spread over the data; fewer where the model is large.
        seed: Of the noise.
    """
    weights = Weights(model)
    disturbed = {}
    for group in groups:
        # What no weights read (queries and keys of one head) is disturbed where it is computed.
        readers = {reader.node for reader in weights.readers(group)}
        disturbed[group.name] = readers or {site.node for site in group.having(Role.PRODUCER)}
    noisy = ((name, _noisy(model, nodes, seed)) for name, nodes in disturbed.items())
    variants = ((name, variant) for name, variant in noisy if variant is not None)
    label = "Sensitivity of groups"
    changes = divergences(model, variants, ctx, count=len(groups), label=label, samples=samples)
    found = {name: value / _ENERGY for name, value in changes.items()}
    mean = float(np.mean(list(found.values()))) if found else 0.0
    if not mean > 0.0:
        return {group.name: 1.0 for group in groups}
    # What could not be disturbed counts as the average, not as harmless.
    return {group.name: max(found.get(group.name, mean) / mean, _LEAST) for group in groups}


def divergences(
    model: ir.Model,
    variants: Iterable[tuple[str, ir.Model]],
    ctx: Context,
    *,
    count: int,
    label: str,
    samples: int = 32,
) -> dict[str, float]:
    """How far the outputs of variants of a model are from its own, by name (`_score_loss.change`).

    Args:
        model: It is left unchanged.
        variants: One is held at a time.
        ctx: Gives the calibration data and the engines.
        count: How many variants there are.
        label: Of the progress bar.
        samples: Looked at, evenly spread over the data; fewer where the model is large.
    """
    source = require_data(ctx)
    work = sum(float(cost.macs or 0) for cost in nodes_cost(model)) * max(1, count)
    # Large models show what a layer does to the outputs on few samples, and each costs an inference per variant.
    wanted = min(samples, source.count, max(_FEWEST, int(_WORK / max(work, 1.0))))
    batches = list(single_samples(source, wanted))
    build = ctx.observe or ctx.build
    engine = build(model)
    try:
        exact = [run_one(engine, batch) for batch in batches]
    finally:
        engine.close()
    found: dict[str, float] = {}
    for name, variant in ctx.progress(variants, label=label, total=count):
        engine = build(variant)
        try:
            changes = [
                change(before, run_one(engine, batch)) for before, batch in zip(exact, batches, strict=True)
            ]
        finally:
            engine.close()
        found[name] = float(np.mean(changes))
    return found


def _noisy(model: ir.Model, nodes: Collection[str], seed: int) -> ir.Model | None:
    """A clone whose nodes of these names have weights with noise; None where none of them has weights."""
    noisy, changed = model.clone(), False
    generator, names = np.random.default_rng(seed), Names(noisy)
    for node in noisy.graph:
        if str(node.name) not in nodes:
            continue
        index = next((i for i, item in enumerate(node.inputs[:2]) if constant_tensor(item) is not None), None)
        if index is None:
            continue
        tensor = constant_tensor(node.inputs[index])
        assert tensor is not None
        weight = tensor.numpy()
        scale = np.sqrt(_ENERGY * np.mean(np.square(weight, dtype=np.float64)))
        noise = generator.standard_normal(weight.shape) * scale
        # An own constant: the old one may come from a Constant node or serve other nodes.
        name = names.value(f"{node.name}.noisy")
        node.replace_input_with(
            index, add_initializer(noisy.graph, name, (weight + noise).astype(weight.dtype))
        )
        changed = True
    return noisy if changed else None
