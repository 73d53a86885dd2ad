"""FP16 keeps away from what it cannot compute: overflow, denormals, masks, long sums, sharp exponentials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.passes._half_rounding import MAX_ERROR, rounding_error, to_half
from greencc.passes.float16 import ConvertFloat16, HalfType

KERNELS = frozenset(
    {
        "Add",
        "AveragePool",
        "Conv",
        "GlobalAveragePool",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "ReduceMean",
        "Relu",
    }
    | {"Softmax", "Sub", "Where"}
)
ATTENTION = """
g (float[2, 6, 8] x, float[2, 1, 6] keep) => (float[2, 6, 8] y) {
  q = MatMul (x, wq)
  t = Transpose <perm=[0,2,1]> (x)
  s = MatMul (q, t)
  off = Sub (one, keep)
  mask = Mul (off, large)
  m = Add (s, mask)
  p = Softmax (m)
  y = MatMul (p, x)
}"""


def half(context: Any) -> Any:
    return replace(context, capabilities=replace(context.capabilities, float16=KERNELS))


def convert(model: ir.Model, context: Any, **options: Any) -> tuple[int, str]:
    """How many nodes are half, and what was said about the others."""
    outcome = ConvertFloat16(**options).apply(model, half(context))
    left = [f.message for f in outcome.findings if f.kind == "left-in-float"]
    return outcome.changed, " | ".join(left)


def agrees(expected: list[Any], got: list[Any]) -> None:
    for before, after in zip(expected, got, strict=True):
        assert np.isfinite(after).all()
        assert np.max(np.abs(after - before)) < 1e-2 * np.max(np.abs(before))


@pytest.mark.parametrize("large", [-1e9, -3.4028235e38])
@pytest.mark.parametrize("keep", [(), ("Softmax",)])
def test_a_mask_is_clamped_before_a_softmax(
    kit: Any, parse: Any, random: Any, large: float, keep: Any
) -> None:
    model = parse(ATTENTION, wq=random(8, 8, scale=0.3), one=np.float32(1), large=np.float32(large))
    visible = np.ones((2, 1, 6), np.float32)
    visible[0, 0, 4:] = 0
    feeds = {"x": random(2, 6, 8), "keep": visible}
    expected = kit.run(model, feeds)
    changed, left = convert(model, kit.context(feeds), keep=keep)
    assert left == ""
    assert "large" not in model.graph.initializers
    half_ops = [node.op_type for node in model.graph if node.outputs[0].dtype is ir.DataType.FLOAT16]
    assert half_ops.count("Softmax") == (0 if keep else 1)
    assert changed >= 7
    agrees(expected, kit.run(model, feeds))
    # A row with nothing to attend to stays finite, too.
    assert np.isfinite(kit.run(model, {**feeds, "keep": np.zeros_like(visible)})[0]).all()


def test_such_a_constant_elsewhere_keeps_its_node_in_float(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[4, 8] x) => (float[4, 8] y) {
          a = MatMul (x, w)
          b = Add (a, large)
          y = MatMul (b, w)
        }""",
        w=random(8, 8, scale=0.1),
        large=np.full(8, -1e9, np.float32),
    )
    feeds = {"x": random(4, 8)}
    expected = kit.run(model, feeds)
    changed, left = convert(model, kit.context(feeds))
    assert changed == 1
    assert "'large' reaches 1e+09" in left
    agrees(expected, kit.run(model, feeds))


def test_a_factor_that_is_no_mask_is_not_clamped(kit: Any, parse: Any, random: Any) -> None:
    model = parse(ATTENTION, wq=random(8, 8, scale=0.3), one=np.float32(1), large=np.float32(-1e9))
    feeds = {"x": random(2, 6, 8), "keep": 1 + 1e-9 * random(2, 1, 6)}
    feeds["keep"][0] = 2
    feeds["keep"] = feeds["keep"].astype(np.float32)
    _, left = convert(model, kit.context(feeds))
    assert "large" in model.graph.initializers
    assert "'large' reaches 1e+09" in left


