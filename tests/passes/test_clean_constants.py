"""Constant folding, known shapes, inlined branches and functions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from greencc.core.errors import UsageError
from greencc.core.graph import graphs_of
from greencc.core.passes import Context
from greencc.passes.fold_constants import FoldConstants
from greencc.passes.inline_functions import InlineFunctions


def test_a_chain_of_constants_becomes_one_initializer_with_its_name(graph, check) -> None:
    g = graph()
    c = g.op("Transpose", g.op("Exp", g.random(3, 4)), name="t", perm=[1, 0])
    result = check(g.model(g.op("MatMul", g.input("x", ["N", 4]), c)), FoldConstants())
    assert result.ops == ["MatMul"]
    assert "t_out" in result.model.graph.initializers


def test_several_outputs_fold(graph, check) -> None:
    g = graph(opset=17)
    a, b = g.op("Split", g.random(4), outputs=2)
    y = g.op("Mul", g.op("Add", g.input("x", ["N", 2]), a), b)
    assert check(g.model(y), FoldConstants()).ops == ["Add", "Mul"]


def test_growth_beyond_the_limit_is_refused(graph, check) -> None:
    g = graph()
    big = g.op("Expand", g.random(1, 64, name="row"), g.const([64, 64]), name="expand")
    model = g.model(g.op("MatMul", g.input("x", ["N", 64]), big))
    assert check(model, FoldConstants()).ops == ["MatMul"]
    result = check(model, FoldConstants(max_bytes=1000))
    assert result.ops == ["Expand", "MatMul"]
    assert "grow by" in result.reasons


def test_what_frees_as_much_as_it_makes_is_folded_at_any_limit(graph, check) -> None:
    g = graph()
    w = g.op("Transpose", g.random(32, 64), perm=[1, 0])
    assert check(g.model(g.op("MatMul", g.input("x", ["N", 64]), w)), FoldConstants(max_bytes=0)).ops == [
        "MatMul"
    ]


def test_negative_limit_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="max_bytes"):
        FoldConstants(max_bytes=-1)


def test_random_and_quantized_values_stay(graph) -> None:
    g = graph()
    noise = g.op("RandomNormalLike", g.random(4))
    scale, zero = g.const(0.1), g.const(np.int8(0), dtype=np.int8)
    weights = g.op("DequantizeLinear", g.const(np.arange(4), dtype=np.int8), scale, zero)
    model = g.model(g.op("Add", g.op("Add", g.input("x", ["N", 4]), noise), weights))
    FoldConstants().apply(model, Context(None, None, []))  # type: ignore[arg-type]
    assert [node.op_type for node in model.graph] == ["RandomNormalLike", "DequantizeLinear", "Add", "Add"]


def test_constant_nodes_become_initializers_of_the_same_name(graph, check) -> None:
    g = graph()
    low = g.op("Constant", name="low", value_float=0.0)
    high = g.op("Constant", name="high", value_float=6.0)
    result = check(g.model(g.op("Clip", g.input("x", ["N", 4]), low, high)), FoldConstants())
    assert result.ops == ["Clip"]
    assert {"low_out", "high_out"} <= set(result.model.graph.initializers)


def test_defaults_of_inputs_are_not_constants(graph, check) -> None:
    g = graph()
    c = g.random(4, name="c")
    g.input("c", [4])
    y = g.op("Add", g.input("x", ["N", 4]), g.op("Exp", c))
    assert check(g.model(y), FoldConstants()).ops == ["Exp", "Add"]


def test_flatten_written_with_shapes_becomes_one_reshape(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4, 3, 3])
    batch = g.op("Gather", g.op("Shape", x), g.const(0))
    target = g.op("Concat", g.op("Unsqueeze", batch, g.const([0])), g.const([-1]), axis=0)
    result = check(g.model(g.op("Reshape", x, target)), FoldConstants())
    assert result.ops[-1] == "Reshape"
    target = result.node("Reshape").inputs[1].const_value.numpy()
    assert target.tolist() == [0, -1]


def test_two_unknown_dimensions_leave_the_target_computed(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", "M", 4])
    shape = g.op("Shape", g.op("Relu", g.input("y", ["A", "B", 4])))
    model = g.model(g.op("Expand", x, shape))
    before = [node.op_type for node in model.graph]
    FoldConstants().apply(model, Context(None, None, []))  # type: ignore[arg-type]
    assert [node.op_type for node in model.graph] == before


def test_known_parts_of_a_dynamic_shape_fold(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4, 6, 8])
    spatial = g.op("Slice", g.op("Shape", x), g.const([2]), g.const([4]), g.const([0]))
    y = g.op("Mul", x, g.op("Cast", g.op("ReduceProd", spatial, keepdims=0), to=TensorProto.FLOAT))
    assert check(g.model(y), FoldConstants()).ops[-1] == "Mul"
    assert "ReduceProd" not in check(g.model(y), FoldConstants()).ops


def _branch(name: str, nodes, output: str, initializers=()) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], list(initializers)
    )


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_taken_is_inlined(graph, check, condition) -> None:
    g = graph()
    x = g.op("Relu", g.input("x", ["N", 4]), name="relu")
    two = onnx.numpy_helper.from_array(np.full(4, 2.0, np.float32), "k")
    three = onnx.numpy_helper.from_array(np.full(4, 3.0, np.float32), "k")
    y = g.op(
        "If",
        g.const(condition, "cond", bool),
        name="if",
        then_branch=_branch("then", [helper.make_node("Mul", [x, "k"], ["r"], "inner")], "r", [two]),
        else_branch=_branch("else", [helper.make_node("Add", [x, "k"], ["r"], "inner")], "r", [three]),
    )
    result = check(g.model(g.op("Neg", y), y), FoldConstants())
    assert result.ops == ["Relu", "Mul" if condition else "Add", "Neg"]
    assert [use.node.op_type for use in result.node("Relu").outputs[0].uses()] == [result.ops[1]]


def test_a_branch_that_passes_an_outer_value_through(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    same = _branch("then", [helper.make_node("Identity", [x], ["r"])], "r")
    other = _branch("else", [helper.make_node("Neg", [x], ["r"])], "r")
    y = g.op("If", g.const(True, "cond", bool), then_branch=same, else_branch=other)
    assert "If" not in check(g.model(g.op("Relu", y)), FoldConstants()).ops


def test_constants_inside_a_loop_body_fold(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["k"], value_float=0.5),
            helper.make_node("Exp", ["k"], ["e"]),
            helper.make_node("Mul", ["state", "e"], ["next"]),
            helper.make_node("Identity", ["go"], ["again"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    y = g.op("Loop", g.const(3), g.const(True, "go0", bool), x, body=body)
    result = check(g.model(y), FoldConstants())
    inner = [
        node.op_type for graph in graphs_of(result.model) if graph is not result.model.graph for node in graph
    ]
    assert sorted(inner) == ["Identity", "Mul"]


def _function() -> onnx.FunctionProto:
    return helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Exp", ["one"], ["e"], name="exp"),
            helper.make_node("Mul", ["a", "e"], ["b"], name="mul"),
        ],
        [helper.make_opsetid("", 17)],
    )


def test_functions_are_inlined_at_every_call(graph, check) -> None:
    g = graph()
    g.functions, g.domains = [_function()], {"local": 1}
    y = g.op("Twice", g.op("Twice", g.input("x", ["N", 4]), domain="local"), domain="local")
    result = check(g.model(y), InlineFunctions())
    assert result.ops.count("Mul") == 2
    assert not result.model.functions


def test_constants_inside_functions_fold_into_constant_nodes(graph, check) -> None:
    g = graph()
    g.functions, g.domains = [_function()], {"local": 1}
    model = g.model(g.op("Twice", g.input("x", ["N", 4]), domain="local"))
    result = check(model, FoldConstants())
    (function,) = result.model.functions.values()
    assert "Exp" not in [node.op_type for node in function]


def _same_padded_conv(g, x: str, weight: str, kernel: int, stride: int, with_if: bool) -> str:
    """A TensorFlow-style SAME convolution, as a traced PyTorch model exports it."""
    shape = g.op("Shape", x)
    amounts = []
    for axis in (2, 3):
        size = g.op("Cast", g.op("Gather", shape, g.const(axis)), to=TensorProto.FLOAT)
        steps = g.op("Sub", g.op("Ceil", g.op("Div", size, g.const(float(stride)))), g.const(1.0))
        total = g.op(
            "Sub", g.op("Add", g.op("Mul", steps, g.const(float(stride))), g.const(float(kernel))), size
        )
        total = g.op("Cast", g.op("Clip", total, g.const(0.0)), to=TensorProto.INT64)
        low = g.op("Div", total, g.const(2))
        amounts.append((low, g.op("Sub", total, low), total))
    (top, bottom, high), (left, right, wide) = amounts
    parts = [g.op("Unsqueeze", part, g.const([0])) for part in (left, right, top, bottom)]
    listed = g.op("Concat", *parts, axis=0)
    rest = g.op(
        "ConstantOfShape", g.op("Sub", g.const([8]), g.const([4])), value=helper.make_tensor("v", 7, [1], [0])
    )
    rows = g.op("Reshape", g.op("Concat", listed, rest, axis=0), g.const([-1, 2]))
    rows = g.op("Slice", rows, g.const([-1]), g.const([-(2**63) + 1]), g.const([0]), g.const([-1]))
    pads = g.op(
        "Cast", g.op("Reshape", g.op("Transpose", rows, perm=[1, 0]), g.const([-1])), to=TensorProto.INT64
    )
    if with_if:
        needed = g.op("Greater", g.op("Add", high, wide), g.const(0))
        name = f"padded{len(g.nodes)}"
        padded = _branch(
            f"{name}t", [helper.make_node("Pad", [x, pads], [f"{name}a"], f"{name}p")], f"{name}a"
        )
        plain = _branch(f"{name}e", [helper.make_node("Identity", [x], [f"{name}b"])], f"{name}b")
        y = g.op("If", needed, then_branch=padded, else_branch=plain)
    else:
        y = g.op("Pad", x, pads, g.const(0.0))
    return g.op("Conv", y, weight, strides=[stride, stride], kernel_shape=[kernel, kernel])


@pytest.mark.parametrize("with_if", [False, True])
def test_dynamic_same_padding_of_efficientnet_collapses_into_the_convolutions(graph, clean, with_if) -> None:
    g = graph()
    x = g.input("x", ["N", 3, 16, 16])
    y = _same_padded_conv(g, x, g.random(4, 3, 3, 3), 3, 2, with_if)
    y = g.op("Relu", g.batch_norm(y, 4))
    y = _same_padded_conv(g, y, g.random(5, 4, 5, 5), 5, 2, with_if)
    y = _same_padded_conv(g, y, g.random(6, 5, 1, 1), 1, 1, with_if)
    model = g.model(y)
    result = clean(model)
    assert [node.op_type for node in result.graph] == ["Conv", "Relu", "Conv", "Conv"]
    assert [list(node.attributes["pads"].as_ints()) for node in result.graph if "pads" in node.attributes][
        :2
    ] == [
        [0, 0, 1, 1],
        [1, 1, 2, 2],
    ]


def test_constants_of_strings_have_no_size_and_stay(graph, check) -> None:
    g = graph()
    words = g.op("Concat", *(g.const(np.array(["a"], object), dtype=object) for _ in range(4)), axis=0)
    picked = g.op("Gather", words, g.input("x", ["N"], TensorProto.INT64), axis=0)
    equal = g.op("Cast", g.op("Shape", picked), to=TensorProto.FLOAT)
    assert "Concat" in check(g.model(equal), FoldConstants()).ops
