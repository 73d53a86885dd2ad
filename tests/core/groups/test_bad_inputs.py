"""What ends groups: shared weights, outputs, subgraphs, unknown operators, indices that depend on the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.core.groups import analyse, cut


def _stem(graph, **rest) -> Any:
    g = graph(**rest)
    return g, g.conv(g.input("x", [1, 3, 4, 4]), 3, 8, name="stem")


def test_weights_shared_between_branches_are_cut_together(graph, prove) -> None:
    """Both convolutions read one weight: their outputs lose the same channels."""
    g, x = _stem(graph)
    weight = g.random(6, 8, 1, 1)
    a, b = g.op("Conv", x, weight, name="a"), g.op("Conv", g.op("Relu", x), weight, name="b")
    y = g.op("Add", g.conv(a, 6, 2, name="end"), g.conv(b, 6, 2, name="end2"))
    assert prove(g.model(y)).sizes == {"stem": 8, "a": 6}


def test_weights_shared_with_an_input_of_the_model_stay(graph, groups) -> None:
    """One of the two reads what cannot be cut."""
    g, x = _stem(graph)
    weight = g.random(6, 8, 1, 1)
    a, b = g.op("Conv", x, weight, name="a"), g.op("Conv", g.input("y", [1, 8, 4, 4]), weight, name="b")
    reasons = groups(g.model(g.conv(g.op("Concat", a, b, axis=1), 12, 2, name="end")))
    assert "also read by" in reasons["stem"]


def test_a_weight_read_as_data_stays(graph, groups) -> None:
    g, x = _stem(graph)
    weight = g.random(6, 8, 1, 1)
    y = g.conv(g.op("Conv", x, weight, name="a"), 6, 2, name="end")
    reasons = groups(g.model(g.op("Mul", y, g.op("ReduceSum", weight))))
    assert "also read by" in reasons["stem"]
    assert "also read by" in reasons["a"]


def test_tied_embeddings(graph, groups) -> None:
    """The table is also the last layer: its rows are the classes, its columns are cut on both sides."""
    g = graph()
    table = g.random(7, 6)
    x = g.op("Gather", table, g.input("x", [2, 4], TensorProto.INT64), name="words")
    y = g.op("MatMul", g.op("Relu", x), g.op("Transpose", table), name="end")
    assert groups(g.model(y)) == {"words": "'end' (MatMul): sums over values that cannot be cut"}


def test_a_weight_that_is_an_output_stays(graph, groups) -> None:
    g, x = _stem(graph)
    weight = g.random(2, 8, 1, 1)
    reasons = groups(g.model(g.op("Conv", x, weight, name="end"), weight))
    assert reasons["stem"] == "its weight is an output of the model"


def test_a_weight_that_is_an_input_with_a_default_stays(graph, groups) -> None:
    g, x = _stem(graph)
    g.input("weight", [2, 8, 1, 1])
    reasons = groups(g.model(g.op("Conv", x, g.random(2, 8, 1, 1, name="weight"), name="end")))
    assert "its weight is computed" in reasons["stem"]


@pytest.mark.parametrize("op_type", ["BatchNormalization", "Conv"])
def test_parameters_that_are_inputs_of_the_model_keep_the_channels(graph, groups, op_type) -> None:
    g, x = _stem(graph)
    if op_type == "Conv":
        x = g.op("Conv", x, g.random(8, 8, 1, 1), g.input("bias", [8]), name="middle")
    else:
        x = g.op(
            "BatchNormalization",
            x,
            g.random(8),
            g.input("bias", [8]),
            g.random(8),
            g.random(8, positive=True),
        )
    reasons = groups(g.model(g.conv(x, 8, 2, name="end")))
    assert reasons["middle" if op_type == "Conv" else "stem"] is not None


def test_constant_nodes_and_identities_hold_weights(graph, prove) -> None:
    g, x = _stem(graph)
    weight = g.op(
        "Constant", value=numpy_helper.from_array(g.rng.standard_normal((6, 8, 1, 1)).astype(np.float32))
    )
    bias = g.op("Constant", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    y = g.op("Conv", x, g.op("Identity", weight), bias, name="middle")
    found = prove(g.model(g.conv(y, 6, 2, name="end")))
    assert found.sizes == {"stem": 8, "middle": 6}


def _if(g, condition: str, inner: list[onnx.NodeProto], name: str = "if", initializers: Any = ()) -> str:
    branches = []
    for number in range(2):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in inner]
        for node in nodes:
            node.name = f"{node.name}_{number}"
        out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, f"branch{number}", [], [out], list(initializers)))
    return g.op("If", condition, then_branch=branches[0], else_branch=branches[1], name=name)


def test_what_a_subgraph_reads_stays(graph) -> None:
    g, x = _stem(graph)
    inner = [helper.make_node("ReduceMean", [x], ["inner"], name="mean", keepdims=0)]
    y = g.op("Mul", g.conv(x, 8, 2, name="end"), _if(g, g.input("c", [], TensorProto.BOOL), inner))
    structure = analyse(g.model(y))
    assert structure.groups[0].reason == "'if' (If) reads it in a subgraph"
    assert structure.unknown == {"If": ["'if' (If)"]}


def test_what_a_subgraph_of_a_subgraph_reads_stays(graph) -> None:
    g, x = _stem(graph)
    out = helper.make_tensor_value_info("deep", TensorProto.FLOAT, None)
    deep = [helper.make_node("ReduceMean", [x], ["deep"], name="deep", keepdims=0)]
    branches = {f"{name}_branch": helper.make_graph(deep, name, [], [out]) for name in ("then", "else")}
    inner = [helper.make_node("If", ["c"], ["inner"], name="nested", **branches)]
    y = g.op("Mul", g.conv(x, 8, 2, name="end"), _if(g, g.input("c", [], TensorProto.BOOL), inner))
    assert analyse(g.model(y)).groups[0].reason == "'if' (If) reads it in a subgraph"


def test_weights_that_a_subgraph_reads_stay(graph, groups) -> None:
    g, x = _stem(graph)
    weight = g.random(2, 8, 1, 1)
    inner = [helper.make_node("ReduceMean", [weight], ["inner"], name="mean", keepdims=0)]
    y = g.op("Mul", g.op("Conv", x, weight, name="end"), _if(g, g.input("c", [], TensorProto.BOOL), inner))
    assert "also read by 'mean_" in groups(g.model(y))["stem"]


def test_initializers_of_a_subgraph_are_left_alone(graph, prove) -> None:
    """One has the name of nothing outside; the groups outside are cut all the same."""
    g, x = _stem(graph)
    inner = [helper.make_node("Relu", ["scale"], ["inner"], name="relu")]
    scale = numpy_helper.from_array(np.float32([2.0]), "scale")
    y = g.op(
        "Mul",
        g.conv(x, 8, 2, name="end"),
        _if(g, g.input("c", [], TensorProto.BOOL), inner, initializers=[scale]),
    )
    model = g.model(y)
    model.graph.inputs[1].type = ir.TensorType(ir.DataType.BOOL)
    assert [group.size for group in analyse(model).prunable] == [8]


def test_an_unknown_operator_ends_the_group(graph) -> None:
    g, x = _stem(graph)
    y = g.op("Mystery", x, domain="acme", name="odd")
    g.declared[y] = [1, 8, 4, 4]
    y = g.conv(g.conv(y, 8, 6, name="after"), 6, 2, name="end")
    structure = analyse(g.model(y))
    assert structure.unknown == {"acme::Mystery": ["'odd' (acme::Mystery)"]}
    assert {group.name: group.reason for group in structure.groups if group.name != "end"} == {
        "stem": "'odd' (acme::Mystery): no rule for acme::Mystery",
        "after": None,
    }


def test_operators_without_channels_are_not_unknown(graph) -> None:
    """Random numbers on the side have nothing to cut."""
    g, x = _stem(graph)
    y = g.op(
        "OneHot", g.input("i", [2], TensorProto.INT64), g.const(np.int64(3)), g.const(np.float32([0, 1]))
    )
    structure = analyse(g.model(g.conv(x, 8, 2, name="end"), g.op("Identity", y)))
    assert structure.unknown == {}


def test_quantized_operators_say_what_to_do(graph) -> None:
    g, x = _stem(graph)
    scale, zero = g.const(np.float32(0.1)), g.const(np.uint8(0))
    y = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
    structure = analyse(g.model(g.conv(y, 8, 2, name="end")))
    assert "channels are cut before quantization" in structure.groups[0].reason
    assert structure.unknown == {}


@pytest.mark.parametrize("how", ["gather", "nd", "scalar"])
def test_indices(graph, groups, how) -> None:
    """Channels that the data chooses stay; one that is picked alone stays."""
    g, x = _stem(graph)
    if how == "gather":
        y = g.op("Gather", x, g.input("i", [2], TensorProto.INT64), axis=1)
    elif how == "nd":
        y = g.op("Gather", x, g.const(np.int64([[0, 1], [2, 3]])), axis=1)
    else:
        y = g.op(
            "Add",
            g.op("Unsqueeze", g.op("Gather", x, g.const(np.int64(0)), axis=1), g.ints(1)),
            g.conv(x, 8, 2),
        )
    reasons = groups(g.model(g.op("ReduceMean", y, g.ints(1))))
    wanted = {
        "gather": "indices that depend on the data",
        "nd": "indices that have several axes",
        "scalar": "picks it alone",
    }
    assert wanted[how] in reasons["stem"]


def test_a_channel_picked_alone_stays_and_the_others_go(graph, prove) -> None:
    g, x = _stem(graph)
    y = g.op("Unsqueeze", g.op("Gather", x, g.const(np.int64(-3)), axis=1), g.ints(1))
    found = prove(g.model(g.op("Add", y, g.conv(x, 8, 2, name="end"))))
    assert sorted(found.sizes.values()) == [7]


def test_channels_used_as_indices_stay(graph, groups) -> None:
    g = graph()
    x = g.linear(g.input("x", [2, 3]), 3, 6, name="product")
    y = g.op("Gather", g.input("t", [4, 5]), g.op("Cast", g.op("Sigmoid", x), to=7))
    assert "indices" in groups(g.model(y))["product"]


def test_one_channel_cannot_be_cut(graph) -> None:
    g = graph()
    x = g.conv(g.input("x", [1, 3, 4, 4]), 3, 1, name="stem")
    structure = analyse(g.model(g.conv(x, 1, 2, name="end")))
    assert structure.prunable == ()


def test_parts_of_an_axis_keep_one_channel_each(graph, prove) -> None:
    """A Split whose parts meet no weight before they come together again."""
    g, x = _stem(graph)
    a, b = g.op("Split", x, g.ints(2, 6), axis=1, outputs=2)
    y = g.op("Concat", g.op("Relu", b), g.op("Sigmoid", a), axis=1)
    assert sorted(prove(g.model(g.conv(y, 8, 2, name="end"))).sizes.values()) == [2, 6]


def test_values_of_unknown_rank_end_the_group(graph, groups) -> None:
    g, x = _stem(graph)
    model = g.model(g.conv(g.op("Relu", x, name="relu"), 8, 2, name="end"))
    node = next(node for node in model.graph if node.name == "relu")
    node.outputs[0].shape = None
    assert "number of axes is not known" in groups(model)["stem"]


def test_dynamic_sizes(graph, prove) -> None:
    """Everything but the channels is unknown."""
    g = graph()
    x = g.conv(g.input("x", ["N", 3, "H", "W"]), 3, 8, 3, name="stem")
    x = g.op("Flatten", g.op("GlobalAveragePool", g.op("Add", x, g.conv(x, 8, 8))))
    assert prove(g.model(g.linear(x, 8, 2, name="end"))).sizes == {"stem": 8}


@pytest.mark.parametrize("axis", [1, 2])
def test_a_cumulative_sum_stays_whole_along_its_axis(graph, groups, axis) -> None:
    g, x = _stem(graph)
    y = g.op("CumSum", x, g.const(np.int64(axis)))
    assert (groups(g.model(g.conv(y, 8, 2, name="end")))["stem"] is None) == (axis == 2)


def test_a_cumulative_sum_along_a_computed_axis(graph, groups) -> None:
    g, x = _stem(graph)
    y = g.op("CumSum", x, g.input("axis", [], TensorProto.INT64))
    assert "axis is computed" in groups(g.model(g.conv(y, 8, 2, name="end")))["stem"]


def test_wrong_orders_to_cut(graph) -> None:
    g, x = _stem(graph)
    model = g.model(g.conv(x, 8, 2, name="end"))
    structure = analyse(model)
    for removed, message in (
        ({"nothing": [0]}, "no such group"),
        ({"end": [0]}, "output of the model"),
        ({"stem": [8]}, "8 channels, not 9"),
        ({"stem": [-1]}, "no channel -1"),
        ({"stem": range(8)}, "one must stay"),
    ):
        with pytest.raises(ValueError, match=message):
            cut(model, structure, removed)
    before = ir.to_proto(model).SerializeToString()
    cut(model, structure, {"stem": []})
    assert ir.to_proto(model).SerializeToString() == before
