"""Run passes one after another, each behind a gate.

After every pass the shapes are inferred again and the full ONNX check runs. A pass that claims to preserve
the function must reproduce the reference outputs on the sample inputs; one that does not is rolled back with
a finding that names the rewrite and the node. Lossy passes report their output error and become the new
reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Feeds
from greencc.core.engine import EngineBuilder
from greencc.core.errors import GreenccError
from greencc.core.graph import is_op
from greencc.core.kl import is_float
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass, RewriteLog
from greencc.core.recipe import options_of
from greencc.core.rehearsal import rehearsed
from greencc.core.report import PassRecord

# Operators that only move values.
_LAYOUT = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Cast")


@dataclass(frozen=True)
class Tolerance:
    """How far the outputs of a function-preserving pass may move; integer, boolean and string outputs may not.

    1e-4 is about a hundred times the rounding that folding a BatchNormalization causes in float32 and a hundredth
    of what an 8-bit step changes; the slices see damage that one large value hides (docs/adr/0004-tolerances.md).

    Attributes:
        relative: Of the largest magnitude of a whole float output, over all samples.
        per_slice: Of the largest magnitude of each slice along the last axis (a class or feature over all samples).
        rounding: Of the whole output's magnitude: what a slice may move by however small it is.
        absolute: Keeps an output that is zero from dividing by zero.
        sigmoid: What an output that a Sigmoid computes may move by however small it is: kernels evaluate it as
            0.5 + p(x), so its error is relative to 1. Four spacings of float32 at 1.
    """

    relative: float = 1e-4
    per_slice: float = 1e-2
    rounding: float = 1e-6
    absolute: float = 1e-9
    sigmoid: float = 4 * 2.0**-23


@dataclass(frozen=True)
class Pipeline:
    """Applies passes to clones of a model.

    Args:
        ctx: What the passes may use; its `rewrites` is replaced for every pass.
        tolerance: The bound of the equivalence gate.
    """

    ctx: Context
    tolerance: Tolerance = Tolerance()

    def run(
        self, model: ir.Model, passes: Sequence[Pass], later: Sequence[Pass] = ()
    ) -> tuple[ir.Model, list[PassRecord]]:
        """Return the rewritten model and what each pass did; `model` itself is left unchanged.

        Args:
            model: What to start from.
            passes: What to run, in this order.
            later: What runs after that, elsewhere: passes that measure do so in the arithmetic of those to come.
        """
        records: list[PassRecord] = []
        reference: list[dict[str, Array]] | None = None
        for index, step in enumerate(self.ctx.progress(passes, label="Passes", total=len(passes))):
            ctx = rehearsed(self.ctx, (*passes[index + 1 :], *later))
            if reference is None:
                reference = run_samples(self.ctx.build, model, self.ctx.samples)
            start = time.perf_counter()
            candidate, outcome, rewrites = _apply(model, step, ctx, limit=None)
            error: float | None = None
            rolled_back = False
            findings = [*outcome.findings, *(_incomparable(reference) if not records else ())]
            if outcome.changed:
                problem, error = self._judge(candidate, step, reference)
                if problem is None:
                    model = candidate
                    if step.lossy:
                        reference = None
                else:
                    rolled_back = True
                    findings.append(self._blame(model, step, ctx, reference, problem, rewrites))
            records.append(
                PassRecord(
                    name=step.name,
                    options=options_of(step),
                    changed=0 if rolled_back else outcome.changed,
                    error=error,
                    rolled_back=rolled_back,
                    findings=tuple(findings),
                    seconds=time.perf_counter() - start,
                    chosen={} if rolled_back else outcome.chosen,
                )
            )
        return model, records

    def _judge(
        self, candidate: ir.Model, step: Pass, reference: list[dict[str, Array]]
    ) -> tuple[str | None, float | None]:
        """Return (what is wrong or None, the relative output error or None)."""
        try:
            infer_shapes(candidate)
            check_model(candidate)
            outputs = run_samples(self.ctx.build, candidate, self.ctx.samples)
        except GreenccError as failure:
            return failure.message, None
        if not reference:
            return None, None
        floors = dict.fromkeys(_sigmoids(candidate), self.tolerance.sigmoid)
        error = output_error(reference, outputs, self.tolerance.absolute, floors)
        if not step.lossy and not error <= self.tolerance.relative:
            return (
                f"outputs moved by {error:.2g} of their range, more than the tolerance {self.tolerance.relative:g}",
                error,
            )
        if step.lossy:
            return None if np.isfinite(error) else unbounded_problem(reference, outputs), error
        return slice_problem(reference, outputs, self.tolerance, floors), error

    def _blame(
        self,
        model: ir.Model,
        step: Pass,
        ctx: Context,
        reference: list[dict[str, Array]],
        problem: str,
        rewrites: RewriteLog,
    ) -> Finding:
        """Bisect for the first rewrite after which the gate fails."""
        low, high = 0, len(rewrites.applied)
        untouched, _, _ = _apply(model, step, ctx, limit=0)
        if not high or self._judge(untouched, step, reference)[0] is not None:
            # The pass changes the model without announcing it (or announces nothing): no rewrite to name.
            return Finding("rolled-back", f"{step.name} was rolled back: {problem}")
        while high - low > 1:
            middle = (low + high) // 2
            candidate, _, _ = _apply(model, step, ctx, limit=middle)
            if self._judge(candidate, step, reference)[0] is None:
                low = middle
            else:
                high = middle
        culprit = rewrites.applied[high - 1]
        return Finding(
            "rolled-back",
            f"{step.name} was rolled back: {problem}; "
            f"the first rewrite at fault is {culprit.rule} at node {culprit.node!r}",
            node=culprit.node,
            rule=culprit.rule,
        )


def _apply(
    model: ir.Model, step: Pass, ctx: Context, limit: int | None
) -> tuple[ir.Model, Outcome, RewriteLog]:
    rewrites = RewriteLog(limit)
    candidate = model.clone()
    outcome = step.apply(candidate, replace(ctx, rewrites=rewrites))
    return candidate, outcome, rewrites


def run_samples(build: EngineBuilder, model: ir.Model, samples: Sequence[Feeds]) -> list[dict[str, Array]]:
    """Outputs of `model` for each of the sample feeds."""
    engine = build(model)
    try:
        return [engine.run(feeds) for feeds in samples]
    finally:
        engine.close()


def output_error(
    reference: Sequence[dict[str, Array]],
    outputs: Sequence[dict[str, Array]],
    absolute: float,
    floors: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """Largest error of any output, relative to the largest magnitude of that output in the reference.

    Distances up to `absolute`, or up to `floors` of the output where that is more, count as none.
    Returns inf where shapes, names or integer values differ, or where a finite value became non-finite.
    """
    worst = 0.0
    for name in reference[0] if reference else ():
        scale = max((_magnitude(run[name]) for run in reference), default=0.0)
        for expected, got in zip(reference, outputs, strict=True):
            if name not in got or got[name].shape != expected[name].shape:
                return float("inf")
            a, b = expected[name], got[name]
            if not is_float(a):
                if not np.array_equal(a, b):
                    return float("inf")
                continue
            a, b = a.astype(np.float64), b.astype(np.float64)
            finite = np.isfinite(a)
            if not np.array_equal(finite, np.isfinite(b)):
                return float("inf")
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
                return float("inf")
            distance = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
            if distance > max(absolute, floors.get(name, 0.0)):
                worst = max(worst, distance / max(scale, absolute))
    return worst


def unbounded_problem(reference: Sequence[dict[str, Array]], outputs: Sequence[dict[str, Array]]) -> str:
    """Why `output_error` of these is infinite."""
    for name in reference[0]:
        for expected, got in (
            (run[name], other.get(name)) for run, other in zip(reference, outputs, strict=True)
        ):
            if got is None:
                return f"output {name!r} is gone"
            if got.shape != expected.shape:
                return f"output {name!r} changed its shape from {list(expected.shape)} to {list(got.shape)}"
            if not is_float(expected):
                if not np.array_equal(expected, got):
                    return (
                        f"output {name!r} changed on the sample inputs, and it is {expected.dtype}: "
                        "how large an error that is has no bound"
                    )
                continue
            wide = got.astype(np.float64)
            if not np.isfinite(wide[np.isfinite(expected.astype(np.float64))]).all():
                return "outputs are no longer finite"
    return "values of the outputs that were not finite are others now"


def slice_problem(
    reference: Sequence[dict[str, Array]],
    outputs: Sequence[dict[str, Array]],
    tolerance: Tolerance,
    floors: Mapping[str, float] = MappingProxyType({}),
) -> str | None:
    """The slice along the last axis of a float output that moved most beyond its tolerance, or None.

    Args:
        reference: Outputs by name, per sample; `outputs` has the same names and shapes (see `output_error`).
        outputs: Likewise.
        tolerance: `per_slice`, `rounding` and `absolute` count.
        floors: By output, distances that count as none.

    Outputs of rank 0 or 1, and those whose last axis differs between samples, have no slices.
    """
    worst, problem = tolerance.per_slice, None
    for name in reference[0] if reference else ():
        runs = [(run[name], other[name]) for run, other in zip(reference, outputs, strict=True)]
        if not all(is_float(a) and a.ndim >= 2 and a.shape[-1] == runs[0][0].shape[-1] for a, _ in runs):
            continue
        size = np.zeros(runs[0][0].shape[-1])
        moved = np.zeros_like(size)
        for a, b in runs:
            axes = tuple(range(a.ndim - 1))
            wide, other = a.astype(np.float64), b.astype(np.float64)
            # What is not finite was compared for equality.
            finite = np.isfinite(wide) & np.isfinite(other)
            distance = np.abs(np.subtract(wide, other, where=finite, out=np.zeros_like(wide)))
            size = np.maximum(size, np.max(np.abs(wide), axes, where=finite, initial=0.0))
            moved = np.maximum(moved, np.max(distance, axes, initial=0.0))
        whole = float(np.max(size, initial=0.0))
        floor = max(tolerance.rounding * whole, tolerance.absolute, floors.get(name, 0.0))
        errors = np.where(moved > floor, moved / np.maximum(size, tolerance.absolute), 0.0)
        if float(np.max(errors, initial=0.0)) > worst:
            index, worst = int(np.argmax(errors)), float(np.max(errors))
            problem = (
                f"slice {index} along the last axis of output {name!r} moved by {worst:.2g} of its own range, "
                f"more than the tolerance {tolerance.per_slice:g}"
            )
    return problem


def _sigmoids(model: ir.Model) -> Iterator[str]:
    """Names of the outputs that a Sigmoid computes, whatever their layout."""
    for output in model.graph.outputs:
        node = output.producer()
        while node is not None and is_op(node, *_LAYOUT) and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if is_op(node, "Sigmoid"):
            yield output.name or ""


def _incomparable(reference: Sequence[dict[str, Array]]) -> list[Finding]:
    """A warning that names the outputs that hold nothing to compare: the gate cannot see damage there."""
    names = [
        name
        for name in (reference[0] if reference else ())
        if not any(
            np.any(np.isfinite(run[name])) if is_float(run[name]) else run[name].size for run in reference
        )
    ]
    if not names:
        return []
    listed = ", ".join(repr(name) for name in names)
    return [
        Finding(
            "warning",
            f"on the sample inputs, no finite value comes out at {listed}: "
            "whether the passes preserve what is computed there could not be checked",
        )
    ]


def _magnitude(values: Array) -> float:
    if not is_float(values):
        return 0.0
    wide = np.abs(values.astype(np.float64))
    return float(np.max(wide, where=np.isfinite(wide), initial=0.0))
