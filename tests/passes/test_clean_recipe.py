"""The whole clean-up recipe: on random graphs, inside subgraphs and functions, and as a text snapshot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from greencc.core.capabilities import Capabilities
from greencc.core.recipe import dump_recipe, parse_recipe
from greencc.passes import PASSES, default_cleanup

CHANNELS = 4

UNARY = ("Relu", "Sigmoid", "Neg", "Identity", "Tanh", "LeakyRelu", "HardSigmoid")


def _layer(g, data, x: str) -> str:
    """One random node (or short idiom) that keeps the shape [N, 4, 6, 6]."""
    kind = data.draw(
        st.sampled_from(
            [
                "conv",
                "depthwise",
                "pointwise",
                "bn",
                "affine",
                "unary",
                "clip",
                "pad",
                "transpose",
                "reshape",
                "swish",
            ]
        )
    )
    if kind == "conv":
        bias = [g.random(CHANNELS)] if data.draw(st.booleans()) else []
        return g.op("Conv", x, g.random(CHANNELS, CHANNELS, 3, 3), *bias, pads=[1, 1, 1, 1])
    if kind == "depthwise":
        return g.op("Conv", x, g.random(CHANNELS, 1, 3, 3), group=CHANNELS, pads=[1, 1, 1, 1])
    if kind == "pointwise":
        return g.op("Conv", x, g.random(CHANNELS, CHANNELS, 1, 1))
    if kind == "bn":
        return g.batch_norm(x, CHANNELS)
    if kind == "affine":
        op_type = data.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
        shape = data.draw(st.sampled_from([(), (1,), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (6,)]))
        constant = g.random(*shape, positive=True)
        swap = op_type != "Div" and data.draw(st.booleans())
        return g.op(op_type, *((constant, x) if swap else (x, constant)))
    if kind == "unary":
        return g.op(data.draw(st.sampled_from(UNARY)), x)
    if kind == "clip":
        return g.op("Clip", x, g.const(data.draw(st.sampled_from([-1.0, 0.0]))), g.const(6.0))
    if kind == "pad":
        padded = g.op("Pad", x, g.const([0, 0, 1, 1, 0, 0, 1, 1]))
        return g.op("Conv", padded, g.random(CHANNELS, CHANNELS, 3, 3))
    if kind == "transpose":
        moved = g.op("Transpose", x, perm=[0, 2, 3, 1])
        moved = g.op("Mul", g.op("Relu", moved), g.random(CHANNELS)) if data.draw(st.booleans()) else moved
        return g.op("Transpose", moved, perm=[0, 3, 1, 2])
    if kind == "reshape":
        return g.op("Reshape", g.op("Flatten", x), g.const([-1, CHANNELS, 6, 6]))
    gate = g.op("Clip", g.op("Add", x, g.const(3.0)), g.const(0.0), g.const(6.0))
    return g.op("Div", g.op("Mul", x, gate), g.const(6.0))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_random_graphs_keep_their_outputs(graph, clean, data) -> None:
    g = graph(opset=data.draw(st.sampled_from([13, 15, 17])), seed=data.draw(st.integers(0, 5)))
    values = [g.input("x", ["N", CHANNELS, 6, 6])]
    for _ in range(data.draw(st.integers(1, 10))):
        if len(values) > 2 and data.draw(st.integers(0, 4)) == 0:
            other = data.draw(st.sampled_from(values[1:]))
            # Keeps magnitudes near 1, so that float32 rounding stays far below the tolerance.
            values.append(g.op("Tanh", g.op("Add", values[-1], other)))
        else:
            values.append(_layer(g, data, values[-1]))
    extra = data.draw(st.sampled_from(values[1:]))
    outputs = [values[-1]] if extra is values[-1] or data.draw(st.booleans()) else [values[-1], extra]
    model = g.model(*outputs)
    cleaned = clean(model)
    assert len(list(cleaned.graph)) <= len(list(model.graph))
    assert [value.name for value in cleaned.graph.outputs] == outputs


def _if(g, condition: str, x: str) -> str:
    rng = np.random.default_rng(3)

    def tensor(name: str, *shape: int):
        return helper.make_tensor(name, TensorProto.FLOAT, shape, (rng.random(shape) + 0.5).ravel())

    then = helper.make_graph(
        [
            helper.make_node("Conv", [x, "w"], ["conv"], "inner_conv"),
            helper.make_node("BatchNormalization", ["conv", "s", "s", "s", "s"], ["r"], "inner_bn"),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [tensor("w", 4, 4, 1, 1), tensor("s", 4)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", [x], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 4, 6, 6])],
    )
    return g.op("If", condition, name="if", then_branch=then, else_branch=other)


def test_folding_works_inside_branches_and_not_across_them(graph, clean) -> None:
    g = graph()
    x = g.op("Conv", g.input("x", ["N", 4, 6, 6]), g.random(4, 4, 1, 1), name="outer")
    condition = g.op("Squeeze", g.input("go", [1], TensorProto.BOOL))
    y = g.op("Relu", _if(g, condition, x))
    cleaned = clean(g.model(y))
    (node,) = [node for node in cleaned.graph if node.op_type == "If"]
    branches = [
        [inner.op_type for inner in node.attributes[name].as_graph()]
        for name in ("then_branch", "else_branch")
    ]
    assert branches == [["Conv"], ["Identity"]]


def test_folding_works_inside_functions_that_stay(graph, check) -> None:
    from greencc.passes.fold_affine import FoldAffine

    g = graph()
    one = helper.make_node("Constant", [], ["two"], value_float=2.0)
    nodes = [
        one,
        helper.make_node("Mul", ["a", "two"], ["t"], "m1"),
        helper.make_node("Mul", ["t", "two"], ["b"], "m2"),
    ]
    g.functions = [helper.make_function("local", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])]
    g.domains = {"local": 1}
    model = g.model(g.op("F", g.input("x", ["N", 4]), domain="local"))
    (function,) = model.functions.values()
    function.inputs[0].dtype = ir.DataType.FLOAT
    for node in function:
        node.outputs[0].dtype = ir.DataType.FLOAT
    (cleaned,) = check(model, FoldAffine()).model.functions.values()
    assert [node.op_type for node in cleaned].count("Mul") == 1


SNAPSHOT = """\
Conv conv1(x, w1, conv1/bias) -> bn1_out
HardSwish act(bn1_out) -> act_out
Conv conv2(act_out, w2, conv2/bias) -> add_out
Add residual(add_out, act_out) -> residual_out
GlobalAveragePool pool(residual_out) -> pool_out
Flatten flat(pool_out) -> flat_out
Gemm fc(flat_out, wf, bf) -> y
"""


def test_snapshot_of_a_residual_block(graph, clean) -> None:
    g = graph()
    x = g.input("x", ["N", 3, 8, 8])
    y = g.op("Pad", x, g.const([0, 0, 1, 1, 0, 0, 1, 1]), name="pad")
    y = g.batch_norm(g.op("Conv", y, g.random(4, 3, 3, 3, name="w1"), name="conv1"), 4, name="bn1")
    gate = g.op("Clip", g.op("Add", y, g.const(3.0)), g.const(0.0), g.const(6.0), name="act")
    a = g.op("Div", g.op("Mul", y, gate), g.const(6.0), name="act_div")
    g.nodes[-1].output[0] = a = "act_out2"
    y = g.op("Conv", a, g.random(4, 4, 1, 1, name="w2"), name="conv2")
    y = g.op("Add", y, g.random(4, 1, 1), name="add")
    y = g.op(
        "Flatten", g.op("GlobalAveragePool", g.op("Add", y, a, name="residual"), name="pool"), name="flat"
    )
    y = g.op("Gemm", g.op("Dropout", y), g.random(4, 2, name="wf"), g.random(2, name="bf"), name="fc")
    g.nodes[-1].output[0] = y = "y"
    text = "".join(
        f"{node.op_type} {node.name}({', '.join(v.name for v in node.inputs)}) -> {node.outputs[0].name}\n"
        for node in clean(g.model(y)).graph
    )
    assert text == SNAPSHOT.replace("act_out", "act_out2")


def test_names_are_unique_and_recipes_round_trip() -> None:
    names = [kind.name for kind in PASSES]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name for name in names)
    capabilities = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), True)
    recipe = default_cleanup(capabilities)
    assert parse_recipe(dump_recipe(recipe), PASSES) == recipe
    assert "fuse-gemm" in [step.name for step in recipe]


@pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.name)
def test_every_pass_has_a_summary_and_default_options(kind) -> None:
    assert kind.summary
    assert kind() == kind()
