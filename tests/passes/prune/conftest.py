"""A tiny ONNX Runtime engine, data in memory and graph builders for the pruning tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from greencc.core.capabilities import Capabilities
from greencc.core.data import Array, Batch, Feeds, TensorSpec
from greencc.core.errors import InputError
from greencc.core.passes import Context, RewriteLog
from greencc.torch_graph import differentiate

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
}


class OrtEngine:
    """Runs a model without optimisation."""

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
            TensorSpec(item.name, np.dtype(_TYPES[item.type]), tuple(item.shape))
            for item in self.session.get_inputs()
        ]

    @property
    def outputs(self) -> list[TensorSpec]:
        return []

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
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
    labels: Array | None = None
    name: str = "arrays"
    synthetic: bool = False

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def count(self) -> int:
        return len(next(iter(self.feeds.values())))

    def digest(self) -> str:
        return ""

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            part = slice(start, start + size)
            labels = None if self.labels is None else self.labels[part]
            yield Batch({name: values[part] for name, values in self.feeds.items()}, labels)


class Counted:
    """Builds engines and counts them and their runs."""

    def __init__(self) -> None:
        self.engines = 0
        self.runs = 0

    def __call__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> OrtEngine:
        self.engines += 1
        counts = self

        class Engine(OrtEngine):
            def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
                counts.runs += 1
                return super().run(feeds, outputs)

        return Engine(model, outputs)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def context() -> Callable[..., Context]:
    """A context with calibration data from arrays by input name, the first rows of them as the sample."""

    def make(
        labels: Array | None = None,
        limit: int | None = None,
        build: Callable[..., OrtEngine] = OrtEngine,
        rows: int = 1,
        **feeds: Array,
    ) -> Context:
        capabilities = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), True)
        calibration = Arrays(feeds, labels) if feeds else None
        samples = [{name: values[:rows] for name, values in feeds.items()}] if feeds else []
        return Context(
            capabilities,
            build,
            samples,
            calibration=calibration,
            rewrites=RewriteLog(limit),
            gradients=differentiate,
        )

    return make


@pytest.fixture
def engine() -> type[OrtEngine]:
    return OrtEngine


@pytest.fixture
def parse() -> Callable[..., ir.Model]:
    """Parse the ONNX text of a graph, with weights given as arrays; nodes are called `<op>_<position>`."""

    def make(text: str, opset: int = 17, **weights: Array) -> ir.Model:
        graph = onnx.parser.parse_graph(text)
        for position, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{position}"
        graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
        )
        proto = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
        )
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))

    return make


@pytest.fixture
def random() -> Callable[..., Array]:
    """Float32 normal arrays from a fixed seed."""
    generator = np.random.default_rng(11)

    def make(*shape: int, scale: float = 1.0) -> Array:
        return (generator.standard_normal(shape) * scale).astype(np.float32)

    return make
