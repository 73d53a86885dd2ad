"""Measure what a pass would change in the arithmetic that later passes bring.

A network that is pruned and then quantized runs in INT8, where other sizes are fast than in float. So models that a
pass has timed are put through the later passes first, each in its quickest form (`Pass.rehearsal`): the time counts,
not the outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from greencc.core.cache import Cache
from greencc.core.capabilities import Arithmetic
from greencc.core.data import Batch, Feeds
from greencc.core.engine import Timer, Timing
from greencc.core.inside import inside
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Pass, RewriteLog
from greencc.core.progress import silent


def rehearsed(ctx: Context, later: Sequence[Pass]) -> Context:
    """The context of a pass that `later` follows: what it times is what those make of it.

    Args:
        ctx: Of the pipeline; it comes back as it is where nothing is timed, or nothing changes the arithmetic.
        later: The passes to come.
    """
    steps: list[Pass] = []
    arithmetic: Arithmetic | None = None
    for step in later:
        quick = step.rehearsal(ctx.capabilities)
        if quick is not None:
            steps.append(quick)
            arithmetic = quick.arithmetic or arithmetic
    if arithmetic is None:
        return ctx
    rehearsal = _Rehearsal(tuple(steps), ctx)
    whole = part = None
    if ctx.time is not None:
        whole = _Timer(ctx.time, rehearsal)
        part = replace(whole, inside=True)
    return replace(
        ctx,
        time=whole,
        time_inside=part,
        arithmetic=arithmetic,
        rehearse=rehearsal.arithmetic,
        spared=frozenset().union(*(step.spares for step in steps)),
    )


def settled(ctx: Context, model: ir.Model) -> Context:
    """The context with what `model` will really compute in: float where the later passes quantize nothing of it."""
    if ctx.rehearse is None or not ctx.samples:
        return ctx
    return replace(ctx, arithmetic=ctx.rehearse(model, ctx.samples))


def carry_out(
    steps: Sequence[Pass], model: ir.Model, feeds: Sequence[Feeds], ctx: Context
) -> tuple[ir.Model, Arithmetic]:
    """What becomes of a clone of a model, and what it computes in then.

    Args:
        steps: Passes, each in its quickest form.
        model: Left unchanged.
        feeds: Inputs of the model; nothing else is calibrated on.
        ctx: Gives capabilities and engines.
    """
    model = model.clone()
    arithmetic = Arithmetic.FLOAT
    for step in steps:
        outcome = step.apply(
            model,
            replace(
                ctx,
                samples=feeds,
                calibration=_Inputs(feeds),
                rewrites=RewriteLog(),
                progress=silent,
                # What few samples show is of no use to anybody else.
                cache=Cache(),
                time=None,
            ),
        )
        if outcome.changed:
            arithmetic = step.arithmetic or arithmetic
        infer_shapes(model)
    return model, arithmetic


@dataclass(frozen=True)
class _Rehearsal:
    """What passes make of models.

    Attributes:
        steps: The passes.
        ctx: Gives them capabilities and engines; their data are the inputs of the models.
    """

    steps: tuple[Pass, ...]
    ctx: Context

    def arithmetic(self, model: ir.Model, feeds: Sequence[Feeds]) -> Arithmetic:
        """What a model computes in afterwards."""
        return self.apply(model, feeds)[1]

    def apply(self, model: ir.Model, feeds: Sequence[Feeds]) -> tuple[ir.Model, Arithmetic]:
        """What becomes of a clone of a model."""
        return carry_out(self.steps, model, feeds, self.ctx)


@dataclass(frozen=True)
class _Timer:
    """A timer of what passes make of models.

    Attributes:
        time: Measures what they made.
        rehearsal: Makes it.
        inside: The models are parts of one: they get and give integers where the passes let them.
    """

    time: Timer
    rehearsal: _Rehearsal
    inside: bool = False

    def __call__(self, models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
        made = [self.rehearsal.apply(model, feeds) for model in models]
        ready = [model for model, _ in made]
        if self.inside:
            feeds = inside(ready, feeds)
        return replace(self.time(ready, feeds), arithmetic=tuple(found for _, found in made))


@dataclass(frozen=True)
class _Inputs:
    """A few inputs as a data source; each is a batch as it is, so that models of a fixed batch run."""

    feeds: Sequence[Feeds]
    name: str = "inputs to measure with"
    has_labels: bool = False
    synthetic: bool = False

    @property
    def count(self) -> int:
        return sum(batch.count for batch in self.batches(1))

    def digest(self) -> str:
        found = hashlib.sha256()
        for feeds in self.feeds:
            for name, values in sorted(feeds.items()):
                found.update(f"{name}{values.dtype}{values.shape}".encode())
                found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()

    def batches(self, size: int) -> Iterator[Batch]:
        for feeds in self.feeds:
            yield Batch(dict(feeds))
