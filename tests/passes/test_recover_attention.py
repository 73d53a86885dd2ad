"""Recovery of scaled dot-product attention: the ways of writing it, and what stays written out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from greencc.core.capabilities import Capabilities
from greencc.core.passes import Context
from greencc.passes.recover_attention import RecoverAttention

HEADS, SIZE = 3, 4
WIDTH = HEADS * SIZE
MHA = Capabilities(
    None, frozenset(), frozenset(), 23, frozenset({"com.microsoft::MultiHeadAttention"}), False
)
STANDARD = replace(MHA, fused_ops=frozenset({"ai.onnx::Attention"}))
NOTHING = replace(MHA, fused_ops=frozenset())


def project(g, x: str, width: int = WIDTH) -> str:
    return g.op("Add", g.op("MatMul", x, g.random(WIDTH, width)), g.random(width))


def split(g, x: str, perm: list[int], target: list[int] | None = None, size: int = SIZE) -> str:
    shape = g.const(np.array(target or [0, 0, HEADS, size]), dtype=np.int64)
    return g.op("Transpose", g.op("Reshape", x, shape), perm=perm)


def rows(g, x: str, target: list[int] | None = None, width: int = WIDTH) -> str:
    shape = g.const(np.array(target or [0, 0, width]), dtype=np.int64)
    return g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), shape)


def scores(g, q: str, k: str, scale: str) -> str:
    root = math.sqrt(SIZE)
    if scale == "both":
        q = g.op("Mul", q, g.const(root**-0.5))
        k = g.op("Div", k, g.const(root**0.5))
    elif scale == "query":
        q = g.op("Mul", g.const(1 / root), q)
    product = g.op("MatMul", q, k)
    if scale == "div":
        return g.op("Div", product, g.const(root))
    return g.op("Mul", product, g.const(1 / root)) if scale == "mul" else product


def attention(g, x: str, *, memory: str | None = None, scale: str = "div", masked=None, twice=False) -> str:
    """Self-attention, or attention to `memory`; `masked` adds a mask to the scores."""
    other = memory or x
    q = split(g, project(g, x), [0, 2, 1, 3])
    if twice:
        k = g.op("Transpose", split(g, project(g, other), [0, 2, 1, 3]), perm=[0, 1, 3, 2])
    else:
        k = split(g, project(g, other), [0, 2, 3, 1])
    v = split(g, project(g, other), [0, 2, 1, 3])
    found = scores(g, q, k, scale)
    found = masked(found) if masked is not None else found
    return rows(g, g.op("MatMul", g.op("Softmax", found, axis=-1, name="softmax"), v))


@pytest.mark.parametrize("scale", ["div", "mul", "query", "both", "none"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("shape", [["N", "S", WIDTH], [2, 5, WIDTH], ["N", 5, WIDTH]])
def test_self_attention(graph, check, scale, twice, shape) -> None:
    g = graph()
    y = project(g, attention(g, g.input("x", shape), scale=scale, twice=twice))
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert Counter(result.ops) == {"MatMul": 4, "Add": 4, "MultiHeadAttention": 1}
    node = result.node("MultiHeadAttention")
    assert node.name == "softmax"
    assert node.attributes["num_heads"].as_int() == HEADS
    expected = 1.0 if scale == "none" else 1 / math.sqrt(SIZE)
    assert node.attributes["scale"].as_float() == pytest.approx(expected)
    assert node.outputs[0].shape is not None
    assert node.outputs[0].shape[2] == WIDTH


def test_attention_to_another_sequence(graph, check) -> None:
    g = graph()
    x, memory = g.input("x", ["N", "S", WIDTH]), g.input("memory", ["N", 7, WIDTH])
    y = attention(g, x, memory=memory)
    assert "MultiHeadAttention" in check(g.model(y), RecoverAttention(), capabilities=MHA).ops


def test_operands_of_different_batches_stay(graph, check) -> None:
    g = graph()
    x, memory = g.input("x", ["N", "S", WIDTH]), g.input("memory", [1, 7, WIDTH])
    result = check(g.model(attention(g, x, memory=memory)), RecoverAttention(), capabilities=MHA)
    assert result.outcome.changed == 0
    assert "batches are not known to be equal" in result.reasons


@pytest.mark.parametrize(
    ("shape", "expands"),
    [
        (["N", 1, 1, "S"], True),
        ([1, 1, "S", "S"], False),
        (["N", HEADS, "S", "S"], False),
        (["S", "S"], True),
        (["S"], True),
        ([1], True),
    ],
)
@pytest.mark.parametrize("order", [0, 1])
def test_additive_masks(graph, check, shape, expands, order) -> None:
    g = graph()
    x, mask = g.input("x", ["N", "S", WIDTH]), g.input("mask", shape)
    y = attention(g, x, masked=lambda s: g.op("Add", *((s, mask) if order else (mask, s))))
    ops = check(g.model(y), RecoverAttention(), capabilities=MHA).ops
    assert "MultiHeadAttention" in ops
    assert ("Expand" in ops) == expands
    assert "Softmax" not in ops


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("fill", [float(np.finfo(np.float32).min), -1e30])
def test_masks_that_replace_scores(graph, check, keep, fill) -> None:
    g = graph()
    x = g.input("x", [2, 5, WIDTH])
    allowed = np.tril(np.ones((1, 1, 5, 5), bool))
    mask = g.const(allowed if keep else ~allowed)
    value = g.const(fill)

    def masked(found: str) -> str:
        return g.op("Where", mask, *((found, value) if keep else (value, found)))

    result = check(g.model(attention(g, x, masked=masked)), RecoverAttention(), capabilities=MHA)
    assert "MultiHeadAttention" in result.ops


def test_a_condition_from_outside_with_samples_of_their_own(graph, check) -> None:
    g = graph()
    x, cond = g.input("x", ["N", "S", WIDTH]), g.input("cond", ["N", 1, 1, "S"], TensorProto.BOOL)
    y = attention(g, x, masked=lambda s: g.op("Where", cond, s, g.const(-1e38)))
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert "MultiHeadAttention" in result.ops
    assert "Where" in result.ops


@pytest.mark.parametrize("source", ["Gather", "Transpose"])
@pytest.mark.parametrize("opset", [17, 18])
def test_one_projection_for_query_key_and_value(graph, check, source, opset) -> None:
    g = graph(opset=opset)
    packed = project(g, g.input("x", ["N", "S", WIDTH]), 3 * WIDTH)
    split_up = g.op("Reshape", packed, g.const(np.array([0, 0, 3, HEADS, SIZE]), dtype=np.int64))
    if source == "Transpose":
        split_up = g.op("Transpose", split_up, perm=[2, 0, 3, 1, 4])
        parts = [g.op("Gather", split_up, g.const(i, dtype=np.int64), axis=0) for i in range(3)]
    else:
        parts = [g.op("Gather", split_up, g.const(i, dtype=np.int64), axis=2) for i in range(3)]
        parts = [g.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]
    q, k, v = parts
    found = scores(g, q, g.op("Transpose", k, perm=[0, 1, 3, 2]), "query")
    y = rows(g, g.op("MatMul", g.op("Softmax", found, axis=3), v))
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert result.ops == ["MatMul", "Add", "Split", "MultiHeadAttention"]


@pytest.mark.parametrize("mask", [None, ["S", "S"], [1, "S", "S"]])
def test_attention_without_heads(graph, check, mask) -> None:
    g = graph()
    x = g.input("x", ["N", "S", WIDTH])
    q, k, v = (project(g, x) for _ in range(3))
    found = scores(g, q, g.op("Transpose", k, perm=[0, 2, 1]), "div")
    if mask:
        found = g.op("Add", found, g.input("mask", mask))
    y = g.op("MatMul", g.op("Softmax", found, axis=-1), v)
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert result.node("MultiHeadAttention").attributes["num_heads"].as_int() == 1
    assert "Softmax" not in result.ops


def test_values_of_another_width(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", "S", WIDTH])
    q = split(g, project(g, x), [0, 2, 1, 3])
    k = split(g, project(g, x), [0, 2, 3, 1])
    v = split(g, project(g, x, HEADS * 6), [0, 2, 1, 3], size=6)
    y = rows(g, g.op("MatMul", g.op("Softmax", scores(g, q, k, "div")), v), width=HEADS * 6)
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert result.node("MultiHeadAttention").outputs[0].shape[2] == HEADS * 6


def test_a_result_that_is_flattened_further_keeps_its_reshape(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 5, WIDTH])
    q = split(g, project(g, x), [0, 2, 1, 3])
    k = split(g, project(g, x), [0, 2, 3, 1])
    v = split(g, project(g, x), [0, 2, 1, 3])
    y = rows(g, g.op("MatMul", g.op("Softmax", scores(g, q, k, "div")), v), [-1, WIDTH])
    assert check(g.model(y), RecoverAttention(), capabilities=MHA).ops.count("Reshape") == 2


def test_newer_opsets_use_the_standard_operator(graph, check) -> None:
    g = graph(opset=23, ir_version=10)
    x, mask = g.input("x", ["N", "S", WIDTH]), g.input("mask", ["N", 1, 1, "S"])
    y = attention(g, x, masked=lambda s: g.op("Add", s, mask))
    result = check(g.model(y), RecoverAttention(), capabilities=STANDARD)
    assert result.node("Attention").domain == ""
    assert "com.microsoft" not in result.model.opset_imports


@pytest.mark.parametrize(("capabilities", "reason"), [(NOTHING, ""), (STANDARD, "for this opset")])
def test_stays_when_the_target_does_not_run_it(graph, check, capabilities, reason) -> None:
    g = graph()
    y = attention(g, g.input("x", ["N", "S", WIDTH]))
    result = check(g.model(y), RecoverAttention(), capabilities=capabilities)
    assert result.outcome.changed == 0
    assert reason in result.reasons


def test_attention_weights_that_are_wanted_stay(graph, check) -> None:
    g = graph()
    y = attention(g, g.input("x", ["N", "S", WIDTH]))
    result = check(g.model(y, "softmax_out"), RecoverAttention(), capabilities=MHA)
    assert result.outcome.changed == 0
    assert "weights that are read elsewhere" in result.reasons


def test_scores_that_are_wanted_stay(graph, check) -> None:
    g = graph()
    y = attention(g, g.input("x", ["N", "S", WIDTH]))
    inner = next(node.input[0] for node in g.nodes if node.op_type == "Softmax")
    result = check(g.model(y, inner), RecoverAttention(), capabilities=MHA)
    assert result.outcome.changed == 0
    assert "scores that are read elsewhere" in result.reasons


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda g, s: g.op("Where", g.input("c", ["S", "S"], TensorProto.BOOL), s, g.const(-5.0)), "by -5"),
        (lambda g, s: g.op("Add", s, g.input("m", ["N", HEADS, "T", "S"])), "not known to fit"),
    ],
)
def test_masks_that_cannot_be_added_stay(graph, make, reason) -> None:
    g = graph()
    x = g.input("x", ["N", "S", WIDTH])
    model = g.model(attention(g, x, masked=lambda s: make(g, s)))
    outcome = RecoverAttention().apply(model, Context(MHA, _unused, ()))
    assert outcome.changed == 0
    assert reason in outcome.findings[0].message


def test_other_products_with_a_softmax_are_left_alone(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 5, WIDTH])
    y = g.op("MatMul", g.op("Softmax", project(g, x), axis=-1), g.random(WIDTH, 2))
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert result.outcome.changed == 0
    assert not result.outcome.findings


@pytest.mark.parametrize("problem", ["axis", "value scaled", "perm", "split"])
def test_what_only_looks_like_attention_stays(graph, check, problem) -> None:
    g = graph()
    x = g.input("x", ["N", 6, WIDTH])
    target = [0, 0, SIZE, HEADS] if problem == "split" else None
    q = split(g, project(g, x), [0, 2, 1, 3], [0, -1, HEADS, SIZE])
    k = split(g, project(g, x), [0, 2, 3, 1])
    v = split(g, project(g, x), [0, 2, 1, 3], target)
    if problem == "value scaled":
        v = g.op("Mul", v, g.const(2.0))
    found = scores(g, q, k, "div")
    if problem == "perm":
        found = g.op("MatMul", k, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        v = split(g, project(g, x), [0, 2, 3, 1])
    if problem == "split":
        v = g.op("Slice", v, *(g.const(np.array([n]), dtype=np.int64) for n in (0, HEADS, 1)))
    y = g.op("MatMul", g.op("Softmax", found, axis=2 if problem == "axis" else -1), v)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    result = check(g.model(y), RecoverAttention(), capabilities=MHA)
    assert result.outcome.changed == 0
    assert "stays written out" in result.reasons


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    scale=st.sampled_from(["div", "mul", "query", "both"]),
    mask=st.sampled_from([None, (1, 1), (1, 6), (6, 6)]),
)
# The fixtures hand out a class and a function: nothing to reset between examples.
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_outputs_are_kept(graph, check, batch, length, scale, mask) -> None:
    g = graph(seed=batch * 10 + length)
    x = g.input("x", [batch, length, WIDTH])
    masked = None
    if mask is not None:
        shape = [batch if mask[0] > 1 else 1, 1, length if mask[0] > 1 else 1, length if mask[1] > 1 else 1]
        masked = lambda s: g.op("Add", s, g.random(*shape))  # noqa: E731
    result = check(g.model(attention(g, x, scale=scale, masked=masked)), RecoverAttention(), capabilities=MHA)
    assert "MultiHeadAttention" in result.ops


def _unused(model: ir.Model, outputs: object = None) -> None:
    raise AssertionError("the pass needs no engine")
