"""INT8 form and FP16 by CPU; and that the runtime really runs what the capabilities claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from greencc.core.capabilities import ElementType
from greencc.core.machine import parse_cpuinfo
from greencc.targets._cpu_capabilities import (
    QDQ_COMPUTE_OPS,
    QDQ_FLOAT_OUTPUT_OPS,
    QDQ_FOLLOW_ONLY_OPS,
    QDQ_MOVE_OPS,
    QDQ_SLOW_OPS,
    cpu_capabilities,
    int8_support,
)
from greencc.targets._ort_facts import RuntimeFacts, runs, runtime_facts
from greencc.targets._probes import FUSED_PROBES

X86 = "processor : 0\nvendor_id : GenuineIntel\nmodel name : CPU\nflags : {}\n"
ARM = "processor : 0\nFeatures : {}\nCPU implementer : 0x41\nCPU part : 0xd0b\n"
RUNTIME = RuntimeFacts("1.99.0", 25, 12, frozenset({"com.microsoft::Gelu"}), frozenset({"Conv", "Gemm"}))


@pytest.mark.parametrize(
    ("text", "activation", "bits", "reason"),
    [
        (X86.format("avx2 avx512f avx512_vnni"), ElementType.UINT8, 8, "AVX512-VNNI"),
        (X86.format("avx2 avx_vnni"), ElementType.UINT8, 8, "AVX-VNNI"),
        (X86.format("avx2 fma"), ElementType.UINT8, 7, "without VNNI"),
        (X86.format("avx2 avx512f avx512bw"), ElementType.UINT8, 7, "without VNNI"),
        (ARM.format("fp asimd"), ElementType.INT8, 8, "NEON"),
        (ARM.format("fp asimd asimddp"), ElementType.INT8, 8, "dot product"),
        (ARM.format("fp asimd asimddp i8mm"), ElementType.INT8, 8, "I8MM"),
    ],
)
def test_int8_follows_the_cpu(text: str, activation: ElementType, bits: int, reason: str) -> None:
    support = int8_support(parse_cpuinfo(text))
    assert support is not None
    assert (support.activation, support.weight_bits) == (activation, bits)
    assert reason in support.reason


@pytest.mark.parametrize("text", [X86.format("sse4_2"), ARM.format("fp"), ""])
def test_no_integer_kernels_without_the_instructions(text: str) -> None:
    cpu = parse_cpuinfo(text, None if text else "riscv64")
    assert int8_support(cpu) is None
    assert any("no integer kernels" in note for note in cpu_capabilities(cpu, RUNTIME).notes)


def test_float16_needs_the_cpu_and_the_runtime() -> None:
    with_half = parse_cpuinfo(ARM.format("fp asimd fphp asimdhp"))
    assert cpu_capabilities(with_half, RUNTIME).float16 == {"Conv", "Gemm"}
    assert cpu_capabilities(parse_cpuinfo(ARM.format("fp asimd")), RUNTIME).float16 == frozenset()
    x86 = cpu_capabilities(parse_cpuinfo(X86.format("avx2 avx512_fp16")), RUNTIME)
    assert x86.float16 == frozenset()
    assert any("AVX512-FP16" in note for note in x86.notes)


def test_capabilities_pass_the_runtime_on() -> None:
    capabilities = cpu_capabilities(parse_cpuinfo(X86.format("avx2")), RUNTIME)
    assert capabilities.max_opset == 25
    assert capabilities.runs("com.microsoft", "Gelu")
    assert not capabilities.runs("", "Gelu")


def test_the_installed_runtime_is_probed() -> None:
    facts = runtime_facts()
    assert facts.version == ort.__version__
    assert facts.max_opset >= 21
    assert {
        "com.microsoft::Gelu",
        "com.microsoft::SkipLayerNormalization",
        "ai.onnx::LayerNormalization",
    } <= (facts.fused_ops)


def test_the_newest_opset_loads_and_the_next_does_not() -> None:
    facts = runtime_facts()
    assert _loads(facts.max_opset, 8)
    assert not _loads(facts.max_opset + 1, 8)
    assert _loads(13, facts.max_ir_version)
    assert not _loads(13, facts.max_ir_version + 1)


def _loads(opset: int, ir_version: int) -> bool:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.Fail:
        return False
    return True


def test_an_operator_that_does_not_exist_is_not_claimed() -> None:
    assert not runs(replace(FUSED_PROBES[0], op_type="NoSuchFusedOp"))


# How each operator is put between quantized inputs: number of quantized activations, attributes, extra float inputs.
ATTRIBUTES: dict[str, dict[str, object]] = {
    "AveragePool": {"kernel_shape": [2, 2]},
    "ConvTranspose": {"kernel_shape": [3, 3]},
    "DepthToSpace": {"blocksize": 2},
    "MaxPool": {"kernel_shape": [2, 2]},
    "SpaceToDepth": {"blocksize": 2},
    "Concat": {"axis": 1},
    "Split": {"axis": 1, "num_outputs": 1},
    "Softmax": {"axis": -1},
    "Gather": {"axis": 0},
    "Transpose": {"perm": [0, 1, 3, 2]},
    "ReduceMax": {"keepdims": 1},
    "ReduceMin": {"keepdims": 1},
    "Resize": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
}
BINARY = {"Add", "Mul", "Concat", "Div", "Max", "Min", "Sub", "Where"}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Operators that a user may expect in the lists, and that ONNX Runtime leaves in float.
FLOAT_OPS = (
    "ConvTranspose", "Div", "Elu", "Erf", "Gelu", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Max", "Min", "PRelu",
    "Pad", "ReduceMean", "SpaceToDepth", "Sub", "Tanh",
)  # fmt: skip
INT_INPUTS: dict[str, list[tuple[str, np.ndarray]]] = {
    "Expand": [("shape", np.array([2, 4, 8, 8]))],
    "Pad": [("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))],
    "ReduceMean": [("axes", np.array([2, 3]))],
    "Reshape": [("shape", np.array([1, -1]))],
    "Squeeze": [("axes", np.array([0]))],
    "Unsqueeze": [("axes", np.array([0]))],
    "Tile": [("repeats", np.array([1, 1, 2, 1]))],
    "Slice": [("starts", np.array([0])), ("ends", np.array([2])), ("axes", np.array([1]))],
    "Gather": [("indices", np.array([0]))],
    "GatherElements": [("indices", np.zeros((1, 4, 8, 8), np.int64))],
}


def qdq_model(
    op: str,
    *,
    quantize_output: bool = True,
    shape: list[int] | None = None,
    weight: tuple[int, ...] = (),
    axis: int | None = None,
    opset: int = 20,
    kind: type[np.integer] = np.uint8,
    **attributes: object,
) -> onnx.ModelProto:
    """DQ(x), DQ(weights) -> op -> Q -> DQ; `axis` gives the weight scales of its own along it."""
    shape = shape or ([8, 8] if op in ("Gemm", "MatMul") else [1, 4, 8, 8])
    weights: dict[str, np.ndarray] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128 if kind is np.uint8 else 0, kind),
        "zw": np.array(0, np.int8),
        "s_out": np.array(1 / 256 if op in ("Softmax", "Sigmoid") else 0.05, np.float32),
        "z_out": np.array(
            (0 if op in ("Softmax", "Sigmoid") else 128) - (0 if kind is np.uint8 else 128), kind
        ),
    }
    if op in QDQ_MOVE_OPS | set(FLOAT_OPS):
        weights["s_out"], weights["z_out"] = weights["s"], weights["z"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    ]
    inputs = ["xd"]
    if op in BINARY:
        nodes += [
            helper.make_node("QuantizeLinear", ["x2", "s", "z"], ["xq2"]),
            helper.make_node("DequantizeLinear", ["xq2", "s", "z"], ["xd2"]),
        ]
        inputs = ["cond", "xd", "xd2"] if op == "Where" else ["xd", "xd2"]
        if op == "Where":
            weights["cond"] = np.ones(shape, np.bool_)
    if op in WEIGHTED:
        weight = weight or ((4, 4, 3, 3) if op.startswith("Conv") else (8, 8))
        weights["w"] = np.full(weight, 3, np.int8)
        weights["sw"] = np.full(() if axis is None else weight[axis], 0.05, np.float32)
        weights["zw"] = np.zeros(weights["sw"].shape, np.int8)
        along = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], **along))
        inputs.append("wd")
    if op == "PRelu":
        weights["slope"] = np.full((4, 1, 1), 0.1, np.float32)
        inputs.append("slope")
    if op == "Resize":
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
        inputs += ["", "scales"]
    for name, values in INT_INPUTS.get(op, []):
        weights[name] = values.astype(np.int64)
        inputs.append(name)
    nodes.append(helper.make_node(op, inputs, ["yf"], name="probe", **(ATTRIBUTES.get(op, {}) | attributes)))
    if op == "ArgMax" or not quantize_output:
        output = helper.make_tensor_value_info(
            "yf", TensorProto.INT64 if op == "ArgMax" else TensorProto.FLOAT, None
        )
    else:
        nodes += [
            helper.make_node("QuantizeLinear", ["yf", "s_out", "z_out"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "s_out", "z_out"], ["y"]),
        ]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        + ([helper.make_tensor_value_info("x2", TensorProto.FLOAT, shape)] if op in BINARY else []),
        [output],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


@pytest.fixture
def optimized_ops(tmp_path: Path) -> Callable[[onnx.ModelProto], list[str]]:
    """Operator types, in order, of the graph ONNX Runtime makes of a model."""

    def run(model: onnx.ModelProto) -> list[str]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    return run


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("op", sorted(QDQ_COMPUTE_OPS | QDQ_MOVE_OPS))
def test_every_claimed_operator_runs_on_integers(
    op: str, kind: type[np.integer], optimized_ops: Callable[[onnx.ModelProto], list[str]]
) -> None:
    ops = optimized_ops(qdq_model(op, kind=kind))
    # What stays is the quantization of the graph's inputs and the dequantization of its output.
    assert ops.count("DequantizeLinear") == (0 if op == "ArgMax" else 1), ops


@pytest.mark.parametrize("op", FLOAT_OPS)
def test_what_is_not_claimed_runs_in_float(
    op: str, optimized_ops: Callable[[onnx.ModelProto], list[str]]
) -> None:
    assert op not in QDQ_COMPUTE_OPS | QDQ_MOVE_OPS
    assert optimized_ops(qdq_model(op)).count("DequantizeLinear") > 1


@pytest.mark.parametrize(
    ("rank", "group", "weight"),
    [
        (1, 1, (16, 8, 3)),
        (1, 8, (8, 1, 3)),
        (2, 8, (8, 1, 3, 3)),
        (2, 2, (8, 4, 3, 3)),
        (3, 1, (16, 8, 3, 3, 3)),
        (3, 8, (8, 1, 3, 3, 3)),
    ],
)
def test_convolutions_of_every_rank_run_on_integers(
    rank: int, group: int, weight: tuple[int, ...], optimized_ops: Callable[[onnx.ModelProto], list[str]]
) -> None:
    shape = [1, 8] + [6] * rank
    model = qdq_model("Conv", shape=shape, weight=weight, axis=0, group=group)
    assert optimized_ops(model) == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]


def test_stacked_weights_need_one_scale(optimized_ops: Callable[[onnx.ModelProto], list[str]]) -> None:
    stacked = {"shape": [2, 4, 8], "weight": (2, 8, 8)}
    assert "QLinearMatMul" in optimized_ops(qdq_model("MatMul", **stacked))
    assert "MatMul" in optimized_ops(qdq_model("MatMul", axis=2, **stacked))


def test_old_operators_take_no_integers(optimized_ops: Callable[[onnx.ModelProto], list[str]]) -> None:
    """Why the placement asks for opset 12: ONNX Runtime leaves MaxPool in float and breaks on others."""
    assert optimized_ops(qdq_model("MaxPool", opset=11)).count("DequantizeLinear") == 2
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidGraph):
        optimized_ops(qdq_model("ReduceMax", opset=11))


def test_what_the_target_asks_for_is_a_part_of_what_there_is() -> None:
    support = int8_support(parse_cpuinfo(X86.format("avx2")))
    assert support is not None
    assert QDQ_SLOW_OPS < QDQ_COMPUTE_OPS
    assert support.ops == (QDQ_COMPUTE_OPS | QDQ_MOVE_OPS) - QDQ_SLOW_OPS
    assert support.follow_only == QDQ_FOLLOW_ONLY_OPS <= QDQ_MOVE_OPS


@pytest.mark.parametrize(
    "change",
    [
        {"activation": ElementType.FLOAT},
        {"bias": ElementType.INT8},
        {"weight_bits": 4},
        {"scale_type": ElementType.BFLOAT16},
        {"scale_type": ElementType.FLOAT16},
    ],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    support = int8_support(parse_cpuinfo(X86.format("avx2")))
    assert support is not None
    with pytest.raises(ValueError, match=r"cannot|no room"):
        replace(support, **change)


@pytest.mark.parametrize("op", sorted(QDQ_FLOAT_OUTPUT_OPS))
def test_some_operators_give_floats_from_integers(
    op: str, optimized_ops: Callable[[onnx.ModelProto], list[str]]
) -> None:
    assert "DequantizeLinear" not in optimized_ops(qdq_model(op, quantize_output=False))


def test_a_convolution_needs_its_output_quantized(
    optimized_ops: Callable[[onnx.ModelProto], list[str]],
) -> None:
    assert "DequantizeLinear" in optimized_ops(qdq_model("Conv", quantize_output=False))
