"""What the installed ONNX Runtime can run on the CPU, found by building tiny sessions once per process.

A list by version number would go stale; building a one-node session takes about a millisecond and is always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

MINIMUM_VERSION = (1, 20)
_NEWEST_OPSET_TRIED = 40
_NEWEST_IR_TRIED = 20


@dataclass(frozen=True)
class RuntimeFacts:
    """What the runtime accepts.

    Attributes:
        version: Of the onnxruntime package.
        max_opset: Newest default-domain opset that loads.
        max_ir_version: Newest ONNX IR version that loads.
        fused_ops: Fused operators with a CPU kernel (or an inlined function body), "Domain::Op".
        float16_ops: Operators that run in FP16 without a cast to FP32 around them.
    """

    version: str
    max_opset: int
    max_ir_version: int
    fused_ops: frozenset[str]
    float16_ops: frozenset[str]


@dataclass(frozen=True)
class Probe:
    """A one-node model: operator, input shapes, attributes. The first input is the activation, the others weights."""

    domain: str
    op_type: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    opset: int = 17

    @property
    def qualified(self) -> str:
        return f"{self.domain or 'ai.onnx'}::{self.op_type}"


_X = (2, 4, 8)
_MS = "com.microsoft"

FUSED_PROBES: tuple[Probe, ...] = (
    Probe(_MS, "Gelu", (_X,)),
    Probe(_MS, "FastGelu", (_X, (8,))),
    Probe(_MS, "BiasGelu", (_X, (8,))),
    Probe(_MS, "QuickGelu", (_X,), (("alpha", 1.702),)),
    Probe(_MS, "SkipLayerNormalization", (_X, _X, (8,), (8,)), (("epsilon", 1e-5),)),
    Probe(_MS, "SkipSimplifiedLayerNormalization", (_X, _X, (8,)), (("epsilon", 1e-5),)),
    Probe("", "SimplifiedLayerNormalization", (_X, (8,)), (("axis", -1), ("epsilon", 1e-5))),
    Probe(_MS, "Attention", (_X, (8, 24), (24,)), (("num_heads", 2),)),
    Probe(_MS, "MultiHeadAttention", (_X, _X, _X), (("num_heads", 2),)),
    Probe(_MS, "FusedMatMul", ((4, 8), (16, 8)), (("transB", 1), ("alpha", 0.5))),
    Probe(_MS, "FusedConv", ((1, 4, 8, 8), (8, 4, 3, 3)), (("activation", "Relu"), ("kernel_shape", [3, 3]))),
    Probe(_MS, "FusedGemm", ((4, 8), (8, 16), (16,)), (("activation", "Relu"),)),
    Probe("", "LayerNormalization", (_X, (8,), (8,)), (("axis", -1),)),
    Probe("", "HardSwish", (_X,)),
    Probe("", "Mish", (_X,), opset=18),
    Probe("", "Gelu", (_X,), opset=20),
    Probe("", "GroupNormalization", ((1, 4, 8, 8), (4,), (4,)), (("num_groups", 2),), opset=21),
    Probe("", "RMSNormalization", (_X, (8,)), (("axis", -1),), opset=23),
    Probe("", "Swish", (_X,), opset=24),
    Probe("", "Attention", ((1, 2, 4, 8),) * 3, opset=23),
)

FLOAT16_PROBES: tuple[Probe, ...] = (
    Probe("", "Conv", ((1, 4, 8, 8), (8, 4, 3, 3))),
    Probe("", "Gemm", ((4, 8), (8, 16), (16,))),
    Probe("", "MatMul", ((4, 8), (8, 16))),
    Probe("", "Add", (_X, _X)),
    Probe("", "Mul", (_X, _X)),
    Probe("", "Relu", (_X,)),
    Probe("", "LeakyRelu", (_X,)),
    Probe("", "Tanh", (_X,)),
    Probe("", "Sigmoid", (_X,)),
    Probe("", "Softmax", (_X,)),
    Probe("", "LayerNormalization", (_X, (8,), (8,)), (("axis", -1),)),
    Probe("", "MaxPool", ((1, 4, 8, 8),), (("kernel_shape", [2, 2]),)),
    Probe("", "AveragePool", ((1, 4, 8, 8),), (("kernel_shape", [2, 2]),)),
    Probe("", "GlobalAveragePool", ((1, 4, 8, 8),)),
)


@cache
def runtime_facts() -> RuntimeFacts:
    """Probe the installed ONNX Runtime; the answer is kept for the life of the process."""
    import onnxruntime as ort

    max_opset = _newest(_NEWEST_OPSET_TRIED, lambda opset: _identity(opset=opset, ir_version=8))
    max_ir = _newest(_NEWEST_IR_TRIED, lambda version: _identity(opset=13, ir_version=version))
    fused = frozenset(probe.qualified for probe in FUSED_PROBES if probe.opset <= max_opset and runs(probe))
    half = frozenset(probe.op_type for probe in FLOAT16_PROBES if runs_in_float16(probe))
    return RuntimeFacts(ort.__version__, max_opset, max_ir, fused, half)


def runs(probe: Probe) -> bool:
    """Whether the runtime loads and runs the one-node model in FP32."""
    model = _model(probe, TensorProto.FLOAT)
    session = _session(model)
    if session is None:
        return False
    feeds = {"x": np.full(probe.shapes[0], 0.5, np.float32)}
    (output,) = session.run(None, feeds)
    return bool(np.isfinite(output).all())


def runs_in_float16(probe: Probe) -> bool:
    """Whether the one-node model keeps its type: where there is no FP16 kernel the runtime inserts casts to FP32."""
    import tempfile
    from pathlib import Path

    model = _model(probe, TensorProto.FLOAT16)
    with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
        written = Path(folder) / "optimized.onnx"
        if _session(model, optimized_path=str(written)) is None or not written.exists():
            return False
        return all(node.op_type != "Cast" for node in onnx.load(written).graph.node)


def _newest(highest: int, make: Any) -> int:
    """The highest number up to `highest` for which the model loads; acceptance is monotone, so bisect."""
    low = 7
    while low < highest:
        middle = (low + highest + 1) // 2
        if _session(make(middle)) is not None:
            low = middle
        else:
            highest = middle - 1
    return low


def _session(model: onnx.ModelProto, optimized_path: str = "") -> Any:
    """A session, or None where the runtime refuses the model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path:
        options.optimized_model_filepath = optimized_path
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError):
            return None
        raise


def _identity(opset: int, ir_version: int) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    return _wrap([node], [2], [], TensorProto.FLOAT, opset, ir_version=ir_version)


def _model(probe: Probe, dtype: int) -> onnx.ModelProto:
    names = ["x", *(f"w{index}" for index in range(1, len(probe.shapes)))]
    # MultiHeadAttention and the like take several activations; feeding x to all inputs of its shape is as good.
    weights = [
        helper.make_tensor(name, dtype, shape, np.full(int(np.prod(shape)), 0.25).tolist())
        for name, shape in zip(names[1:], probe.shapes[1:], strict=True)
    ]
    node = helper.make_node(
        probe.op_type, names, ["y"], name="probe", domain=probe.domain, **dict(probe.attributes)
    )
    return _wrap([node], probe.shapes[0], weights, dtype, probe.opset, ir_version=8)


def _wrap(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    weights: Sequence[onnx.TensorProto],
    dtype: int,
    opset: int,
    *,
    ir_version: int,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "probe",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, None)],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = ir_version
    return model
