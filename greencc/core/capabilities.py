"""What a target's kernels can do, as facts that passes read instead of target names."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class ElementType(Enum):
    """Element types a capability can name; the value is the ONNX spelling."""

    UINT8 = "UINT8"
    INT8 = "INT8"
    INT32 = "INT32"
    FLOAT = "FLOAT"
    FLOAT16 = "FLOAT16"
    BFLOAT16 = "BFLOAT16"


@dataclass(frozen=True)
class Int8Support:
    """How a target wants QDQ INT8 graphs.

    Attributes:
        activation: UINT8 (asymmetric) or INT8.
        symmetric_activations: The activation zero point must be 0 (INT8) or 128 (UINT8).
        weight_bits: 8, or 7 where u8 x s8 products are summed in saturating INT16 pairs
            (x86 without VNNI, see ONNX Runtime's "reduce_range").
        per_channel: Weights may have one scale per output channel.
        bias: INT32 (quantized, scale = s_x * s_w) or FLOAT (left as it is).
        ops: Operators with integer kernels that consume quantized inputs.
        quantize_outputs: Operators only run as integers when their output is quantized too.
        reason: The fact behind the choice, for reports ("AVX512-VNNI: ...").
        float_output: Operators that run as integers even when their output stays float (with
            `quantize_outputs`, the exceptions to it; ONNX Runtime: Gemm and MatMul).
    """

    activation: ElementType
    symmetric_activations: bool
    weight_bits: int
    per_channel: bool
    bias: ElementType
    ops: frozenset[str]
    quantize_outputs: bool
    reason: str
    float_output: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Capabilities:
    """Facts about a target.

    Attributes:
        int8: None when there are no integer kernels worth using.
        float16: Operators with FP16 kernels; empty when FP16 would be emulated by casts.
        bfloat16: Likewise for BF16.
        max_opset: The newest default-domain opset the runtime accepts.
        fused_ops: Fused operators the runtime executes, "Domain::Op" ("" is written "ai.onnx").
        gemm_gains: MatMul+Add is better expressed as Gemm.
        notes: Facts worth a line in `greencc targets`.
        slow_denormals: Arithmetic on denormal numbers takes many times as long as on others.
    """

    int8: Int8Support | None
    float16: frozenset[str]
    bfloat16: frozenset[str]
    max_opset: int
    fused_ops: frozenset[str]
    gemm_gains: bool
    notes: tuple[str, ...] = field(default=())
    slow_denormals: bool = False

    def runs(self, domain: str, op_type: str) -> bool:
        """True when the fused operator can be emitted for this target."""
        return f"{domain or 'ai.onnx'}::{op_type}" in self.fused_ops
