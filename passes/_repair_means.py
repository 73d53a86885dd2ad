"""Means that a compressed model should have: those of its normalisations, and those of its outputs.

A BatchNormalization that was not folded normalises with the mean and variance of the training data. Where its input
is not what it was, they are carried over from the original: `var' + eps = (var + eps) f` with `f = Var[x'] / Var[x]`,
and `mean' = E[x'] + (mean - E[x]) sqrt(f)`, with E and Var over the calibration data in the compressed (') and in the
original model. The normalised values then have the mean and the variance that they have in the original: what the
calibration data has other than the training data stays. Only the original's statistics are built on, never those that
the compressed model has now: carrying them over again changes nothing.

The bias of the last weighted layer before an output is shifted so that the mean of every output channel is that of
the original (Nagel et al. 2019, arXiv 1906.04721, section 4.3, for the last layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import Names, add_initializer, constant_of, is_op
from greencc.core.passes import Context, Finding
from greencc.passes._channel_means import Means, Wanted, channel_means
from greencc.passes._repair_order import Refit, Source, plan_rounds
from greencc.passes._repair_select import source_of
from greencc.passes._repair_weights import Weighted, weighted

Float64 = NDArray[np.float64]
_BATCH = 32
# The variance of a channel changes by no more than this factor: beyond it, it was dead in one of the models.
_LARGEST = 100.0
# A variance below this share of the mean square is rounding.
_ROUNDING = 1e-6


def transfer_batch_norm(
    original: ir.Model,
    compressed: ir.Model,
    ctx: Context,
    *,
    keep: Mapping[str, Sequence[int]] | None = None,
    rounds: int = 12,
) -> list[Finding]:
    """Carry the statistics of the normalisations over to what `compressed` feeds them, in place and in order.

    Args:
        original: Normalisations are matched by name.
        compressed: Channels may be cut.
        ctx: Gives the calibration data and the engine.
        keep: As for `layers_after_cut`.
        rounds: Passes over the data at most.
    """
    before = {str(node.name): node for node in original.graph if _normalises(node)}
    nodes = {
        str(node.name): node for node in compressed.graph if str(node.name) in before and _normalises(node)
    }
    sources: dict[str, Source] = {}
    findings: list[Finding] = []
    for name, node in nodes.items():
        source = source_of(node, before[name], keep or {}, axis=1)
        if source is None:
            message = f"{name!r} keeps its statistics: which of the original's channels it has is not known"
            findings.append(Finding("refused", message, name, "transfer-batch-norm"))
        else:
            sources[name] = source
    if not sources:
        return findings
    past = {name: _wanted(before[name]) for name in sources}
    exact = channel_means(original, list(past.values()), ctx, _BATCH, "Normalising")
    names = Names(compressed)
    for group in plan_rounds(compressed, [Refit(name, "") for name in sources], rounds):
        present = {step.item.node: _wanted(nodes[step.item.node]) for step in group}
        seen = channel_means(compressed, list(present.values()), ctx, _BATCH, "Normalising")
        for name, wanted in present.items():
            kept = sources[name].keep
            chosen = slice(None) if kept is None else np.array(kept)
            mean, variance = _moments(exact[past[name]])
            statistics = _carried(
                _statistics(before[name], chosen),
                (mean[chosen], variance[chosen]),
                _moments(seen[wanted]),
                _epsilon(before[name]),
            )
            if not _write(nodes[name], statistics, names, ctx):
                return findings
    return findings


def correct_classifier(original: ir.Model, compressed: ir.Model, ctx: Context) -> list[Finding]:
    """Shift the biases of the last weighted layers of `compressed` so that their mean outputs are the original's.

    Args:
        original: Nodes are matched by name.
        compressed: It is changed in place.
        ctx: Gives the calibration data and the engine.
    """
    before = {str(node.name): node for node in original.graph}
    pairs: list[tuple[Weighted, Weighted]] = []
    findings: list[Finding] = []
    for node in _heads(compressed):
        found = weighted(node)
        past = (
            weighted(before[str(node.name)]) if str(node.name) in before else "the original has no such node"
        )
        reason = found if isinstance(found, str) else past if isinstance(past, str) else None
        if not isinstance(found, str) and not isinstance(past, str):
            if found.bias is None:
                reason = "it has no bias"
            elif found.channels != past.channels:
                reason = "it has other outputs than in the original"
            else:
                pairs.append((past, found))
        if reason is not None:
            message = f"the mean of the outputs of {node.name!r} is not corrected: {reason}"
            findings.append(Finding("refused", message, str(node.name), "correct-classifier"))
    if not pairs:
        return findings
    exact = channel_means(original, [_output(past) for past, _ in pairs], ctx, _BATCH, "Correcting outputs")
    seen = channel_means(
        compressed, [_output(found) for _, found in pairs], ctx, _BATCH, "Correcting outputs"
    )
    names = Names(compressed)
    for past, found in pairs:
        shift = exact[_output(past)].mean - seen[_output(found)].mean
        if not np.isfinite(shift).all() or not shift.any() or found.bias is None:
            continue
        if ctx.rewrites.allow("correct-classifier", str(found.node.name)):
            found.bias.write(found.bias.read(found.channels) + shift, names)
    return findings


def _normalises(node: ir.Node) -> bool:
    constant = all(constant_of(value) is not None for value in node.inputs[3:5])
    return is_op(node, "BatchNormalization") and constant and len(node.outputs) == 1


def _wanted(node: ir.Node) -> Wanted:
    source, mean = node.inputs[0], constant_of(node.inputs[3])
    assert source is not None
    assert source.shape is not None
    assert mean is not None
    return Wanted(str(source.name), mean.size, len(source.shape), square=True)


def _output(layer: Weighted) -> Wanted:
    rank = len(layer.view.kernel) + 2 if layer.view.kernel else None
    return Wanted(str(layer.node.outputs[0].name), layer.channels, rank)


def _moments(means: Means) -> tuple[Float64, Float64]:
    assert means.square is not None
    variance = means.square - np.square(means.mean)
    # Of a constant channel the difference is what float32 rounded.
    return means.mean, np.where(variance > _ROUNDING * means.square, variance, 0.0)


def _statistics(node: ir.Node, chosen: slice | NDArray[np.int64]) -> tuple[Float64, Float64]:
    mean, variance = (constant_of(value) for value in node.inputs[3:5])
    assert mean is not None
    assert variance is not None
    return mean.astype(np.float64)[chosen], variance.astype(np.float64)[chosen]


def _epsilon(node: ir.Node) -> float:
    attribute = node.attributes.get("epsilon")
    return 1e-5 if attribute is None else attribute.as_float()


def _carried(
    statistics: tuple[Float64, Float64],
    exact: tuple[Float64, Float64],
    seen: tuple[Float64, Float64],
    epsilon: float,
) -> tuple[Float64, Float64]:
    """The original's statistics, for what the compressed model feeds the node."""
    mean, variance = statistics
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where((exact[1] > 0) & (seen[1] > 0), seen[1] / exact[1], 1.0)
        factor = np.clip(factor, 1 / _LARGEST, _LARGEST)
        scaled = np.where(factor == 1, variance, np.maximum((variance + epsilon) * factor - epsilon, 0.0))
        # The scale that the node then has, for the mean holds whatever the variance was limited to.
        moved = seen[0] + (mean - exact[0]) * np.sqrt((scaled + epsilon) / (variance + epsilon))
    usable = np.isfinite(moved) & np.isfinite(scaled)
    return np.where(usable, moved, mean), np.where(usable, scaled, variance)


