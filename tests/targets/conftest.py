"""Small ONNX models for the target tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeMlp = Callable[..., onnx.ModelProto]


def mlp(batch: int | str = "N", *, width: int = 64, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    """x [batch, 8] -> Gemm -> Relu -> Gemm -> y [batch, 4]; the first weight is large enough to be shared."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(8, width)).astype(np.float32),
        "b1": rng.normal(size=(width,)).astype(np.float32),
        "w2": rng.normal(size=(width, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="second"),
    ]
    return wrap(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        weights,
        opset,
        ir_version,
    )


def wrap(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "mlp", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = ir_version
    return model


@pytest.fixture
def make_mlp() -> MakeMlp:
    return mlp


@pytest.fixture
def make_model() -> Callable[..., onnx.ModelProto]:
    return wrap


@pytest.fixture
def mlp_ir() -> ir.Model:
    return ir.from_proto(mlp())


@pytest.fixture
def mlp_file(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    return path
