"""Facts about the CPU target: which integer, half-precision and fused kernels there are.

Sources: ONNX Runtime, "Quantize ONNX models" (data type selection, reduce_range), and its source:
`qdq_selector_action_transformer.cc` (which operators become integer kernels), `qdq_s8_to_u8.cc` (signed activations are
converted to unsigned on x86), `mlas/lib/qgemm*` (kernels by instruction set).
"""

from __future__ import annotations

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.machine import CpuInfo
from greencc.targets._ort_facts import RuntimeFacts

# What follows was read off `SessionOptions.optimized_model_filepath`: for each operator a model of DQ -> operator -> Q
# was loaded by ONNX Runtime 1.32 at every opset from 10 to 23, with u8 and s8 activations; the operator runs on
# integers when no DequantizeLinear is left in front of it. test_cpu_capabilities.py repeats it with the installed
# version, also for what is *not* in the lists. No integer kernel: ConvTranspose, Sub, Div, Min, Max, Sum, Pad,
# PRelu, Tanh, HardSigmoid, HardSwish, Gelu, Elu, Erf, ReduceMean, ReduceSum, GlobalMaxPool, Layer/Instance/
# BatchNormalization, SpaceToDepth, GatherND, linear and cubic Resize, MatMul with per-channel weights of rank > 2.

# Operators that ONNX Runtime's QDQ selectors turn into integer kernels on the CPU provider.
QDQ_COMPUTE_OPS = frozenset(
    {
        "Add",
        "AveragePool",
        "Concat",
        "Conv",
        "Gemm",
        "GlobalAveragePool",
        "LeakyRelu",
        "MatMul",
        "Mul",
        "Sigmoid",
        "Softmax",
        "Where",
    }
)
# Of those, the ones that are not asked for: their integer kernels are plain loops that cost more than the float
# kernel between a DequantizeLinear and a QuantizeLinear. AveragePool 3x3 on 64x32x32 between two convolutions takes
# 428 us against 148, Softmax 269 us against 180 (one thread, Zen 4 with AVX512-VNNI); QLinearSoftmax also reads
# scores rounded to 8 bits. Where both neighbours are integers ONNX Runtime takes them all the same.
QDQ_SLOW_OPS = frozenset({"AveragePool", "Softmax"})
# Of those, the ones with a kernel that takes integers and gives floats.
QDQ_FLOAT_OUTPUT_OPS = frozenset({"Gemm", "MatMul"})
# Operators that only move or select values: the quantize/dequantize pair around them is dropped.
QDQ_MOVE_OPS = frozenset(
    {
        "ArgMax",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Identity",
        "MaxPool",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# Behind an integer convolution MaxPool takes its NHWC layout and the vector kernel (MaxPool 2x2 on 32x32x32 between two
# convolutions: 27 us against 66 in float); elsewhere it stays NCHW, where the integer kernel is a scalar loop (122 us
# against 38).
QDQ_FOLLOW_ONLY_OPS = frozenset({"MaxPool"})

# MLAS multiplies bytes in blocks of as many columns (output channels). One 3x3 convolution of N to N channels between
# others, one thread, Zen 4 with AVX512-VNNI: on 28x28, 16 channels take 18 us, 14 take 32, 12 take 29, 8 take 26; on
# 14x14, 32 take 12.4, 28 take 11.5, 24 take 10.4, 16 take 6.4; on 7x7, 64 take 12.0, 56 take 11.0, 48 take 8.1.
_COLUMNS = 16


def int8_support(cpu: CpuInfo) -> Int8Support | None:
    """The QDQ form that suits the CPU's integer kernels; None where there are none worth using."""
    if cpu.arm64:
        return _arm(cpu)
    if not cpu.x86 or not cpu.has("avx2"):
        return None
    vnni = "AVX512-VNNI" if cpu.has("avx512_vnni") else "AVX-VNNI" if cpu.has("avx_vnni") else None
    if vnni:
        bits, reason = (
            8,
            f"{vnni}: unsigned x signed bytes are summed in 32 bits, so weights may use all 8 bits",
        )
    else:
        # Signed activations do not help: ONNX Runtime converts them to unsigned on x86 and runs the same kernel.
        bits, reason = (
            7,
            "x86 without VNNI: pairs of unsigned x signed byte products saturate in 16 bits (VPMADDUBSW), "
            "which 7-bit weights cannot",
        )
    return _support(ElementType.UINT8, bits, reason)


def _arm(cpu: CpuInfo) -> Int8Support | None:
    if not cpu.has("asimd"):
        return None
    if cpu.has("i8mm"):
        kernels = "ARM I8MM (SMMLA)"
    elif cpu.has("asimddp"):
        kernels = "ARM dot product (SDOT)"
    else:
        # SMULL + SMLAL add two products in 16 bits: 2 * 128 * 127 = 32512 fits.
        kernels = (
            "ARM NEON (SMULL/SMLAL; two products of an activation and a weight within +-127 fit in 16 bits)"
        )
    return _support(ElementType.INT8, 8, f"{kernels}: signed x signed kernels with 32-bit sums")


def _support(activation: ElementType, weight_bits: int, reason: str) -> Int8Support:
    return Int8Support(
        activation=activation,
        symmetric_activations=False,
        weight_bits=weight_bits,
        per_channel=True,
        bias=ElementType.INT32,
        ops=(QDQ_COMPUTE_OPS | QDQ_MOVE_OPS) - QDQ_SLOW_OPS,
        quantize_outputs=True,
        reason=reason,
        float_output=QDQ_FLOAT_OUTPUT_OPS,
        follow_only=QDQ_FOLLOW_ONLY_OPS,
        channel_alignment=_COLUMNS if activation is ElementType.UINT8 else 0,
    )


def cpu_capabilities(cpu: CpuInfo, runtime: RuntimeFacts) -> Capabilities:
    """Combine what the CPU has with what the runtime can use of it."""
    int8 = int8_support(cpu)
    half = cpu.arm64 and cpu.has("fphp", "asimdhp")
    float16 = runtime.float16_ops if half else frozenset[str]()
    notes = [f"onnxruntime {runtime.version}: opset up to {runtime.max_opset}"]
    if cpu.notable:
        notes.append(f"{cpu.model}: {' '.join(cpu.notable)}")
    if int8 is None:
        notes.append("INT8: no integer kernels for this CPU (AVX2 or ARM NEON needed)")
    if not float16 and half:
        notes.append("FP16: the CPU has half precision, but this onnxruntime computes in FP32 between casts")
    elif not float16 and cpu.has("avx512_fp16"):
        notes.append("FP16: the CPU has AVX512-FP16, but onnxruntime has no kernels for it and casts to FP32")
    return Capabilities(
        int8=int8,
        float16=float16,
        bfloat16=frozenset(),
        max_opset=runtime.max_opset,
        fused_ops=runtime.fused_ops,
        gemm_gains=True,
        notes=tuple(notes),
        # x86 CPUs hand denormal operands and results to microcode; ARM's compute them at full speed.
        slow_denormals=cpu.x86,
        # Constant folding spares DequantizeLinear, so that integer kernels can take it in.
        recomputes_dequantize=True,
        # MLAS computes convolutions in blocks of as many channels as fit a vector register.
        channel_alignment=16 if cpu.has("avx512f") else 8,
    )
