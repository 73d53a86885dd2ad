"""A small graph builder and an equivalence check that the clean-up tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.core.capabilities import Capabilities
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Outcome, Pass
from greencc.core.pipeline import Pipeline, output_error
from greencc.passes import default_cleanup
from greencc.targets._ort_model import expose


class Graph:
    """Builds a model node by node; every method returns the name of a value."""

    def __init__(self, opset: int = 17, ir_version: int = 8, seed: int = 0) -> None:
        self.opset, self.ir_version = opset, ir_version
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def const(self, array: Any, name: str | None = None, dtype: Any = None) -> str:
        array = np.asarray(array)
        if dtype is None:
            dtype = np.float32 if array.dtype.kind == "f" and array.dtype == np.float64 else array.dtype
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def random(self, *shape: int, name: str | None = None, positive: bool = False) -> str:
        values = self.rng.standard_normal(shape)
        return self.const(np.abs(values) + 0.5 if positive else values, name)

    def op(
        self, op_type: str, *inputs: str, name: str | None = None, outputs: int = 1, **attributes: Any
    ) -> Any:
        name = name or f"{op_type}{len(self.nodes)}"
        domain = attributes.pop("domain", "")
        results = [f"{name}_out" if outputs == 1 else f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, results, name=name, domain=domain, **attributes))
        return results[0] if outputs == 1 else results

    def batch_norm(self, x: str, channels: int, name: str | None = None) -> str:
        return self.op(
            "BatchNormalization",
            x,
            self.random(channels),
            self.random(channels),
            self.random(channels),
            self.random(channels, positive=True),
            name=name,
        )

    def model(self, *outputs: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "test",
            self.inputs,
            [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        proto = helper.make_model(
            graph, opset_imports=imports, ir_version=self.ir_version, functions=self.functions
        )
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        return ir.from_proto(proto)


class Runner:
    """Runs a model node by node as it is written."""

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        if outputs is not None:
            model, _ = expose(model, outputs)
        self.session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        names = list(outputs or [value.name for value in self.session.get_outputs()])
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        del self.session


def everything() -> Capabilities:
    fused = {"com.microsoft::Gelu", "com.microsoft::FastGelu", "ai.onnx::Gelu"}
    fused |= {"ai.onnx::LayerNormalization", "ai.onnx::HardSwish"}
    return Capabilities(None, frozenset(), frozenset(), 23, frozenset(fused), True)


class Result:
    """What a pass did to a model."""

    def __init__(self, model: ir.Model, outcome: Outcome, log: list[tuple[str, str]]) -> None:
        self.model, self.outcome, self.log = model, outcome, log

    @property
    def ops(self) -> list[str]:
        return [node.op_type for node in self.model.graph]

    @property
    def names(self) -> list[str | None]:
        return [node.name for node in self.model.graph]

    @property
    def reasons(self) -> str:
        return " | ".join(finding.message for finding in self.outcome.findings)

    def node(self, op_type: str) -> ir.Node:
        return next(node for node in self.model.graph if node.op_type == op_type)


def random_feeds(model: ir.Model, seed: int, dynamic: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        shape = [dim if isinstance(dim, int) else dynamic for dim in value.shape]
        dtype = value.dtype.numpy()
        if dtype == np.bool_:
            feeds[value.name] = np.array(rng.integers(0, 2, shape), dtype=bool)
        elif np.issubdtype(dtype, np.integer):
            feeds[value.name] = rng.integers(0, 4, shape).astype(dtype)
        else:
            feeds[value.name] = np.asarray(rng.standard_normal(shape), dtype=dtype)
    return feeds


@pytest.fixture
def graph() -> type[Graph]:
    return Graph


@pytest.fixture
def check() -> Callable[..., Result]:
    """Run a pass: outputs, output names and validity must hold, and a second run must change nothing."""

    def run(
        model: ir.Model, step: Pass, *, tolerance: float = 2e-5, capabilities: Capabilities | None = None
    ) -> Result:
        feeds = [random_feeds(model, seed, dynamic) for seed, dynamic in ((1, 2), (2, 3))]
        reference = [Runner(model).run(feed) for feed in feeds]
        before = [value.name for value in model.graph.outputs]
        candidate = model.clone()
        ctx = Context(capabilities or everything(), Runner, feeds)
        outcome = step.apply(candidate, ctx)
        assert outcome.changed == len(ctx.rewrites.applied)
        assert [value.name for value in candidate.graph.outputs] == before
        infer_shapes(candidate)
        check_model(candidate)
        outputs = [Runner(candidate).run(feed) for feed in feeds]
        assert output_error(reference, outputs, 1e-6) <= tolerance
        again = Context(capabilities or everything(), Runner, feeds)
        assert step.apply(candidate.clone(), again).changed == 0, again.rewrites.applied
        names = [node.name for node in candidate.graph]
        assert len(set(names)) == len(names)
        return Result(candidate, outcome, [(rewrite.rule, rewrite.node) for rewrite in ctx.rewrites.applied])

    return run


@pytest.fixture
def clean() -> Callable[..., ir.Model]:
    """Run the whole clean-up recipe behind the gate: no pass may be rolled back, a second run changes nothing."""

    def run(model: ir.Model, capabilities: Capabilities | None = None) -> ir.Model:
        capabilities = capabilities or everything()
        pipeline = Pipeline(Context(capabilities, Runner, [random_feeds(model, 1), random_feeds(model, 2)]))
        cleaned, records = pipeline.run(model, default_cleanup(capabilities))
        assert not [record for record in records if record.rolled_back]
        _, again = pipeline.run(cleaned, default_cleanup(capabilities))
        assert [(record.name, record.changed) for record in again if record.changed] == []
        return cleaned

    return run
