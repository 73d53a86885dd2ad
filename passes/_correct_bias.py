"""Shift the biases of a quantized model so that the mean of every output channel is that of the float model.

Rounded weights do not err evenly: the mean of a channel moves, and every layer after it sees that for every input
(Nagel et al. 2019, arXiv 1906.04721, section 4.3).

*analytic* (section 4.3): E[W x] - E[W_q x] = (W - W_q) E[x] with the means of the float inputs, one run over the
data. It corrects what the rounding of a layer's weights does.

*empirical* (appendix D): the mean error of the outputs themselves, which also holds what ranges and activations do.
There it goes layer by layer, since a correction changes what later layers see: a run for each. Here a sweep
measures all layers in one run. If each took its whole error, an error would be corrected many times over, by the
layer that made it and by all that inherit it. So in the first sweep a layer takes only what its inputs do not
explain, leaving W_q (E[x] - E[z]) for the quantized model's inputs z to the layers before it; the sweeps after it also
take a part of what is inherited still. The sweep that serves the outputs best counts.

In both, E[x] is that of a channel times the share of positions at which a weight meets no padding.

The means are reductions in the graph, so only vectors come back. The correction as a whole is kept only if the
outputs on samples kept aside come no further from the float model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Batch, DataSource
from greencc.core.graph import (
    attribute_ints,
)
from greencc.core.passes import Context, Finding, Outcome
from greencc.core.progress import silent
from greencc.passes._capture import require_data
from greencc.passes._channel_means import Float64, Means, Wanted, channel_means
from greencc.passes._linear_view import LinearView
from greencc.passes._quantized_pair import HELD_OUT, QuantizedNode, Side, find_pairs, run_both
from greencc.passes._shift_bias import BiasedNode, biased_node, shift_biases

_RULE = "correct-bias"
_LABEL = "Correcting biases"
# Of a float channel's root mean square: beyond it is not the mean that is wrong.
_LARGEST = 1.0
# Shares of its own and of its inherited error that a layer takes, in the first and in later sweeps. Measured on
# residual, depthwise and deep networks: larger ones overshoot in deep networks.
_TAKEN = ((1.0, 0.0), (0.7, 0.2))


class BiasCorrection(Enum):
    """How the mean errors are found."""

    ANALYTIC = "analytic"
    EMPIRICAL = "empirical"


def correct_bias(
    float_model: ir.Model,
    quantized: ir.Model,
    ctx: Context,
    method: BiasCorrection,
    batch: int = 8,
    sweeps: int = 3,
) -> Outcome:
    """Shift the biases of `quantized` in place.

    Args:
        float_model: What `quantized` was made of; it is left unchanged.
        quantized: The QDQ model.
        ctx: Gives the calibration data and the engines.
        method: How the errors are found.
        batch: Samples run at once at most.
        sweeps: Of the empirical method.

    Returns:
        How many layers changed, what it brought, and which were left out.

    Raises:
        InputError: There is no calibration data, or it holds NaN or infinity.
    """
    outcome = Outcome()
    layers: list[BiasedNode] = []
    for pair in find_pairs(float_model, quantized)[0]:
        layer = biased_node(pair)
        if isinstance(layer, str):
            message = f"{pair.node.op_type} {pair.name!r} keeps its mean error: {layer}"
            outcome.findings.append(Finding("note", message, pair.name, _RULE))
        else:
            layers.append(layer)
    if not layers:
        return outcome
    taught, judged, batch = _halves(ctx, batch)
    exact = _measure(float_model, layers, taught, batch)
    before = _noise(float_model, quantized, judged, batch)
    shifts: dict[str, Float64] = {}
    after = math.inf
    for tried in _candidates(quantized, layers, exact, method, taught, batch, sweeps):
        noise = _noise(float_model, _shifted(quantized, layers, tried, ctx), judged, batch)
        if noise < after:
            shifts, after = tried, noise
    gain = f"output SQNR on samples kept aside {_decibels(before)} before, {_decibels(after)} after"
    if not after <= before or not shifts:
        message = f"the {method.value} bias correction is left out: {gain}"
        outcome.findings.append(Finding("refused", message, rule=_RULE))
        return outcome
    allowed = [
        layer for layer in layers if shifts[layer.name].any() and ctx.rewrites.allow(_RULE, layer.name)
    ]
    shift_biases(quantized, allowed, shifts, ctx)
    outcome.changed = len(allowed)
    if allowed:
        message = f"{outcome.changed} biases were corrected ({method.value}): {gain}"
        outcome.findings.append(Finding("note", message, rule=_RULE))
    return outcome


@dataclass(frozen=True)
class _Part:
    """Every fifth batch of a source, or the others."""

    source: DataSource
    size: int
    held_out: bool
    count: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def has_labels(self) -> bool:
        return self.source.has_labels

    @property
    def synthetic(self) -> bool:
        return self.source.synthetic

    def digest(self) -> str:
        return self.source.digest()

    def batches(self, size: int) -> Iterator[Batch]:
        del size  # the batches are what is divided
        for position, item in enumerate(self.source.batches(self.size)):
            if (position % HELD_OUT == HELD_OUT - 1) == self.held_out:
                yield item


def _halves(ctx: Context, batch: int) -> tuple[Context, Context, int]:
    """Contexts with the samples to measure and those to judge by, and the batch; too few samples serve as both."""
    source = require_data(ctx)
    quiet = replace(ctx, progress=silent)
    if source.count < HELD_OUT:
        return ctx, quiet, batch
    batch = max(1, min(batch, source.count // HELD_OUT))
    sizes = [min(batch, source.count - start) for start in range(0, source.count, batch)]
    held = sum(sizes[HELD_OUT - 1 :: HELD_OUT])
    taught = _Part(source, batch, False, source.count - held)
    return (
        replace(ctx, calibration=taught),
        replace(quiet, calibration=_Part(source, batch, True, held)),
        batch,
    )


def _measure(
    model: ir.Model, layers: Sequence[BiasedNode], ctx: Context, batch: int
) -> dict[str, tuple[Means, Means]]:
    """Means of the outputs and of the inputs of all layers."""
    nodes = {str(node.name): node for node in model.graph}
    wanted = {layer.name: _wanted(layer, nodes) for layer in layers}
    found = channel_means(model, [item for both in wanted.values() for item in both], ctx, batch, _LABEL)
    return {name: (found[output], found[source]) for name, (output, source) in wanted.items()}


def _wanted(layer: BiasedNode, nodes: dict[str, ir.Node]) -> tuple[Wanted, Wanted]:
    """Output and input of a layer in the model that has these nodes."""
    view = layer.pair.view
    rank = len(view.kernel) + 2 if view.kernel else None
    output = nodes[str(layer.tail.name)].outputs[0]
    source = nodes[layer.name].inputs[0]
    assert source is not None
    inputs = view.inputs * view.groups // math.prod(view.kernel)
    return (
        Wanted(str(output.name), layer.pair.channels, rank, square=True),
        Wanted(str(source.name), inputs, rank),
    )


def _candidates(
    quantized: ir.Model,
    layers: Sequence[BiasedNode],
    exact: dict[str, tuple[Means, Means]],
    method: BiasCorrection,
    ctx: Context,
    batch: int,
    sweeps: int,
) -> Iterator[dict[str, Float64]]:
    """What to add to the biases: one proposal, or one after each sweep."""
    total = {layer.name: np.zeros(layer.pair.channels) for layer in layers}
    if method is BiasCorrection.ANALYTIC:
        for layer in layers:
            rounding = layer.pair.weight() - layer.pair.integer_matrix() * layer.pair.scale_column()
            output, source = exact[layer.name]
            total[layer.name] = _bounded(_response(layer.pair, rounding, source.mean), output)
        yield total
        return
    for sweep in range(sweeps):
        own, inherited = _TAKEN[min(sweep, 1)]
        seen = _measure(_shifted(quantized, layers, total, ctx), layers, ctx, batch)
        for layer in layers:
            (output, source), (here, read) = exact[layer.name], seen[layer.name]
            error = output.mean - here.mean
            weight = layer.pair.integer_matrix() * layer.pair.scale_column()
            before = _response(layer.pair, weight, source.mean - read.mean)
            shift = own * (error - before) + inherited * before
            total[layer.name] = _bounded(total[layer.name] + shift, output)
        yield dict(total)


def _response(pair: QuantizedNode, matrix: NDArray[np.float32], source: Float64) -> Float64:
    """Output means, per channel, that a weight matrix gives for these means of the input channels."""
    view = pair.view
    columns = np.repeat(source.reshape(view.groups, -1), math.prod(view.kernel), axis=1)
    if view.kernel:
        columns = columns * np.tile(_open_taps(view), view.inputs // math.prod(view.kernel))
    found: Float64 = np.matmul(matrix.astype(np.float64), columns[:, :, np.newaxis]).reshape(-1)
    return found


def _open_taps(view: LinearView) -> Float64:
    """For each weight of a kernel, the share of output positions at which it meets a value rather than a zero."""
    source = view.node.inputs[0]
    spatial = None if source is None or source.shape is None else list(source.shape)[2:]
    size = math.prod(view.kernel)
    if spatial is None or not all(isinstance(dim, int) for dim in spatial):
        transposed = view.node.op_type == "ConvTranspose"
        strides = attribute_ints(view.node, "strides", (1,) * len(view.kernel)) if transposed else (1,)
        return np.full(size, 1 / math.prod(strides))
    # All channels meet the same padding.
    single = replace(view, groups=1, outputs=1, inputs=size)
    ones = np.ones((1, 1, *(int(dim) for dim in spatial)), np.float32)  # type: ignore[arg-type]
    return np.asarray(single.columns(ones)[0].mean(axis=0, dtype=np.float64))


def _bounded(shift: Float64, exact: Means) -> Float64:
    """No more than the channel itself, and nothing where a mean is not finite."""
    assert exact.square is not None
    largest = _LARGEST * np.sqrt(exact.square)
    sane = np.isfinite(shift) & np.isfinite(largest)
    return np.where(sane, np.clip(shift, -largest, largest, where=sane, out=np.zeros_like(shift)), 0.0)


def _noise(float_model: ir.Model, quantized: ir.Model, ctx: Context, batch: int) -> float:
    """Squared error of the float outputs over their squares, the worst of the outputs."""
    pairs = [
        (str(a.name), str(b.name))
        for a, b in zip(float_model.graph.outputs, quantized.graph.outputs, strict=True)
        if a.dtype is not None and a.dtype.is_floating_point()
    ]
    wrong, signal = np.zeros(len(pairs)), np.zeros(len(pairs))
    exact, seen = Side(float_model, [a for a, _ in pairs]), Side(quantized, [b for _, b in pairs])
    if not pairs:
        return 0.0
    for piece in run_both(exact, seen, ctx, batch, _LABEL):
        for index, (a, b) in enumerate(pairs):
            expected = piece.float_values[a].astype(np.float64)
            # Outputs whose size depends on the values (detections) cannot be compared.
            if expected.shape == piece.quantized_values[b].shape:
                wrong[index] += np.sum(np.square(expected - piece.quantized_values[b]))
                signal[index] += np.sum(np.square(expected))
    ratio = np.where(wrong == 0, 0.0, wrong / np.maximum(signal, np.finfo(np.float64).tiny))
    return float(np.max(np.where(np.isfinite(ratio), ratio, math.inf)))


def _decibels(noise: float) -> str:
    return (
        f"{-10 * math.log10(noise):.2f} dB" if 0 < noise < math.inf else ("inf dB" if noise == 0 else "none")
    )


def _shifted(
    quantized: ir.Model, layers: Sequence[BiasedNode], shifts: dict[str, Float64], ctx: Context
) -> ir.Model:
    model = quantized.clone()
    shift_biases(model, layers, shifts, ctx)
    return model
