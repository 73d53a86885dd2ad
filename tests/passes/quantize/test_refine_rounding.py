"""Rounding in whole models: it comes closer to the float model, within half-open steps, and resumes from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greencc.core.cache import Cache
from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.passes import Context, RewriteLog
from greencc.passes._adaround import AdaRoundOptions, Reconstruction, RoundingMethod
from greencc.passes._quantized_pair import find_pairs
from greencc.passes._refine_rounding import refine_rounding
from greencc.passes.quantize_int8 import QuantizeInt8

TEXT = """g (float[N, 4, 8, 8] x) => (float[N, 10] y) {
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
    r = Relu (a)
    d = Conv <kernel_shape=[3,3], group=8> (r, w1)
    e = Clip (d, zero, six)
    m = GlobalAveragePool (e)
    f = Flatten (m)
    y = Gemm <alpha=0.5, transB=1> (f, w2, b2)
}"""
SEQUENTIAL = AdaRoundOptions(reconstruction=Reconstruction.SEQUENTIAL)
LOCAL = AdaRoundOptions()


@pytest.fixture
def model(parse: Any, random: Any) -> ir.Model:
    return parse(
        TEXT,
        w0=random(8, 4, 3, 3),
        b0=random(8),
        w1=random(8, 1, 3, 3),
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
        w2=random(10, 8),
        b2=random(10),
    )


@pytest.fixture
def x(random: Any) -> Array:
    """Neighbouring pixels and channels are alike, as in images."""
    return random(40, 4, 8, 8) * 0.3 + random(40, 1, 8, 1) + np.float32(0.5)


@dataclass
class Counting:
    """Builds engines and counts their runs."""

    build: Any
    engines: list[Any] = field(default_factory=list)

    def __call__(self, model: ir.Model, outputs: Any = None) -> Any:
        self.engines.append(self.build(model, outputs))
        return self.engines[-1]

    @property
    def runs(self) -> int:
        return sum(engine.runs for engine in self.engines)


def quantized(model: ir.Model, ctx: Context) -> ir.Model:
    copy = model.clone()
    QuantizeInt8().apply(copy, ctx)
    return copy


def integers(model: ir.Model) -> dict[str, Array]:
    return {
        str(name): value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype is ir.DataType.INT8
    }


def noise(kit: Any, model: ir.Model, other: ir.Model, x: Array) -> float:
    expected = kit.run_as_written(model, {"x": x}, ["y"])["y"]
    return float(np.sum(np.square(expected - kit.run_as_written(other, {"x": x}, ["y"])["y"])))


def coarse(model: ir.Model, bits: int) -> ir.Model:
    """A quantized model with the weights it would have at fewer bits, stored as INT8."""
    limit = (1 << (bits - 1)) - 1
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is None or value.const_value is None or value.const_value.dtype is not ir.DataType.INT8:
            continue
        stored = np.rint(value.const_value.numpy() * (limit / 127)).astype(np.int8)
        value.const_value = ir.tensor(stored, name=value.name)
        scale = node.inputs[1]
        scale.const_value = ir.tensor(
            (scale.const_value.numpy() * np.float32(127 / limit)).astype(np.float32), name=scale.name
        )
    return model


@pytest.mark.parametrize("options", [LOCAL, SEQUENTIAL], ids=["local", "sequential"])
@pytest.mark.parametrize("method", list(RoundingMethod))
def test_four_bits_come_closer_to_the_float_model(
    kit: Any, model: ir.Model, x: Array, random: Any, options: AdaRoundOptions, method: RoundingMethod
) -> None:
    ctx = kit.context({"x": x})
    # 4-bit weights in INT8 storage; their biases stay as they are for 8.
    before = coarse(quantized(model, ctx), 4)
    after = before.clone()
    options = replace(options, method=method, iterations=150)
    outcome = refine_rounding(model, after, ctx, options, bits=4)
    assert outcome.changed > 0
    fresh = random(40, 4, 8, 8) * 0.3 + random(40, 1, 8, 1) + np.float32(0.5)
    assert noise(kit, model, after, fresh) < 0.8 * noise(kit, model, before, fresh)
    kit.save(after)


def test_weights_stay_within_a_step_and_the_range(kit: Any, model: ir.Model, x: Array) -> None:
    ctx = kit.context({"x": x})
    after = quantized(model, ctx)
    refine_rounding(model, after, ctx, SEQUENTIAL, bits=8)
    pairs, _ = find_pairs(model, after)
    assert [pair.name for pair in pairs] == ["Conv_0", "Conv_2", "Gemm_6"]
    for pair in pairs:
        steps = pair.integer_matrix() - pair.weight() / pair.scale_column()
        assert np.abs(steps).max() < 1 + 1e-4
        assert np.abs(pair.integer_matrix()).max() <= 127


def test_the_first_model_is_left_alone(kit: Any, model: ir.Model, x: Array) -> None:
    ctx = kit.context({"x": x})
    first = quantized(model, ctx)
    before = {name: array.copy() for name, array in integers(first).items()}
    second = first.clone()
    assert refine_rounding(model, second, ctx, LOCAL, bits=8).changed
    for name, array in integers(first).items():
        np.testing.assert_array_equal(array, before[name])
    assert any((integers(second)[name] != before[name]).any() for name in before)


@pytest.mark.parametrize("options", [LOCAL, SEQUENTIAL], ids=["local", "sequential"])
def test_a_second_run_takes_everything_from_the_cache(
    kit: Any, model: ir.Model, x: Array, tmp_path: Any, options: AdaRoundOptions
) -> None:
    ctx = kit.context({"x": x})
    start = quantized(model, ctx)
    results, runs = [], []
    for _ in range(2):
        counting = Counting(ctx.build)
        again = replace(ctx, build=counting, cache=Cache(tmp_path / "cache"), rewrites=RewriteLog())
        copy = start.clone()
        refine_rounding(model, copy, again, options, bits=8)
        results.append(integers(copy))
        runs.append(counting.runs)
    assert runs[0] > 0
    assert runs[1] == 0
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_an_interrupted_run_goes_on_and_ends_the_same(
    kit: Any, model: ir.Model, x: Array, tmp_path: Any
) -> None:
    ctx = kit.context({"x": x})
    start = quantized(model, ctx)
    whole = start.clone()
    counting = Counting(ctx.build)
    refine_rounding(model, whole, replace(ctx, build=counting, cache=Cache()), SEQUENTIAL, bits=8)

    def stops(items: Any, *, label: str, total: int | None = None) -> Iterator[Any]:
        for position, item in enumerate(items):
            if label == "Rounding" and position == 2:
                raise KeyboardInterrupt
            yield item

    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        refine_rounding(model, start.clone(), replace(ctx, progress=stops, cache=cache), SEQUENTIAL, bits=8)
    resumed, fewer = start.clone(), Counting(ctx.build)
    refine_rounding(model, resumed, replace(ctx, build=fewer, cache=cache), SEQUENTIAL, bits=8)
    assert fewer.runs < counting.runs
    for name, array in integers(whole).items():
        np.testing.assert_array_equal(array, integers(resumed)[name])


@pytest.mark.parametrize("options", [LOCAL, SEQUENTIAL], ids=["local", "sequential"])
def test_does_not_depend_on_the_batch(kit: Any, model: ir.Model, x: Array, options: AdaRoundOptions) -> None:
    ctx = kit.context({"x": x})
    start = quantized(model, ctx)
    found = []
    for batch in (1, 7, 64):
        copy = start.clone()
        refine_rounding(model, copy, replace(ctx, cache=Cache()), replace(options, rows=300), 8, batch)
        found.append(integers(copy))
    for other in found[1:]:
        for name, array in found[0].items():
            # Sums in another order may flip a tie.
            assert np.mean(array != other[name]) < 0.01


def test_announces_layers_and_respects_refusals(kit: Any, model: ir.Model, x: Array) -> None:
    ctx = kit.context({"x": x})
    start = quantized(model, ctx)
    free = replace(ctx, rewrites=RewriteLog())
    everything = refine_rounding(model, start.clone(), free, LOCAL, bits=8)
    assert everything.changed == len(free.rewrites.applied) > 1
    limited = replace(ctx, rewrites=RewriteLog(1))
    copy = start.clone()
    assert refine_rounding(model, copy, limited, LOCAL, bits=8).changed == 1
    changed = [name for name, array in integers(copy).items() if (array != integers(start)[name]).any()]
    assert len(changed) == 1
    nothing = start.clone()
    assert refine_rounding(model, nothing, replace(ctx, rewrites=RewriteLog(0)), LOCAL, 8).changed == 0
    for name, array in integers(nothing).items():
        np.testing.assert_array_equal(array, integers(start)[name])


def test_progress_takes_one_step_a_layer(kit: Any, model: ir.Model, x: Array) -> None:
    ctx = kit.context({"x": x})
    seen: list[tuple[str, int | None]] = []

    def progress(items: Any, *, label: str, total: int | None = None) -> Iterator[Any]:
        for item in items:
            seen.append((label, total))
            yield item

    copy = quantized(model, ctx)
    refine_rounding(model, copy, replace(ctx, progress=progress), SEQUENTIAL, bits=8)
    assert seen == [("Rounding", 3)] * 3


def test_a_weight_that_two_nodes_share_is_left_alone(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[N, 16] x) => (float[N, 16] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }",
        w=random(16, 16),
    )
    ctx = kit.context({"x": random(30, 16)})
    copy = quantized(model, ctx)
    before = integers(copy)
    outcome = refine_rounding(model, copy, ctx, LOCAL, bits=8)
    assert outcome.changed == 0
    assert {finding.node for finding in outcome.findings} == {"MatMul_0", "MatMul_2"}
    assert all("another node" in finding.message for finding in outcome.findings)
    for name, array in integers(copy).items():
        np.testing.assert_array_equal(array, before[name])


def test_other_kinds_of_nodes(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """g (float[N, 6, 5, 16] x) => (float[N, 6, K, L] y, float[N, 6, 5, 4] z) {
            y = ConvTranspose <kernel_shape=[3,3], strides=[2,2], group=2> (x, w)
            z = MatMul (x, v)
        }""",
        w=random(6, 3, 3, 3),
        v=random(16, 4),
    )
    x = random(30, 6, 5, 16) + random(30, 6, 5, 1)
    ctx = kit.context({"x": x})
    before = quantized(model, ctx)
    after = before.clone()
    assert refine_rounding(model, after, ctx, SEQUENTIAL, bits=8).changed == 2
    for name in ("y", "z"):
        expected = kit.run_as_written(model, {"x": x}, [name])[name]
        errors = [
            np.sum(np.square(kit.run_as_written(m, {"x": x}, [name])[name] - expected))
            for m in (after, before)
        ]
        assert errors[0] < errors[1]


def test_dead_and_empty_channels(kit: Any, parse: Any, random: Any) -> None:
    weight = random(6, 4, 3, 3)
    weight[2] = 0
    weight[3, 0, 0, 0] = 1e4
    model = parse(
        "g (float[N, 4, 6, 6] x) => (float[N, 6, 4, 4] y) { y = Conv <kernel_shape=[3,3]> (x, w) }", w=weight
    )
    x = random(20, 4, 6, 6)
    x[:, 1] = 0
    ctx = kit.context({"x": x})
    copy = quantized(model, ctx)
    refine_rounding(model, copy, ctx, LOCAL, bits=8)
    (pair,) = find_pairs(model, copy)[0]
    assert not pair.integer_matrix()[0, 2].any()


def test_values_that_overflow_keep_nearest_rounding(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(8, 4))
    x = random(20, 8) * np.float32(1e30)
    ctx = kit.context({"x": x})
    copy = quantized(model, ctx)
    before = integers(copy)
    refine_rounding(model, copy, ctx, LOCAL, bits=8)
    for name, array in integers(copy).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_single_sample_is_enough(kit: Any, model: ir.Model, x: Array) -> None:
    ctx = kit.context({"x": x[:1]})
    copy = quantized(model, ctx)
    refine_rounding(model, copy, ctx, SEQUENTIAL, bits=8)
    kit.save(copy)


def test_fixed_batch(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[4, 8] x) => (float[4, 6] y) { y = MatMul (x, w) }", w=random(8, 6))
    ctx = kit.context({"x": random(30, 8) + np.float32(1)})
    copy = quantized(model, ctx)
    assert refine_rounding(model, copy, ctx, SEQUENTIAL, bits=8).changed == 1


def test_needs_data(kit: Any, model: ir.Model, x: Array) -> None:
    copy = quantized(model, kit.context({"x": x}))
    with pytest.raises(InputError, match="calibration"):
        refine_rounding(model, copy, kit.context(None), LOCAL, bits=8)


def test_a_float_model_has_nothing_to_round(kit: Any, model: ir.Model, x: Array) -> None:
    outcome = refine_rounding(model, model.clone(), kit.context({"x": x}), LOCAL, bits=8)
    assert (outcome.changed, outcome.findings) == (0, [])


@given(
    seed=st.integers(0, 10**6),
    bits=st.sampled_from([7, 8]),
    samples=st.integers(1, 12),
    rows=st.integers(1, 50),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_nets_stay_valid(kit: Any, parse: Any, seed: int, bits: int, samples: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    channels, kernel = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    model = parse(
        f"""g (float[N, {channels}, 6, 6] x) => (float[N, M] y) {{
            a = Conv <kernel_shape=[{kernel},{kernel}]> (x, w) r = Relu (a) f = Flatten (r) y = MatMul (f, v)
        }}""",
        w=rng.standard_normal((3, channels, kernel, kernel)).astype(np.float32),
        v=rng.standard_normal((3 * (7 - kernel) ** 2, 2)).astype(np.float32),
    )
    ctx = kit.context(
        {"x": rng.standard_normal((samples, channels, 6, 6)).astype(np.float32)}, weight_bits=bits
    )
    copy = quantized(model, ctx)
    refine_rounding(model, copy, ctx, replace(SEQUENTIAL, rows=rows), bits)
    limit = 127 if bits == 8 else 64
    for pair in find_pairs(model, copy)[0]:
        assert np.abs(pair.integer_matrix()).max() <= limit
        assert np.abs(pair.integer_matrix() - pair.weight() / pair.scale_column()).max() < 1 + 1e-4
    kit.save(copy)
