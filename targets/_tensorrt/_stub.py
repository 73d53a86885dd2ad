"""Stand-in until emission is merged."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.targets._lower import within_versions
from greencc.targets._tensorrt.machine import TensorRtMachine


def emit(model: ir.Model, machine: TensorRtMachine) -> ir.Model:
    return within_versions(model, machine.max_opset, 10, "tensorrt")


def tensorrt_capabilities(machine: TensorRtMachine) -> Capabilities:
    int8 = Int8Support(
        ElementType.INT8,
        True,
        8,
        True,
        ElementType.FLOAT,
        frozenset({"Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}),
        False,
        f"INT8 by explicit Q/DQ (compute capability {machine.gpu.sm})",
        input_ops=frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}),
        quantize_skips=True,
        min_opset=machine.min_opset,
    )
    half = frozenset({"Conv", "Gemm", "MatMul", "Add", "Relu"})
    return Capabilities(
        int8 if machine.gpu.int8 else None, half, frozenset(), machine.max_opset, frozenset(), False
    )
