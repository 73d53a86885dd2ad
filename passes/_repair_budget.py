"""What a repair may spend: samples by the work of the models, and what is held at once by the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.passes._capture import BUDGET_BYTES, graph_values, sample_bytes
from greencc.passes._linear_view import linear_view
from greencc.passes._prune_costs import macs_per_sample
from greencc.passes._repair_order import Step
from greencc.passes._ridge import Moments

# Whatever the work, so many samples are looked at.
_MIN_SAMPLES = 16
# Of the largest value of the original for the samples run at once.
_RUN_BYTES = 16 << 20


def affordable_samples(models: Sequence[ir.Model], feeds: Sequence[Feeds], passes: int, work: float) -> int:
    """Samples that so many passes over the data may look at.

    Args:
        models: All of them run in every pass.
        feeds: The first one sets the sizes of dynamic axes.
        passes: How many there are.
        work: Multiply-accumulates that may be spent.
    """
    macs = sum(macs_per_sample(model, feeds) for model in models)
    # A pass runs the models up to its layers: half of them on average.
    return max(_MIN_SAMPLES, int(min(work / max(1.0, 0.5 * macs * passes), 1e9)))


def run_together(bound: ir.Model, together: int, most: int) -> int:
    """Samples to run at once.

    Args:
        bound: The original with all sizes bound.
        together: Samples in one batch of it.
        most: What they are limited to.
    """
    names = [str(value.name) for value in graph_values(bound.graph)]
    largest = max(sample_bytes(bound, names).values(), default=1)
    # The engines hold several values at once, whatever is asked for.
    return max(1, min(most, together * _RUN_BYTES // max(largest, 1)))


def alike(
    stages: Sequence[Sequence[Step]],
    original: ir.Model,
    compressed: ir.Model,
    *,
    batch: int,
    max_columns: int,
) -> int:
    """Samples to run at once in all passes: what one of them keeps is what the next one asks for.

    Args:
        stages: The layers of each pass.
        original: Gives their targets.
        compressed: Has the layers.
        batch: What is wanted.
        max_columns: A layer with more columns reads what its original reads as well.
    """
    nodes, before = ({str(node.name): node for node in model.graph} for model in (compressed, original))
    for stage in stages:
        exact = [step.item.target for step in stage]
        exact += [step.item.join.total for step in stage if step.item.join is not None]
        exact += [step.item.source.value for step in stage if step.follows and step.item.source is not None]
        wide = [step.item.node for step in stage if _columns(nodes[step.item.node]) > max_columns]
        exact += [_source(before[name]) for name in wide if name in before]
        seen = [_source(nodes[step.item.node]) for step in stage]
        seen += [step.item.join.other for step in stage if step.item.join is not None]
        sizes = sample_bytes(original, exact), sample_bytes(compressed, seen)
        size = sum(sum(part.values()) for part in sizes)
        batch = max(1, min(batch, BUDGET_BYTES // max(size, 1)))
    return batch


def stages_that_fit(
    group: Sequence[Step], nodes: Mapping[str, ir.Node], *, limit: int, max_columns: int
) -> Iterator[list[Step]]:
    """Neighbours whose matrices fit the memory together.

    Args:
        group: Layers of one pass.
        nodes: By name.
        limit: Bytes of the matrices.
        max_columns: Of the matrix of a layer.
    """
    stage: list[Step] = []
    total = 0
    for item in group:
        view = linear_view(nodes[item.item.node])
        assert view is not None
        size = Moments.nbytes(view.groups, min(view.inputs, max_columns), view.outputs)
        if stage and total + size > limit:
            yield stage
            stage, total = [], 0
        stage.append(item)
        total += size
    if stage:
        yield stage


def _columns(node: ir.Node) -> int:
    view = linear_view(node)
    return 0 if view is None else view.inputs


def _source(node: ir.Node) -> str:
    source = node.inputs[0]
    assert source is not None
    return str(source.name)
