"""GPTQ: the solver alone, the layers of a model, the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.cache import Cache
from greencc.core.errors import InputError
from greencc.passes._block_quantize import Grid, nearest
from greencc.passes._gptq import gptq
from greencc.passes._linear_view import linear_view
from greencc.passes._weight_only_hessian import plan_stages, sum_moments
from greencc.passes.quantize_weights import QuantizeWeights, WeightMethod


def correlated(generator: np.random.Generator, rows: int, inputs: int) -> Any:
    mix = generator.standard_normal((inputs, inputs)) / np.arange(1, inputs + 1)
    return (generator.standard_normal((rows, inputs)) @ mix).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 8),
    groups=st.integers(1, 3),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([0, 16, 32, 64]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    rows=st.integers(1, 100),
)
def test_never_worse_than_nearest_on_its_data(
    seed: int,
    inputs: int,
    outputs: int,
    groups: int,
    bits: int,
    block: int,
    symmetric: bool,
    act_order: bool,
    rows: int,
) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((groups, outputs, inputs)).astype(np.float32)
    x = np.stack([correlated(generator, rows, inputs) for _ in range(groups)])
    if inputs > 2:
        x[..., 1] = 0.0
    grid = Grid(bits, block, symmetric, search=bits == 4)
    before = matrix.copy()
    solution = gptq(matrix, x.swapaxes(1, 2) @ x, grid, act_order=act_order)
    np.testing.assert_array_equal(matrix, before)
    plain = nearest(matrix.reshape(-1, inputs), grid).dequantize().reshape(matrix.shape)
    got = solution.weight.dequantize().reshape(matrix.shape)

    def error(rounded: Any) -> float:
        return float(np.square(x @ (matrix - rounded).swapaxes(1, 2), dtype=np.float64).sum())

    assert error(got) <= error(plain) * (1 + 1e-3) + 1e-9
    assert solution.weight.codes.max() <= grid.top
    assert solution.weight.codes.min() >= grid.bottom


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("act_order", [False, True])
def test_correlated_inputs_gain_and_dead_ones_keep_their_weights(block: int, act_order: bool) -> None:
    generator = np.random.default_rng(0)
    x = correlated(generator, 500, 96)
    x[:, 5] = 0.0
    matrix = generator.standard_normal((1, 24, 96)).astype(np.float32)
    solution = gptq(matrix, (x.T @ x)[np.newaxis], Grid(4, block, True, search=True), act_order=act_order)
    assert solution.error < 0.6 * solution.nearest_error
    # Also what the solution says of itself is what the outputs show.
    y = x @ matrix[0].T
    got = x @ solution.weight.dequantize().T
    assert np.square(y - got).sum() / np.square(y).sum() == pytest.approx(solution.error, rel=1e-2)
    dead = np.abs(solution.weight.dequantize()[:, 5] - matrix[0, :, 5])
    assert np.median(dead) <= 0.5 * float(np.median(solution.weight.scales))


def test_uncorrelated_inputs_of_equal_power_give_nearest() -> None:
    matrix = np.random.default_rng(0).standard_normal((1, 8, 64)).astype(np.float32)
    grid = Grid(8, 0, True, search=False)
    solution = gptq(matrix, 7.0 * np.eye(64)[np.newaxis], grid, act_order=False)
    np.testing.assert_array_equal(solution.weight.codes, nearest(matrix[0], grid).codes)


def test_degenerate_hessians() -> None:
    matrix = np.random.default_rng(0).standard_normal((2, 3, 32)).astype(np.float32)
    ones = np.ones((2, 1, 32), np.float32)
    for hessian in (np.zeros((2, 32, 32)), ones.swapaxes(1, 2) @ ones, 1e30 * (ones.swapaxes(1, 2) @ ones)):
        solution = gptq(matrix, hessian, Grid(4, 16, False, search=True))
        assert np.isfinite(solution.weight.dequantize()).all()
        assert solution.error <= solution.nearest_error


MLP = """
g (float[N, 48] x) => (float[N, 10] y) {
  a = Gemm <transB=1> (x, w1, b1)
  r = Relu (a)
  y = MatMul (r, w2)
}"""


@pytest.fixture
def mlp(parse: Any, random: Any) -> Any:
    return parse(MLP, w1=random(64, 48, scale=0.2), b1=random(64), w2=random(64, 10, scale=0.2), opset=21)


@pytest.fixture
def feeds() -> dict[str, Any]:
    return {"x": correlated(np.random.default_rng(3), 200, 48)}


def context(kit: Any, feeds: Any, cache: Cache | None = None) -> Any:
    ctx = kit.context(feeds)
    facts = replace(
        ctx.capabilities,
        fused_ops=frozenset({"com.microsoft::MatMulNBits", "ai.onnx::DequantizeLinear:int4"}),
    )
    return replace(ctx, capabilities=facts, cache=cache or Cache())


GPTQ = QuantizeWeights(bits=4, block_size=32, min_elements=1, method=WeightMethod.GPTQ, accuracy_level=0)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_model_gains_against_nearest(kit: Any, mlp: Any, feeds: Any, sequential: bool) -> None:
    expected = kit.run(mlp, feeds)[0]
    errors = {}
    for method in WeightMethod:
        model = mlp.clone()
        outcome = replace(GPTQ, method=method, sequential=sequential).apply(model, context(kit, feeds))
        assert outcome.changed == 2
        assert [node.op_type for node in model.graph] == ["MatMulNBits", "Relu", "MatMulNBits"]
        errors[method] = np.square(kit.run(model, feeds)[0] - expected).sum()
    assert errors[WeightMethod.GPTQ] < 0.7 * errors[WeightMethod.NEAREST]
    assert any("GPTQ" in finding.message for finding in outcome.findings)


@pytest.mark.parametrize(
    "text",
    [
        "y = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w)",
        "y = Conv <group=2, kernel_shape=[3,3]> (x, w)",
        "y = ConvTranspose <strides=[2,2]> (x, w)",
    ],
)
def test_convolutions(kit: Any, parse: Any, random: Any, text: str) -> None:
    weight = random(8, 4, 3, 3) if "group" in text else random(8, 8, 3, 3)
    model = parse(f"g (float[N, 8, 9, 9] x) => (float[N, C, H, W] y) {{ {text} }}", w=weight, opset=21)
    x = random(6, 8, 9, 9)
    x = np.cumsum(x, axis=1)
    expected = kit.run_as_written(model, {"x": x}, ["y"])["y"]
    errors = []
    for method in (WeightMethod.NEAREST, WeightMethod.GPTQ):
        candidate = model.clone()
        step = QuantizeWeights(ops=("Conv", "ConvTranspose"), min_elements=1, bits=4, method=method)
        outcome = step.apply(candidate, context(kit, {"x": x}))
        assert outcome.changed == 1
        assert any("only store" in finding.message for finding in outcome.findings)
        got = kit.run_as_written(candidate, {"x": x}, ["y"])["y"]
        errors.append(np.square(got - expected).sum() / np.square(expected).sum())
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] < 0.02


def test_what_cannot_have_it_is_rounded_to_nearest_and_named(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (int64[N, T] i, float[N, 0] none) => (float[N, T, 8] y, float[N, T, 32] z) {
          e = Gather (table, i)
          y = MatMul (e, w)
          zero = Constant <value = float[1] {0.0}> ()
          dead = Mul (e, zero)
          z = MatMul (dead, never)
        }""",
        table=random(50, 32),
        w=random(32, 8),
        never=random(32, 32),
        opset=21,
    )
    feeds = {"i": np.arange(40).reshape(10, 4) % 50, "none": np.zeros((10, 0), np.float32)}
    outcome = QuantizeWeights(min_elements=1, block_size=16, method=WeightMethod.GPTQ).apply(
        model, context(kit, feeds)
    )
    assert outcome.changed == 3
    messages = {
        finding.message.split("'")[1]: finding.message
        for finding in outcome.findings
        if "'" in finding.message
    }
    assert "looked up" in messages["table"]
    assert "never reaches" in messages["never"]
    assert "w" not in messages


