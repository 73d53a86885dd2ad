"""A tiny ONNX Runtime engine, an in-memory data source and models for the quantization tests."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.data import Array, Batch, Feeds, TensorSpec
from greencc.core.errors import InputError
from greencc.core.passes import Context, RewriteLog

OPS = frozenset(
    [
        "Add",
        "AveragePool",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "LeakyRelu",
        "MatMul",
        "MaxPool",
        "Mul",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)


class OrtEngine:
    """Runs a model without optimisation; counts its runs."""

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        proto = ir.to_proto(model)
        if outputs is not None:
            del proto.graph.output[:]
            proto.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
            )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(proto.SerializeToString(), options)
        self.runs = 0

    @property
    def inputs(self) -> list[TensorSpec]:
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        return [
            TensorSpec(item.name, np.dtype(kinds[item.type]), tuple(item.shape))
            for item in self.session.get_inputs()
        ]

    @property
    def outputs(self) -> list[TensorSpec]:
        return []

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.runs += 1
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


@dataclass(frozen=True)
class Kit:
    """What the tests use."""

    folder: Path
    int8: Int8Support

    def context(self, feeds: dict[str, Array] | None, limit: int | None = None, **int8: Any) -> Context:
        capabilities = Capabilities(
            int8=replace(self.int8, **int8),
            float16=frozenset(),
            bfloat16=frozenset(),
            max_opset=23,
            fused_ops=frozenset(),
            gemm_gains=True,
        )
        return Context(
            capabilities,
            OrtEngine,
            [],
            calibration=None if feeds is None else Arrays(feeds),
            rewrites=RewriteLog(limit),
        )

    def save(self, model: ir.Model, name: str = "model.onnx") -> Path:
        path = self.folder / name
        ir.save(model, path)
        onnx.checker.check_model(str(path), full_check=True)
        return path

    def run(self, model: ir.Model, feeds: Feeds) -> list[Array]:
        """Run as deployed, with every optimisation."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(str(self.save(model)), options)
        return [np.asarray(output) for output in session.run(None, dict(feeds))]

    def run_as_written(self, model: ir.Model, feeds: Feeds, outputs: Sequence[str]) -> dict[str, Array]:
        return OrtEngine(model, outputs).run(feeds, outputs)

    def kernels(self, model: ir.Model) -> collections.Counter[str]:
        """Operators of the graph that ONNX Runtime really executes."""
        path, optimized = self.save(model), self.folder / "optimized.onnx"
        options = ort.SessionOptions()
        # The layout transformation of the last level adds transposes that depend on the machine.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 4
        ort.InferenceSession(str(path), options)
        return collections.Counter(node.op_type for node in onnx.load(optimized).graph.node)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(
        tmp_path,
        Int8Support(
            activation=ElementType.UINT8,
            symmetric_activations=False,
            weight_bits=8,
            per_channel=True,
            bias=ElementType.INT32,
            ops=OPS,
            quantize_outputs=True,
            reason="a test",
            float_output=frozenset({"Gemm", "MatMul"}),
        ),
    )


@pytest.fixture
def parse() -> Callable[..., ir.Model]:
    """Parse ONNX text, with weights given as arrays."""

    def make(text: str, opset: int = 17, **weights: Array) -> ir.Model:
        graph = onnx.parser.parse_graph(text)
        for position, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{position}"
        graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
        proto = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
        )
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))

    return make


@pytest.fixture
def random() -> Callable[..., Array]:
    """Float32 normal arrays from a fixed seed."""
    generator = np.random.default_rng(7)

    def make(*shape: int, scale: float = 1.0) -> Array:
        return (generator.standard_normal(shape) * scale).astype(np.float32)

    return make


def relative(expected: Array, got: Array) -> float:
    """Largest error relative to the largest magnitude."""
    return float(np.max(np.abs(expected - got)) / np.max(np.abs(expected)))
