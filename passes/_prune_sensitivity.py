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

from greencc.core.data import Array, Batch
from greencc.core.engine import Engine
from greencc.core.graph import Names, add_initializer, constant_tensor
from greencc.core.groups import PruneGroup, Role
from greencc.core.passes import Context
from greencc.core.shapes import bind_dims
from greencc.passes._capture import require_data, run_one, single_samples
from greencc.passes._prune_costs import macs_per_sample
from greencc.passes._resume import Resume, value_bytes
from greencc.passes._score_loss import change
from greencc.passes._score_reads import Weights

# Relative energy of the noise: about what pruning a quarter of a layer leaves after repair.
_ENERGY = 0.02
# A group whose noise does nothing at all is not free: chance, or outputs that hardly vary.
_LEAST = 1e-3
# Multiply-accumulates to spend, and samples to look at all the same.
_WORK, _FEWEST = 1e12, 8
# Bytes of values kept, so that what comes before a group is not computed for each.
_KEPT = 64 << 20


def sensitivities(
    model: ir.Model,
    groups: Sequence[PruneGroup],
    ctx: Context,
    *,
    samples: int = 32,
    seed: int = 0,
    absolute: bool = False,
) -> dict[str, float]:
    """Divergence of the outputs per relative energy of an error in the readers of each group; 1 on average.

    Args:
        model: It is left unchanged.
        groups: Its prune groups.
        ctx: Gives the calibration data and the engines.
        samples: Looked at, evenly spread over the data; fewer where the model is large.
        seed: Of the noise.
        absolute: As it is instead, not divided by the mean.
    """
    disturbed = _disturbed(model, groups)
    # In the order of the graph: what comes before a group's nodes is not computed again.
    places = {str(node.name): place for place, node in enumerate(model.graph)}
    order = sorted(disturbed, key=lambda name: min((places[node] for node in disturbed[name]), default=0))
    noisy = ((name, disturbed[name], _noisy(model, disturbed[name], seed)) for name in order)
    variants = ((name, nodes, variant) for name, nodes, variant in noisy if variant is not None)
    label = "Sensitivity of groups"
    changes = divergences(model, variants, ctx, count=len(groups), label=label, samples=samples)
    found = {name: value / _ENERGY for name, value in changes.items()}
    mean = float(np.mean(list(found.values()))) if found else 0.0
    if absolute:
        return {group.name: max(found.get(group.name, mean), _LEAST * mean) for group in groups}
    if not mean > 0.0:
        return {group.name: 1.0 for group in groups}
    # What could not be disturbed counts as the average, not as harmless.
    return {group.name: max(found.get(group.name, mean) / mean, _LEAST) for group in groups}


def divergences(
    model: ir.Model,
    variants: Iterable[tuple[str, Collection[str], ir.Model]],
    ctx: Context,
    *,
    count: int,
    label: str,
    samples: int = 32,
) -> dict[str, float]:
    """How far the outputs of variants of a model are from its own, by name (`_score_loss.change`).

    Args:
        model: It is left unchanged.
        variants: Name, nodes whose weights differ, and a clone with these weights; one is held at a time. Quicker in
            the order of the graph.
        ctx: Gives the calibration data and the engines.
        count: How many variants there are.
        label: Of the progress bar.
        samples: Looked at, evenly spread over the data; fewer where the model is large.
    """
    source = require_data(ctx)
    work = macs_per_sample(model, ctx.samples) * max(1, count)
    # Large models show what a layer does to the outputs on few samples, and each costs an inference per variant.
    wanted = min(samples, source.count, max(_FEWEST, int(_WORK / max(work, 1.0))))
    batches = list(single_samples(source, wanted))
    outputs = [str(value.name) for value in model.graph.outputs]
    build = ctx.observe or ctx.build
    resume = Resume(model, build, _sizes(model, ctx, len(batches)), _KEPT)
    exact = _run(resume.engine(model, outputs), batches)
    found: dict[str, float] = {}
    for name, nodes, variant in ctx.progress(variants, label=label, total=count):
        first = resume.first_node(nodes)
        place = resume.reachable(first)
        if first >= place > resume.place:
            _run(resume.engine(model, [], place), batches)
        ready = first >= resume.place
        results = _run(resume.engine(variant, outputs) if ready else build(variant), batches)
        changes = [change(before, after) for before, after in zip(exact, results, strict=True)]
        found[name] = float(np.mean(changes))
    return found


def _disturbed(model: ir.Model, groups: Sequence[PruneGroup]) -> dict[str, set[str]]:
    """The nodes whose weights get noise, by group."""
    weights, found = Weights(model), {}
    for group in groups:
        # What no weights read (queries and keys of one head) is disturbed where it is computed.
        readers = {reader.node for reader in weights.readers(group)}
        found[group.name] = readers or {site.node for site in group.having(Role.PRODUCER)}
    return found


def _sizes(model: ir.Model, ctx: Context, count: int) -> dict[str, float]:
    """Bytes of the values over `count` samples that are run one by one."""
    if not ctx.samples:
        return {}
    bound = bind_dims(model, {name: values.shape for name, values in ctx.samples[0].items()})
    return {name: count * size for name, size in value_bytes(bound).items()}


def _run(engine: Engine, batches: Sequence[Batch]) -> list[dict[str, Array]]:
    """The outputs for each batch of one sample; the engine is closed."""
    try:
        return [run_one(engine, batch) for batch in batches]
    finally:
        engine.close()


def _noisy(model: ir.Model, nodes: set[str], seed: int) -> ir.Model | None:
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