def test_inputs_whose_products_overflow_are_rounded_to_nearest(kit: Any, mlp: Any, feeds: Any) -> None:
    initializers = mlp.graph.initializers
    initializers["w1"].const_value = ir.tensor(initializers["w1"].const_value.numpy() * np.float32(1e20))
    plain = mlp.clone()
    outcome = GPTQ.apply(mlp, context(kit, feeds))
    assert outcome.changed == 2
    (note,) = (
        item.message for item in outcome.findings if "too large for their correlations" in item.message
    )
    assert "'w2' is rounded to nearest" in note
    replace(GPTQ, method=WeightMethod.NEAREST).apply(plain, context(kit, feeds))
    got, nearest_model = (
        [value.const_value.numpy() for value in list(model.graph)[2].inputs[1:] if value is not None]
        for model in (mlp, plain)
    )
    for first, second in zip(got, nearest_model, strict=True):
        np.testing.assert_array_equal(first, second)


def test_data_is_needed_and_must_be_finite(kit: Any, mlp: Any, feeds: Any) -> None:
    with pytest.raises(InputError, match="calibration data"):
        GPTQ.apply(mlp.clone(), context(kit, None))
    mlp.graph.initializers["b1"].const_value = _infinite(mlp)
    with pytest.raises(InputError, match="'r'"):
        GPTQ.apply(mlp, context(kit, feeds))


