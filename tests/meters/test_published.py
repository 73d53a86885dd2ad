"""Estimates from shipped profiles against latencies that others have published: they lie within the interval.

* Jetson Nano, FP16, TensorRT, batch 1: torch2trt, docs/benchmarks/jetson_nano.md (ResNet-18 11.4 ms,
  ResNet-34 20.2 ms).
* Raspberry Pi 5, MobileNetV2, ExecuTorch with XNNPACK: Arm's course "ExecuTorch on Arm" (FP32 10.89 ms, INT8 4.01 ms).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.kernels import Kernels, in_precision, kernels_of
from greencc.core.model import infer_shapes
from greencc.meters.device_store import find_profile
from greencc.meters.roofline import estimate


@dataclass
class Net:
    """An image classifier of zeros for 224 x 224 pixels."""

    nodes: list[ir.Node] = field(default_factory=list)
    weights: list[ir.Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = ir.Shape([1, 3, 224, 224])
        self.x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)

    def op(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes, name=f"n{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def weight(self, *shape: int) -> ir.Value:
        name = f"w{len(self.weights)}"
        tensor = ir.tensor(np.zeros(shape, np.float32), name=name)
        kind = ir.TensorType(ir.DataType.FLOAT)
        self.weights.append(ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=tensor))
        return self.weights[-1]

    def conv(
        self,
        x: ir.Value,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        group: int = 1,
        relu: bool = True,
    ) -> ir.Value:
        weight, bias = (
            self.weight(channels[1], channels[0] // group, kernel, kernel),
            self.weight(channels[1]),
        )
        y = self.op("Conv", [x, weight, bias], strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)
        return self.op("Relu", [y]) if relu else y

    def kernels(self, y: ir.Value, channels: int) -> Kernels:
        pooled = self.op("Flatten", [self.op("GlobalAveragePool", [y])])
        logits = self.op("Gemm", [pooled, self.weight(channels, 1000)])
        graph = ir.Graph(
            [self.x],
            [logits],
            nodes=self.nodes,
            initializers=self.weights,
            name="net",
            opset_imports={"": 17},
        )
        model = ir.Model(graph, ir_version=8)
        infer_shapes(model)
        return kernels_of(model)


def resnet(blocks: Sequence[int]) -> Kernels:
    """He et al., "Deep Residual Learning" (2016), with basic blocks."""
    net = Net()
    y = net.op("MaxPool", [net.conv(net.x, (3, 64), 7, 2)], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    before = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            skip = y if before == width else net.conv(y, (before, width), 1, stride, relu=False)
            z = net.conv(net.conv(y, (before, width), 3, stride), (width, width), 3, relu=False)
            y = net.op("Relu", [net.op("Add", [z, skip])])
            before = width
    return net.kernels(y, before)


def mobilenet() -> Kernels:
    """Sandler et al., "MobileNetV2" (2018), table 2."""
    net = Net()
    y, before = net.conv(net.x, (3, 32), 3, 2), 32
    for expand, width, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for block in range(count):
            inner = before * expand
            z = y if expand == 1 else net.conv(y, (before, inner), 1)
            z = net.conv(z, (inner, inner), 3, 1 if block else stride, inner)
            z = net.conv(z, (inner, width), 1, relu=False)
            y = net.op("Add", [z, y]) if block else z
            before = width
    return net.kernels(net.conv(y, (before, 1280), 1), 1280)


@pytest.mark.parametrize(
    ("net", "macs", "device", "dtype", "published_ms"),
    [
        (lambda: resnet((2, 2, 2, 2)), 1.81e9, "jetson-nano", "FLOAT16", 11.4),
        (lambda: resnet((3, 4, 6, 3)), 3.66e9, "jetson-nano", "FLOAT16", 20.2),
        (mobilenet, 0.30e9, "raspberry-pi-5", "FLOAT", 10.89),
        (mobilenet, 0.30e9, "raspberry-pi-5", "INT8", 4.01),
    ],
    ids=["resnet18-nano", "resnet34-nano", "mobilenetv2-pi-fp32", "mobilenetv2-pi-int8"],
)
def test_published_latencies_lie_within_the_interval(net, macs, device, dtype, published_ms) -> None:
    kernels = net()
    assert sum(kernel.multiplications for kernel in kernels.items) / 2 == pytest.approx(macs, rel=0.01)
    profile = find_profile(device)
    found = estimate(in_precision(kernels, dtype), profile, profile.mode(None)).latency_ms
    assert found.low < published_ms < found.high
    assert 0.5 < found.value / published_ms < 2.0
