"""ConvTranspose as a convolution: the same numbers, whatever the window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.core.shapes import infer_shapes
from greencc.targets import TvmCpuTarget
from greencc.targets._tvm.transposed import split_transposed

WINDOWS = {
    "as wide as the stride": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "padded": {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "odd": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    "wider stride": {"kernel_shape": [2, 3], "strides": [3, 3], "output_padding": [1, 0]},
    "stride 1": {"kernel_shape": [3, 2], "strides": [1, 1], "pads": [1, 0, 0, 1]},
    "asymmetric": {"kernel_shape": [5, 4], "strides": [2, 2], "pads": [0, 1, 2, 1]},
}
KEPT = {
    "groups": {"kernel_shape": [2, 2], "strides": [2, 2], "group": 2},
    "dilated": {"kernel_shape": [2, 2], "dilations": [2, 2]},
    "unequal strides": {"kernel_shape": [2, 2], "strides": [2, 1]},
    "beyond the taps": {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [3, 0, 0, 0]},
}


def model_of(window: dict, bias: bool = True) -> ir.Model:
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(6, 5 if "group" not in window else 4, *window["kernel_shape"]))
    names = ["x", "w", "b"] if bias else ["x", "w"]
    channels = 8 if "group" in window else 5
    arrays = {"w": weights, "b": rng.normal(size=channels)}
    initializers = [
        numpy_helper.from_array(arrays[name].astype(np.float32), name) for name in names if name in arrays
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="before"),
        helper.make_node("ConvTranspose", ["r", *names[1:]], ["t"], name="up", **window),
        helper.make_node("Relu", ["t"], ["y"], name="behind"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 7, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def computed(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"x": x})
    return np.asarray(result)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_the_same_numbers(name: str, bias: bool) -> None:
    x = np.random.default_rng(1).normal(size=(2, 6, 7, 5)).astype(np.float32)
    model = model_of(WINDOWS[name], bias)
    wanted = computed(model, x)
    split_transposed(model)
    assert "ConvTranspose" not in kinds(model)
    assert ("DepthToSpace" in kinds(model)) is (name != "stride 1")
    shape = model.graph.outputs[0].producer().inputs[0].shape
    assert tuple(shape)[1:] == wanted.shape[1:]
    np.testing.assert_allclose(computed(model, x), wanted, atol=1e-5)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_left_as_it_is(name: str) -> None:
    model = model_of(KEPT[name])
    split_transposed(model)
    assert kinds(model) == ["Relu", "ConvTranspose", "Relu"]


@pytest.mark.parametrize("name", ["as wide as the stride", "odd"])
def test_compiled(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(3, 6, 7, 5)).astype(np.float32)
    model, target = model_of(WINDOWS[name]), TvmCpuTarget(threads=1)
    engine = target.open(target.build(model, tmp_path))
    np.testing.assert_allclose(engine.run({"x": x})["y"], computed(model, x), atol=1e-5)
