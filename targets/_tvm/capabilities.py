"""Facts about the kernels that greencc generates through TVM, for any processor it generates them for."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.targets._ort_facts import RuntimeFacts
from greencc.targets._tvm.machine import Dot, Machine

# What has kernels on integers, or is a part of one. A residual Add is a step of the convolution's epilogue.
WEIGHTED_OPS = frozenset({"Conv", "Gemm", "MatMul"})
FUSED_OPS = frozenset({"Add"})
INPUT_OPS = frozenset({"AveragePool", "Concat", "GlobalAveragePool", "MaxPool"})
# What only moves values does so for any type; not Resize, which TVM computes in float.
MOVE_OPS = frozenset(
    {"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
# Standard operators that passes may make of smaller ones; TVM imports few of ONNX Runtime's own.
FUSED_FORMS = frozenset({"ai.onnx::Gelu", "ai.onnx::HardSwish", "ai.onnx::LayerNormalization"})
MAX_OPSET = 23
"""TVM's importer takes what it has for the newest opset before a model's: behind 23 it would guess."""

_REASONS = {
    Dot.VNNI512: "AVX512-VNNI (VPDPBUSD): unsigned x signed bytes are summed in 32 bits, so weights may use all 8 bits",
    Dot.VNNI256: "AVX-VNNI (VPDPBUSD): unsigned x signed bytes are summed in 32 bits, so weights may use all 8 bits",
    Dot.MADDUBS: "x86 without VNNI: pairs of unsigned x signed byte products saturate in 16 bits (VPMADDUBSW), "
    "which 7-bit weights cannot",
    Dot.SDOT: "ARM dot product (SDOT): signed x signed kernels with 32-bit sums",
    # 2 * 128 * 127 = 32512.
    Dot.SMLAL: "ARM NEON (SMULL/SMLAL): two products of an activation and a weight within +-127 fit in 16 bits",
}


def int8_support(machine: Machine) -> Int8Support | None:
    """The QDQ form that suits the kernels; None where there are none worth using.

    Inputs of convolutions, products and pools are quantized, outputs are not: activation, residual sum and the next
    quantization are steps of the kernel's epilogue. The skip of a residual sum is read quantized. An asymmetric zero
    point costs nothing on either side: its share of the sums is a constant, a part of the bias.
    """
    if machine.dot not in _REASONS:
        return None
    return Int8Support(
        activation=ElementType.UINT8 if machine.activation == "uint8" else ElementType.INT8,
        symmetric_activations=False,
        weight_bits=7 if machine.dot is Dot.MADDUBS else 8,
        per_channel=True,
        # Sums start at the bias, exactly.
        bias=ElementType.INT32,
        ops=WEIGHTED_OPS | FUSED_OPS | INPUT_OPS | MOVE_OPS,
        quantize_outputs=False,
        reason=_REASONS[machine.dot],
        input_ops=INPUT_OPS,
        quantize_skips=True,
        activation_products=False,
        stacked_weights=False,
    )


def tvm_capabilities(machine: Machine, runtime: RuntimeFacts, notes: Sequence[str]) -> Capabilities:
    """What can be generated for a processor.

    Args:
        machine: The processor.
        runtime: What ONNX Runtime runs: it computes the reference, so opset and operators are limited to those.
        notes: Facts worth a line, put first.
    """
    int8 = int8_support(machine)
    lines = [*notes, f"reference values by onnxruntime {runtime.version}"]
    if int8 is None:
        lines.append("INT8: no integer kernels for this CPU (AVX2 or ARM NEON needed)")
    return Capabilities(
        int8=int8,
        float16=frozenset(),
        bfloat16=frozenset(),
        max_opset=min(MAX_OPSET, runtime.max_opset),
        fused_ops=FUSED_FORMS & runtime.fused_ops,
        # A bias is where the sums start, so it is free; behind a MatMul it is found as well, but only as an Add.
        gemm_gains=True,
        notes=tuple(lines),
        # x86 CPUs hand denormal operands and results to microcode; ARM's compute them at full speed.
        slow_denormals=machine.x86,
        # Whatever depends on constants alone is computed when the model is compiled.
        recomputes_dequantize=False,
        channel_alignment=machine.lanes,
    )
