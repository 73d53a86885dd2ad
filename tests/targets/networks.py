"""Networks that every target is asked to run, and to quantize in its own form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from greencc.core.capabilities import Capabilities
from greencc.core.data import Batch
from greencc.core.passes import Context
from greencc.core.pipeline import Pipeline
from greencc.core.shapes import infer_shapes
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.targets import CpuTarget

from .conftest import wrap

WEIGHTED = ("stem", "left", "right", "head")


def residual(batch: int | str = "N") -> ir.Model:
    """image [batch, 3, 12, 12] -> two convolutions, the second with a residual Add -> pool -> Gemm -> scores."""
    rng = np.random.default_rng(3)
    weights = {
        "w0": rng.normal(size=(16, 3, 3, 3)),
        "w1": rng.normal(size=(16, 16, 3, 3)),
        "b1": rng.normal(size=16),
        "w2": rng.normal(size=(16, 16, 1, 1)),
        "w3": rng.normal(size=(16, 5)),
        "b3": rng.normal(size=5),
    }
    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], name="stem", **pads),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="left", **pads),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="right", kernel_shape=[1, 1]),
        helper.make_node("Add", ["c2", "r0"], ["sum"], name="skip"),
        helper.make_node("Relu", ["sum"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["scores"], name="head"),
    ]
    return _checked(nodes, batch, {name: (0.3 * array).astype(np.float32) for name, array in weights.items()})


def separable(batch: int | str = "N") -> ir.Model:
    """image [batch, 3, 12, 12] -> convolution, depthwise, pointwise -> MaxPool -> mean -> MatMul -> scores."""
    rng = np.random.default_rng(5)
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 1, 3, 3), "w2": (32, 16, 1, 1), "w3": (32, 5)}
    weights = {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    window = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    limits = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], name="stem", strides=[2, 2], **window),
        helper.make_node("Clip", ["c0", "low", "high"], ["r0"], name="clip0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="depthwise", group=16, **window),
        helper.make_node("Clip", ["c1", "low", "high"], ["r1"], name="clip1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="pointwise", kernel_shape=[1, 1]),
        helper.make_node("MaxPool", ["c2"], ["m"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w3"], ["scores"], name="head"),
    ]
    return _checked(nodes, batch, weights | limits)


NETWORKS = {"residual": residual, "separable": separable}
LAYERS = {"residual": WEIGHTED, "separable": ("stem", "depthwise", "pointwise", "head")}


def _checked(nodes: list[onnx.NodeProto], batch: int | str, weights: dict[str, np.ndarray]) -> ir.Model:
    model = ir.from_proto(
        wrap(
            nodes,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 12, 12])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 5])],
            weights,
        )
    )
    infer_shapes(model)
    return model


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).normal(size=(count, 3, 12, 12)).astype(np.float32)}


class Samples:
    """A `DataSource` over samples, batches of one."""

    name, has_labels, synthetic = "samples", False, False

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self._samples = samples
        self.count = len(samples)

    def digest(self) -> str:
        return "0" * 64

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            part = self._samples[start : start + size]
            yield Batch({name: np.concatenate([sample[name] for sample in part]) for name in part[0]})


def static_int8(capabilities: Capabilities, network: str = "residual") -> ir.Model:
    """A network as static INT8, the way a target's capabilities ask for it."""
    samples = [images(1, seed) for seed in range(8)]
    reference = CpuTarget(threads=1)
    context = Context(
        capabilities,
        reference.reference,
        samples,
        calibration=Samples(samples),
        observe=reference.calibration_engine,
    )
    return Pipeline(context).run(NETWORKS[network](), (QuantizeInt8(),))[0]


CHAIN_ATTRIBUTES: dict[str, dict[str, object]] = {
    "AveragePool": {"kernel_shape": [2, 2]},
    "MaxPool": {"kernel_shape": [2, 2]},
    "Concat": {"axis": 1},
    "DepthToSpace": {"blocksize": 2},
    "Transpose": {"perm": [0, 1, 3, 2]},
    "Resize": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
}


def chain(op: str, **attributes: object) -> onnx.ModelProto:
    """x -> DQ(Q) -> Conv -> Relu -> DQ(Q) -> op -> DQ(Q) -> Conv (1x1) -> y, as the quantizer places the pairs."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "s": np.array(0.02, np.float32),
        "z": np.array(128, np.uint8),
        "z0": np.array(0, np.uint8),
        "zw": np.zeros(16, np.int8),
        "sw": np.full(16, 0.01, np.float32),
        "w": rng.integers(-127, 127, (16, 16, 3, 3)).astype(np.int8),
    }
    nodes: list[onnx.NodeProto] = []

    def pair(name: str, zero: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", zero], [f"{name}_q"], name=f"{name}_Q"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", "s", zero], [f"{name}_d"], name=f"{name}_D")
        )
        return f"{name}_d"

    nodes.append(helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], name="wD", axis=0))
    nodes.append(helper.make_node("Conv", [pair("x", "z"), "wd"], ["c"], name="before", pads=[1] * 4))
    nodes.append(helper.make_node("Relu", ["c"], ["r"], name="relu"))
    inputs = [pair("r", "z0")]
    shape: list[int] = []
    channels, rank = 16, 4
    match op:
        case "Concat":
            inputs, channels = inputs * 2, 32
        case "Reshape":
            shape, rank = [1, 16, -1], 3
        case "Slice":
            weights |= {"starts": np.array([1]), "ends": np.array([5]), "axes": np.array([2])}
            inputs += ["starts", "ends", "axes"]
        case "Squeeze" | "Unsqueeze":
            weights["axes"] = np.array([0])
            inputs.append("axes")
            rank = 3 if op == "Squeeze" else 5
        case "DepthToSpace" | "SpaceToDepth":
            channels = 4 if op == "DepthToSpace" else 64
        case "Flatten":
            rank = 2
        case "Resize":
            weights["scales"] = np.array([1, 1, 2, 2], np.float32)
            inputs += ["", "scales"]
    if shape:
        weights["shape"] = np.array(shape)
        inputs.append("shape")
    nodes.append(
        helper.make_node(op, inputs, ["o"], name="probe", **(CHAIN_ATTRIBUTES.get(op, {}) | attributes))
    )
    read = pair("o", "z0")
    if rank == 4:
        weights["v"] = rng.integers(-127, 127, (16, channels, 1, 1)).astype(np.int8)
        nodes.append(helper.make_node("DequantizeLinear", ["v", "sw", "zw"], ["vd"], name="vD", axis=0))
        nodes.append(helper.make_node("Conv", [read, "vd"], ["y"], name="after"))
    else:
        nodes.append(helper.make_node("Identity", [read], ["y"], name="after"))
    return wrap(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
