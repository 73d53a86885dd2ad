"""Small graphs for the linter: one that is right, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from greencc.core.model import infer_shapes
from greencc.targets._tensorrt.faults import Fault, Rule
from greencc.targets._tensorrt.lint import lint
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture

Spoil = Callable[[onnx.ModelProto], None]
FLOAT, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


def machine(version: str = "10.3", sm: int = 87, **options: object) -> TensorRtMachine:
    return TensorRtMachine(TensorRtVersion.parse(version), architecture(sm), **options)  # type: ignore[arg-type]


def found(
    proto: onnx.ModelProto,
    on: TensorRtMachine | None = None,
    *,
    infer: bool = True,
    **options: object,
) -> tuple[Fault, ...]:
    """Lint a proto; `infer=False` where ONNX itself refuses it."""
    model = ir.from_proto(proto)
    if infer:
        infer_shapes(model)
    return lint(model, on or machine(), **options)  # type: ignore[arg-type]


def rules(faults: Sequence[Fault]) -> list[tuple[Rule, str]]:
    return [(fault.rule, fault.node) for fault in faults]


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[object, ...]],
    outputs: dict[str, tuple[object, ...]],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    kind: int = FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "lint",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def codes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, size=shape).astype(np.int8)


def quantized_net() -> onnx.ModelProto:
    """Two Conv-Relu layers with a skip connection, a pool and a product, quantized as TensorRT wants it.

    x [1, 16, 8, 8] -> Q/DQ -> conv0 -> relu0 -> Q/DQ -> conv1 -> Add(Q/DQ skip) -> relu1 -> Q/DQ -> pool -> flatten
    -> Q/DQ -> Gemm -> y [1, 32].
    """
    weights: dict[str, np.ndarray] = {
        "zero": np.array(0, np.int8),
        "w0": codes(16, 16, 3, 3),
        "s0": np.full(16, 0.01, np.float32),
        "z16": np.zeros(16, np.int8),
        "b0": weight(16),
        "w1": codes(16, 16, 3, 3, seed=1),
        "w2": codes(32, 256, seed=2),
        "s2": np.full(32, 0.02, np.float32),
        "z32": np.zeros(32, np.int8),
        "rows": np.array([16, 16], np.int64),
    }
    nodes: list[onnx.NodeProto] = []

    def pair(value: str) -> str:
        weights[f"{value}_s"] = np.array(0.05, np.float32)
        nodes.append(
            helper.make_node(
                "QuantizeLinear", [value, f"{value}_s", "zero"], [f"{value}_q"], name=f"q_{value}"
            )
        )
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{value}_q", f"{value}_s", "zero"], [f"{value}_d"], name=f"dq_{value}"
            )
        )
        return f"{value}_d"

    def dequantized(name: str, scale: str, zero: str) -> str:
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [name, scale, zero], [f"{name}_f"], name=f"dq_{name}", axis=0
            )
        )
        return f"{name}_f"

    def conv(value: str, name: str, bias: Sequence[str]) -> str:
        inputs = [value, dequantized(name, "s0", "z16"), *bias]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}_y"], name=f"conv_{name}", pads=[1, 1, 1, 1]))
        return f"{name}_y"

    first = conv(pair("x"), "w0", ["b0"])
    nodes.append(helper.make_node("Relu", [first], ["r0"], name="relu0"))
    skip = pair("r0")
    second = conv(skip, "w1", [])
    nodes.append(helper.make_node("Add", [second, skip], ["sum"], name="add"))
    nodes.append(helper.make_node("Relu", ["sum"], ["r1"], name="relu1"))
    nodes.append(
        helper.make_node(
            "MaxPool", [pair("r1")], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2]
        )
    )
    nodes.append(helper.make_node("Reshape", ["pooled", "rows"], ["rows2"], name="reshape"))
    nodes.append(helper.make_node("Transpose", ["rows2"], ["turned"], name="transpose", perm=[1, 0]))
    weights["w2"] = codes(32, 16, seed=2)
    nodes.append(
        helper.make_node(
            "Gemm", [pair("turned"), dequantized("w2", "s2", "z32")], ["y"], name="gemm", transB=1
        )
    )
    return make(nodes, {"x": (1, 16, 8, 8)}, {"y": (16, 32)}, weights)


def node_named(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.name == name)


def replace_weight(proto: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    index = next(i for i, tensor in enumerate(proto.graph.initializer) if tensor.name == name)
    proto.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, name))


def add_weight(proto: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return name
