"""Finding residual blocks and removing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greencc.core.model import check_model, infer_shapes
from greencc.passes._blocks import drop, find_blocks
from tests.passes.conftest import Graph, Runner, random_feeds


def names(model: ir.Model) -> list[str]:
    return [block.name for block in find_blocks(model)[0]]


def removed(model: ir.Model, name: str) -> ir.Model:
    clone = model.clone()
    drop(clone, next(block for block in find_blocks(clone)[0] if block.name == name))
    infer_shapes(clone)
    check_model(clone)
    return clone


def outputs(model: ir.Model, seed: int = 0) -> dict[str, Any]:
    return Runner(model).run(random_feeds(model, seed))


def residual(kinds: list[str], seed: int, zero: int | None = None) -> tuple[ir.Model, list[str]]:
    """A network of blocks; block `zero` computes nothing but zeros. Also the names of its residual Adds."""
    g = Graph(seed=seed)
    x = g.input("x", ["N", 8, 6, 6])
    found = []
    for index, kind in enumerate(kinds):
        last = np.zeros if index == zero else g.rng.standard_normal

        def conv(value: str, weight: Any, **attributes: Any) -> str:
            return str(g.op("Conv", value, g.const(0.3 * weight), pads=[1, 1, 1, 1], **attributes))

        add = f"add{index}"
        if kind == "basic":
            h = g.op("Relu", conv(x, g.rng.standard_normal((8, 8, 3, 3))))
            x = g.op("Relu", g.op("Add", x, conv(h, last((8, 8, 3, 3))), name=add))
        elif kind == "inverted":
            h = g.op("Clip", conv(x, g.rng.standard_normal((16, 8, 3, 3))), g.const(0.0), g.const(6.0))
            h = conv(h, g.rng.standard_normal((16, 1, 3, 3)), group=16)
            x = g.op("Add", g.op("Conv", h, g.const(0.3 * last((8, 16, 1, 1)))), x, name=add)
        elif kind == "excited":
            s = g.op("GlobalAveragePool", h := conv(x, last((8, 8, 3, 3))))
            s = g.op("Sigmoid", g.op("Conv", s, g.random(8, 8, 1, 1)))
            x = g.op("Sum", x, g.op("Mul", h, s), name=add)
        elif kind == "nested":
            y = g.op("Add", x, conv(x, g.rng.standard_normal((8, 8, 3, 3))), name=f"inner{index}")
            found.append(f"inner{index}")
            x = g.op("Add", conv(y, last((8, 8, 3, 3))), x, name=add)
        else:
            a, b = (conv(x, g.rng.standard_normal((8, 8, 3, 3))) for _ in range(2))
            x = g.op("Relu", g.op("Add", a, b, name=add))
            continue
        found.append(add)
    y = g.op("Flatten", g.op("GlobalAveragePool", x))
    model = g.model(g.op("Gemm", y, g.random(8, 5)))
    infer_shapes(model)
    return model, found


KINDS = st.lists(
    st.sampled_from(["basic", "inverted", "excited", "nested", "projection"]), min_size=1, max_size=4
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kinds=KINDS, seed=st.integers(0, 99), data=st.data())
def test_dropping_a_block_that_adds_zero_is_exact(kinds: list[str], seed: int, data: Any) -> None:
    zero = data.draw(st.integers(0, len(kinds) - 1))
    model, expected = residual(kinds, seed, zero)
    assert names(model) == expected
    if f"add{zero}" not in expected:
        return
    before, count = outputs(model), len(model.graph)
    shorter = removed(model, f"add{zero}")
    for name, value in outputs(shorter).items():
        np.testing.assert_array_equal(value, before[name])
    assert len(shorter.graph) < count
    assert len(model.graph) == count
    used = {value.name for node in shorter.graph for value in node.inputs if value is not None}
    assert set(shorter.graph.initializers) <= used


def test_dropping_one_block_after_another_leaves_the_identity() -> None:
    model, _ = residual(["basic", "inverted", "nested", "excited"], 3)
    # The input of the first block may be negative, a Relu stays behind it.
    while found := names(model):
        model = removed(model, found[0])
    assert [node.op_type for node in model.graph] == ["Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_an_outer_block_takes_the_inner_ones_with_it() -> None:
    model, found = residual(["nested"], 0)
    assert found == ["inner0", "add0"]
    assert names(removed(model, "inner0")) == ["add0"]
    assert names(removed(model, "add0")) == []


def attention(norm_first: bool) -> ir.Model:
    g = Graph()
    x = g.op("Add", g.input("x", ["N", 4, 8]), g.random(4, 8))
    mask = g.op("Mul", g.op("Sub", g.const(1.0), g.input("mask", ["N", 1, 4])), g.const(-1e4))

    def norm(value: str) -> str:
        return str(g.op("LayerNormalization", value, g.random(8), g.random(8)))

    def attend(value: str) -> str:
        q, k, v = (g.op("MatMul", value, g.random(8, 8)) for _ in range(3))
        scores = g.op("Add", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), mask)
        return str(g.op("MatMul", g.op("MatMul", g.op("Softmax", scores, axis=-1), v), g.random(8, 8)))

    def feed(value: str) -> str:
        h = g.op("Relu", g.op("MatMul", value, g.random(8, 16)))
        return str(g.op("Add", g.op("MatMul", h, g.random(16, 8)), g.random(8)))

    for index, part in enumerate((attend, feed, attend)):
        branch = part(norm(x) if norm_first else x)
        x = g.op("Add", branch, x, name=f"add{index}")
        x = x if norm_first else norm(x)
    model = g.model(g.op("ReduceMean", x, axes=[1], keepdims=0))
    infer_shapes(model)
    return model


@pytest.mark.parametrize("norm_first", [True, False])
def test_attention_and_feed_forward_blocks(norm_first: bool) -> None:
    model = attention(norm_first)
    assert names(model) == ["add0", "add1", "add2"]
    shorter = removed(model, "add0")
    norms = [node.op_type for node in shorter.graph].count("LayerNormalization")
    assert norms == (2 if norm_first else 3)
    # The mask stays: the other attention block reads it. Without that it is gone as well.
    assert "Sub" in [node.op_type for node in shorter.graph]
    rest = removed(removed(shorter, "add2"), "add1")
    assert "Sub" not in [node.op_type for node in rest.graph]
    assert all(np.isfinite(value).all() for value in outputs(rest).values())


def small(text: str, parse: Any, random: Any, **shapes: tuple[int, ...]) -> ir.Model:
    model = parse(text, **{name: random(*shape) for name, shape in shapes.items()})
    infer_shapes(model)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # A projection with stride, on both paths.
        (
            "a = Conv <strides=[2, 2]> (x, w)  b = Conv <strides=[2, 2]> (x, w)  y = Add (a, b)",
            "neither operand is computed from the other",
        ),
        # What is computed inside is read behind the block.
        (
            "h = Conv (x, w)  f = Relu (h)  s = Add (x, f)  y = Mul (s, h)",
            "'h' inside its branch is also read by Mul",
        ),
        ("h = Conv (x, w)  s = Add (x, h)  y = Mul (s, h)", "'h' inside its branch is also read by Mul"),
        # The shortcut is the smaller one.
        (
            "m = GlobalAveragePool (x)  f = Mul (x, m)  y = Add (m, f)",
            "may broadcast its shortcut",
        ),
    ],
)
def test_what_is_no_block(parse: Any, random: Any, body: str, reason: str) -> None:
    model = small(
        f"g (float[N, 4, 6, 6] x) => (float[N, 4, a, b] y) {{ {body} }}", parse, random, w=(4, 4, 1, 1)
    )
    blocks, refused = find_blocks(model)
    assert blocks == []
    assert reason in refused[0].reason


def test_a_branch_that_broadcasts_is_a_block(parse: Any, random: Any) -> None:
    text = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
      m = GlobalAveragePool (x)  s = Add (m, x)  y = Relu (s) }"""
    model = small(text, parse, random)
    assert len(names(model)) == 1


