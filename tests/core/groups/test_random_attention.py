"""Random attention: heads that are zero can be cut, however the attention is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

STEPS = 3


@dataclass(frozen=True)
class Form:
    """How one attention is written.

    Attributes:
        heads, size: Of queries, keys and values.
        projection: Three products; one that is split, or reshaped and gathered; or the fused operators of ONNX Runtime.
        bias: Of the projections.
        mask: What is added to the scores: nothing, a constant for all heads or for each, an input, or a choice.
        scale: Where the scores are scaled.
        norm: LayerNorm before the projections, after the sum, or nowhere.
        residual: The input is added.
    """

    heads: int
    size: int
    projection: str
    bias: bool
    mask: str
    scale: str
    norm: str
    residual: bool

    @property
    def width(self) -> int:
        return self.heads * self.size


FORMS = st.builds(
    Form,
    heads=st.integers(2, 4),
    size=st.integers(1, 4),
    projection=st.sampled_from(["separate", "gemm", "split", "gather", "multi-head", "packed"]),
    bias=st.booleans(),
    mask=st.sampled_from(["none", "shared", "by-head", "input", "where"]),
    scale=st.sampled_from(["scores", "query", "none"]),
    norm=st.sampled_from(["none", "before", "after"]),
    residual=st.booleans(),
)


def _linear(g, x: str, inputs: int, outputs: int, bias: bool) -> str:
    y = g.op("MatMul", x, g.random(inputs, outputs))
    return g.op("Add", y, g.random(outputs)) if bias else y


def _norm(g, x: str, width: int) -> str:
    return g.op("LayerNormalization", x, g.random(width), g.random(width))


def _by_head(g, x: str, form: Form) -> str:
    y = g.op("Reshape", x, g.ints(0, STEPS, form.heads, form.size))
    return g.op("Transpose", y, perm=[0, 2, 1, 3])


def _parts(g, x: str, inputs: int, form: Form) -> list[str]:
    """Queries, keys and values, (batch, heads, steps, size) each."""
    width = form.width
    if form.projection == "separate":
        return [_by_head(g, _linear(g, x, inputs, width, form.bias), form) for _ in range(3)]
    if form.projection == "gemm":
        rows = g.op("Reshape", x, g.ints(-1, inputs))
        made = []
        for _ in range(3):
            weights = [g.random(width, inputs), *([g.random(width)] if form.bias else [])]
            y = g.op("Gemm", rows, *weights, transB=1)
            y = g.op("Reshape", y, g.ints(-1, STEPS, form.heads, form.size))
            made.append(g.op("Transpose", y, perm=[0, 2, 1, 3]))
        return made
    fused = _linear(g, x, inputs, 3 * width, form.bias)
    if form.projection == "split":
        parts = g.op("Split", fused, g.ints(width, width, width), axis=2, outputs=3)
        return [_by_head(g, y, form) for y in parts]
    packed = g.op("Reshape", fused, g.ints(0, STEPS, 3, form.heads, form.size))
    packed = g.op("Transpose", packed, perm=[2, 0, 3, 1, 4])
    return [g.op("Gather", packed, g.const(np.int64(number)), axis=0) for number in range(3)]


def _masked(g, scores: str, form: Form) -> str:
    if form.mask == "shared":
        return g.op("Add", scores, g.random(1, 1, STEPS, STEPS))
    if form.mask == "by-head":
        return g.op("Add", scores, g.random(form.heads, STEPS, STEPS))
    if form.mask == "input":
        name = f"mask{len(g.inputs)}"
        return g.op("Add", g.input(name, ["N", 1, 1, STEPS]), scores)
    if form.mask == "where":
        causal = g.const(np.tril(np.ones((STEPS, STEPS), bool)))
        return g.op("Where", causal, scores, g.const(np.float32(-1e4)))
    return scores


def _written_out(g, x: str, inputs: int, form: Form) -> str:
    query, key, value = _parts(g, x, inputs, form)
    scale = g.const(np.float32(np.sqrt(form.size)))
    if form.scale == "query":
        query = g.op("Div", query, scale)
    scores = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    if form.scale == "scores":
        scores = g.op("Div", scores, scale)
    y = g.op("MatMul", g.op("Softmax", _masked(g, scores, form), axis=-1), value)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    return g.op("Reshape", y, g.ints(0, STEPS, form.width))


def _operator(g, x: str, inputs: int, form: Form) -> str:
    """ONNX Runtime's fused attention; its mask, where there is one, is added to the scores."""
    if form.projection == "multi-head":
        tensors = [_linear(g, x, inputs, form.width, form.bias) for _ in range(3)]
        tensors += ["", "", g.random(1, 1, STEPS, STEPS)] if form.mask == "shared" else []
        y = g.op("MultiHeadAttention", *tensors, domain="com.microsoft", num_heads=form.heads)
    else:
        tensors = [x, g.random(inputs, 3 * form.width), g.random(3 * form.width)]
        y = g.op("Attention", *tensors, domain="com.microsoft", num_heads=form.heads)
    g.declared[y] = ["N", STEPS, form.width]
    return y


@settings(max_examples=40, deadline=None)
@given(forms=st.lists(FORMS, min_size=1, max_size=2), inputs=st.integers(2, 6), seed=st.integers(0, 99))
def test_random_attention(graph, prove, forms, inputs, seed) -> None:
    """One or two blocks; all heads of each are one group, whatever is around them."""
    g = graph(seed=seed)
    x = g.input("x", ["N", STEPS, inputs], TensorProto.FLOAT)
    for form in forms:
        y = _norm(g, x, inputs) if form.norm == "before" else x
        fused = form.projection in ("multi-head", "packed")
        y = (_operator if fused else _written_out)(g, y, inputs, form)
        y = _linear(g, y, form.width, inputs, form.bias)
        if form.residual:
            y = g.op("Add", x, y)
        x = _norm(g, y, inputs) if form.norm == "after" else y
    found = prove(g.model(g.linear(x, inputs, 2, name="end")), seed)
    heads = Counter(group.size for group in found.structure.prunable if group.kind == "heads")
    # A head of one coordinate is a plain channel, unless queries, keys and values lie in one tensor.
    assert heads >= Counter(form.heads for form in forms if form.size > 1)
    assert len(found.structure.prunable) >= len(forms)
