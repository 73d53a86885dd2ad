"""Where casts go: few, cheap, never two in a row, and none around data movement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from greencc.core.capabilities import Capabilities
from greencc.core.data import Array
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context
from greencc.passes.float16 import Borders, ConvertFloat16, HalfType
from greencc.targets.cpu import CpuTarget

KERNELS = frozenset(
    {"Add", "Clip", "Conv", "Gemm", "LayerNormalization", "MatMul", "Mul", "Relu", "TopK", "Where"}
)


def half(context: Any, ops: frozenset[str] = KERNELS) -> Any:
    return replace(context, capabilities=replace(context.capabilities, float16=ops, bfloat16=ops))


def casts(model: ir.Model) -> list[str]:
    return [str(node.inputs[0].name) for node in model.graph if node.op_type == "Cast" and node.inputs[0]]


def close(expected: list[Array], got: list[Array]) -> None:
    for before, after in zip(expected, got, strict=True):
        assert np.max(np.abs(after - before)) <= 5e-3 * max(1e-6, np.max(np.abs(before)))


def test_data_movement_between_half_nodes_is_not_cast(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[2, 6, 8] x) => (float[2, 8, 6] y) {
          a = MatMul (x, w)
          t = Transpose <perm=[0,2,1]> (a)
          s, r = Split <axis=1> (t)
          c = Concat <axis=1> (r, s)
          u = Unsqueeze (c, axes)
          q = Squeeze (u, axes)
          y = MatMul (q, v)
        }""",
        w=random(8, 8),
        v=random(6, 6),
        axes=np.int64([0]),
    )
    x = {"x": random(2, 6, 8)}
    expected = kit.run(model, x)
    assert ConvertFloat16().apply(model, half(kit.context(None))).changed == 7
    assert casts(model) == ["x", "y_float16"]
    close(expected, kit.run(model, x))


def test_a_cast_goes_where_the_tensor_is_small(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[4, 8] x) => (float[4, 2] y) {
          a = MatMul (x, w)
          p = Gather <axis=1> (a, picked)
          y = Tanh (p)
        }""",
        w=random(8, 64, scale=0.1),
        picked=np.int64([3, 5]),
    )
    ConvertFloat16().apply(model, half(kit.context(None)))
    # Tanh is float: 8 elements are cast after the Gather, not 256 before it.
    assert casts(model) == ["x", "p"]
    large = parse(
        """
        g (float[4, 8] x) => (float[4, 64] y) {
          t = Tanh (x)
          e = Expand (x, shape)
          y = MatMul (e, w)
        }""",
        w=random(8, 64, scale=0.1),
        shape=np.int64([4, 8]),
    )
    ConvertFloat16().apply(large, half(kit.context(None)))
    assert casts(large) == ["x", "y_float16"]


def test_shapes_are_read_without_a_cast_and_casts_are_not_chained(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (int32[N, 8] i, float16[N, 8] h) => (int64[2] s, float[N, 8] y, float16[N, 8] z) {
          f = Cast <to=1> (i)
          a = MatMul (f, w)
          s = Shape (a)
          g = Cast <to=1> (h)
          b = MatMul (g, w)
          c = Add (a, b)
          k = Cast <to=10> (c)
          z = Relu (k)
          y = Tanh (c)
        }""",
        w=random(8, 8),
    )
    x = {"i": np.int32(random(4, 8, scale=4)), "h": random(4, 8).astype(np.float16)}
    expected = kit.run(model, x)
    assert ConvertFloat16().apply(model, half(kit.context(None))).changed == 3
    # int32 goes to half at once, the half input is read as it is, and only Tanh needs its operand in float.
    assert casts(model) == ["i", "c"]
    close(expected, kit.run(model, x))


def test_types_of_their_own_are_kept(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[4, 8] x) => (float[4, 3] v, int64[4, 3] i, float[4, 8] n) {
          a = MatMul (x, w)
          v, i = TopK (a, three)
          n, m = LayerNormalization (a, scale)
        }""",
        w=random(8, 8),
        three=np.int64([3]),
        scale=random(8),
    )
    x = {"x": random(4, 8)}
    expected = kit.run(model, x)
    step = ConvertFloat16(keep=())
    assert step.apply(model, half(kit.context(x))).changed == 3
    close(expected, kit.run(model, x))


def test_bodies_read_float_and_stay_in_float(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (bool c, float[4, 8] x) => (float[4, 8] y) {
          a = MatMul (x, w)
          b = Relu (a)
          y = If (c) <
            then_branch = t () => (float[4, 8] p) { p = MatMul (b, w) },
            else_branch = e () => (float[4, 8] q) { q = Tanh (a) }
          >
        }""",
        w=random(8, 8),
    )
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"n{number}"
    feeds = [{"c": np.array(flag), "x": random(4, 8)} for flag in (True, False)]
    expected = [kit.run(model, feed) for feed in feeds]
    outcome = ConvertFloat16().apply(model, half(kit.context(None)))
    # The Relu stays where its reader is: in float, behind the cast that the other branch needs anyway.
    assert outcome.changed == 1
    assert any("bodies" in finding.message for finding in outcome.findings)
    assert sorted(casts(model)) == ["a", "x"]
    # The body still reads the float weight.
    assert model.graph.initializers["w"].dtype is ir.DataType.FLOAT
    for feed, before in zip(feeds, expected, strict=True):
        close(before, kit.run(model, feed))


