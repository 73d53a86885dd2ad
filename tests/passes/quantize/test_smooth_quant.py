"""Smoothing keeps the float function, saves quantization error where it says so, and refuses what it cannot keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greencc.core.cache import Cache
from greencc.core.capabilities import ElementType
from greencc.core.data import Array
from greencc.core.errors import InputError, UsageError
from greencc.core.graph import constant_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Outcome
from greencc.passes._ranges import Range
from greencc.passes._smooth_search import fake_quantize, merged, smoothing_scale
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.smooth_quant import SmoothQuant

from .conftest import Kit, relative

EAGER = SmoothQuant(insert=False, gain=0.0, insert_gain=0.0, samples=4, rows=64)
WIDTH, HEADS = 12, 3

BLOCK = """
{head} block (float[N,T,12] x) => (float[N,T,12] y) {{
  {norm_in}
  q0 = MatMul(h, wq)
  q1 = Add(q0, bq)
  k0 = MatMul(h, wk)
  k1 = Add(bk, k0)
  v0 = MatMul(h, wv)
  v1 = Add(v0, bv)
  split = Constant<value_ints = [0, 0, 3, 4]>()
  join = Constant<value_ints = [0, 0, 12]>()
  q2 = Reshape(q1, split)
  q = Transpose<perm = [0, 2, 1, 3]>(q2)
  k2 = Reshape(k1, split)
  k = Transpose<perm = [0, 2, 3, 1]>(k2)
  v2 = Reshape(v1, split)
  v = Transpose<perm = [0, 2, 1, 3]>(v2)
  s = MatMul(q, k)
  p = Softmax<axis = -1>(s)
  o0 = MatMul(p, v)
  o1 = Transpose<perm = [0, 2, 1, 3]>(o0)
  o2 = Reshape(o1, join)
  o3 = MatMul(o2, wo)
  r = Add({residual}, o3)
  g = LayerNormalization(r, gamma2, beta2)
  f0 = MatMul(g, w1)
  f1 = Add(f0, b1)
  {activation}
  f3 = MatMul(f2, w2)
  y = Add(r, f3)
}}
"""
GELU = """f1a = Erf(f1)
  f2 = Mul(f1, f1a)"""


def weights(random: Callable[..., Array]) -> dict[str, Array]:
    found = {name: random(WIDTH, WIDTH, scale=0.3) for name in ("wq", "wk", "wv", "wo")}
    found |= {name: random(WIDTH, scale=0.3) for name in ("bq", "bk", "bv", "beta", "beta2")}
    gamma = random(WIDTH)
    gamma[2] = 25.0
    found |= {"gamma": gamma, "gamma2": random(WIDTH) * np.geomspace(0.1, 10, WIDTH, dtype=np.float32)}
    return found | {"w1": random(WIDTH, 24), "b1": random(24), "w2": random(24, WIDTH, scale=0.3)}


def block(parse: Any, random: Any, *, post: bool = False, gelu: bool = False, opset: int = 17) -> ir.Model:
    text = BLOCK.format(
        head="",
        norm_in="h = LayerNormalization(x, gamma, beta)",
        residual="h" if post else "x",
        activation=GELU if gelu else "f2 = Relu(f1)",
    )
    model: ir.Model = parse(text, opset, **weights(random))
    infer_shapes(model)
    return model


def run(kit: Kit, model: ir.Model, step: SmoothQuant, feeds: dict[str, Array]) -> tuple[ir.Model, Outcome]:
    """Apply the pass and check that the float outputs stay."""
    smoothed = model.clone()
    context = kit.context(feeds)
    outcome = step.apply(smoothed, context)
    assert outcome.changed == len(context.rewrites.applied)
    infer_shapes(smoothed)
    check_model(smoothed)
    names = [str(value.name) for value in model.graph.outputs]
    expected = kit.run_as_written(model, feeds, names)
    got = kit.run_as_written(smoothed, feeds, names)
    for name in names:
        assert relative(expected[name], got[name]) < 1e-5
    return smoothed, outcome


def _computing(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type != "Constant"]


def folded(outcome: Outcome) -> set[str]:
    return {str(finding.node) for finding in outcome.findings if "folded" in finding.message}


def reasons(outcome: Outcome) -> str:
    return " | ".join(finding.message for finding in outcome.findings if finding.kind == "refused")


def sqnr(expected: Array, got: Array) -> float:
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - got) ** 2)))


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_transformer_block_keeps_its_function(
    kit: Kit, parse: Any, random: Any, opset: int, post: bool, gelu: bool
) -> None:
    model = block(parse, random, post=post, gelu=gelu, opset=opset)
    for insert in (False, True):
        smoothed, outcome = run(kit, model, replace(EAGER, insert=insert), {"x": random(6, 5, WIDTH)})
        assert outcome.changed >= 2
        inserted = [node for node in smoothed.graph if str(node.name).endswith("/smooth")]
        assert len(_computing(smoothed)) == len(_computing(model)) + len(inserted)
        assert bool(inserted) <= insert


def test_what_is_folded_and_what_is_not(kit: Kit, parse: Any, random: Any) -> None:
    names = {node.outputs[0].name: node.name for node in block(parse, random).graph}
    _, outcome = run(kit, block(parse, random), EAGER, {"x": random(6, 5, WIDTH)})
    assert {names["q0"], names["f0"]} <= folded(outcome)
    assert "cannot be scaled" not in reasons(outcome)

    _, outcome = run(kit, block(parse, random, post=True, gelu=True), EAGER, {"x": random(6, 5, WIDTH)})
    assert names["q0"] not in folded(outcome)
    assert "is also read by" in reasons(outcome)
    assert "(Erf) does not let a scale through" in reasons(outcome)


def test_int8_gains(kit: Kit, parse: Any, random: Any) -> None:
    model, feeds = block(parse, random), {"x": random(16, 8, WIDTH)}
    expected = kit.run(model, feeds)[0]
    smoothed, _ = run(kit, model, SmoothQuant(), feeds)
    plain = model.clone()
    errors = []
    for candidate in (plain, smoothed):
        QuantizeInt8().apply(candidate, kit.context(feeds))
        errors.append(sqnr(expected, kit.run(candidate, feeds)[0]))
    assert errors[1] > errors[0] + 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"activation": ElementType.INT8, "symmetric_activations": True},
        {"symmetric_activations": True},
        {"weight_bits": 7},
        {"per_channel": False},
    ],
)
def test_all_targets(kit: Kit, parse: Any, random: Any, change: dict[str, Any]) -> None:
    model, feeds = block(parse, random), {"x": random(6, 5, WIDTH)}
    smoothed = model.clone()
    assert EAGER.apply(smoothed, kit.context(feeds, **change)).changed >= 2
    (before,), (after,) = kit.run(model, feeds), kit.run(smoothed, feeds)
    assert relative(before, after) < 1e-5


CONV = """
g (float[N,4,8,8] x) => (float[N,6,8,8] y) {
  a = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w0, b0)
  b = Mul(a, scale)
  c = Add(b, shift)
  y = Conv(c, w1, b1)
}
"""


@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions(kit: Kit, parse: Any, random: Any, depthwise: bool) -> None:
    text = CONV.replace("b = Mul(a, scale)", "h = HardSwish(a)\n  b = Mul(h, scale)")
    if depthwise:
        text = text.replace("y = Conv(c", "y = Conv<group = 2, pads = [1, 1, 1, 1]>(c")
    spread = np.array([0.1, 1, 10, 30], np.float32).reshape(4, 1, 1)
    model = parse(
        text, w0=random(4, 1, 3, 3), b0=random(4), scale=np.array([1.5], np.float32), shift=random(4, 1, 1),
        w1=random(6, 2, 3, 3) if depthwise else random(6, 4, 1, 1) / spread, b1=random(6),
    )  # fmt: skip
    model.graph.initializers["w0"].const_value = ir.tensor(random(4, 1, 3, 3) * spread[..., None], name="w0")
    _, outcome = run(kit, model, EAGER, {"x": random(5, 4, 8, 8)})
    assert folded(outcome) == {model.graph[-1].name}
    _, outcome = run(kit, model, replace(EAGER, convolutions=False), {"x": random(5, 4, 8, 8)})
    assert outcome.changed == 0


PACKED = """
g (float[N,T,12] x) => (float[N,T,12] y, float[N,T,12] z) {
  h = LayerNormalization(x, gamma, beta)
  qkv0 = MatMul(h, w)
  qkv = Add(qkv0, b)
  shape = Constant<value_ints = [0, 0, 3, 3, 4]>()
  parts = Reshape(qkv, shape)
  moved = Transpose<perm = [2, 0, 3, 1, 4]>(parts)
  TAKE
  scale = Constant<value_float = 0.5>()
  q1 = Mul(q, scale)
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  s = MatMul(q1, kt)
  p = Softmax<axis = -1>(s)
  o = MatMul(p, v)
  o1 = Transpose<perm = [0, 2, 1, 3]>(o)
  join = Constant<value_ints = [0, 0, 12]>()
  o2 = Reshape(o1, join)
  y = MatMul(o2, wo)
  z = Identity(x)
}
"""
GATHERS = """zero = Constant<value_int = 0>()
  one = Constant<value_int = 1>()
  two = Constant<value_int = -1>()
  q = Gather<axis = 0>(moved, zero)
  k = Gather<axis = 0>(moved, one)
  v = Gather<axis = 0>(moved, two)"""
SPLIT = """sizes = Constant<value_ints = [1, 1, 1]>()
  q5, k5, v5 = Split<axis = 0>(moved, sizes)
  axes = Constant<value_ints = [0]>()
  q = Squeeze(q5, axes)
  k = Squeeze(k5, axes)
  v = Squeeze(v5, axes)"""


@pytest.mark.parametrize("take", [GATHERS, SPLIT])
def test_packed_queries_keys_and_values(kit: Kit, parse: Any, random: Any, take: str) -> None:
    w = random(12, 36)
    w[:, [1, 13, 30]] *= 20
    w[:, 5] = 0
    model = parse(
        PACKED.replace("TAKE", take), gamma=random(12), beta=random(12), w=w, b=random(36), wo=random(12, 12)
    )
    infer_shapes(model)
    smoothed, outcome = run(kit, model, EAGER, {"x": random(5, 6, 12)})
    products = {node.outputs[0].name: node.name for node in model.graph}
    assert {products["s"], products["y"]} <= folded(outcome)
    assert constant_of(smoothed.graph.initializers["w"]).shape == w.shape  # type: ignore[union-attr]


GATED = """
g (float[N,12] x) => (float[N,4] y, float[N,4] z) {
  h = RMS
  up = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(h, wu, bu)
  gate0 = Gemm(h, wg)
  gate1 = Sigmoid(gate0)
  gate = Mul(gate0, gate1)
  both = Mul(gate, up)
  y = Gemm(both, wd)
  two = Constant<value_float = 2.0>()
  halved = Div(up2, two)
  moved = Sub(halved, shift)
  z = MatMul(moved, wd2)
}
"""


def test_gates_quotients_and_transposed_weights(kit: Kit, parse: Any, random: Any) -> None:
    text = GATED.replace("RMS", "LayerNormalization(x, gamma)").replace(
        "halved = ", "up2 = Gemm(h, wu2)\n  halved = "
    )
    model = parse(
        text, gamma=random(12, scale=3.0), wu=random(9, 12), bu=random(9), wg=random(12, 9),
        wd=random(9, 4) * np.geomspace(0.01, 10, 9, dtype=np.float32)[:, None], wu2=random(12, 5), shift=random(5),
        wd2=random(5, 4) * np.geomspace(0.01, 10, 5, dtype=np.float32)[:, None],
    )  # fmt: skip
    infer_shapes(model)
    names = {node.outputs[0].name: node.name for node in model.graph}
    _, outcome = run(kit, model, EAGER, {"x": random(40, 12)})
    assert {names["y"], names["z"]} <= folded(outcome)


def two_layers(parse: Any, random: Any, body: str, **more: Array) -> ir.Model:
    model: ir.Model = parse(
        f"g (float[N,6] x) => ({(body.count('y2') and 'float[N,3] y, float[N,3] y2') or 'float[N,3] y'}) {{ {body} }}",
        **{"w0": random(6, 4) * np.array([1, 20, 0.2, 1], np.float32), "w1": random(4, 3), **more},
    )
    infer_shapes(model)
    return model


def test_weights_shared_within_a_block_stay_shared(kit: Kit, parse: Any, random: Any) -> None:
    body = "h0 = MatMul(x, w0)  h = Relu(h0)  y = MatMul(h, w1)  y2 = MatMul(h, w1)"
    model = two_layers(parse, random, body)
    smoothed, outcome = run(kit, model, EAGER, {"x": random(30, 6)})
    assert outcome.changed == 1
    last = [node for node in smoothed.graph if node.op_type == "MatMul"][1:]
    assert last[0].inputs[1] is last[1].inputs[1]
    assert len(smoothed.graph.initializers) == 2


def test_weights_shared_between_blocks_are_left(kit: Kit, parse: Any, random: Any) -> None:
    body = "h = MatMul(x, w0)  g = Relu(h)  y = MatMul(g, w1)  h2 = MatMul(x, w0)  g2 = Abs(h2)  y2 = MatMul(g2, w1)"
    _, outcome = run(kit, two_layers(parse, random, body), EAGER, {"x": random(30, 6)})
    assert outcome.changed == 0
    assert "shared" in reasons(outcome)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "h = MatMul(x, w0)  y = MatMul(h, w1)  y2 = MatMul(h, w2)  e = Exp(h)  y2b = Add(e, e)",
            "also read by",
        ),
        ("h0 = MatMul(x, w0)  h = Tanh(h0)  y = MatMul(h, w1)", "does not let a scale through"),
        ("y = MatMul(x, w2)", "is an input of the graph"),
        ("h = MatMul(x, w0)  h2 = Mul(h, h)  y = MatMul(h2, w1)", "is read twice by"),
    ],
)
def test_refusals(kit: Kit, parse: Any, random: Any, body: str, reason: str) -> None:
    w2 = random(6, 3) if "MatMul(x, w2)" in body else random(4, 3)
    _, outcome = run(kit, two_layers(parse, random, body, w2=w2), EAGER, {"x": random(30, 6)})
    assert outcome.changed == 0
    assert reason in reasons(outcome)


def test_a_constant_does_not_grow(kit: Kit, parse: Any, random: Any) -> None:
    text = """g (float[N,4,8,8] x) => (float[N,6,8,8] y) {
      a = Tanh(x)  b = Mul(a, mask)  y = Conv(b, w, c)
    }"""
    spread = np.geomspace(0.01, 9, 4, dtype=np.float32).reshape(4, 1, 1)
    for mask, changed in ((random(8, 8), 0), (random(4, 8, 8), 1), (random(1), 1)):
        model = parse(text, mask=mask, w=random(6, 4, 1, 1) * spread, c=random(6))
        _, outcome = run(kit, model, EAGER, {"x": random(5, 4, 8, 8)})
        assert outcome.changed == changed
        assert ("would grow" in reasons(outcome)) == (not changed)


def test_a_fixed_mixture_of_tokens(kit: Kit, parse: Any, random: Any) -> None:
    model = parse(
        """g (float[N,5,6] x) => (float[N,7,3] y) {
          a = MatMul(x, w0)  b = MatMul(mix, a)  y = MatMul(b, w1)
        }""",
        w0=random(6, 4) * np.array([1, 20, 0.2, 1], np.float32),
        mix=random(7, 5),
        w1=random(4, 3),
    )
    assert run(kit, model, EAGER, {"x": random(9, 5, 6)})[1].changed == 1


def test_a_graph_output_is_not_scaled(kit: Kit, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[N,6] x) => (float[N,4] h, float[N,3] y) { h = MatMul(x, w0)  y = MatMul(h, w1) }",
        w0=random(6, 4) * np.array([1, 20, 0.2, 1], np.float32),
        w1=random(4, 3),
    )
    _, outcome = run(kit, model, EAGER, {"x": random(30, 6)})
    assert outcome.changed == 0
    smoothed, outcome = run(kit, model, replace(EAGER, insert=True), {"x": random(30, 6)})
    assert [node.op_type for node in smoothed.graph if "smooth" in str(node.name)] == ["Mul", "Mul"][
        : outcome.changed
    ]
    assert outcome.changed >= 1


def test_an_overridable_weight_is_left(kit: Kit, parse: Any, random: Any) -> None:
    model = two_layers(parse, random, "h = MatMul(x, w0)  y = MatMul(h, w1)")
    model.graph.inputs.append(model.graph.initializers["w0"])
    _, outcome = run(kit, model, EAGER, {"x": random(30, 6)})
    assert outcome.changed == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e35])
def test_weights_that_are_not_finite_are_left(kit: Kit, parse: Any, random: Any, bad: float) -> None:
    model = two_layers(parse, random, "h0 = MatMul(x, w0)  h = Relu(h0)  y = MatMul(h, w1)")
    weight = random(4, 3)
    weight[1, 2] = bad
    model.graph.initializers["w1"].const_value = ir.tensor(weight, name="w1")
    outcome = EAGER.apply(model, kit.context({"x": random(30, 6)}))
    assert outcome.changed == 0
    assert "not finite" in reasons(outcome)
    np.testing.assert_array_equal(constant_of(model.graph.initializers["w1"]), weight)


def test_a_value_read_in_a_subgraph_is_left(kit: Kit, parse: Any, random: Any) -> None:
    body = """h0 = MatMul(x, w0)  h = Relu(h0)  y = MatMul(h, w1)  yes = Constant<value = bool {1}>()
      y2 = If(yes) <then_branch = a () => (float[N,3] r) { r = MatMul(h, w2) },
                    else_branch = b () => (float[N,3] s) { t = Abs(h)  s = MatMul(t, w2) }>"""
    model = two_layers(parse, random, body, w2=random(4, 3))
    _, outcome = run(kit, model, EAGER, {"x": random(30, 6)})
    assert outcome.changed == 0


def test_dead_channels_and_weight_rows(kit: Kit, parse: Any, random: Any) -> None:
    w0, w1 = random(6, 4) * np.array([1, 0, 50, 1], np.float32), random(4, 3)
    w1[2] = 0
    model = two_layers(parse, random, "h0 = MatMul(x, w0)  h = Relu(h0)  y = MatMul(h, w1)", w1=w1)
    model.graph.initializers["w0"].const_value = ir.tensor(w0, name="w0")
    feeds = {"x": random(60, 6)}
    expected = kit.run(model, feeds)[0]
    smoothed, outcome = run(kit, model, EAGER, feeds)
    assert outcome.changed == 1
    QuantizeInt8().apply(smoothed, kit.context(feeds))
    # The channel nobody reads no longer takes the range from the others.
    assert sqnr(expected, kit.run(smoothed, feeds)[0]) > 30


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_scales_are_positive_and_bounded(seed: int, alpha: float, channels: int) -> None:
    rng = np.random.default_rng(seed)
    activation = 10.0 ** rng.uniform(-30, 30, channels) * rng.integers(0, 2, channels)
    weight = 10.0 ** rng.uniform(-30, 30, channels) * rng.integers(0, 2, channels)
    scale = smoothing_scale(activation, weight, alpha)
    assert np.isfinite(scale).all()
    assert (scale >= 1 / 1025).all()
    assert (scale <= 1025).all()
    assert (scale[activation == 0] == 1).all()


@given(st.integers(0, 2**16), st.integers(2, 8), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=20, deadline=None)
def test_scales_follow_the_formula(seed: int, channels: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.uniform(0.5, 4, channels), rng.uniform(0.5, 4, channels)
    found = smoothing_scale(x, w, alpha)
    wanted = x**alpha / w ** (1 - alpha)
    np.testing.assert_allclose(found / found[0], wanted / wanted[0], rtol=1e-9)
    assert np.log(found).mean() == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 2**16))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_chains_keep_their_function(kit: Kit, parse: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 10 ** rng.uniform(-1.5, 1.5, shape[-1])).astype(np.float32)

    steps = ["Relu(V)", "LeakyRelu<alpha = 0.3>(V)", "Mul(V, c8)", "Add(c8, V)", "Sub(V, c8)", "Div(V, c8)",
             "PRelu(V, c8)", "Identity(V)", "MatMul(V, w)", "LayerNormalization(V, c8, c8)",
             "Reshape(V, s)", "Tanh(V)"]  # fmt: skip
    lines, value = ["v0 = MatMul(x, w)"], "v0"
    for index in range(1, 6):
        lines.append(f"v{index} = {steps[rng.integers(len(steps))].replace('V', value)}")
        value = f"v{index}"
    model = parse(
        f"g (float[N,8] x) => (float[N,3] y) {{ {'  '.join(lines)}  y = MatMul({value}, w1) }}",
        w=array(8, 8),
        c8=array(8) + 3.0,
        w1=array(8, 3),
        s=np.array([-1, 8], np.int64),
    )
    infer_shapes(model)
    run(kit, model, replace(EAGER, insert=True), {"x": rng.standard_normal((20, 8)).astype(np.float32)})


def test_needs_data_and_kernels(kit: Kit, parse: Any, random: Any) -> None:
    model = block(parse, random)
    with pytest.raises(InputError, match="calibration"):
        SmoothQuant().apply(model, kit.context(None))
    context = kit.context({"x": random(2, 5, WIDTH)})
    none = replace(context, capabilities=replace(context.capabilities, int8=None))
    assert "no INT8 kernels" in reasons(SmoothQuant().apply(model, none))
    QuantizeInt8().apply(model, context)
    assert "quantized already" in reasons(SmoothQuant().apply(model, context))


def test_data_that_is_not_finite_is_refused(kit: Kit, parse: Any, random: Any) -> None:
    x = random(4, 5, WIDTH)
    x[2, 1, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        SmoothQuant().apply(block(parse, random), kit.context({"x": x}))


def test_the_log_is_respected(kit: Kit, parse: Any, random: Any) -> None:
    model, feeds = block(parse, random), {"x": random(6, 5, WIDTH)}
    before = {name: constant_of(value) for name, value in model.graph.initializers.items()}
    context = kit.context(feeds, 0)
    assert EAGER.apply(model, context).changed == 0
    assert {
        name: constant_of(value) for name, value in model.graph.initializers.items()
    }.keys() == before.keys()
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(constant_of(value), before[name])
    assert EAGER.apply(model, kit.context(feeds, 1)).changed == 1


def test_clones_keep_their_weights(kit: Kit, parse: Any, random: Any) -> None:
    model = block(parse, random)
    before = {name: np.array(constant_of(value)) for name, value in model.graph.initializers.items()}
    run(kit, model, EAGER, {"x": random(6, 5, WIDTH)})
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(constant_of(value), before[name])


def test_scales_come_from_the_cache(kit: Kit, parse: Any, random: Any, tmp_path: Path) -> None:
    model, feeds = block(parse, random), {"x": random(6, 5, WIDTH)}
    first, second = model.clone(), model.clone()
    context = replace(kit.context(feeds), cache=Cache(tmp_path / "cache"))
    changed = EAGER.apply(first, context).changed

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("the model was run again")

    cached: Context = replace(context, build=never, rewrites=kit.context(feeds).rewrites)
    assert EAGER.apply(second, cached).changed == changed
    for name, value in first.graph.initializers.items():
        np.testing.assert_array_equal(constant_of(value), constant_of(second.graph.initializers[name]))
    with pytest.raises(AssertionError):
        replace(EAGER, step=0.25).apply(model.clone(), cached)


@pytest.mark.parametrize(
    "options", [{"step": 0}, {"step": 2}, {"gain": -1}, {"rows": 0}, {"samples": 0}, {"batch": 0}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="smooth-quant"):
        SmoothQuant(**options)


def test_fake_quantization_is_what_the_scale_says(kit: Kit, random: Any) -> None:
    values = random(100)
    found = fake_quantize(values, Range(-2.0, 6.0), kit.int8)
    step = 8.0 / 255
    inside = (values > -2) & (values < 6)
    assert np.abs(found - values)[inside].max() <= step / 2 + 1e-6
    assert (
        fake_quantize(np.array([-9.0, 9.0]), Range(-2.0, 6.0), kit.int8)
        == [-64 * np.float32(step), 191 * np.float32(step)]
    ).all()


def test_merged_puts_heads_side_by_side() -> None:
    product = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    channels = np.arange(12).reshape(1, 3, 1, 4)
    np.testing.assert_array_equal(merged(product, channels), product.transpose(0, 2, 1, 3).reshape(10, 12))
