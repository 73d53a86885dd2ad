"""Teach a compressed graph: the float graph first, then, where it was quantized, the graph as it is rounded.

A quantized bundle is taught in two steps. Its float graph (`_float_graph`) is trained; the quantizing passes of its
recipe then run again, with the training data as calibration data, because the ranges of a repaired network are
others; the last epochs train that graph with its rounding. Before and after, PyTorch and the target's reference engine
must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch

from greencc.core.cache import cache_key
from greencc.core.data import Array, Feeds
from greencc.core.engine import EngineBuilder
from greencc.core.errors import InputError
from greencc.core.model import digest, infer_shapes
from greencc.core.passes import Context, Pass
from greencc.core.pipeline import Pipeline, run_samples
from greencc.core.report import PassRecord
from greencc.recover._empty import cut_empty
from greencc.recover._float_graph import float_graph, is_quantized
from greencc.recover._lasso import GroupLasso
from greencc.recover._teacher import matching, open_teacher, shared_values
from greencc.recover._train import Job, Trained, train
from greencc.torch_graph.graph import TorchGraph
from greencc.torch_graph.parameters import write_back

# Relative L2 error of an output. Rounding falls on the other side of a tie now and then, so a quantized graph may
# differ by a few steps.
FLOAT_TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.05


@dataclass(frozen=True)
class Taught:
    """The outcome.

    Attributes:
        model: The graph to ship.
        runs: Each stretch of training.
        records: The quantizing passes, where they ran again.
        features: Inner values that were matched.
        cut: Channels that a group lasso emptied.
        parameters: How many numbers were trained.
    """

    model: ir.Model
    runs: tuple[Trained, ...]
    records: tuple[PassRecord, ...]
    features: tuple[str, ...]
    cut: int
    parameters: int

    @property
    def samples(self) -> int:
        return sum(run.samples for run in self.runs)


def teach(
    teacher: ir.Model, student: ir.Model, requantize: Sequence[Pass], job: Job, ctx: Context, batch: int
) -> Taught:
    """Train `student`; the models given are left unchanged.

    Args:
        teacher: The model the student was made from.
        student: The compressed graph, with or without Q/DQ pairs.
        requantize: The passes that make the quantized graph of the float one; empty for a float student.
        job: Data and options.
        ctx: Engines, sample feeds and calibration data.
        batch: Samples per step.

    Raises:
        InputError: A graph cannot be trained, or training failed.
    """
    options = job.options
    quantized = is_quantized(student)
    rounded = min(options.epochs, round(options.int8_share * options.epochs)) if quantized else 0
    model = float_graph(student) if quantized else student.clone()
    infer_shapes(model)
    model, first, features, count = _run(
        teacher, model, job, ctx, batch, options.epochs - rounded, rounding=False
    )
    cut = cut_empty(model) if options.group_sparsity else 0
    runs = [first]
    records: list[PassRecord] = []
    if quantized:
        model, records = Pipeline(ctx).run(model, requantize)
        if not is_quantized(model):
            raise InputError(
                "the recovered network could not be quantized again: " + _why(records),
                hint="recover the FP32 bundle, then compile the result with --precision int8",
            )
        if rounded:
            model, second, _, _ = _run(teacher, model, job, ctx, batch, rounded, rounding=True)
            runs.append(second)
    return Taught(model, tuple(runs), tuple(records), features, cut, count)


def _why(records: Sequence[PassRecord]) -> str:
    return (
        "; ".join(item.message for record in records for item in record.findings[:1]) or "nothing was changed"
    )


def _run(
    teacher: ir.Model, model: ir.Model, job: Job, ctx: Context, batch: int, epochs: int, *, rounding: bool
) -> tuple[ir.Model, Trained, tuple[str, ...], int]:
    """One stretch of training, with the gate before and after it."""
    graph = TorchGraph(model)
    if not graph.parameters:
        raise InputError("the graph has no weights that could be trained")
    check_agreement(model, graph, ctx.build, ctx.samples, "before training", rounding=rounding)
    features = _features(teacher, model, graph, ctx, rounding) if job.options.features else ()
    lasso = GroupLasso(model, graph.parameters) if job.options.group_sparsity and not rounding else None
    opened = open_teacher(teacher, ctx.observe or ctx.build, features)
    try:
        key = cache_key(job.key, digest(model), batch, epochs, rounding, features)
        trained = train(
            graph,
            opened,
            replace(job, key=key),
            epochs=epochs,
            batch=batch,
            rounding=rounding,
            lasso=lasso,
        )
    finally:
        opened.close()
    write_back(model, graph.arrays())
    # What is stored is what the integers can say: the gate compares the file with the graph read back from it.
    check_agreement(model, TorchGraph(model), ctx.build, ctx.samples, "after training", rounding=rounding)
    if not rounding:
        check_agreement(model, graph, ctx.build, ctx.samples, "after training", rounding=False)
    count = sum(int(value.numel()) for value in graph.parameters.values())
    return model, trained, features, count


def _features(
    teacher: ir.Model, model: ir.Model, graph: TorchGraph, ctx: Context, rounding: bool
) -> tuple[str, ...]:
    names = shared_values(teacher, model)
    if not names:
        return ()
    feeds = ctx.samples[0]
    engine = ctx.build(teacher, outputs=names)
    try:
        theirs = engine.run(feeds)
    finally:
        engine.close()
    with torch.no_grad():
        ours = {name: value.numpy() for name, value in graph.run(feeds, names, rounding=rounding).items()}
    return matching(names, theirs, ours)


def check_agreement(
    model: ir.Model,
    graph: TorchGraph,
    build: EngineBuilder,
    samples: Sequence[Feeds],
    when: str,
    *,
    rounding: bool,
) -> None:
    """The gate: PyTorch computes what the runtime computes.

    Raises:
        InputError: It does not; the message names the output.
    """
    tolerance = ROUNDED_TOLERANCE if rounding else FLOAT_TOLERANCE
    for feeds, wanted in zip(samples, run_samples(build, model, samples), strict=True):
        with torch.no_grad():
            found = {name: value.numpy() for name, value in graph.run(feeds, rounding=rounding).items()}
        for name, expected in wanted.items():
            error = _distance(expected, found[name])
            if not error <= tolerance:
                raise InputError(
                    f"{when}, PyTorch and the runtime disagree on output {name!r} by {error:.2g} (relative)",
                    hint="this graph cannot be trained; please report it with the model",
                )


def _distance(expected: Array, found: Array) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if expected.dtype.kind not in "fV":
        return 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all():
        return float("inf")
    size = float(np.linalg.norm(a[finite]))
    return float(np.linalg.norm(a[finite] - b[finite])) / max(size, 1e-9)
