"""Facts about the openvino target: which integer and fused kernels there are.

Sources: OpenVINO, "Low Precision Transformations" (which operators they carry integers through, and where a
dequantization is fused); oneDNN, "Nuances of int8 Computations" (saturation of u8 x s8 without VNNI); and what ran.
"""

from __future__ import annotations

from dataclasses import replace

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.machine import CpuInfo
from greencc.targets._cpu_capabilities import cpu_capabilities
from greencc.targets._openvino_facts import PluginFacts
from greencc.targets._ort_facts import RuntimeFacts

# What follows was read off the executed graph of OpenVINO 2026.4 (`CompiledModel.get_runtime_model`: `primitiveType`
# ends in _I8 or _i8 where a kernel computes on integers); test_openvino_capabilities.py repeats it with the installed
# version. Computed in float, alone or fused into the kernel before: ConvTranspose with unsigned activations, Mul, Sub,
# Div, Min, Max, Where, Sigmoid, Softmax, LeakyRelu, PRelu, Tanh, Elu, Gelu, HardSwish, HardSigmoid, Pad; Gather, Split,
# Tile, Identity and SpaceToDepth move floats. A residual Add is summed inside the convolution it follows (always with a
# dynamic batch, sometimes with a fixed one), nowhere else.
WEIGHTED_OPS = frozenset({"Conv", "Gemm", "MatMul"})
FUSED_OPS = frozenset({"Add"})
INPUT_OPS = frozenset({"AveragePool", "Concat", "GlobalAveragePool", "MaxPool"})
MOVE_OPS = frozenset(
    {"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)


def int8_support(support: Int8Support | None, cpu: CpuInfo) -> Int8Support | None:
    """The QDQ form that suits the plugin's integer kernels; None where there are none worth using.

    Inputs of convolutions and products are quantized, their outputs are not: the plugin fuses activation, residual sum
    and the next quantization into the kernel. Of fmnist-resnet20, 99 % of the profiled time is then spent in integer
    kernels, against 88 % with every output quantized as ONNX Runtime wants it (92 us against 146). Biases stay float:
    a quantized one is added as float all the same.

    Args:
        support: What ONNX Runtime's kernels want on this CPU: the saturation of its instructions is everyone's.
        cpu: The CPU. On ARM the plugin has other kernels, which were not tried: none are claimed.
    """
    if support is None or not cpu.x86:
        return None
    return replace(
        support,
        bias=ElementType.FLOAT,
        ops=WEIGHTED_OPS | FUSED_OPS | INPUT_OPS | MOVE_OPS,
        quantize_outputs=False,
        quantize_skips=True,
        input_ops=INPUT_OPS,
        float_output=frozenset(),
        follow_only=frozenset(),
        # Two activations are multiplied as integers only where both are signed and symmetric, which nothing else gains
        # from; weights of more than two dimensions are dequantized.
        activation_products=False,
        stacked_weights=False,
        # oneDNN works on blocks of as many channels as in float.
        channel_alignment=0,
    )


def openvino_capabilities(cpu: CpuInfo, plugin: PluginFacts, runtime: RuntimeFacts) -> Capabilities:
    """Combine what the CPU has with what the plugin can use of it.

    Opset and operators are limited to what ONNX Runtime runs as well: it computes the reference.
    """
    shared = cpu_capabilities(cpu, runtime)
    int8 = int8_support(shared.int8, cpu) if plugin.integers else None
    notes = [f"openvino {plugin.version}; reference values by onnxruntime {runtime.version}"]
    if cpu.notable:
        notes.append(f"{cpu.model}: {' '.join(cpu.notable)}")
    if int8 is None:
        notes.append("INT8: no integer kernels known to be worth using on this CPU")
    if cpu.has("avx512_bf16") or cpu.has("amx_bf16"):
        notes.append("BF16: the CPU has it, and OpenVINO would use it unasked; here it computes in FP32")
    notes.append("64-bit integers and floats are computed in 32 bits")
    return replace(
        shared,
        int8=int8,
        # The precision hint holds the plugin to FP32.
        float16=frozenset(),
        bfloat16=frozenset(),
        fused_ops=plugin.fused_ops,
        notes=tuple(notes),
        # A convolution of dequantized INT8 weights takes four times as long as one of folded Cast and Mul (524 us
        # against 119, 64 to 64 channels, 3x3 on 14x14).
        recomputes_dequantize=True,
    )
