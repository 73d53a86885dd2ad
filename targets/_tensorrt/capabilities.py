"""Facts about TensorRT's kernels: which operators run on integers, where pairs belong, what runs in FP16.

Sources: NVIDIA TensorRT documentation, "Explicit Quantization" and "Q/DQ Layer-Placement Recommendations", "Support
Matrix", "Working with Quantized Types"; NVIDIA, "Deep Learning Performance" (sizes that tensor cores like).
"""

from __future__ import annotations

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, Typing

# Inputs of weighted layers, pools and concatenations are quantized, outputs are not: the builder fuses the activation,
# the residual sum and the next quantization into the kernel. Q and DQ commute with what only moves values.
WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
INPUT_OPS = frozenset({"AveragePool", "Concat", "GlobalAveragePool", "MaxPool"})
MOVE_OPS = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
FUSED_OPS = frozenset({"Add"})
# Kernels work on 32 channels at a time; half-full ones still pay, emptier ones do not.
_MIN_CHANNELS = 16
# Operators with FP16 kernels; the rest of ONNX's float operators is cheap and stays where its neighbours are.
HALF_OPS = frozenset(
    {
        "Abs",
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Clip",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "HardSwish",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "Neg",
        "PRelu",
        "Pad",
        "Pow",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Resize",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "SpaceToDepth",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
    }
)
_LAYER_NORM = TensorRtVersion(8, 6)
# The first compute capability with tensor cores.
_TENSOR_CORES = 70


def int8_support(machine: TensorRtMachine) -> Int8Support | None:
    """The QDQ form for a machine; None where the GPU has no INT8 products worth using."""
    if not machine.gpu.int8:
        return None
    strong = machine.typing is Typing.STRONG
    return Int8Support(
        activation=ElementType.INT8,
        symmetric_activations=True,
        weight_bits=8,
        per_channel=True,
        bias=ElementType.FLOAT,
        ops=WEIGHTED_OPS | INPUT_OPS | MOVE_OPS | FUSED_OPS,
        quantize_outputs=False,
        reason=f"TensorRT {machine.version}: explicit quantization, signed and symmetric; biases stay float",
        scale_type=ElementType.FLOAT16 if strong else ElementType.FLOAT,
        # Emission raises the opset where FP16 scales need it.
        min_opset=13,
        min_channels=_MIN_CHANNELS,
        skip_gemv=True,
        input_ops=INPUT_OPS,
        quantize_skips=True,
        channel_alignment=16 if machine.gpu.sm >= _TENSOR_CORES else 4,
    )


def tensorrt_capabilities(machine: TensorRtMachine, *, sparse: bool) -> Capabilities:
    """What passes may do for a machine.

    Args:
        machine: The TensorRT version and GPU.
        sparse: 2:4 sparse kernels are wanted, where the GPU has them.
    """
    gpu = machine.gpu
    notes = [
        f"TensorRT {machine.version}, {gpu.name} (compute capability {gpu.sm // 10}.{gpu.sm % 10}): "
        f"{machine.typing.value} typing, opset {machine.min_opset} to {machine.max_opset}"
    ]
    if not gpu.int8:
        notes.append("INT8: the GPU has no INT8 products worth using")
    fused = set()
    if machine.rtx or machine.version >= _LAYER_NORM:
        fused.add("ai.onnx::LayerNormalization")
    if machine.bfloat16:
        notes.append("BF16: the GPU has it, but ONNX Runtime, which the results are judged by, does not compute in it")
    return Capabilities(
        int8=int8_support(machine),
        float16=HALF_OPS if gpu.float16 else frozenset(),
        bfloat16=frozenset(),
        max_opset=machine.max_opset,
        fused_ops=frozenset(fused),
        gemm_gains=False,
        notes=tuple(notes),
        sparse_kernels=frozenset({"2:4"}) if sparse and gpu.sparsity else frozenset(),
        channel_alignment=8 if gpu.sm >= _TENSOR_CORES else 1,
    )