def test_an_inner_value_that_is_an_output_refuses(parse: Any, random: Any) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y, float[N, 4] h) { h = MatMul (x, w)  f = Relu (h)  y = Add (x, f) }"
    model = small(text, parse, random, w=(4, 4))
    assert "an output of the model" in find_blocks(model)[1][0].reason


SUBGRAPH = """
g (float[N, 4] x, bool c) => (float[N, 4] y) {
  h = MatMul (x, w)
  f = Relu (h)
  s = Add (x, f)
  y = If (c) <then_branch = t () => (float[N, 4] u) { u = Mul (s, READ) },
              else_branch = e () => (float[N, 4] v) { v = Identity (READ) }>
}"""


def test_subgraphs_count_as_readers(parse: Any, random: Any) -> None:
    inside = small(SUBGRAPH.replace("READ", "h"), parse, random, w=(4, 4))
    assert "read by If" in find_blocks(inside)[1][0].reason
    model = small(SUBGRAPH.replace("READ", "s"), parse, random, w=(4, 4))
    (block,) = find_blocks(model)[0]
    shorter = removed(model, block.name)
    assert [node.op_type for node in shorter.graph] == ["If"]
    x = np.ones((2, 4), np.float32)
    got = Runner(shorter).run({"x": x, "c": np.array(True)})["y"]
    np.testing.assert_array_equal(got, x)


