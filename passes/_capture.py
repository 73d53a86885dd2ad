"""Run the calibration data through a model and see inner values, batch by batch, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array, Batch, DataSource, TensorSpec
from greencc.core.engine import Engine
from greencc.core.errors import GreenccError, InputError
from greencc.core.passes import Context

# Values fetched by one run. Small enough to stay near the caches, which is also the fastest.
BUDGET_BYTES = 64 << 20


def stream(
    model: ir.Model, names: Sequence[str], ctx: Context, batch: int, *, label: str = "Calibrating"
) -> Iterator[dict[str, Array]]:
    """Yield the named values of the main graph for the calibration data, in order, piece by piece.

    Values that together do not fit the memory budget come in several dictionaries for the same samples, each
    with some of the names.

    Args:
        model: It is left unchanged.
        names: Values of the main graph, inputs included.
        ctx: Gives the calibration data and the engine.
        batch: Samples run at once at most, where the model's batch is dynamic.
        label: What the progress bar says.

    Raises:
        InputError: There is no calibration data, it is empty, or an input holds NaN or infinity.
    """
    source = require_data(ctx)
    groups = fetch_groups(model, names)
    engine = (ctx.observe or ctx.build)(model, outputs=list(names))
    step: int | None = None
    try:
        runs = checked(source, batch)
        for item in ctx.progress(runs, label=label, total=math.ceil(source.count / batch)):
            done = 0
            while done < item.count:
                # The first sample tells how many fit the budget.
                part = rows(item, done, done + (step or 1))
                size = 0
                for group in groups:
                    for results in run_split(engine, part, part.count, group):
                        size += sum(values.nbytes for values in results.values())
                        yield results
                done += part.count
                if step is None:
                    step = max(1, min(BUDGET_BYTES // max(size, 1), item.count))
    finally:
        engine.close()
    if step is None:
        raise no_samples(source)


def require_data(ctx: Context) -> DataSource:
    """The calibration data.

    Raises:
        InputError: There is none.
    """
    if ctx.calibration is None:
        raise InputError("this needs calibration data", hint="pass --calibration with sample inputs")
    return ctx.calibration


def no_samples(source: DataSource) -> InputError:
    return InputError(f"the calibration data {source.name} has no samples", hint="give it at least one")


def non_finite(name: str) -> InputError:
    return InputError(
        f"activation {name!r} becomes NaN or infinity on the calibration data",
        hint="check the preprocessing of the samples, and the model, with these inputs in float",
    )


def checked(source: DataSource, size: int) -> Iterator[Batch]:
    """The batches of a source, refusing values no range can be taken from."""
    seen = 0
    for item in source.batches(size):
        for name, values in item.feeds.items():
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
                raise InputError(
                    f"calibration sample {seen + row} of {source.name} holds NaN or infinity in input {name!r}",
                    hint="remove the sample or repair the preprocessing",
                )
        seen += item.count
        yield item


def graph_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs and node outputs of a graph, in order."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def fetch_groups(model: ir.Model, names: Sequence[str]) -> list[list[str]]:
    """Split the values so that one sample of each group fits the memory budget, as far as shapes are known."""
    sizes = sample_bytes(model, names)
    groups: list[list[str]] = [[]]
    total = 0
    for name in names:
        if groups[-1] and total + sizes[name] > BUDGET_BYTES:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += sizes[name]
    return groups


def sample_bytes(model: ir.Model, names: Sequence[str]) -> dict[str, int]:
    """Bytes of each value for one sample, taking unknown dimensions as 1."""
    values = {value.name: value for value in graph_values(model.graph)}
    sizes = {}
    for name in names:
        shape = values[name].shape
        sizes[name] = 4 * (
            math.prod(dim for dim in shape if isinstance(dim, int)) if shape is not None else 1
        )
    return sizes


def rows(item: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch."""
    return Batch({name: values[start:stop] for name, values in item.feeds.items()})


def single_samples(source: DataSource, wanted: int) -> Iterator[Batch]:
    """Samples one by one, evenly spread over the data."""
    picked = {index * source.count // wanted for index in range(wanted)}
    first = 0
    for item in checked(source, 32):
        for offset in range(item.count):
            if first + offset in picked:
                part = rows(item, offset, offset + 1)
                yield Batch(part.feeds, None if item.labels is None else item.labels[offset : offset + 1])
        first += item.count


def run_split(
    engine: Engine, item: Batch, step: int, outputs: Sequence[str] | None = None
) -> Iterator[dict[str, Array]]:
    """Run a batch in pieces the engine takes: its fixed batch size, else `step` samples, else one by one."""
    fixed = _fixed_batch(engine.inputs)
    if fixed is not None:
        for start in range(0, item.count, fixed):
            # A short last piece is filled up with its last sample, which adds no new values.
            index = np.minimum(np.arange(start, start + fixed), item.count - 1)
            yield engine.run({name: values[index] for name, values in item.feeds.items()}, outputs)
        return
    start = 0
    while start < item.count:
        piece = rows(item, start, start + step)
        try:
            results = engine.run(piece.feeds, outputs)
        except GreenccError:
            # Exporters write a batch of 1 into reshapes of graphs that declare a dynamic batch.
            if step == 1:
                raise
            step = 1
            continue
        yield results
        start += piece.count


def run_one(engine: Engine, item: Batch) -> dict[str, Array]:
    """The outputs for a batch of one sample; of a fixed batch, those of its first row."""
    found = next(iter(run_split(engine, item, 1)))
    return {name: values[:1] if values.ndim else values for name, values in found.items()}


def _fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    return next((spec.batch for spec in inputs if spec.batch is not None), None)