def test_bf16_is_chosen_by_schema(kit: Any, parse: Any, random: Any) -> None:
    text = "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv <pads=[1,1,1,1]> (x, w) }"
    for opset, changed in ((17, 0), (22, 1)):
        model = parse(text, opset=opset, w=random(4, 4, 3, 3))
        step = ConvertFloat16(element=HalfType.BFLOAT16)
        assert step.apply(model, half(kit.context(None))).changed == changed
        infer_shapes(model)
        check_model(model)


_UNARY = ("Relu", "Tanh", "Transpose", "Softmax", "Identity", "Neg", "ReduceMax")


@st.composite
def random_model(draw: st.DrawFn) -> ir.Model:
    """A graph of square matrices: products, elementwise operators and movement in any order, some values used twice."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    values, nodes, weights = ["x", "z"], [], []
    for index in range(draw(st.integers(1, 12))):
        op_type = draw(st.sampled_from((*_UNARY, "MatMul", "MatMul", "Add", "Gemm", "Concat")))
        first, second = (values[draw(st.integers(0, len(values) - 1))] for _ in range(2))
        inputs, extra = [first], {}
        if op_type == "ReduceMax":
            extra = {"axes": [1], "keepdims": 1}
        if op_type in ("MatMul", "Gemm", "Add"):
            if draw(st.booleans()):
                weights.append(
                    numpy_helper.from_array(rng.standard_normal((4, 4), np.float32) / 4, f"w{index}")
                )
                second = f"w{index}"
            inputs.append(second)
        output = f"v{index}"
        if op_type == "Concat":
            nodes.append(helper.make_node("Concat", [first, second], [f"{output}_c"], f"c{index}", axis=0))
            weights.append(numpy_helper.from_array(np.int64([1, 2, 4, 7]), f"i{index}"))
            op_type, inputs = "Gather", [f"{output}_c", f"i{index}"]
        if op_type == "ReduceMax":
            nodes.append(helper.make_node("ReduceMax", inputs, [f"{output}_m"], f"m{index}", **extra))
            op_type, inputs, extra = "Sub", [first, f"{output}_m"], {}
        nodes.append(helper.make_node(op_type, inputs, [output], f"n{index}", **extra))
        values.append(output)
    kind = onnx.TensorProto.FLOAT
    last = {values[-1], values[draw(st.integers(2, len(values) - 1))]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, [4, 4]) for name in ("x", "z")],
        [helper.make_tensor_value_info(name, kind, [4, 4]) for name in sorted(last)],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(proto)


@pytest.mark.parametrize("io", Borders)
@settings(max_examples=25)
@given(model=random_model(), kernels=st.sets(st.sampled_from((*_UNARY, "Add", "Sub")), max_size=6))
def test_random_graphs_have_consistent_types_and_no_needless_casts(
    io: Borders, model: ir.Model, kernels: set[str]
) -> None:
    build = CpuTarget(threads=1).reference
    ops = frozenset(kernels) | {"MatMul", "Gemm"}
    context = Context(Capabilities(None, ops, frozenset(), 23, frozenset(), True), build, [])
    rng = np.random.default_rng(3)
    feeds = {name: rng.standard_normal((4, 4), np.float32) / 4 for name in ("x", "z")}
    expected = build(model).run(feeds)
    outcome = ConvertFloat16(keep=(), io=io).apply(model, context)
    products = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]
    assert outcome.changed >= len(products)
    infer_shapes(model)
    check_model(model)
    sources = []
    for node in model.graph:
        if node.op_type != "Cast":
            continue
        producer = node.inputs[0].producer()
        assert producer is None or producer.op_type != "Cast"
        assert node.inputs[0].dtype is not node.outputs[0].dtype
        assert node.outputs[0].uses() or node.outputs[0].is_graph_output()
        assert node.inputs[0].const_value is None
        sources.append((node.inputs[0], node.outputs[0].dtype))
    # One cast serves all readers of a value.
    assert len(set(sources)) == len(sources)
    if io is Borders.HALF and outcome.changed:
        feeds = {value.name: feeds[value.name].astype(value.dtype.numpy()) for value in model.graph.inputs}
    got = build(model).run(feeds)
    for name, before in expected.items():
        scale = max(1.0, float(np.max(np.abs(before))))
        assert np.max(np.abs(got[name].astype(np.float32) - before)) < 0.05 * scale
