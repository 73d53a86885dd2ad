"""Job: a graph of ResNet-50's size (He et al., CVPR 2016) to see what analysis and repair cost on a large model.

Time and memory depend on the shapes alone, so that random weights will do and nothing has to be fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.job_tools import Result

if TYPE_CHECKING:
    import numpy as np


def make_resnet50(folder: str) -> Result:
    """ResNet-50 with the strides of v1.5, batch norms folded, random weights: 102 MB, 4.1 GMAC."""
    import numpy as np
    import onnx
    from onnx import helper

    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, values: np.ndarray) -> str:
        weights.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        name: str, x: str, inputs: int, outputs: int, size: int, stride: int = 1, gain: float = 2.0
    ) -> str:
        scale = (gain / (inputs * size * size)) ** 0.5
        weight = constant(f"{name}.weight", scale * generator.normal(size=(outputs, inputs, size, size)))
        bias = constant(f"{name}.bias", 0.05 * generator.normal(size=outputs))
        pads = [size // 2] * 4
        nodes.append(
            helper.make_node(
                "Conv",
                [x, weight, bias],
                [name],
                name,
                strides=[stride] * 2,
                pads=pads,
                kernel_shape=[size] * 2,
            )
        )
        return name

    def relu(x: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [f"{x}.relu"], f"{x}.relu"))
        return f"{x}.relu"

    x = relu(conv("stem", "image", 3, 64, 7, 2))
    pool = helper.make_node(
        "MaxPool", [x], ["pool"], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    nodes.append(pool)
    x, inputs = "pool", 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name, stride = f"stage{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = relu(conv(f"{name}.a", x, inputs, width, 1))
            inner = relu(conv(f"{name}.b", inner, width, width, 3, stride))
            # A small last layer keeps the sum of the blocks from growing.
            inner = conv(f"{name}.c", inner, width, 4 * width, 1, gain=0.2)
            skip = conv(f"{name}.skip", x, inputs, 4 * width, 1, stride, gain=1.0) if block == 0 else x
            nodes.append(helper.make_node("Add", [inner, skip], [f"{name}.sum"], f"{name}.sum"))
            x, inputs = relu(f"{name}.sum"), 4 * width
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], "mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], "flat"))
    head = constant("head.weight", 0.02 * generator.normal(size=(1000, 2048)))
    bias = constant("head.bias", np.zeros(1000))
    nodes.append(helper.make_node("Gemm", ["flat", head, bias], ["logits"], "head", transB=1))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 1000])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    artifact = Path(folder) / "model.onnx"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, artifact)
    return {"artifact": str(artifact)}
