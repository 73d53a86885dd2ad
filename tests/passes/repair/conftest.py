"""An engine, data in memory and a way to run models, for the repair tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from greencc.core.capabilities import Capabilities
from greencc.core.data import Array, Batch, Feeds, TensorSpec
from greencc.core.passes import Context, RewriteLog
from greencc.targets._ort_model import expose


class Engine:
    """Runs a model without optimisation."""

    built = 0

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        Engine.built += 1
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        if outputs is not None:
            model, _ = expose(model, outputs)
        self.session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)

    @property
    def inputs(self) -> list[TensorSpec]:
        return [
            TensorSpec(item.name, np.dtype(np.float32), tuple(item.shape))
            for item in self.session.get_inputs()
        ]

    @property
    def outputs(self) -> list[TensorSpec]:
        return []

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = list(outputs or [item.name for item in self.session.get_outputs()])
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        del self.session


@dataclass(frozen=True)
class Arrays:
    """A data source over arrays in memory."""

    feeds: Mapping[str, Array]
    name: str = "arrays"
    has_labels: bool = False
    synthetic: bool = False

    @property
    def count(self) -> int:
        return len(next(iter(self.feeds.values())))

    def digest(self) -> str:
        return ""

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch({name: values[start : start + size] for name, values in self.feeds.items()})


@pytest.fixture
def context() -> Callable[..., Context]:
    def make(limit: int | None = None, **feeds: Array) -> Context:
        capabilities = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), True)
        data = Arrays(feeds) if feeds else None
        return Context(capabilities, Engine, [], calibration=data, rewrites=RewriteLog(limit))

    return make


@pytest.fixture
def run() -> Callable[..., Array]:
    """The first output, or a named value, of a model."""

    def first(model: ir.Model, name: str | None = None, **feeds: Any) -> Array:
        return next(iter(Engine(model, None if name is None else [name]).run(feeds).values()))

    return first


@pytest.fixture
def passes() -> Callable[[], int]:
    """How many engines were built so far: two for each pass over the data."""
    return lambda: Engine.built
