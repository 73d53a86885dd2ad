"""A graph builder, and the proof that a cut is right: the cut model computes what the zeroed one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from greencc.core.graph import constant_tensor, ensure_names
from greencc.core.groups import Structure, analyse, cut
from greencc.core.model import check_model, infer_shapes


class Graph:
    """Builds a model node by node; every method returns the name of a value."""

    def __init__(self, opset: int = 18, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.declared: dict[str, Sequence[int | str]] = {}
        self.domains: dict[str, int] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def const(self, array: Any, name: str | None = None) -> str:
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int, dtype: Any = np.int64) -> str:
        return self.const(np.array(values, dtype))

    def random(self, *shape: int, name: str | None = None, positive: bool = False) -> str:
        values = self.rng.standard_normal(shape)
        return self.const(np.abs(values) + 0.5 if positive else values, name)

    def op(
        self, op_type: str, *inputs: str, name: str | None = None, outputs: int = 1, **attributes: Any
    ) -> Any:
        name = name or f"{op_type}{len(self.nodes)}"
        domain = attributes.pop("domain", "")
        if domain:
            self.domains[domain] = 1
        results = [f"{name}_out" if outputs == 1 else f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, results, name=name, domain=domain, **attributes))
        return results[0] if outputs == 1 else results

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        name: str | None = None,
        bias: bool = True,
        **rest: Any,
    ) -> str:
        pads = [kernel // 2] * 4
        weights = [self.random(outputs, inputs // rest.get("group", 1), kernel, kernel)]
        weights += [self.random(outputs)] if bias else []
        return self.op("Conv", x, *weights, name=name, pads=pads, **rest)

    def linear(self, x: str, inputs: int, outputs: int, name: str | None = None) -> str:
        return self.op(
            "Add", self.op("MatMul", x, self.random(inputs, outputs), name=name), self.random(outputs)
        )

    def batch_norm(self, x: str, channels: int) -> str:
        parameters = [self.random(channels) for _ in range(3)]
        return self.op("BatchNormalization", x, *parameters, self.random(channels, positive=True))

    def model(self, *outputs: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "test",
            self.inputs,
            [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
            self.initializers,
            value_info=[
                helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
                for name, shape in self.declared.items()
            ],
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
        ensure_names(model)
        infer_shapes(model)
        return model


def run(model: ir.Model, feeds: Mapping[str, Any]) -> list[Any]:
    """The outputs: ONNX Runtime node by node, or the reference where it has no kernel."""
    proto = ir.to_proto(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options)
    except Exception as error:
        if "NOT_IMPLEMENTED" not in str(error) and "NotImplemented" not in type(error).__name__:
            raise
        return list(ReferenceEvaluator(proto).run(None, dict(feeds)))
    return list(session.run(None, dict(feeds)))


def feeds_of(model: ir.Model, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        shape = [dim if isinstance(dim, int) else 2 for dim in value.shape]
        if value.dtype is ir.DataType.FLOAT:
            feeds[str(value.name)] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[str(value.name)] = rng.integers(0, 3, shape)
    return feeds


def zero(model: ir.Model, structure: Structure, removed: Mapping[str, Sequence[int]]) -> ir.Model:
    """A clone where every weight of these channels is 0."""
    clone = model.clone()
    values = {value.name: value for value in clone.graph.initializers.values()}
    values.update({value.name: value for node in clone.graph for value in node.outputs})
    for group in structure.groups:
        for site in group.sites if group.name in removed else ():
            value = values[site.tensor]
            array = np.array(constant_tensor(value).numpy())
            where: list[Any] = [slice(None)] * array.ndim
            where[site.axis] = site.positions[list(removed[group.name])].ravel()
            array[tuple(where)] = 0
            tensor = ir.tensor(array, name=value.name)
            producer = value.producer()
            if producer is None:
                value.const_value = tensor
            else:
                value.const_value = None
                producer.attributes.clear()
                producer.attributes["value"] = ir.AttrTensor("value", tensor)
    return clone


class Proof:
    """What `prove` saw."""

    def __init__(self, structure: Structure, model: ir.Model) -> None:
        self.structure, self.model = structure, model

    def group(self, name: str) -> Any:
        return next(group for group in self.structure.groups if group.name == name)

    @property
    def sizes(self) -> dict[str, int]:
        """Of the groups that may be cut."""
        return {group.name: group.size for group in self.structure.prunable}


def listing(structure: Structure) -> list[Any]:
    """All of a structure that a second analysis has to find again."""
    return [
        (
            *(group.name, group.kind, group.size, group.reason),
            [(site.tensor, site.axis, site.role, site.node, site.positions.tolist()) for site in group.sites],
            [(reader.node, reader.value, reader.axis, reader.positions.tolist()) for reader in group.readers],
        )
        for group in structure.groups
    ]


def prove(model: ir.Model, seed: int = 0, least: int | None = None, tolerance: float = 1e-4) -> Proof:
    """Cut random channels, then all but one of every group.

    Args:
        model: Shapes are inferred.
        seed: Of the channels and inputs.
        least: How many groups there have to be that may be cut.
        tolerance: Of the outputs, relative to the largest.
    """
    rng = np.random.default_rng(seed)
    feeds = feeds_of(model, seed)
    proof = Proof(analyse(model), model)
    for few in (True, False):
        clone = model.clone()
        structure = analyse(clone)
        assert listing(structure) == listing(proof.structure)
        if least is not None:
            assert len(structure.prunable) >= least, [
                (group.name, group.reason) for group in structure.groups
            ]
        removed = {
            group.name: rng.permutation(group.size)[
                : int(rng.integers(1, group.size)) if few else group.size - 1
            ].tolist()
            for group in structure.prunable
        }
        zeroed = zero(model, structure, removed)
        gone = {int(group.labels[i]) for group in structure.prunable for i in removed[group.name]}
        expected = _dims(structure, gone)
        cut(clone, structure, removed)
        infer_shapes(clone)
        check_model(clone)
        for node in clone.graph:
            for value in node.outputs:
                for axis, size in expected.get(str(value.name), {}).items():
                    found = None if value.shape is None else value.shape[axis]
                    assert found == size or not isinstance(found, int), (value, axis, size)
        for ours, theirs in zip(run(clone, feeds), run(zeroed, feeds), strict=True):
            assert ours.shape == theirs.shape
            assert np.isfinite(theirs).all()
            assert np.abs(ours - theirs).max(initial=0.0) <= tolerance * max(
                1.0, np.abs(theirs).max(initial=0.0)
            )
        proof.model = clone
    return proof


def _some(rng: np.random.Generator, size: int, few: bool) -> list[int]:
    """Random channels of a group; all but one where they are not few."""
    count = int(rng.integers(1, size)) if few else size - 1
    return [int(channel) for channel in rng.permutation(size)[:count]]


def _dims(structure: Structure, gone: set[int]) -> dict[str, dict[int, int]]:
    """What each axis of each value has to measure after the cut, whether it has labels or not."""
    analysis = structure.analysis
    found: dict[str, dict[int, int]] = {}
    for node in analysis.graph:
        for value in node.outputs:
            dims: dict[int, int] = {}
            for axis, labels in enumerate(() if analysis.is_constant(value) else analysis.axes(value)):
                size = analysis.dim(value, axis)
                if labels is not None:
                    size = sum(int(root) not in gone for root in analysis.labels.roots(labels))
                if size is not None:
                    dims[axis] = size
            found[str(value.name)] = dims
    return found


@pytest.fixture(scope="session")
def graph() -> Callable[..., Graph]:
    return Graph


@pytest.fixture(scope="session", name="prove")
def _prove() -> Callable[..., Proof]:
    return prove


@pytest.fixture(scope="session")
def groups() -> Callable[[ir.Model], dict[str, str | None]]:
    """The reason of every group by name, None where it may be cut."""
    return lambda model: {group.name: group.reason for group in analyse(model).groups}
