"""A small network for the targets' tests, and what goes out with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from greencc.core.engine import Shipment
from greencc.core.graph import ensure_names
from greencc.core.shapes import infer_shapes
from greencc.targets._tensorrt.target import EmittedTarget


def network(shape: tuple[int | str, ...] = ("N", 3, 8, 8), opset: int = 17, name: str = "image") -> ir.Model:
    """image -> convolution -> mean -> product -> scores [N, 4]."""
    rng = np.random.default_rng(7)
    weights = {
        "w0": rng.normal(size=(16, 3, 3, 3)),
        "b0": rng.normal(size=16),
        "w1": rng.normal(size=(16, 4)),
    }
    nodes = [
        helper.make_node("Conv", [name, "w0", "b0"], ["c0"], name="stem", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r0"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w1"], ["scores"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], 4])],
        [numpy_helper.from_array((0.3 * array).astype(np.float32), name) for name, array in weights.items()],
    )
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )
    ensure_names(model)
    infer_shapes(model)
    return model


def unsupported() -> ir.Model:
    """A model with an operator that no TensorRT has."""
    node = helper.make_node("Strange", ["x"], ["y"], name="culprit", domain="my.domain")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([node], "strange", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


def shipped(
    target: EmittedTarget,
    folder: Path,
    count: int = 2,
    power_mode: str | None = "25W",
    name: str = "image",
) -> Path:
    """The complete artifact of the network for a target."""
    artifact = target.build(target.lower(network(name=name)), folder)
    engine = target.open(artifact)
    rng = np.random.default_rng(1)
    feeds = [{name: rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]
    outputs = [engine.run(each) for each in feeds]
    engine.close()
    target.ship(artifact, Shipment("small net", feeds, outputs, power_mode))
    return artifact
