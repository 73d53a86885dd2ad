"""Groups of nets of products: MLPs, attention written out and fused, embeddings, Einsum."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from greencc.core.groups import analyse


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 99))
def test_random_mlps(graph, prove, data, seed) -> None:
    """Gemm with transposed operands, MatMul + Add, weights on the left, sums and products of branches."""
    g = graph(seed=seed)
    widths = data.draw(st.lists(st.integers(2, 6), min_size=2, max_size=5))
    x = g.input("x", [3, widths[0]])
    for before, after in pairwise(widths):
        x = _layer(g, x, before, after, data.draw(st.integers(0, 5)))
        x = g.op(data.draw(st.sampled_from(["Relu", "Tanh", "Sigmoid"])), x)
        if data.draw(st.booleans()):
            gate = g.linear(x, after, after)
            x = g.op(data.draw(st.sampled_from(["Add", "Mul"])), x, gate)
    found = prove(g.model(g.linear(x, widths[-1], 2, name="end")), seed)
    assert len(found.structure.prunable) >= len(widths) - 1


def _layer(g, x: str, before: int, after: int, form: int) -> str:
    if form == 0:
        return g.op("Gemm", x, g.random(before, after), g.random(after))
    if form == 1:
        return g.op("Gemm", x, g.random(after, before), g.random(1, after), transB=1, alpha=0.5)
    if form == 2:
        return g.op(
            "Gemm", g.op("Transpose", x), g.random(after, before), g.random(3, after), transA=1, transB=1
        )
    if form == 3:
        return g.linear(x, before, after)
    left = g.op("Transpose", x, perm=[1, 0])
    if form == 4:
        return g.op("Transpose", g.op("MatMul", g.random(after, before), left))
    return g.op("Transpose", g.op("Gemm", g.random(before, after), left, g.random(after, 1), transA=1))


HEADS, SIZE, STEPS = 4, 3, 5
WIDTH = HEADS * SIZE


def _attention(g, x: str, form: str) -> str:
    """Written out, over (batch, steps, WIDTH)."""
    if form == "separate":
        parts = []
        for _ in range(3):
            y = g.op("Reshape", g.linear(x, WIDTH, WIDTH), g.ints(0, STEPS, HEADS, SIZE))
            parts.append(g.op("Transpose", y, perm=[0, 2, 1, 3]))
    elif form == "split":
        split = g.op("Split", g.linear(x, WIDTH, 3 * WIDTH), g.ints(WIDTH, WIDTH, WIDTH), axis=2, outputs=3)
        parts = [
            g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, HEADS, SIZE)), perm=[0, 2, 1, 3]) for y in split
        ]
    else:
        packed = g.op("Reshape", g.linear(x, WIDTH, 3 * WIDTH), g.ints(0, STEPS, 3, HEADS, SIZE))
        packed = g.op("Transpose", packed, perm=[2, 0, 3, 1, 4])
        parts = [g.op("Gather", packed, g.const(np.int64(number)), axis=0) for number in range(3)]
    query, key, value = parts
    key = g.op("Transpose", key, perm=[0, 1, 3, 2])
    scores = g.op("Div", g.op("MatMul", query, key), g.const(np.float32(np.sqrt(SIZE))))
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    return g.linear(g.op("Reshape", y, g.ints(0, STEPS, WIDTH)), WIDTH, WIDTH)


@pytest.mark.parametrize("form", ["separate", "split", "gather"])
def test_a_transformer_loses_heads_and_hidden_units(graph, prove, form) -> None:
    """Tokens, embedding, attention, LayerNorm, MLP: what LayerNorm reads stays."""
    g = graph()
    tokens = g.input("x", ["N", STEPS], TensorProto.INT64)
    x = g.op("Gather", g.random(7, WIDTH), tokens, name="embedding")
    x = g.op("Add", x, g.random(1, STEPS, WIDTH))
    for layer in range(2):
        y = g.op(
            "LayerNormalization", g.op("Add", x, _attention(g, x, form)), g.random(WIDTH), g.random(WIDTH)
        )
        z = g.op("Gelu" if g.opset >= 20 else "Relu", g.linear(y, WIDTH, 8, name=f"mlp{layer}"))
        x = g.op("Add", y, g.linear(z, 8, WIDTH, name=f"down{layer}"))
    found = prove(g.model(g.linear(x, WIDTH, 2, name="end")))
    heads = [group for group in found.structure.prunable if group.kind == "heads"]
    assert [group.size for group in heads] == [HEADS, HEADS]
    assert {site.positions.shape[1] for group in heads for site in group.sites} >= {SIZE}
    assert found.sizes["mlp0"] == found.sizes["mlp1"] == 8
    assert "normalizes over it" in found.group("embedding").reason


def test_embeddings_without_a_normalization_are_cut(graph, prove) -> None:
    g = graph()
    x = g.op("Gather", g.random(7, 6), g.input("x", [2, 4], TensorProto.INT64), name="words")
    x = g.op("Add", x, g.op("Gather", g.random(3, 6), g.input("y", [2, 4], TensorProto.INT64), name="types"))
    assert prove(g.model(g.linear(x, 6, 2))).sizes == {"words": 6}


def _projections(g, x: str, queries: int, keys: int, bias: bool = True) -> list[str]:
    made = []
    for width in (queries, keys, keys):
        y = g.op("MatMul", x, g.random(4, width))
        made.append(g.op("Add", y, g.random(width)) if bias else y)
    return made


@pytest.mark.parametrize("bias", [False, True])
def test_fused_attention_of_onnx_runtime(graph, prove, bias) -> None:
    g = graph()
    inputs = _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH, bias=not bias)
    inputs += [g.random(3 * WIDTH)] if bias else []
    y = g.op("MultiHeadAttention", *inputs, domain="com.microsoft", num_heads=HEADS, name="attention")
    g.declared[y] = [2, STEPS, WIDTH]
    (group,) = prove(g.model(g.linear(y, WIDTH, 2))).structure.prunable
    assert (group.kind, group.size, group.width) == ("heads", HEADS, SIZE)


def test_packed_attention_of_onnx_runtime(graph, prove) -> None:
    g = graph()
    x = g.linear(g.input("x", [2, STEPS, 4]), 4, 6, name="before")
    y = g.op(
        "Attention",
        x,
        g.random(6, 3 * WIDTH),
        g.random(3 * WIDTH),
        domain="com.microsoft",
        num_heads=HEADS,
        name="attention",
    )
    g.declared[y] = [2, STEPS, WIDTH]
    found = prove(g.model(g.linear(y, WIDTH, 2)))
    assert found.sizes == {"before": 6, "attention": HEADS}
    assert found.group("attention").width == 3 * SIZE


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (4, 2), (6, 2)])
def test_attention_operator(graph, prove, queries, keys) -> None:
    """Opset 23; several heads of queries share one of keys."""
    g = graph(opset=23)
    inputs = _projections(g, g.input("x", [2, STEPS, 4]), queries * SIZE, keys * SIZE)
    y = g.op("Attention", *inputs, q_num_heads=queries, kv_num_heads=keys, name="attention")
    (group,) = prove(g.model(g.linear(y, queries * SIZE, 2))).structure.prunable
    assert (group.kind, group.size) == ("heads", keys)


def test_attention_operator_on_four_axes(graph, prove) -> None:
    g = graph(opset=23)
    parts = []
    for y in _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH):
        parts.append(g.op("Transpose", g.op("Reshape", y, g.ints(0, 0, HEADS, SIZE)), perm=[0, 2, 1, 3]))
    y = g.op("Transpose", g.op("Attention", *parts, name="attention"), perm=[0, 2, 1, 3])
    y = g.op("Reshape", y, g.ints(0, 0, -1))
    prove(g.model(g.linear(y, WIDTH, 2)))


@pytest.mark.parametrize(
    ("shape", "cuttable"), [((1, 1, STEPS, STEPS), True), ((1, HEADS, STEPS, STEPS), False)]
)
def test_masks_of_fused_attention(graph, groups, shape, cuttable) -> None:
    """A mask for every head keeps the heads."""
    g = graph(opset=23)
    inputs = _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH)
    y = g.op("Attention", *inputs, g.random(*shape), q_num_heads=HEADS, kv_num_heads=HEADS, name="attention")
    reasons = groups(g.model(g.linear(y, WIDTH, 2, name="end")))
    assert (reasons["MatMul0"] is None) == cuttable


def test_a_mask_that_is_made_in_the_graph_keeps_no_heads(graph, prove) -> None:
    """Zeros of the steps: their axes are no channels."""
    g = graph(opset=23)
    inputs = _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH)
    mask = g.op("ConstantOfShape", g.ints(1, 1, STEPS, STEPS))
    mask = g.op("Add", mask, g.input("m", [1, 1, 1, STEPS]))
    y = g.op("Attention", *inputs, mask, q_num_heads=HEADS, kv_num_heads=HEADS, name="attention")
    (group,) = prove(g.model(g.linear(y, WIDTH, 2))).structure.prunable
    assert group.kind == "heads"


def test_caches_of_attention_keep_the_heads(graph, groups) -> None:
    g = graph(opset=23)
    inputs = _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH)
    past = [g.input(name, [2, HEADS, "P", SIZE]) for name in ("past_key", "past_value")]
    y, key, value = g.op("Attention", *inputs, "", *past, q_num_heads=HEADS, kv_num_heads=HEADS, outputs=3)
    model = g.model(g.linear(y, WIDTH, 2, name="end"), key, value)
    assert all(reason is not None for reason in groups(model).values())


def test_attention_that_is_not_known_says_so(graph, groups) -> None:
    g = graph()
    inputs = _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH)
    y = g.op("GroupQueryAttention", *inputs, domain="com.microsoft", num_heads=HEADS, kv_num_heads=HEADS)
    g.declared[y] = [2, STEPS, WIDTH]
    assert "GroupQueryAttention): heads of this form" in groups(g.model(g.linear(y, WIDTH, 2)))["MatMul0"]


def test_a_class_token_shrinks_with_the_patches(graph, prove) -> None:
    g = graph()
    x = g.linear(g.input("x", ["N", STEPS, 4]), 4, 6, name="patches")
    size = g.op("Gather", g.op("Shape", x), g.ints(0))
    token = g.op("Expand", g.random(1, 1, 6, name="token"), g.op("Concat", size, g.ints(1, 6), axis=0))
    x = g.op("Concat", token, x, axis=1)
    found = prove(g.model(g.linear(x, 6, 2, name="end")))
    assert found.sizes == {"patches": 6}
    assert "token" in {site.tensor for site in found.group("patches").sites}


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("bti,io->bto", (6, 7)), ("bti,oi->bot", (7, 6)), ("bti,tio->bto", (STEPS, 6, 7)), ("bti,i->bt", (6,))],
)
def test_einsum_with_a_weight(graph, prove, equation, shape) -> None:
    g = graph()
    x = g.linear(g.input("x", [2, STEPS, 4]), 4, 6, name="before")
    y = g.op("Einsum", x, g.random(*shape), equation=equation, name="einsum")
    found = prove(g.model(g.op("Relu", y)))
    assert found.sizes["before"] == 6


def test_einsum_attention(graph, prove) -> None:
    g = graph()
    parts = [
        g.op("Reshape", y, g.ints(0, 0, HEADS, SIZE))
        for y in _projections(g, g.input("x", [2, STEPS, 4]), WIDTH, WIDTH)
    ]
    scores = g.op("Softmax", g.op("Einsum", *parts[:2], equation="bqhd,bkhd->bhqk"), axis=-1)
    y = g.op("Einsum", scores, parts[2], equation="bhqk,bkhd->bqhd")
    prove(g.model(g.linear(g.op("Reshape", y, g.ints(0, 0, WIDTH)), WIDTH, 2)), least=1)


@pytest.mark.parametrize("equation", ["bti->bt", "...i,io->...o", "bti,io"])
def test_einsum_that_reduces_or_is_not_known_keeps_the_channels(graph, groups, equation) -> None:
    g = graph()
    x = g.linear(g.input("x", [2, STEPS, 4]), 4, 6, name="before")
    inputs = [x] if "," not in equation else [x, g.random(6, 7)]
    reasons = groups(g.model(g.op("Einsum", *inputs, equation=equation, name="einsum")))
    assert "einsum" in reasons["before"]


@pytest.mark.parametrize("rms", [False, True])
def test_skip_layer_normalization(graph, prove, rms) -> None:
    """The stream stays; the hidden units beside it are cut."""
    g = graph()
    x = g.linear(g.input("x", [2, STEPS, 4]), 4, 6, name="stream")
    y = g.linear(g.op("Relu", g.linear(x, 6, 8, name="hidden")), 8, 6)
    kind = "SkipSimplifiedLayerNormalization" if rms else "SkipLayerNormalization"
    z = g.op(kind, y, x, g.random(6), domain="com.microsoft", epsilon=1e-5)
    g.declared[z] = [2, STEPS, 6]
    found = prove(g.model(g.linear(z, 6, 2, name="end")))
    assert found.sizes == {"hidden": 8}
    assert "normalizes over it" in found.group("stream").reason


def _gelu(graph, op_type: str):
    g = graph()
    x = g.op("MatMul", g.input("x", [2, STEPS, 4]), g.random(4, 8), name="hidden")
    x = g.op(op_type, x, g.random(8, name="bias"), domain="com.microsoft", name="gelu")
    g.declared[x] = [2, STEPS, 8]
    return g.model(g.linear(x, 8, 2, name="end"))


def test_a_gelu_with_a_bias(graph, prove) -> None:
    """Its bias shrinks too."""
    assert prove(_gelu(graph, "BiasGelu")).sizes == {"hidden": 8}


def test_the_bias_of_a_fast_gelu_is_a_site(graph) -> None:
    model = _gelu(graph, "FastGelu")
    for node in model.graph:
        if node.name in ("gelu", "end"):
            node.outputs[0].shape = ir.Shape([2, STEPS, 8 if node.name == "gelu" else 2])
    (group,) = analyse(model).prunable
    assert "bias" in {site.tensor for site in group.sites}


def test_fused_products(graph, prove) -> None:
    g = graph()
    x = g.op("Relu", g.linear(g.input("x", [2, STEPS, 4]), 4, 6, name="before"))
    y = g.op("FusedMatMul", x, g.random(5, 6), domain="com.microsoft", transB=1, name="fused")
    g.declared[y] = [2, STEPS, 5]
    assert prove(g.model(g.linear(y, 5, 2, name="end"))).sizes == {"before": 6, "fused": 5}
