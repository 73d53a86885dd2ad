"""Single-layer models, data in memory and an engine for the tests of low-rank factorisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from greencc.core.capabilities import Capabilities
from greencc.core.data import Array, Batch, TensorSpec
from greencc.core.engine import Timer
from greencc.core.errors import InputError
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Outcome, RewriteLog
from greencc.passes.decompose import Decompose


class OrtEngine:
    """Runs a model as it is written."""

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        proto = ir.to_proto(model)
        if outputs is not None:
            del proto.graph.output[:]
            proto.graph.output.extend(onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(proto.SerializeToString(), options)

    @property
    def inputs(self) -> list[TensorSpec]:
        return [
            TensorSpec(item.name, np.dtype(np.float32), tuple(item.shape))
            for item in self.session.get_inputs()
        ]

    @property
    def outputs(self) -> list[TensorSpec]:
        return []

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = list(outputs or [item.name for item in self.session.get_outputs()])
        try:
            return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise InputError(str(error)) from error

    def close(self) -> None:
        del self.session


@dataclass(frozen=True)
class Arrays:
    """A data source over arrays in memory."""

    feeds: dict[str, Array]
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


def context(
    feeds: dict[str, Array] | None = None, *, limit: int | None = None, time: Timer | None = None
) -> Context:
    capabilities = Capabilities(
        int8=None,
        float16=frozenset(),
        bfloat16=frozenset(),
        max_opset=23,
        fused_ops=frozenset(),
        gemm_gains=True,
    )
    samples = [] if feeds is None else [{name: values[:1] for name, values in feeds.items()}]
    calibration = None if feeds is None else Arrays(feeds)
    return Context(
        capabilities, OrtEngine, samples, calibration=calibration, rewrites=RewriteLog(limit), time=time
    )


def parse(text: str, opset: int = 17, **weights: Array) -> ir.Model:
    """A model of ONNX text, with weights given as arrays."""
    graph = onnx.parser.parse_graph(text)
    for position, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    imports = [onnx.helper.make_opsetid("", opset)]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run_pass(
    model: ir.Model,
    feeds: dict[str, Array] | None,
    limit: int | None = None,
    time: Timer | None = None,
    **options: Any,
) -> tuple[ir.Model, Outcome, Context]:
    """Factorise a clone, which must come out valid with the same outputs."""
    ctx = context(feeds, limit=limit, time=time)
    result = model.clone()
    outcome = Decompose(**options).apply(result, ctx)
    assert outcome.changed == len(ctx.rewrites.applied)
    assert [value.name for value in result.graph.outputs] == [value.name for value in model.graph.outputs]
    infer_shapes(result)
    check_model(result)
    names = [node.name for node in result.graph]
    assert len(set(names)) == len(names)
    return result, outcome, ctx


def outputs(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    return list(OrtEngine(model).run(feeds).values())


def energy_lost(model: ir.Model, result: ir.Model, feeds: Mapping[str, Array]) -> float:
    """Squared error of the first output relative to the output."""
    expected, got = outputs(model, feeds)[0], outputs(result, feeds)[0]
    return float(np.square(expected - got).sum() / np.square(expected).sum())


class Kit:
    """What the tests use."""

    parse = staticmethod(parse)
    run = staticmethod(run_pass)
    context = staticmethod(context)
    outputs = staticmethod(outputs)
    energy_lost = staticmethod(energy_lost)


@pytest.fixture
def kit() -> Kit:
    return Kit()


@pytest.fixture
def random() -> Callable[..., Array]:
    """Float32 normal arrays from a fixed seed."""
    generator = np.random.default_rng(7)

    def make(*shape: int, scale: float = 1.0) -> Array:
        return (generator.standard_normal(shape) * scale).astype(np.float32)

    return make
