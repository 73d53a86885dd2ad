"""Faults in quantized graphs: each is planted into a graph that is right, and found there and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from greencc.targets._tensorrt.faults import Rule, Severity

from .lint_graphs import (
    add_weight,
    codes,
    found,
    machine,
    make,
    node_named,
    quantized_net,
    replace_weight,
    rules,
    weight,
)


@pytest.mark.parametrize("version", ["8.5", "8.6", "9.0", "10.3", "10.11"])
def test_a_graph_as_tensorrt_wants_it_has_no_faults(version: str) -> None:
    assert found(quantized_net(), machine(version)) == ()


def uint8(proto: onnx.ModelProto) -> None:
    node_named(proto, "q_x").input[2] = add_weight(proto, "u", np.array(0, np.uint8))
    node_named(proto, "dq_x").input[2] = "u"


def omitted(proto: onnx.ModelProto) -> None:
    del node_named(proto, "q_x").input[2]
    del node_named(proto, "dq_x").input[2]


def nonzero(proto: onnx.ModelProto) -> None:
    node_named(proto, "q_x").input[2] = add_weight(proto, "three", np.array(3, np.int8))
    node_named(proto, "dq_x").input[2] = "three"


def int32_bias(proto: onnx.ModelProto) -> None:
    add_weight(proto, "b_int", np.arange(16, dtype=np.int32))
    add_weight(proto, "b_scale", np.full(16, 5e-4, np.float32))
    node_named(proto, "conv_w0").input[2] = "b_float"
    node = helper.make_node("DequantizeLinear", ["b_int", "b_scale"], ["b_float"], name="dq_bias", axis=0)
    proto.graph.node.insert(0, node)


def conv_axis(proto: onnx.ModelProto) -> None:
    node_named(proto, "dq_w0").attribute[0].i = 1


def gemm_axis(proto: onnx.ModelProto) -> None:
    """[32, 32], so that the other axis has as many scales."""
    replace_weight(proto, "w2", codes(32, 32))
    replace_weight(proto, "rows", np.array([32, 8], np.int64))
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    node_named(proto, "dq_w2").attribute[0].i = 1


def channel_activation(proto: onnx.ModelProto) -> None:
    replace_weight(proto, "x_s", np.full(16, 0.05, np.float32))
    for name in ("q_x", "dq_x"):
        node_named(proto, name).input[2] = "z16"


def negative_scale(proto: onnx.ModelProto) -> None:
    replace_weight(proto, "x_s", np.array(-0.5, np.float32))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (uint8, [(Rule.QUANTIZED_TYPE, "q_x"), (Rule.QUANTIZED_TYPE, "dq_x")]),
        (omitted, [(Rule.MISSING_ZERO_POINT, "q_x"), (Rule.QUANTIZED_TYPE, "dq_x")]),
        (nonzero, [(Rule.NONZERO_ZERO_POINT, "q_x"), (Rule.NONZERO_ZERO_POINT, "dq_x")]),
        (int32_bias, [(Rule.INT32_BIAS, "dq_bias")]),
        (conv_axis, [(Rule.WEIGHT_AXIS, "dq_w0")]),
        (gemm_axis, [(Rule.WEIGHT_AXIS, "dq_w2")]),
        (channel_activation, [(Rule.ACTIVATION_SCALE, "q_x"), (Rule.ACTIVATION_SCALE, "dq_x")]),
        (negative_scale, [(Rule.SCALE_VALUE, "q_x"), (Rule.SCALE_VALUE, "dq_x")]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_in_pairs(spoil: object, expected: list[tuple[Rule, str]]) -> None:
    proto = quantized_net()
    spoil(proto)  # type: ignore[operator]
    faults = found(proto)
    assert rules(faults) == expected
    assert {fault.severity for fault in faults} == {Severity.ERROR}


def test_the_silent_conv_axis_is_called_silent() -> None:
    proto = quantized_net()
    conv_axis(proto)
    (fault,) = found(proto)
    assert "builds silently" in fault.message
    assert "axis 0" in fault.hint


def product(op_type: str, shape: tuple[int, int], axis: int, **attributes: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["f"], name="dq_w", axis=axis),
        helper.make_node(op_type, ["d", "f"], ["y"], name="product", **attributes),
    ]
    weights = {
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "w": codes(*shape),
        "ws": np.full(shape[axis], 0.1, np.float32),
        "wz": np.zeros(shape[axis], np.int8),
    }
    return make(nodes, {"x": (16, 32)}, {"y": (16, 32)}, weights)


@pytest.mark.parametrize(
    ("op_type", "axis", "attributes", "right"),
    [
        ("MatMul", 1, {}, True),
        ("MatMul", -1, {}, True),
        ("MatMul", 0, {}, False),
        ("Gemm", 0, {"transB": 1}, True),
        ("Gemm", 1, {"transB": 1}, False),
        ("Gemm", 1, {}, True),
        ("Gemm", 0, {}, False),
    ],
)
def test_weight_axis_of_products(op_type: str, axis: int, attributes: dict[str, int], right: bool) -> None:
    faults = found(product(op_type, (32, 32), axis, **attributes))
    assert rules(faults) == ([] if right else [(Rule.WEIGHT_AXIS, "dq_w")])


@pytest.mark.parametrize(("axis", "right"), [(1, True), (0, False)])
def test_weight_axis_of_transposed_convolutions(axis: int, right: bool) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], name="q_w", axis=axis),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["f"], name="dq_w", axis=axis),
        helper.make_node("ConvTranspose", ["d", "f"], ["y"], name="up"),
    ]
    weights = {
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "w": weight(16, 16, 3, 3),
        "ws": np.full(16, 0.1, np.float32),
        "wz": np.zeros(16, np.int8),
    }
    faults = found(make(nodes, {"x": (1, 16, 8, 8)}, {"y": (1, 16, 10, 10)}, weights))
    assert rules(faults) == ([] if right else [(Rule.WEIGHT_AXIS, "dq_w")])


def typed_pair(kind: int, *, opset: int = 21, constant: bool = False) -> onnx.ModelProto:
    """x -> Q -> DQ -> y in an element type, or a constant behind a DQ."""
    zero = helper.make_tensor("z", kind, [], [0])
    if constant:
        stored = helper.make_tensor("w", kind, [4, 4], [1] * 16)
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], name="dq"),
            helper.make_node("Add", ["x", "f"], ["y"], name="add"),
        ]
    else:
        stored = None
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
            helper.make_node("Relu", ["d"], ["y"], name="relu"),
        ]
    proto = make(nodes, {"x": (4, 4)}, {"y": (4, 4)}, {"s": np.array(0.1, np.float32)}, opset=opset)
    proto.graph.initializer.append(zero)
    if stored is not None:
        proto.graph.initializer.append(stored)
    return proto


@pytest.mark.parametrize("kind", [TensorProto.INT16, TensorProto.UINT16])
def test_sixteen_bits_are_refused(kind: int) -> None:
    faults = found(typed_pair(kind), machine("10.15"))
    assert rules(faults) == [(Rule.QUANTIZED_TYPE, "q"), (Rule.QUANTIZED_TYPE, "dq")]


def test_int4_is_for_weights_since_ten() -> None:
    assert found(typed_pair(TensorProto.INT4, constant=True), machine("10.7")) == ()
    activations = found(typed_pair(TensorProto.INT4), machine("10.7"))
    assert rules(activations) == [(Rule.QUANTIZED_TYPE, "q"), (Rule.QUANTIZED_TYPE, "dq")]
    old = found(typed_pair(TensorProto.INT4, constant=True), machine("9.3"))
    assert rules(old) == [(Rule.OPSET, ""), (Rule.QUANTIZED_TYPE, "dq")]
    assert "10.0 or later" in old[1].hint


def test_fp8_needs_ada_and_version_nine() -> None:
    proto = typed_pair(TensorProto.FLOAT8E4M3FN, opset=19)
    assert found(proto, machine("10.3", 89)) == ()
    ampere = found(proto, machine("10.3", 87))
    assert rules(ampere) == [(Rule.NO_FLOAT8, "q"), (Rule.NO_FLOAT8, "dq")]
    assert "Ada and later" in ampere[0].message
    assert found(proto, machine("10.3", 87), gpu=False) == ()
    assert [rule for rule, _ in rules(found(proto, machine("8.6", 89)))] == [
        Rule.OPSET,
        Rule.NO_FLOAT8,
        Rule.NO_FLOAT8,
    ]


def test_int8_on_a_gpu_without() -> None:
    faults = found(quantized_net(), machine("8.5", 53))
    assert {fault.rule for fault in faults} == {Rule.NO_INT8}
    assert found(quantized_net(), machine("8.5", 53), gpu=False) == ()


def half_scales(opset: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("Relu", ["d"], ["y"], name="relu"),
    ]
    weights = {"s": np.array(0.1, np.float16), "z": np.array(0, np.int8)}
    return make(nodes, {"x": (4, 4)}, {"y": (4, 4)}, weights, opset=opset, kind=TensorProto.FLOAT16)


def test_half_scales_need_strong_typing_and_opset_nineteen() -> None:
    assert found(half_scales(19), machine("10.13")) == ()
    weak = found(half_scales(19), machine("10.3"))
    assert rules(weak) == [(Rule.SCALE_TYPE, "q"), (Rule.SCALE_TYPE, "dq")]
    assert "--fp16" in weak[0].hint
    early = found(half_scales(17), machine("10.13"), infer=False)
    assert rules(early) == [(Rule.SCALE_TYPE, "q"), (Rule.SCALE_TYPE, "dq")]


def test_scales_that_are_computed() -> None:
    proto = quantized_net()
    proto.graph.node.insert(0, helper.make_node("Abs", ["x_s"], ["x_abs"], name="abs"))
    for name in ("q_x", "dq_x"):
        node_named(proto, name).input[1] = "x_abs"
    assert found(proto) == (), "computed from a constant, it is known when the engine is built"
    node_named(proto, "abs").op_type = "ReduceMax"
    node_named(proto, "abs").input[0] = "x"
    node_named(proto, "abs").attribute.append(helper.make_attribute("keepdims", 0))
    assert rules(found(proto)) == [(Rule.SCALE_VALUE, "q_x"), (Rule.SCALE_VALUE, "dq_x")]