def _infinite(mlp: Any) -> Any:
    values = mlp.graph.initializers["b1"].const_value.numpy().copy()
    values[3] = np.inf
    return ir.tensor(values)


def test_an_interrupted_run_goes_on_where_it_was(kit: Any, mlp: Any, feeds: Any, tmp_path: Any) -> None:
    @dataclass
    class Fragile(Cache):
        left: int = 1

        def put(self, kind: str, key: str, arrays: Any) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().put(kind, key, arrays)

    with pytest.raises(KeyboardInterrupt):
        GPTQ.apply(mlp.clone(), context(kit, feeds, Fragile(tmp_path)))
    assert len(list(tmp_path.glob("gptq/*"))) == 1
    resumed, fresh = mlp.clone(), mlp.clone()
    GPTQ.apply(resumed, context(kit, feeds, Cache(tmp_path)))
    assert len(list(tmp_path.glob("gptq/*"))) == 2
    GPTQ.apply(fresh, context(kit, feeds))
    for name, value in fresh.graph.initializers.items():
        other = resumed.graph.initializers[name].const_value
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())
    # With everything in the cache the data is not run at all.
    ctx = context(kit, feeds, Cache(tmp_path))
    ran = replace(ctx, build=_refuse)
    assert GPTQ.apply(mlp.clone(), ran).changed == 2
    # Other options do not find these entries.
    with pytest.raises(AssertionError):
        replace(GPTQ, symmetric=False).apply(mlp.clone(), ran)


def _refuse(model: Any, outputs: Any = None) -> Any:
    raise AssertionError


def test_layers_with_one_input_share_a_matrix(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 16] x) => (float[N, 8] y, float[N, 8] z, float[N, 4] u) {
          y = MatMul (x, a)
          z = MatMul (x, b)
          u = MatMul (y, c)
        }""",
        a=random(16, 8),
        b=random(16, 8),
        c=random(8, 4),
    )
    views = [view for node in model.graph if (view := linear_view(node)) is not None]
    stages = plan_stages(views)
    assert [[moments.members for moments in stage] for stage in stages] == [[[0, 1], [2]]]
    assert [len(stage) for stage in plan_stages(views, one_by_one=True)] == [1, 1]
    x = random(40, 16)
    sum_moments(model, stages[0], kit.context({"x": x}), "test")
    np.testing.assert_allclose(stages[0][0].total[0], x.T @ x, rtol=1e-4, atol=1e-4)
    assert stages[0][0].rows == 40
    assert not stages[0][0].waiting


def test_rows_of_large_inputs_are_sampled(
    kit: Any, parse: Any, random: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parse(
        "g (float[N, 2, 20, 20] x) => (float[N, 4, 18, 18] y) { y = Conv (x, w) }", w=random(4, 2, 3, 3)
    )
    views = [linear_view(node) for node in model.graph]
    monkeypatch.setattr("greencc.passes._weight_only_hessian._MIN_ROWS", 100)
    x = random(10, 2, 20, 20)
    totals = []
    for _ in range(2):
        (stage,) = plan_stages(views)
        sum_moments(model, stage, kit.context({"x": x}), "test")
        assert stage[0].rows == 100
        totals.append(stage[0].total)
    np.testing.assert_array_equal(*totals)
