"""Sparsity masks: set weights to zero where the outputs miss them least, without changing any shape.

Second-order masks and updates from calibration data (`_sparsity_solve`), or the smallest weights without any. What
that is worth depends on the target: only kernels for the very pattern skip the zeros. Everywhere else a sparse model
computes as long and draws as much as a dense one, and merely compresses better; the pass says so.
"""

from __future__ import annotations

import statistics
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import UsageError, did_you_mean
from greencc.core.graph import ensure_names
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.passes._exclude import covered, unmatched
from greencc.passes._linear_view import LINEAR
from greencc.passes._quantize_insert import release
from greencc.passes._quantize_nodes import quantized_already
from greencc.passes._sparsity_layers import Layer, find_layers
from greencc.passes._sparsity_patterns import Pattern, Rule, magnitude_mask
from greencc.passes._sparsity_solve import MIN_DAMPING, Factor, Solution, factorize, prune
from greencc.passes._weight_only_hessian import (
    BUDGET_BYTES,
    moment_bytes,
    plan_stages,
    sum_moments,
    too_large,
)

_RULE = "sparsify"
_GROUP = 4
_SPARSITY = 0.5


class SparsityMethod(Enum):
    """How weights are chosen."""

    SECOND_ORDER = "second-order"
    MAGNITUDE = "magnitude"


