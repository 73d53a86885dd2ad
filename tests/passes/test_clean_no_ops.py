"""No-ops, shape chains, transposes, clips, common subexpressions and dead code."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from greencc.core.passes import Context
from greencc.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from greencc.passes.eliminate_dead_code import EliminateDeadCode
from greencc.passes.eliminate_no_ops import EliminateNoOps
from greencc.passes.merge_reshapes import MergeReshapes
from greencc.passes.move_transposes import MoveTransposes
from greencc.passes.normalize_clips import NormalizeClips

NO_OPS = {
    "identity": lambda g, x: g.op("Identity", x),
    "dropout": lambda g, x: g.op("Dropout", x, g.const(0.5)),
    "cast": lambda g, x: g.op("Cast", x, to=TensorProto.FLOAT),
    "reshape": lambda g, x: g.op("Reshape", x, g.const([0, 3, -1])),
    "expand": lambda g, x: g.op("Expand", x, g.const([1, 3, 4])),
    "transpose": lambda g, x: g.op("Transpose", x, perm=[0, 1, 2]),
    "pad": lambda g, x: g.op("Pad", x, g.const([0] * 6)),
    "slice": lambda g, x: g.op("Slice", x, g.const([0, 0]), g.const([3, 2**40]), g.const([1, 2])),
    "concat": lambda g, x: g.op("Concat", x, axis=1),
    "tile": lambda g, x: g.op("Tile", x, g.const([1, 1, 1])),
    "sum": lambda g, x: g.op("Sum", x),
    "one": lambda g, x: g.op("Mul", g.const([1.0]), x),
    "zero": lambda g, x: g.op("Sub", x, g.const(np.zeros((3, 4)))),
    "unit": lambda g, x: g.op("Div", x, g.const(1.0)),
}


@pytest.mark.parametrize("kind", sorted(NO_OPS))
def test_no_op_in_the_middle_and_at_the_output(graph, check, kind) -> None:
    g = graph()
    x = g.op("Relu", g.input("x", ["N", 3, 4]), name="relu")
    y = g.op("Neg", NO_OPS[kind](g, x), name="neg")
    assert check(g.model(y), EliminateNoOps()).ops == ["Relu", "Neg"]
    g = graph()
    x = g.op("Relu", g.input("x", ["N", 3, 4]), name="relu")
    assert check(g.model(NO_OPS[kind](g, x)), EliminateNoOps()).names == ["relu"]


@pytest.mark.parametrize(
    "make",
    [
        lambda g, x: g.op("Mul", x, g.const(1.000001)),
        lambda g, x: g.op("Add", x, g.const(1e-12)),
        lambda g, x: g.op("Sub", g.const(0.0), x),
        lambda g, x: g.op("Div", g.const(1.0), x),
        lambda g, x: g.op("Mul", x, g.const(np.ones((2, 1, 3, 4)))),
        lambda g, x: g.op("Slice", x, g.const([1]), g.const([3]), g.const([1])),
        lambda g, x: g.op("Slice", x, g.const([2]), g.const([-9]), g.const([1]), g.const([-1])),
        lambda g, x: g.op("Cast", x, to=TensorProto.DOUBLE),
        lambda g, x: g.op("Reshape", x, g.const([0, 4, 3])),
        lambda g, x: g.op("Pad", x, g.const([0, 0, 1, 0, 0, 0])),
    ],
)
def test_what_only_looks_like_a_no_op_stays(graph, check, make) -> None:
    g = graph()
    y = make(g, g.op("Relu", g.input("x", ["N", 3, 4])))
    result = check(g.model(g.op("Abs", y)), EliminateNoOps())
    assert result.outcome.changed == 0


def test_identity_from_input_to_output_stays(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    assert check(g.model(g.op("Identity", x)), EliminateNoOps()).ops == ["Identity"]


def test_two_outputs_of_the_same_value_keep_their_names(graph, check) -> None:
    g = graph()
    y = g.op("Relu", g.input("x", ["N", 4]))
    result = check(g.model(g.op("Identity", y), g.op("Identity", y)), EliminateNoOps())
    assert sorted(result.ops) == ["Identity", "Relu"]


def test_zero_initial_state_is_dropped(graph, check) -> None:
    g = graph()
    x = g.input("x", [5, "N", 3])
    shape = g.op(
        "Concat",
        g.const([1]),
        g.op("Slice", g.op("Shape", x), g.const([1]), g.const([2])),
        g.const([4]),
        axis=0,
    )
    state = g.op("ConstantOfShape", shape)
    y, _ = g.op(
        "GRU", x, g.random(1, 12, 3), g.random(1, 12, 4), g.random(1, 24), "", state, outputs=2, hidden_size=4
    )
    model = g.model(y)
    result = check(model, EliminateNoOps())
    assert result.node("GRU").inputs[5] is None


def test_view_chains(graph, check) -> None:
    g = graph()
    y = g.op("Relu", g.input("x", ["N", 3, 4]))
    y = g.op("Unsqueeze", g.op("Flatten", g.op("Reshape", y, g.const([0, 4, 3]))), g.const([1]), name="last")
    result = check(g.model(y), MergeReshapes())
    assert result.names == ["Relu0", "last"]
    assert result.ops == ["Relu", "Reshape"]


def test_views_that_cancel(graph, check) -> None:
    g = graph()
    y = g.op("Relu", g.input("x", ["N", 3, 4]))
    y = g.op("Squeeze", g.op("Unsqueeze", y, g.const([1])), g.const([1]))
    assert check(g.model(g.op("Neg", y)), MergeReshapes()).ops == ["Relu", "Neg"]


def test_shared_view_stays(graph, check) -> None:
    g = graph()
    y = g.op("Reshape", g.input("x", ["N", 3, 4]), g.const([0, 12]))
    result = check(g.model(g.op("Reshape", y, g.const([0, 6, 2])), g.op("Neg", y)), MergeReshapes())
    assert result.ops.count("Reshape") == 2


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [([0, 2, 1], [0, 2, 1], 0), ([1, 2, 0], [1, 2, 0], 1), ([2, 0, 1], [1, 2, 0], 0)],
)
def test_transposes_merge(graph, check, first, second, left) -> None:
    g = graph()
    y = g.op("Transpose", g.op("Relu", g.input("x", ["N", 3, 4])), perm=first)
    y = g.op("Transpose", y, perm=second)
    assert check(g.model(g.op("Neg", y)), MergeReshapes()).ops.count("Transpose") == left


def test_transpose_of_unit_dimensions_is_a_reshape(graph, check) -> None:
    g = graph()
    y = g.op("Transpose", g.input("x", ["N", 5, 7, 1]), perm=[0, 3, 1, 2])
    assert check(g.model(g.op("Neg", y)), MergeReshapes()).ops == ["Reshape", "Neg"]


def test_slice_and_squeeze_become_gather(graph, check) -> None:
    g = graph()
    x = g.op("Relu", g.input("x", ["N", 3, 4]))
    y = g.op("Slice", x, g.const([1]), g.const([2]), g.const([1]))
    assert check(g.model(g.op("Squeeze", y, g.const([1]))), MergeReshapes()).ops == ["Relu", "Gather"]


def test_softmax_between_flatten_and_reshape(graph, check) -> None:
    g = graph()
    x = g.op("Relu", g.input("x", ["N", 3, 4]))
    y = g.op("Softmax", g.op("Flatten", x, axis=2), name="soft")
    y = g.op("Reshape", y, g.op("Shape", x), name="back")
    result = check(g.model(y), MergeReshapes())
    assert "Flatten" not in result.ops
    assert "Reshape" not in result.ops


def test_channels_last_block_loses_its_transposes(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 3, 5, 6])
    a = g.op("Transpose", g.op("Conv", x, g.random(4, 3, 1, 1)), perm=[0, 2, 3, 1])
    b = g.op("Transpose", g.op("Conv", x, g.random(4, 3, 1, 1)), perm=[0, 2, 3, 1])
    y = g.op("Relu", g.op("Add", g.op("Mul", a, g.random(4)), b))
    y = g.op("Concat", y, g.op("Sigmoid", a), axis=3)
    y = g.op("Transpose", y, perm=[0, 3, 1, 2])
    result = check(g.model(g.op("Conv", y, g.random(2, 8, 1, 1))), MoveTransposes())
    assert "Transpose" not in result.ops
    assert result.node("Concat").attributes["axis"].as_int() == 1


def test_transposes_move_down_only_where_fewer_remain(graph, check) -> None:
    g = graph()
    y = g.op("Relu", g.op("Transpose", g.input("x", ["N", 3, 4]), perm=[0, 2, 1]))
    assert check(g.model(g.op("Softmax", y)), MoveTransposes()).outcome.changed == 0
    g = graph()
    a = g.op("Transpose", g.input("a", ["N", 3, 4]), perm=[0, 2, 1])
    b = g.op("Transpose", g.input("b", ["N", 3, 4]), perm=[0, 2, 1])
    result = check(g.model(g.op("Relu", g.op("Add", a, b))), MoveTransposes())
    assert sorted(result.ops) == ["Add", "Relu", "Transpose"]


def test_transposes_that_others_read_stay(graph, check) -> None:
    g = graph()
    a = g.op("Transpose", g.input("a", ["N", 3, 4]), perm=[0, 2, 1])
    y = g.op("Transpose", g.op("Relu", a), perm=[0, 2, 1])
    z = g.op("Softmax", a)
    result = check(g.model(y, z), MoveTransposes())
    assert result.ops.count("Transpose") == 1


@pytest.mark.parametrize("opset", [11, 17])
def test_min_and_max_become_clip(graph, check, opset) -> None:
    g = graph(opset=opset)
    y = g.op("Min", g.op("Max", g.input("x", ["N", 4]), g.const([0.0])), g.const(6.0), name="six")
    result = check(g.model(y), NormalizeClips())
    assert result.ops == ["Clip"]
    assert result.names == ["six"]


@pytest.mark.parametrize(
    ("make", "ops"),
    [
        (lambda g, x: g.op("Relu", g.op("Relu", x)), ["Relu"]),
        (lambda g, x: g.op("Clip", g.op("Relu", x), g.const(-1.0), g.const(2.0)), ["Clip"]),
        (lambda g, x: g.op("Relu", g.op("Clip", x, g.const(-1.0), g.const(2.0))), ["Clip"]),
        (
            lambda g, x: g.op(
                "Clip", g.op("Clip", x, g.const(0.5), g.const(2.0)), g.const(-1.0), g.const(1.0)
            ),
            ["Clip"],
        ),
        (
            lambda g, x: g.op(
                "Clip", g.op("Clip", x, g.const(-1.0), g.const(0.0)), g.const(0.5), g.const(1.0)
            ),
            ["Clip"],
        ),
        (lambda g, x: g.op("Clip", x, g.const(0.0)), ["Relu"]),
        (lambda g, x: g.op("Max", x, g.const(0.0)), ["Relu"]),
        (lambda g, x: g.op("Max", x, g.random(4)), ["Max"]),
        (lambda g, x: g.op("Max", x, g.const(np.zeros((1, 1, 1)))), ["Max"]),
        (
            lambda g, x: g.op("Clip", g.op("Relu", x), g.op("ReduceMin", x, keepdims=0)),
            ["ReduceMin", "Relu", "Clip"],
        ),
    ],
)
def test_clips(graph, check, make, ops) -> None:
    g = graph()
    result = check(g.model(make(g, g.input("x", ["N", 4]))), NormalizeClips())
    assert sorted(result.ops) == sorted(ops)


def test_common_subexpressions_and_equal_weights(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    a = g.op("Mul", g.op("Exp", x), g.const([2.0, 3.0, 4.0, 5.0], "k1"))
    b = g.op("Mul", g.op("Exp", x), g.const([2.0, 3.0, 4.0, 5.0], "k2"))
    result = check(g.model(g.op("Add", a, b)), EliminateCommonSubexpressions())
    assert result.ops == ["Exp", "Mul", "Add"]
    assert list(result.model.graph.initializers) == ["k1"]


def test_equal_bytes_of_another_type_or_shape_are_not_equal(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 2, 2])
    y = g.op("Add", g.op("Add", x, g.const(np.zeros((2, 2)))), g.const(np.zeros(4).reshape(1, 2, 2)))
    i = g.op("Cast", g.const(np.zeros((2, 2), np.int32), dtype=np.int32), to=TensorProto.FLOAT)
    result = check(g.model(g.op("Add", y, i)), EliminateCommonSubexpressions())
    assert len(result.model.graph.initializers) == 3


def test_random_nodes_are_not_merged(graph) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    model = g.model(g.op("Add", g.op("RandomNormalLike", x), g.op("RandomNormalLike", x)))
    assert EliminateCommonSubexpressions().apply(model, Context(None, None, [])).changed == 0  # type: ignore[arg-type]


def test_attributes_tell_nodes_apart(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    y = g.op("Add", g.op("Softmax", x, axis=0), g.op("Softmax", x, axis=1))
    assert check(g.model(y), EliminateCommonSubexpressions()).outcome.changed == 0


def test_dead_nodes_weights_functions_and_opsets_go(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4])
    g.input("unused", ["N", 4])
    g.op("Exp", g.op("Add", x, g.random(4, name="dead")))
    g.functions = [
        helper.make_function(
            "local",
            "F",
            ["a"],
            ["b"],
            [helper.make_node("Relu", ["a"], ["b"])],
            [helper.make_opsetid("", 17)],
        )
    ]
    g.domains = {"local": 1, "com.microsoft": 1}
    result = check(g.model(g.op("Relu", x)), EliminateDeadCode())
    assert result.ops == ["Relu"]
    assert not result.model.graph.initializers
    assert not result.model.functions
    assert set(result.model.opset_imports) == {""}
    assert [value.name for value in result.model.graph.inputs] == ["x", "unused"]


def _merged(model: ir.Model) -> int:
    return EliminateCommonSubexpressions().apply(model, Context(None, None, [])).changed  # type: ignore[arg-type]


@pytest.mark.parametrize(("training", "merged"), [(None, 1), (False, 1), (True, 0)])
def test_dropout_in_training_mode_is_random(graph, training, merged) -> None:
    g = graph()
    x = g.input("x", [2, 4])
    more = [] if training is None else [g.const(0.5), g.const(np.bool_(training))]
    a, b = (g.op("Dropout", x, *more, name=name) for name in "ab")
    assert _merged(g.model(g.op("Add", a, b))) == merged


def test_dropout_whose_mode_is_an_input_is_random(graph) -> None:
    g = graph()
    x, mode = g.input("x", [2, 4]), g.input("mode", [], TensorProto.BOOL)
    a, b = (g.op("Dropout", x, "", mode, name=name) for name in "ab")
    assert _merged(g.model(g.op("Add", a, b))) == 0


@pytest.mark.parametrize(
    ("domain", "op_type", "merged"),
    [
        ("com.microsoft", "Gelu", 1),
        ("com.microsoft", "BiasDropout", 0),
        ("com.microsoft", "NobodyKnows", 0),
        ("my.domain", "Gelu", 0),
        ("", "RandomNormalLike", 0),
        ("", "Bernoulli", 0),
        ("", "Multinomial", 0),
    ],
)
def test_only_operators_known_to_be_deterministic_are_merged(graph, domain, op_type, merged) -> None:
    g = graph()
    if domain:
        g.domains[domain] = 1
    x = g.input("x", [2, 4])
    a, b = (g.op(op_type, x, name=name, domain=domain) for name in "ab")
    assert _merged(g.model(g.op("Concat", a, b, axis=0))) == merged


@pytest.mark.parametrize("domain", ["local", "com.microsoft"])
def test_calls_of_functions_are_not_merged(graph, domain) -> None:
    g = graph()
    g.domains[domain] = 1
    noise = helper.make_node("RandomNormalLike", ["v"], ["w"])
    g.functions.append(
        helper.make_function(domain, "Gelu", ["v"], ["w"], [noise], [helper.make_opsetid("", 17)])
    )
    x = g.input("x", [2, 4])
    a, b = (g.op("Gelu", x, name=name, domain=domain) for name in "ab")
    assert _merged(g.model(g.op("Add", a, b))) == 0