def test_control_flow_inside_refuses(parse: Any, random: Any) -> None:
    text = """
    g (float[N, 4] x, bool c) => (float[N, 4] y) {
      f = If (c) <then_branch = t () => (float[N, 4] u) { u = Neg (x) },
                  else_branch = e () => (float[N, 4] v) { v = Identity (x) }>
      k = Relu (f)
      y = Add (x, k)
    }"""
    assert "control flow" in find_blocks(small(text, parse, random))[1][0].reason


def test_an_add_that_is_an_output_keeps_its_name(parse: Any, random: Any) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w)  y = Add (h, x) }"
    model = small(text, parse, random, w=(4, 4))
    before = model.graph[1].name
    shorter = removed(model, str(before))
    assert [(node.op_type, node.name) for node in shorter.graph] == [("Identity", before)]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(Runner(shorter).run({"x": x})["y"], x)
    assert not shorter.graph.initializers


def test_shortcut_and_sum_may_both_be_outputs(parse: Any, random: Any) -> None:
    text = """g (float[N, 4] x) => (float[N, 4] r, float[N, 4] y, float[N, 4] z) {
      r = Relu (x)  h = MatMul (r, w)  y = Add (r, h)  z = Neg (y) }"""
    model = small(text, parse, random, w=(4, 4))
    shorter = removed(model, names(model)[0])
    assert [value.name for value in shorter.graph.outputs] == ["r", "y", "z"]
    got = outputs(shorter)
    np.testing.assert_array_equal(got["y"], got["r"])
    np.testing.assert_array_equal(got["z"], -got["r"])


def test_sizes_shared_between_blocks_do_not_refuse(parse: Any, random: Any) -> None:
    text = """g (float[N, T, 4] x) => (float[N, T, 4] y) {
      a = Relu (x)  d = MatMul (a, w)  n = Shape (a)  f = Reshape (d, n)  s = Add (a, f)
      e = MatMul (s, v)  q = Reshape (e, n)  y = Add (s, q) }"""
    model = small(text, parse, random, w=(4, 4), v=(4, 4))
    for node in model.graph:
        if node.op_type in ("Add", "Reshape"):
            node.outputs[0].shape = None
    # Where inference does not get through, the shapes for a sample tell.
    assert find_blocks(model)[0] == []
    shapes = dict.fromkeys(("a", "s", "y"), (2, 5, 4))
    first, second = find_blocks(model, shapes)[0]
    assert [node.op_type for node in first.nodes] == ["MatMul", "Reshape"]
    assert second.skip is first.output


def test_constants_and_equal_operands_are_no_blocks(parse: Any, random: Any) -> None:
    text = "g (float[N, 4] x) => (float[N, 4] y) { a = Add (x, w)  b = Add (a, a)  y = Relu (b) }"
    assert find_blocks(small(text, parse, random, w=(4,))) == ([], [])
