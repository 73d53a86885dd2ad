"""Re-round the weights of a quantized model layer by layer so that the layers' outputs change least.

Rows of inputs come from the quantized model (see `_adaround` for what they are held against). Layers whose rows fit the
memory budget share one pass over the data. Layers that make up for those before them (`sequential`) get a pass
each: in a shared one, every layer would correct the same inherited error again, which ruins deep networks. A
fifth of the samples is kept aside: an output channel takes its new rounding only when its error falls on those.
Decisions are cached layer by layer under everything they depend on, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.cache import cache_key
from greencc.core.data import Array
from greencc.core.model import digest
from greencc.core.passes import Context, Finding, Outcome
from greencc.core.progress import silent
from greencc.passes._adaround import AdaRoundOptions, Reconstruction, solve
from greencc.passes._capture import require_data
from greencc.passes._linear_view import LinearView
from greencc.passes._quantize_scales import weight_limit
from greencc.passes._quantized_pair import (
    Float32,
    Piece,
    QuantizedNode,
    Side,
    find_pairs,
    run_both,
)
from greencc.passes._rounding_layer import Layer, Rows, error

_RULE = "refine-rounding"
_KIND = "adaround"
# Changes when the algorithm does: old entries must not be found then.
_VERSION = 1
# H of this many inputs takes 256 MiB.
_MAX_INPUTS = 8192
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Decision:
    """What was found for one layer.

    Attributes:
        flips: Weights that take their other neighbour, as `LinearView.matrix`.
        before: Mean square error of the layer's output on the samples kept aside, with nearest rounding.
        after: And with this.
    """

    flips: NDArray[np.bool_]
    before: float
    after: float

    def stored(self) -> dict[str, Array]:
        return {"flips": np.packbits(self.flips), "errors": np.array([self.before, self.after])}


def refine_rounding(
    float_model: ir.Model,
    quantized: ir.Model,
    ctx: Context,
    options: AdaRoundOptions,
    bits: int,
    batch: int = 8,
) -> Outcome:
    """Replace INT8 weights of `quantized` in place.

    Args:
        float_model: What `quantized` was made of; it is left unchanged.
        quantized: The QDQ model.
        ctx: Gives the calibration data, the engines and the cache.
        options: Of the search.
        bits: Bits of the weights.
        batch: Samples run at once at most.

    Returns:
        How many layers changed, and which were left out.

    Raises:
        InputError: There is no calibration data, or it holds NaN or infinity.
    """
    source = require_data(ctx)
    outcome = Outcome()
    pairs, findings = find_pairs(float_model, quantized)
    outcome.findings += [replace(finding, rule=_RULE) for finding in findings]
    chosen: list[QuantizedNode] = []
    for pair in pairs:
        reason = _refusal(pair)
        if reason is None:
            chosen.append(pair)
        else:
            message = f"{pair.node.op_type} {pair.name!r} keeps its nearest rounding: {reason}"
            outcome.findings.append(Finding("note", message, pair.name, _RULE))
    if not chosen:
        return outcome
    base = cache_key(
        _VERSION, digest(float_model), digest(quantized), source.digest(), source.count, _parts(options), bits
    )
    run = _Run(float_model, quantized, ctx, options, weight_limit(bits), batch, base)
    before = after = 0.0
    for pair, decision in ctx.progress(run.decisions(chosen), label="Rounding", total=len(chosen)):
        if not decision.flips.any() or not ctx.rewrites.allow(_RULE, pair.name):
            continue
        run.apply(pair, decision)
        outcome.changed += 1
        # Every layer counts alike, whatever its magnitude.
        before += 1.0
        after += decision.after / decision.before
    if outcome.changed:
        message = (
            f"{outcome.changed} of {len(chosen)} layers were rounded anew ({options.method.value}): their output "
            f"error on samples kept aside fell by {100 * (1 - after / before):.0f} % on average"
        )
        outcome.findings.append(Finding("note", message, rule=_RULE))
    return outcome


def _refusal(pair: QuantizedNode) -> str | None:
    if pair.shared:
        return "another node reads the same quantized weight"
    if pair.view.inputs > _MAX_INPUTS:
        return f"{pair.view.inputs} inputs are more than the {_MAX_INPUTS} that fit in memory"
    if pair.float_output.name is None or pair.source.name is None:
        return "its values have no names"
    return None


def _parts(options: AdaRoundOptions) -> dict[str, Any]:
    return {key: value.value if isinstance(value, Enum) else value for key, value in vars(options).items()}


@dataclass
class _Run:
    """One refinement: decides, and knows what was applied so far."""

    float_model: ir.Model
    quantized: ir.Model
    ctx: Context
    options: AdaRoundOptions
    limit: int
    batch: int
    key: str
    applied: list[str] = field(default_factory=list)

    def decisions(self, pairs: list[QuantizedNode]) -> Iterator[tuple[QuantizedNode, Decision]]:
        """Decide pass by pass; the caller applies each decision before it asks for the next."""
        for group in self._groups(pairs):
            # What earlier passes changed is part of what this one sees.
            keys = {pair.name: cache_key(self.key, self.applied, pair.name) for pair in group}
            found = {pair.name: self._cached(pair, keys[pair.name]) for pair in group}
            missing = [pair for pair in group if found[pair.name] is None]
            rows = self._collect(missing) if missing else {}
            solved: list[tuple[QuantizedNode, Decision]] = []
            for pair in group:
                decision = found[pair.name]
                if decision is None:
                    decision = self._decide(pair, rows.pop(pair.name))
                    self.ctx.cache.put(_KIND, keys[pair.name], decision.stored())
                solved.append((pair, decision))
            yield from solved

    def apply(self, pair: QuantizedNode, decision: Decision) -> None:
        layer = self._layer(pair)
        current = pair.integer_matrix()
        pair.replace(np.where(decision.flips, _other(layer, current), current))
        self.applied.append(pair.name)

    def _groups(self, pairs: list[QuantizedNode]) -> Iterator[list[QuantizedNode]]:
        """Neighbours whose rows fit the budget together."""
        budget = self.options.memory_mb << 20
        group: list[QuantizedNode] = []
        total = 0
        for pair in pairs:
            size = self._quota(pair) * _row_bytes(pair)
            if group and (total + size > budget or self._sequential):
                yield group
                group, total = [], 0
            group.append(pair)
            total += size
        yield group

    @property
    def _sequential(self) -> bool:
        return self.options.reconstruction is Reconstruction.SEQUENTIAL

    def _quota(self, pair: QuantizedNode) -> int:
        """Rows to look at: fewer where they are very long."""
        return max(1, min(self.options.rows, (self.options.memory_mb << 20) // _row_bytes(pair)))

    def _cached(self, pair: QuantizedNode, key: str) -> Decision | None:
        entry = self.ctx.cache.get(_KIND, key)
        if entry is None:
            return None
        view = pair.view
        shape = (view.groups, view.outputs, view.inputs)
        flips = np.unpackbits(entry["flips"], count=int(np.prod(shape))).astype(bool).reshape(shape)
        return Decision(flips, *map(float, entry["errors"]))

    def _collect(self, pairs: list[QuantizedNode]) -> dict[str, _Collector]:
        count = require_data(self.ctx).count
        collectors = {
            pair.name: _Collector(pair, self._quota(pair), count, self.options.seed) for pair in pairs
        }
        wanted = [str(pair.float_output.name) for pair in pairs] if self._sequential else []
        exact = Side(self.float_model, wanted)
        seen = Side(self.quantized, [str(pair.source.name) for pair in pairs])
        quiet = replace(self.ctx, progress=silent)
        for piece in run_both(exact, seen, quiet, self.batch, "Rounding"):
            for collector in collectors.values():
                collector.add(piece)
        return collectors

    def _layer(self, pair: QuantizedNode) -> Layer:
        view = pair.view
        bias = pair.bias().reshape(view.groups, 1, view.outputs)
        return Layer(pair.weight(), pair.scale_column(), self.limit, bias, *pair.clip())

    def _targets(self, layer: Layer, inputs: Float32 | None, outputs: Float32 | None) -> Rows | None:
        """Rows with what the layer should give for them; None when there are no finite ones."""
        if inputs is None:
            return None
        with np.errstate(all="ignore"):
            local = np.matmul(inputs, layer.weight.swapaxes(1, 2)) + layer.bias
        rows = Rows(inputs, local if outputs is None else outputs)
        return rows if np.isfinite(rows.inputs).all() and np.isfinite(rows.targets).all() else None

    def _decide(self, pair: QuantizedNode, collector: _Collector) -> Decision:
        layer = self._layer(pair)
        start = pair.integer_matrix()
        taught, judged = (self._targets(layer, *half) for half in collector.halves())
        nothing = Decision(np.zeros(start.shape, np.bool_), 0.0, 0.0)
        if taught is None or judged is None:
            return nothing
        # What overflows compares as false below, and keeps the nearest rounding.
        with np.errstate(all="ignore"):
            found = solve(layer, taught, start, self.options)
            before, after = error(layer, judged, start), error(layer, judged, found)
        better = after < before
        flips = better[:, :, np.newaxis] & (found != start) & (_other(layer, start) == found)
        if not flips.any():
            return nothing
        return Decision(flips, float(before.sum()), float(np.where(better, after, before).sum()))


def _other(layer: Layer, integers: Float32) -> Float32:
    """The other neighbour of each weight, itself where the range leaves only one."""
    lower = layer.floor()
    other: Float32 = np.where(integers == lower, lower + layer.step(), lower)
    return other


def _row_bytes(pair: QuantizedNode) -> int:
    return 4 * pair.view.groups * (pair.view.inputs + pair.view.outputs)


class _Collector:
    """Gathers rows of one layer: evenly many of each sample, spread over its positions.

    Positions follow the golden ratio's sequence, which is even for every count and in step with no row length; so
    the choice does not depend on how the samples are batched.
    """

    def __init__(self, pair: QuantizedNode, quota: int, samples: int, seed: int) -> None:
        self.pair, self.quota, self.samples = pair, quota, samples
        self.taken = 0
        self.offset = seed * 0.7548776662466927 % 1.0
        # To learn from, and to judge by.
        self.inputs: tuple[list[Float32], list[Float32]] = ([], [])
        self.outputs: tuple[list[Float32], list[Float32]] = ([], [])

    def add(self, piece: Piece) -> None:
        view = self.pair.view
        x = piece.quantized_values[str(self.pair.source.name)]
        y = piece.float_values.get(str(self.pair.float_output.name))
        total = _positions(view, x)
        # Where the first axis is not the sample, rows are dealt out as if they lay sample by sample.
        borders = np.arange(piece.count + 1, dtype=np.int64) * total // piece.count
        picks: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
        for index, aside in enumerate(piece.held_out):
            number = piece.first + index
            wanted = (number + 1) * self.quota // self.samples - number * self.quota // self.samples
            size = int(borders[index + 1] - borders[index])
            if number >= self.samples or not wanted or not size:
                continue
            if wanted >= size:
                inside = np.arange(size, dtype=np.int64)
            else:
                steps = (self.taken + np.arange(wanted)) * _GOLDEN + self.offset
                inside = np.unique((steps % 1.0 * size).astype(np.int64))
            self.taken += len(inside)
            picks[int(aside)].append(borders[index] + inside)
        for half, chosen in enumerate(picks):
            if chosen:
                pick = np.concatenate(chosen)
                self.inputs[half].append(view.columns(x, pick).astype(np.float32, copy=False))
                if y is not None:
                    self.outputs[half].append(view.targets(y, pick).astype(np.float32, copy=False))

    def halves(self) -> Iterator[tuple[Float32 | None, Float32 | None]]:
        """Inputs and float outputs to learn from, then to judge by; None where there are none."""
        parts = [
            (_joined(inputs), _joined(outputs))
            for inputs, outputs in zip(self.inputs, self.outputs, strict=True)
        ]
        self.inputs, self.outputs = ([], []), ([], [])
        if parts[0][0] is None or parts[1][0] is None:
            # Fewer samples than one in five: the same rows must do for both.
            parts = [parts[0] if parts[0][0] is not None else parts[1]] * 2
        yield from parts


def _joined(pieces: list[Float32]) -> Float32 | None:
    return np.concatenate(pieces, axis=1) if pieces else None


def _positions(view: LinearView, x: Array) -> int:
    """Rows that `view.columns(x)` has."""
    if not view.kernel:
        return x.size // x.shape[-1] if x.size else 0
    spatial = view._windows(x).shape[2 : 2 + len(view.kernel)]
    return len(x) * math.prod(spatial)