def _write(node: ir.Node, statistics: tuple[Float64, Float64], names: Names, ctx: Context) -> bool:
    """Replace the statistics of one node; False once no more rewrites are allowed."""
    mean, variance = _statistics(node, slice(None))
    moved, scaled = statistics
    if np.allclose(moved, mean, rtol=1e-6, atol=1e-7) and np.allclose(scaled, variance, rtol=1e-6, atol=0):
        return True
    if not ctx.rewrites.allow("transfer-batch-norm", str(node.name)):
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for index, values in ((3, moved), (4, scaled)):
        name = names.value(f"{node.name}_{'mean' if index == 3 else 'variance'}")
        value = node.inputs[index]
        old = constant_of(value)
        assert old is not None
        node.replace_input_with(index, add_initializer(graph, name, values.astype(old.dtype)))
        if value is not None and value.is_initializer() and not (value.uses() or value.is_graph_output()):
            graph.initializers.pop(str(value.name), None)
    return True


def _heads(model: ir.Model) -> list[ir.Node]:
    """The last weighted nodes before the outputs, in the order of the graph."""
    found: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    waiting = list(model.graph.outputs)
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value in seen or producer is None or producer.graph is not model.graph:
            continue
        seen.add(value)
        if is_op(producer, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            found.add(producer)
        else:
            waiting += [item for item in producer.inputs if item is not None]
    return [node for node in model.graph if node in found]
