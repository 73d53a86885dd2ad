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


class Arithmetic(Enum):
    """What a model computes in; the value is its name in reports."""

    FLOAT = "float"
    INT8 = "INT8"
    DYNAMIC_INT8 = "dynamic INT8"


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
        scale_type: FLOAT, or FLOAT16 where scales must be (TensorRT with strong typing): every scale is then a
            number that FP16 holds exactly, stored in the type of the value it belongs to.
        min_opset: The oldest default-domain opset that quantized graphs for the target may have.
        min_channels: Convolutions with fewer input or output channels than this stay in float.
        skip_gemv: Gemm and MatMul with one row or one column stay in float.
        input_ops: With `quantize_outputs` unset, operators next to weighted ones whose inputs are quantized even
            when nothing after them needs integers (TensorRT: pools and Concat).
        quantize_skips: With `quantize_outputs` unset, an Add of a convolution and something else reads the something
            else quantized, so that it can be fused into the convolution.
        follow_only: Operators worth running as integers only behind an integer producer.
        resize_modes: Modes of Resize that run on integers.
        activation_products: A MatMul of two activations runs on integers.
        stacked_weights: So does one by weights of more than two dimensions.
        channel_alignment: Numbers of channels that the integer kernels run well with are multiples of this; 0: the same
            as in float.
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
    scale_type: ElementType = ElementType.FLOAT
    min_opset: int = 10
    min_channels: int = 0
    skip_gemv: bool = False
    input_ops: frozenset[str] = frozenset()
    quantize_skips: bool = False
    follow_only: frozenset[str] = frozenset()
    resize_modes: frozenset[str] = frozenset({"nearest"})
    activation_products: bool = True
    stacked_weights: bool = True
    channel_alignment: int = 0

    def __post_init__(self) -> None:
        if self.activation not in (ElementType.UINT8, ElementType.INT8):
            raise ValueError(f"activations cannot be {self.activation.value}")
        if self.bias not in (ElementType.INT32, ElementType.FLOAT):
            raise ValueError(f"biases cannot be {self.bias.value}")
        if self.scale_type not in (ElementType.FLOAT, ElementType.FLOAT16):
            raise ValueError(f"scales cannot be {self.scale_type.value}")
        if self.weight_bits not in (7, 8):
            raise ValueError(f"weights cannot have {self.weight_bits} bits")
        if self.scale_type is ElementType.FLOAT16 and self.bias is ElementType.INT32:
            raise ValueError("FP16 has no room for the scale of an INT32 bias, the product of two scales")


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
        recomputes_dequantize: A DequantizeLinear of a constant that no integer kernel absorbs is computed in every run,
            where a Cast and a Mul of constants would be folded when the model is loaded.
        sparse_kernels: Patterns of zeros among the weights that the target has kernels for, e.g. {"2:4"}: two of every
            four consecutive input channels are kept. Any other sparsity saves neither time nor energy.
        channel_alignment: Numbers of channels that float kernels run well with are multiples of this.
    """

    int8: Int8Support | None
    float16: frozenset[str]
    bfloat16: frozenset[str]
    max_opset: int
    fused_ops: frozenset[str]
    gemm_gains: bool
    notes: tuple[str, ...] = field(default=())
    slow_denormals: bool = False
    recomputes_dequantize: bool = False
    sparse_kernels: frozenset[str] = frozenset()
    channel_alignment: int = 1

    def alignment(self, arithmetic: Arithmetic) -> int:
        """Numbers of channels that kernels run well with are multiples of this."""
        integers = self.int8.channel_alignment if self.int8 and arithmetic is not Arithmetic.FLOAT else 0
        return integers or self.channel_alignment

    def runs(self, domain: str, op_type: str) -> bool:
        """True when the fused operator can be emitted for this target."""
        return f"{domain or 'ai.onnx'}::{op_type}" in self.fused_ops