def test_infinite_masks(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[6, 8] x) => (float[6, 8] y) {
          t = Transpose (x)
          s = MatMul (x, t)
          m = Where (allowed, s, none)
          p = Softmax (m)
          y = MatMul (p, x)
        }""",
        allowed=np.tril(np.ones((6, 6), bool)),
        none=np.float32(-np.inf),
    )
    feeds = {"x": random(6, 8)}
    expected = kit.run(model, feeds)
    changed, left = convert(model, kit.context(feeds))
    assert changed == 3
    assert "infinite constant reaches" in left or "Where" in left
    agrees(expected, kit.run(model, feeds))


@pytest.mark.parametrize("scale", [1e5, 1e-7])
def test_weights_beyond_the_format(kit: Any, parse: Any, random: Any, scale: float) -> None:
    model = parse(
        "g (float[4, 8] x) => (float[4, 8] y) { a = MatMul (x, w) y = MatMul (a, v) }",
        w=random(8, 8, scale=scale),
        v=random(8, 8),
    )
    feeds = {"x": random(4, 8, scale=1e3 if scale < 1 else 1e-2)}
    expected = kit.run(model, feeds)
    changed, left = convert(model, kit.context(feeds))
    assert changed == 1
    assert "'w'" in left
    agrees(expected, kit.run(model, feeds))


def test_small_activations(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[4, 8] x) => (float[4, 8] y) { y = MatMul (x, w) }", w=random(8, 8))
    feeds = {"x": random(4, 8, scale=1e-7)}
    changed, left = convert(model, kit.context(feeds))
    assert changed == 0
    assert "loses its digits" in left


def test_sums_that_overflow_on_the_way(kit: Any, parse: Any, random: Any) -> None:
    signs = np.where(np.arange(4096) % 2, -1, 1).astype(np.float32)
    weight = np.repeat(signs[:, None], 4, axis=1) * 10
    model = parse("g (float[2, 4096] x) => (float[2, 4] y) { y = MatMul (x, w) }", w=weight)
    # The result is 0, yet half the terms add up to 2e7.
    feeds = {"x": np.full((2, 4096), 1000, np.float32)}
    changed, left = convert(model, kit.context(feeds))
    assert changed == 0
    assert "on the way" in left


@pytest.mark.parametrize("height", [4, 64, "H"])
def test_means_sum_first(kit: Any, parse: Any, random: Any, height: int | str) -> None:
    model = parse(
        f"g (float[N, 4, {height}, 64] x) => (float[N, 4, 1, 1] y) {{ c = Conv (x, w) y = GlobalAveragePool (c) }}",
        w=np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1),
    )
    size = 64 if isinstance(height, str) else height
    feeds = {"x": np.full((2, 4, size, 64), 50, np.float32)}
    changed, left = convert(model, kit.context(feeds))
    # 4 * 64 * 50 fits, 64 * 64 * 50 does not, whether the graph or the data tell the size.
    assert changed == (2 if height == 4 else 1)
    assert ("on the way" in left) == (height != 4)


@pytest.mark.parametrize(("scale", "changed"), [(0.3, 2), (300.0, 1)])
def test_layer_norm_of_large_values(kit: Any, parse: Any, random: Any, scale: float, changed: int) -> None:
    model = parse(
        "g (float[4, 64] x) => (float[4, 64] y) { a = MatMul (x, w) y = LayerNormalization (a, g) }",
        w=np.eye(64, dtype=np.float32),
        g=random(64),
    )
    feeds = {"x": random(4, 64, scale=scale)}
    expected = kit.run(model, feeds)
    assert convert(model, kit.context(feeds), keep=())[0] == changed
    agrees(expected, kit.run(model, feeds))


def test_large_exponents_are_computed_in_float(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[4, 8] x) => (float[4, 8] y) { a = MatMul (x, w) p = Softmax (a) y = MatMul (p, w) }",
        w=random(8, 8),
    )
    feeds = {"x": random(4, 8, scale=300)}
    expected = kit.run(model, feeds)
    changed, left = convert(model, kit.context(feeds), keep=())
    assert changed == 1
    assert left.count("goes into an exponential") == 2
    agrees(expected, kit.run(model, feeds))


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    exponent=st.integers(-30, 18),
    spread=st.integers(0, 3),
    element=st.sampled_from(HalfType),
    seed=st.integers(0, 99),
)
def test_the_rounding_error_is_that_of_the_worst_slice(
    shape: list[int], exponent: int, spread: int, element: HalfType, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    array = np.ldexp(
        rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape)), exponent
    ).astype(np.float32)
    got = rounding_error(array, element)
    storage = np.float16 if element is HalfType.FLOAT16 else ml_dtypes.bfloat16
    assert to_half(array, element).dtype == storage
    with np.errstate(over="ignore"):
        rounded = array.astype(storage).astype(np.float64)
    if not np.isfinite(rounded).all():
        assert got == float("inf")
        return
    wrong, worst = rounded - array, 0.0
    for axis in {0, 1, array.ndim - 1} if array.ndim > 1 else set():
        others = tuple(index for index in range(array.ndim) if index != axis)
        norms = np.sqrt((array.astype(np.float64) ** 2).sum(axis=others))
        errors = np.sqrt((wrong**2).sum(axis=others))
        worst = max(worst, float(np.max(errors / np.maximum(norms, norms.max() / 64))))
    worst = max(worst, float(np.linalg.norm(wrong) / np.linalg.norm(array)))
    assert got == pytest.approx(worst)
    normal = np.abs(array).min() > 2.0**-14
    assert not normal or got <= MAX_ERROR[element] / 2 * (1 + 1e-6)
