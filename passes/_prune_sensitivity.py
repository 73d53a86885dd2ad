"""How much the model's outputs mind an error in the layers that read a group.

Scores say what share of the energy of these layers' outputs is lost. What that does to the outputs of the model differs
by layer: an early error is averaged out or grows, one in front of the classifier counts in full. So each group's
readers get weights with random noise of a known relative energy, and the divergence of the model's outputs per unit
of energy is the group's weight. For small errors both are proportional (the divergence is quadratic in the error).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch
from greencc.core.describe import nodes_cost
from greencc.core.engine import Engine
from greencc.core.graph import constant_tensor
from greencc.core.groups import PruneGroup
from greencc.core.passes import Context
from greencc.passes._capture import checked, require_data, rows, run_split
from greencc.passes._score_loss import change

# Relative energy of the noise: about what pruning a quarter of a layer leaves after repair.
_ENERGY = 0.02
# A group whose noise does nothing at all is not free: chance, or outputs that hardly vary.
_LEAST = 1e-3
# Multiply-accumulates to spend, and samples to look at all the same.
_WORK, _FEWEST = 1e12, 8


def sensitivities(
    model: ir.Model, groups: Sequence[PruneGroup], ctx: Context, *, samples: int = 32, seed: int = 0
) -> dict[str, float]:
    """Divergence of the outputs per relative energy of an error in the readers of each group; 1 on the whole.

    Args:
        model: It is left unchanged.
        groups: Its prune groups.
        ctx: Gives the calibration data and the engines.
        samples: Looked at, evenly spread over the data; fewer where the model is large.
        seed: Of the noise.
    """
    source = require_data(ctx)
    work = sum(float(cost.macs or 0) for cost in nodes_cost(model)) * max(1, len(groups))
    # Large models show what a layer does to the outputs on few samples, and each costs an inference per group.
    wanted = min(samples, source.count, max(_FEWEST, int(_WORK / max(work, 1.0))))
    batches = list(_spread(source.count, checked(source, 32), wanted))
    build = ctx.observe or ctx.build
    engine = build(model)
    try:
        exact = [_run(engine, batch) for batch in batches]
    finally:
        engine.close()
    found: dict[str, float] = {}
    for group in ctx.progress(groups, label="Sensitivity of groups", total=len(groups)):
        nodes = {reader.node for reader in group.readers}
        engine = build(_noisy(model, nodes, seed))
        try:
            changes = [
                change(before, _run(engine, batch)) for before, batch in zip(exact, batches, strict=True)
            ]
        finally:
            engine.close()
        found[group.name] = float(np.mean(changes)) / _ENERGY
    mean = float(np.mean(list(found.values()))) if found else 0.0
    if not mean > 0.0:
        return dict.fromkeys(found, 1.0)
    return {name: max(value / mean, _LEAST) for name, value in found.items()}


def _noisy(model: ir.Model, nodes: set[str], seed: int) -> ir.Model:
    """A clone whose nodes of these names have weights with noise."""
    noisy = model.clone()
    generator = np.random.default_rng(seed)
    done: set[ir.Value] = set()
    for node in noisy.graph:
        if str(node.name) not in nodes:
            continue
        value = next((item for item in node.inputs[:2] if constant_tensor(item) is not None), None)
        if value is None or value in done:
            continue
        done.add(value)
        tensor = constant_tensor(value)
        assert tensor is not None
        weight = tensor.numpy()
        scale = np.sqrt(_ENERGY * np.mean(np.square(weight, dtype=np.float64)))
        noise = generator.standard_normal(weight.shape) * scale
        replaced = ir.tensor((weight + noise).astype(weight.dtype), name=value.name)
        if value.const_value is not None:
            value.const_value = replaced
    return noisy


def _spread(count: int, batches: Iterator[Batch], wanted: int) -> Iterator[Batch]:
    """Samples one by one."""
    picked = {index * count // wanted for index in range(wanted)}
    first = 0
    for item in batches:
        for offset in range(item.count):
            if first + offset in picked:
                yield rows(item, offset, offset + 1)
        first += item.count


def _run(engine: Engine, batch: Batch) -> dict[str, Array]:
    found = next(iter(run_split(engine, batch, 1)))
    return {name: values[:1] for name, values in found.items()}