@dataclass
class _Summary:
    """What became of the layers."""

    layers: int = 0
    elements: int = 0
    zeros: int = 0
    packed_before: int = 0
    packed_after: int = 0
    ratios: list[float] = field(default_factory=list)
    magnitude: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set weights to zero.

    Attributes:
        pattern: `2:4` and `1:4` keep so many of every four consecutive input channels, which is what sparse kernels
            read; `unstructured` chooses freely within a layer.
        sparsity: Share of the weights of every layer that become zero; `unstructured` only.
        method: `second-order` minimises the error of the layer's outputs and adjusts the weights that stay, which needs
            calibration data; `magnitude` drops the smallest weights.
        block: Inputs whose weights are chosen together, of `unstructured` second-order masks.
        damping: Of the second moments, as a share of their mean: more trusts the calibration data less.
        sequential: Every layer sees the inputs that the layers pruned before give, as in the SparseGPT paper; one run
            over the data per layer input.
        ops: Operators whose weights are pruned.
        exclude: Names of nodes whose weights stay dense.
        min_elements: Smaller weights stay dense.
    """

    name: ClassVar[str] = "sparsify"
    summary: ClassVar[str] = "Set weights to zero, freely or 2:4, with second-order updates of the others"
    lossy: ClassVar[bool] = True
    primary: ClassVar[str | None] = "pattern"

    pattern: Pattern = Pattern.TWO_OF_FOUR
    sparsity: float = _SPARSITY
    method: SparsityMethod = SparsityMethod.SECOND_ORDER
    block: int = 128
    damping: float = MIN_DAMPING
    sequential: bool = False
    ops: tuple[str, ...] = LINEAR
    exclude: tuple[str, ...] = ()
    min_elements: int = 1024

    def __post_init__(self) -> None:
        if not 0.0 < self.sparsity < 1.0:
            raise UsageError(f"{self.name}: sparsity is {self.sparsity:g}", hint="give a value in (0, 1)")
        if self.pattern is not Pattern.UNSTRUCTURED and self.sparsity != _SPARSITY:
            raise UsageError(
                f"{self.name}: sparsity is {self.sparsity:g}, but the pattern {self.pattern.value} fixes it",
                hint="leave sparsity out, or set pattern=unstructured",
            )
        if self.block < _GROUP or self.block % _GROUP:
            raise UsageError(f"{self.name}: block is {self.block}", hint=f"give a multiple of {_GROUP}")
        if not MIN_DAMPING <= self.damping <= 1.0:
            raise UsageError(
                f"{self.name}: damping is {self.damping:g}", hint=f"give a value in [{MIN_DAMPING:g}, 1]"
            )
        if self.min_elements < 0:
            raise UsageError(f"{self.name}: min_elements is {self.min_elements}", hint="give at least 0")
        for op_type in self.ops:
            if op_type not in LINEAR:
                raise UsageError(
                    f"{self.name}: ops has {op_type!r}, which has no weight matrix",
                    hint=did_you_mean(op_type, LINEAR),
                )

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Prune the weights of the main graph in place.

        Raises:
            InputError: The calibration data, or an activation on it, holds NaN or infinity.
        """
        ensure_names(model)
        outcome = Outcome()
        rule = Rule.make(self.pattern, self.sparsity)
        layers, satisfied = self._choose(model, ctx, rule, outcome)
        done = _Summary()
        for layer, matrix in self._pruned(model, layers, rule, ctx, done):
            _install(layer, matrix, done)
            outcome.changed += 1
        outcome.findings.extend(self._notes(ctx, done))
        if not outcome.changed and not outcome.findings:
            outcome.findings.append(Finding("refused", self._idle(model, satisfied), rule=_RULE))
        outcome.findings += unmatched(model, self.exclude, _RULE)
        return outcome

    def _choose(self, model: ir.Model, ctx: Context, rule: Rule, outcome: Outcome) -> tuple[list[Layer], int]:
        """The layers to prune, and how many have the zeros already; others become findings, one per reason."""
        chosen: list[Layer] = []
        satisfied = 0
        left: dict[str, list[str]] = {}
        excluded = covered(model, self.exclude)
        for found in find_layers(model.graph, self.ops, excluded, self.min_elements, rule):
            if not isinstance(found, Layer):
                left.setdefault(found[1], []).append(found[0])
                continue
            holds = rule.holds(found.matrix())
            release(found.tensor)
            if holds:
                satisfied += 1
            elif ctx.rewrites.allow(_RULE, found.name):
                chosen.append(found)
        for reason, names in left.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            outcome.findings.append(
                Finding("refused", f"{names[0]!r}{more} stay dense: {reason}", names[0], _RULE)
            )
        return chosen, satisfied

    def _idle(self, model: ir.Model, satisfied: int) -> str:
        """Why nothing was done."""
        if satisfied:
            return f"all {satisfied} layers are {self._described()} already"
        if (node := quantized_already(model.graph)) is not None:
            return (
                f"the model is quantized already ({node.op_type} {node.name!r}); start from the float model"
            )
        return f"no {', '.join(self.ops)} has a constant weight of {self.min_elements} elements or more"

    def _described(self) -> str:
        if self.pattern is Pattern.UNSTRUCTURED:
            return f"{100 * self.sparsity:g} % sparse"
        return f"{self.pattern.value} sparse"

    def _pruned(
        self, model: ir.Model, layers: Sequence[Layer], rule: Rule, ctx: Context, done: _Summary
    ) -> Iterator[tuple[Layer, Array]]:
        """Yield every layer with its new matrix; the caller writes it before it asks for the next."""
        waiting: list[Layer] = []
        for layer in layers:
            reason = self._only_magnitude(layer, ctx)
            if reason is None:
                waiting.append(layer)
                continue
            done.magnitude[reason] += 1
            yield layer, _by_magnitude(layer, rule)
        # Queries, keys and values read the same: so much work is done once.
        shared: tuple[Array, Array, Factor] | None = None
        for layer, moments in _moments(model, waiting, ctx, sequential=self.sequential):
            reason = _unusable(moments)
            if reason is not None:
                done.magnitude[reason] += 1
                yield layer, _by_magnitude(layer, rule)
                continue
            if shared is None or shared[0] is not moments:
                ordered = layer.columns.moments(moments)
                shared = moments, ordered, factorize(ordered, self.damping)
            solution = self._solved(layer, shared[1], shared[2], rule)
            if solution.magnitude_error > 0:
                done.ratios.append(solution.error / solution.magnitude_error)
            yield layer, solution.matrix

    def _solved(self, layer: Layer, hessian: Array, factor: Factor, rule: Rule) -> Solution:
        solution = prune(layer.matrix(), hessian, rule, block=self.block, damping=self.damping, factor=factor)
        # Half precision may overflow where a weight had to make up for many.
        if np.isfinite(layer.stored(solution.matrix)).all():
            return solution
        return Solution(_by_magnitude(layer, rule), solution.magnitude_error, solution.magnitude_error)

    def _only_magnitude(self, layer: Layer, ctx: Context) -> str | None:
        """Why a layer is pruned by magnitude although second order was asked for; "" where it was not."""
        if self.method is SparsityMethod.MAGNITUDE:
            return ""
        if ctx.calibration is None:
            return "there is no calibration data"
        if moment_bytes(layer.view) > BUDGET_BYTES:
            return f"their second moments need more than {BUDGET_BYTES >> 20} MiB"
        return None

    def _notes(self, ctx: Context, done: _Summary) -> list[Finding]:
        if not done.layers:
            return []
        saved = 1 - done.packed_after / done.packed_before
        notes = [
            f"{done.layers} weights are {self._described()}: {100 * done.zeros / done.elements:.1f} % of their "
            f"{done.elements} elements are zero; compressed (zlib) they take {_size(done.packed_after)} instead of "
            f"{_size(done.packed_before)}, {100 * saved:.0f} % less"
        ]
        if done.ratios:
            notes.append(
                f"second-order updates: the squared output error of {len(done.ratios)} layers on the calibration "
                f"data is {statistics.median(done.ratios):.2f} (median) of what pruning by magnitude makes it"
            )
        notes += [
            f"{count} weights are pruned by magnitude: {reason}"
            for reason, count in done.magnitude.items()
            if reason
        ]
        if self.pattern.value not in ctx.capabilities.sparse_kernels:
            notes.append(
                f"size-only: the target has no kernels for {self.pattern.value} sparsity, so the model is neither "
                "faster nor more frugal; the file shrinks when it is compressed"
            )
        return [Finding("note", note, rule=_RULE) for note in notes]


