"""A classifier of digits with residual blocks: random features, and a head that was fitted to them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

CHANNELS, BLOCKS = 24, 2


def build_blocks(folder: Path) -> None:
    """Write model.onnx, calibration.npz and eval.npz."""
    digits = load_digits()
    x = (digits.images / 16.0).astype(np.float32)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    features = 16 * CHANNELS
    empty = np.zeros((features, 10), np.float32), np.zeros(10, np.float32)
    session = onnxruntime.InferenceSession(
        _model(*empty).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(["features"], {"image": x[:900]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head = LogisticRegression(max_iter=60).fit(found, y[:900])
    weights = head.coef_.T.astype(np.float32), head.intercept_.astype(np.float32)
    model = _model(*weights)
    del model.graph.output[1:]
    onnx.save(model, folder / "model.onnx")
    np.savez_compressed(folder / "calibration.npz", image=x[900:1100])
    np.savez_compressed(folder / "eval.npz", image=x[1100:], labels=y[1100:])


def _model(weights: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array(weights, "w_head"), numpy_helper.from_array(bias, "b_head")]
    nodes = []

    def convolution(name: str, source: str, channels: int, scale: float) -> str:
        shape = (CHANNELS, channels, 3, 3)
        drawn = scale * rng.standard_normal(shape) * np.sqrt(2.0 / (9 * channels))
        tensors.append(numpy_helper.from_array(drawn.astype(np.float32), f"w_{name}"))
        nodes.append(
            helper.make_node("Conv", [source, f"w_{name}"], [f"{name}_out"], name=name, pads=[1] * 4)
        )
        return f"{name}_out"

    def relu(name: str, source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{name}_out"], name=name))
        return f"{name}_out"

    value = relu("stem_relu", convolution("stem", "image", 1, 1.0))
    for index in range(BLOCKS):
        inner = relu(f"relu{index}", convolution(f"first{index}", value, CHANNELS, 1.0))
        branch = convolution(f"second{index}", inner, CHANNELS, 0.2)
        nodes.append(helper.make_node("Add", [value, branch], [f"sum{index}"], name=f"add{index}"))
        value = relu(f"out{index}", f"sum{index}")
    nodes += [
        helper.make_node("MaxPool", [value], ["pooled"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "w_head", "b_head"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 16 * CHANNELS]),
        ],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
