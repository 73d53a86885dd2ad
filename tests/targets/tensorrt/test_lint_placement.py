"""Where pairs stand, and what is not worth quantizing: warnings."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from greencc.targets._tensorrt.faults import Rule, Severity

from .lint_graphs import add_weight, codes, found, make, node_named, quantized_net, rules


def insert_pair(proto: onnx.ModelProto, value: str, before: str) -> None:
    """Quantize `value` on its way into one node."""
    add_weight(proto, f"{value}_ps", np.array(0.05, np.float32))
    nodes = [
        helper.make_node(
            "QuantizeLinear", [value, f"{value}_ps", "zero"], [f"{value}_pq"], name=f"pq_{value}"
        ),
        helper.make_node(
            "DequantizeLinear", [f"{value}_pq", f"{value}_ps", "zero"], [f"{value}_pd"], name=f"pd_{value}"
        ),
    ]
    reader = node_named(proto, before)
    reader.input[list(reader.input).index(value)] = f"{value}_pd"
    index = list(proto.graph.node).index(reader)
    for node in reversed(nodes):
        proto.graph.node.insert(index, node)


def test_a_pair_between_conv_and_relu() -> None:
    proto = quantized_net()
    insert_pair(proto, "w0_y", "relu0")
    (fault,) = found(proto)
    assert (fault.rule, fault.node, fault.severity) == (Rule.BROKEN_FUSION, "pq_w0_y", Severity.WARNING)
    assert "Conv and Relu" in fault.message


def test_a_pair_on_the_conv_branch_of_a_sum() -> None:
    proto = quantized_net()
    insert_pair(proto, "w1_y", "add")
    assert rules(found(proto)) == [(Rule.RESIDUAL_ADD, "add")]


def test_a_skip_that_is_not_quantized() -> None:
    proto = quantized_net()
    node_named(proto, "add").input[1] = "r0"
    (fault,) = found(proto)
    assert (fault.rule, fault.node) == (Rule.RESIDUAL_ADD, "add")
    assert "skip connection beside Conv 'conv_w1' is not quantized" in fault.message


def test_a_quantized_output() -> None:
    proto = quantized_net()
    node_named(proto, "gemm").output[0] = "logits"
    add_weight(proto, "y_s", np.array(0.1, np.float32))
    proto.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["logits", "y_s", "zero"], ["y_q"], name="q_y"),
            helper.make_node("DequantizeLinear", ["y_q", "y_s", "zero"], ["y"], name="dq_y"),
        ]
    )
    assert rules(found(proto)) == [(Rule.QUANTIZED_OUTPUT, "y")]


def test_a_pool_in_float_between_integers() -> None:
    proto = quantized_net()
    node_named(proto, "pool").input[0] = "r1"
    node_named(proto, "pool").output[0] = "p"
    index = [node.name for node in proto.graph.node].index("pool") + 1
    for node in reversed(
        [
            helper.make_node("QuantizeLinear", ["p", "r1_s", "zero"], ["p_q"], name="q_p"),
            helper.make_node("DequantizeLinear", ["p_q", "r1_s", "zero"], ["pooled"], name="dq_p"),
        ]
    ):
        proto.graph.node.insert(index, node)
    assert rules(found(proto)) == [(Rule.FLOAT_BRIDGE, "pool")]


def test_concat_of_a_quantized_and_a_float_value() -> None:
    proto = quantized_net()
    reader = node_named(proto, "conv_w1")
    index = list(proto.graph.node).index(reader)
    add_weight(proto, "half_s", np.array(0.05, np.float32))
    for node in reversed(
        [
            helper.make_node("Concat", ["r0_d", "w0_y"], ["joined"], name="concat", axis=2),
            helper.make_node("QuantizeLinear", ["joined", "half_s", "zero"], ["joined_q"], name="q_joined"),
            helper.make_node(
                "DequantizeLinear", ["joined_q", "half_s", "zero"], ["joined_d"], name="dq_joined"
            ),
            helper.make_node(
                "MaxPool", ["joined_d"], ["back"], name="back", kernel_shape=[2, 1], strides=[2, 1]
            ),
        ]
    ):
        proto.graph.node.insert(index, node)
    add_weight(proto, "back_s", np.array(0.05, np.float32))
    insert_index = [node.name for node in proto.graph.node].index("back") + 1
    proto.graph.node.insert(
        insert_index,
        helper.make_node("QuantizeLinear", ["back", "back_s", "zero"], ["back_q"], name="q_back"),
    )
    proto.graph.node.insert(
        insert_index + 1,
        helper.make_node("DequantizeLinear", ["back_q", "back_s", "zero"], ["back_d"], name="dq_back"),
    )
    reader.input[0] = "back_d"
    (fault,) = found(proto)
    assert (fault.rule, fault.node) == (Rule.FLOAT_BRIDGE, "concat")
    assert "'w0_y'" in fault.message


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [(16, 32, None), (1, 32, "one vector"), (16, 1, "one output")],
)
def test_products_with_a_vector(rows: int, columns: int, message: str | None) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], name="dq_w"),
        helper.make_node("MatMul", ["d", "f"], ["y"], name="product"),
    ]
    weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": codes(32, columns)}
    faults = found(make(nodes, {"x": (rows, 32)}, {"y": (rows, columns)}, weights))
    assert rules(faults) == ([] if message is None else [(Rule.SMALL_PRODUCT, "product")])
    assert message is None or message in faults[0].message


@pytest.mark.parametrize(
    ("inputs", "group", "small"), [(16, 1, False), (3, 1, True), (32, 32, False), (8, 8, True)]
)
def test_convolutions_of_few_channels(inputs: int, group: int, small: bool) -> None:
    outputs = inputs if group > 1 else 32
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], name="dq_w"),
        helper.make_node("Conv", ["d", "f"], ["y"], name="conv", group=group),
    ]
    weights = {
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "w": codes(outputs, inputs // group, 3, 3),
    }
    faults = found(make(nodes, {"x": (1, inputs, 8, 8)}, {"y": (1, outputs, 6, 6)}, weights))
    assert rules(faults) == ([(Rule.SMALL_PRODUCT, "conv")] if small else [])