def _moments(
    model: ir.Model, layers: Sequence[Layer], ctx: Context, *, sequential: bool
) -> Iterator[tuple[Layer, Array]]:
    """Yield each layer with the second moments of its inputs, summed over all nodes that share its weight."""
    if not layers:
        return
    owners = [index for index, layer in enumerate(layers) for _ in layer.views]
    open_views = [len(layer.views) for layer in layers]
    sums: dict[int, Array] = {}
    # The caller edits the model: inputs of the dense model need one of their own, which shares the weights.
    source = model if sequential else model.clone()
    stages = plan_stages([view for layer in layers for view in layer.views], one_by_one=sequential)
    for number, stage in enumerate(stages):
        sum_moments(source, stage, ctx, f"Calibrating {number + 1}/{len(stages)}")
        for moments in stage:
            assert moments.total is not None
            for member in moments.members:
                owner = owners[member]
                total = moments.total
                if len(layers[owner].views) > 1:
                    total = total / max(moments.rows, 1)
                    total = sums.pop(owner) + total if owner in sums else total
                open_views[owner] -= 1
                if open_views[owner]:
                    sums[owner] = total
                else:
                    yield layers[owner], total
            moments.total = None


def _unusable(moments: Array) -> str | None:
    """Why second moments say nothing about a layer's inputs."""
    if too_large(moments):
        return "their inputs are too large for their correlations"
    return None if np.any(moments) else "the calibration data never reaches them"


def _by_magnitude(layer: Layer, rule: Rule) -> Array:
    matrix = layer.matrix()
    return np.where(magnitude_mask(matrix, rule), np.zeros((), matrix.dtype), matrix)


def _install(layer: Layer, matrix: Array, done: _Summary) -> None:
    """Write a layer's weight and take down what it means for the size."""
    stored = np.ascontiguousarray(layer.stored(matrix))
    done.layers += 1
    done.elements += stored.size
    done.zeros += stored.size - int(np.count_nonzero(stored))
    done.packed_before += _packed(layer.tensor.numpy())
    done.packed_after += _packed(stored)
    layer.put(stored)


def _packed(array: Array) -> int:
    """Compressed size, at the level that is fast."""
    return len(zlib.compress(np.ascontiguousarray(array).tobytes(), 1))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
