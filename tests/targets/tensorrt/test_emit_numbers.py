"""Emission changes how a graph is written, not what it computes; every emitted graph is clean of the linter's errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.graph import is_op
from greencc.passes.float16 import ConvertFloat16
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights
from greencc.passes.upgrade_opset import UpgradeOpset
from greencc.targets._tensorrt.emit import emit
from greencc.targets._tensorrt.machine import Typing

from .emitting import (
    VERSIONS,
    block,
    cnn,
    distance,
    emitted,
    feeds_of,
    int8,
    machine,
    normal,
    operators,
    parse,
    run_passes,
    text_of,
    unfused,
    weights_only,
)

EXACT = 1e-6
# One step of an INT8 grid more or less here and there, where a value in FP16 lies on the other side of the middle.
STEPS = 0.03


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("network", [cnn, block])
def test_quantized_networks_compute_the_same(network: object, version: str) -> None:
    on = machine(version)
    model = int8(network(), on)  # type: ignore[operator]
    feeds = feeds_of(model, seed=11)
    expected = unfused(model, feeds)
    error = distance(expected, unfused(emitted(model, on), feeds))
    assert error < (EXACT if on.typing is Typing.WEAK else STEPS)


@pytest.mark.parametrize("network", [cnn, block])
def test_emission_of_an_emitted_graph_says_the_same(network: object) -> None:
    for version in ("8.2", "10.3", "11.4"):
        on = machine(version)
        once = emitted(int8(network(), on), on)  # type: ignore[operator]
        twice = emitted(once, on)
        assert text_of(twice).splitlines()[0] == text_of(once).splitlines()[0]
        assert operators(twice) == operators(once)
        feeds = feeds_of(once, seed=3)
        assert distance(unfused(once, feeds), unfused(twice, feeds)) < EXACT


def test_the_source_is_left_alone_and_emission_repeats_itself() -> None:
    on = machine("11.4")
    model = int8(cnn(), on)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first, second = emit(model, on), emit(model, on)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


LAYERS = {
    "conv": (
        "g (float[N, 16, 6, 6] x) => (float[N, 24, 6, 6] y) { y = Conv <pads=[1,1,1,1]> (x, w, b) }",
        {"w": (24, 16, 3, 3), "b": (24,)},
    ),
    "conv-1d": (
        "g (float[N, 16, 9] x) => (float[N, 24, 9] y) { y = Conv <pads=[1,1]> (x, w) }",
        {"w": (24, 16, 3)},
    ),
    "conv-of-groups": (
        "g (float[N, 32, 6, 6] x) => (float[N, 32, 4, 4] y) { y = Conv <group=4> (x, w, b) }",
        {"w": (32, 8, 3, 3), "b": (32,)},
    ),
    "transposed-conv": (
        "g (float[N, 16, 5, 5] x) => (float[N, 24, 10, 10] y) { y = ConvTranspose <strides=[2,2]> (x, w, b) }",
        {"w": (16, 24, 2, 2), "b": (24,)},
    ),
    "gemm": (
        "g (float[4, 16] x) => (float[4, 24] y) { y = Gemm <alpha=0.5, beta=2.0> (x, w, b) }",
        {"w": (16, 24), "b": (24,)},
    ),
    "gemm-transposed": (
        "g (float[4, 16] x) => (float[4, 24] y) { y = Gemm <transB=1> (x, w, b) }",
        {"w": (24, 16), "b": (24,)},
    ),
    "matmul": ("g (float[N, 5, 16] x) => (float[N, 5, 24] y) { y = MatMul (x, w) }", {"w": (16, 24)}),
    "stacked-matmul": (
        "g (float[3, 5, 16] x) => (float[3, 5, 24] y) { y = MatMul (x, w) }",
        {"w": (3, 16, 24)},
    ),
    "product-of-activations": (
        "g (float[N, 5, 16] x, float[N, 16, 7] z) => (float[N, 5, 7] y) { y = MatMul (x, z) }",
        {},
    ),
    "constant-in-a-concatenation": (
        "g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) { c = Concat <axis=1> (x, k) y = Conv (c, w) }",
        {"k": (1, 16, 4, 4), "w": (16, 32, 1, 1)},
    ),
}


@pytest.mark.parametrize("version", ["8.2", "10.3", "11.4"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer: str, version: str) -> None:
    text, shapes = LAYERS[layer]
    on = machine(version)
    weights = {name: normal(*shape, seed=index) for index, (name, shape) in enumerate(shapes.items())}
    model = run_passes(parse(text, **weights), on, (QuantizeInt8(),))
    assert operators(model)["QuantizeLinear"] >= 1
    feeds = feeds_of(model, seed=5)
    result = emitted(model, on)
    error = distance(unfused(model, feeds), unfused(result, feeds))
    assert error < (EXACT if on.typing is Typing.WEAK else STEPS)
    for node in result.graph:
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            zero_point = node.inputs[2].const_value.numpy()  # type: ignore[index, union-attr]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        for value in node.inputs:
            assert value is None or value.dtype is not ir.DataType.INT32, "an INT32 bias"
        if version == "8.2" and is_op(node, "DequantizeLinear"):
            assert not node.inputs[0].is_initializer(), "a constant of INT8"  # type: ignore[union-attr]


@st.composite
def stacks(draw: st.DrawFn) -> ir.Model:
    """A random chain of convolutions, activations, pools, skips and a head."""
    channels, lines, value = draw(st.sampled_from([8, 16, 32])), [], "x"
    weights = {}
    start = channels
    for index in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from([8, 16, 32]))
        kernel, name = draw(st.sampled_from([1, 3])), f"v{index}"
        weights[f"w{index}"] = normal(width, channels, kernel, kernel, seed=index, scale=0.2)
        lines.append(f"c{name} = Conv <pads=[{', '.join([str(kernel // 2)] * 4)}]> ({value}, w{index})")
        kind = draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "LeakyRelu", "MaxPool", "skip", "Tanh"]))
        if kind == "MaxPool":
            lines.append(f"{name} = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (c{name})")
        elif kind == "skip" and width == channels:
            lines.append(f"{name} = Add (c{name}, {value})")
        else:
            lines.append(f"{name} = {'Relu' if kind == 'skip' else kind} (c{name})")
        value, channels = name, width
    lines += [f"p = GlobalAveragePool ({value})", "f = Flatten (p)", "y = Gemm (f, w)"]
    weights["w"] = normal(channels, 16, seed=9, scale=0.3)
    return parse(f"g (float[2, {start}, 6, 6] x) => (float[2, 16] y) {{ {chr(10).join(lines)} }}", **weights)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(stacks(), st.sampled_from(VERSIONS))
def test_random_stacks(model: ir.Model, version: str) -> None:
    on = machine(version)
    quantized = run_passes(model, on, (QuantizeInt8(),))
    feeds = feeds_of(quantized, seed=1)
    error = distance(unfused(quantized, feeds), unfused(emitted(quantized, on), feeds))
    assert error < (EXACT if on.typing is Typing.WEAK else 0.1)


def test_strong_graphs_compute_in_half_between_pairs_and_cast_at_the_border_alone() -> None:
    on = machine("11.4")
    result = emitted(int8(cnn(), on), on)
    counts = operators(result)
    # One for each output; the stem reads the model's own input, whose range nobody knows.
    assert counts["Cast"] == 2
    wide = [node.op_type for node in result.graph if node.outputs[0].dtype is ir.DataType.FLOAT]
    assert wide == ["Conv", "Relu", "Cast", "Cast"]


def test_strong_graphs_stay_float32_where_the_range_is_not_certain() -> None:
    """What the second product gives may be beyond FP16, and so may be what is made of it."""
    on = machine("11.4")
    text = "g (float[2, 16] x) => (float[2, 16] y) { a = MatMul (x, w) b = MatMul (a, v) y = Relu (b) }"
    model = parse(text, w=normal(16, 16), v=normal(16, 16, scale=1000.0, seed=1))
    quantized = run_passes(model, on, (QuantizeInt8(),))
    result = emitted(quantized, on)
    types = [node.outputs[0].dtype for node in result.graph if node.op_type in ("MatMul", "Relu")]
    assert types == [ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.FLOAT]
    feeds = feeds_of(model, seed=2)
    assert distance(unfused(quantized, feeds), unfused(result, feeds)) < STEPS


def test_a_gpu_without_fast_half_keeps_float32() -> None:
    on = machine("11.4")
    slow = replace(on, gpu=replace(on.gpu, float16=False))
    result = emitted(int8(cnn(), on), slow)
    assert ir.DataType.FLOAT16 not in {value.dtype for node in result.graph for value in node.outputs}


@pytest.mark.parametrize("version", ["8.2", "8.6", "11.4"])
@pytest.mark.parametrize("network", [cnn, block])
def test_half_precision_forms(network: object, version: str) -> None:
    on = machine(version)
    model = run_passes(network(), on, (ConvertFloat16(),))  # type: ignore[operator]
    result = emitted(model, on)
    feeds = feeds_of(model, seed=4)
    assert distance(unfused(model, feeds), unfused(result, feeds)) < 2e-3
    half = {value.dtype for node in result.graph for value in node.outputs} & {ir.DataType.FLOAT16}
    assert bool(half) == (on.typing is Typing.STRONG)
    assert result.metadata_props.get("greencc.tensorrt.precision") == (None if half else "fp16")


def test_brain_floats_stay_where_the_gpu_has_them() -> None:
    text = """g (float[2, 16] x) => (float[2, 16] y) {
      h = Cast <to=16> (x)
      v = Cast <to=16> (w)
      a = MatMul (h, v)
      r = com.microsoft.Gelu (a)
      y = Cast <to=1> (r)
    }"""
    model = parse(text, w=normal(16, 16))
    result = emitted(model, machine("11.4"))
    kinds = {node.op_type: node.outputs[0].dtype for node in result.graph}
    assert kinds["MatMul"] is kinds["Erf"] is ir.DataType.BFLOAT16
    constants = {value.dtype for value in result.graph.initializers.values()}
    assert constants == {ir.DataType.BFLOAT16}, "weights and the constants of the decomposition are folded"
    for version, sm, precision in (("11.4", 75, None), ("10.3", 87, "bf16"), ("8.6", 87, None)):
        wide = emitted(model, machine(version, sm))
        assert {value.dtype for node in wide.graph for value in node.outputs} == {ir.DataType.FLOAT}
        assert wide.metadata_props.get("greencc.tensorrt.precision") == precision
        assert "Cast" not in operators(wide)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block_size", [0, 16])
@pytest.mark.parametrize("fused", [True, False])
def test_weights_stored_small_become_floats(bits: int, symmetric: bool, block_size: int, fused: bool) -> None:
    """Tables, products and convolutions, packed for ONNX Runtime or as plain pairs."""
    text = """g (int64[2, 3] i, float[2, 16, 5, 5] z) => (float[2, 3, 24] y, float[2, 24, 5, 5] c) {
      e = Gather (t, i)
      a = MatMul (e, w)
      y = Add (a, b)
      c = Conv (z, k)
    }"""
    shapes = {"t": (50, 40), "w": (40, 24), "b": (24,), "k": (24, 16, 1, 1)}
    model = parse(text, **{name: normal(*shape, seed=len(shape)) for name, shape in shapes.items()})
    options = {"bits": bits, "symmetric": symmetric, "min_elements": 16}
    steps = [
        UpgradeOpset(target=21, below=21),
        QuantizeWeights(ops=("Gather", "MatMul"), block_size=block_size, **options),  # type: ignore[arg-type]
        QuantizeWeights(ops=("Conv",), **options),  # type: ignore[arg-type]
    ]
    stored = weights_only(model, steps, fused=fused)
    assert any(value.dtype.itemsize <= 1 for value in stored.graph.initializers.values())  # type: ignore[union-attr]
    result = emitted(stored, machine("8.2"))
    assert set(operators(result)) == {"Gather", "MatMul", "Add", "Conv"}
    feeds = feeds_of(model, seed=8)
    assert distance(unfused(stored, feeds), unfused(result, feeds)) < 1e-5


def test_weights_that_training_quantized_itself() -> None:
    """Float weights behind a pair, as QAT exports them, UINT8 around 128, and a scale of one element."""
    text = """g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) {
      xq = QuantizeLinear (x, s, z)
      xd = DequantizeLinear (xq, s, z)
      wq = QuantizeLinear <axis=0> (w, ws, wz)
      wd = DequantizeLinear <axis=0> (wq, ws, wz)
      y = Conv (xd, wd)
    }"""
    for kind, middle in ((np.uint8, 128), (np.int8, 0)):
        model = parse(
            text,
            w=normal(16, 16, 1, 1),
            ws=np.full(16, 0.02, np.float32),
            wz=np.full(16, middle, kind),
            s=np.array([0.03], np.float32),
            z=np.array([middle], kind),
        )
        feeds = feeds_of(model)
        for version in ("8.2", "10.3", "11.4"):
            result = emitted(model, machine(version))
            pairs = 2 if version == "8.2" else 1
            assert operators(result)["QuantizeLinear"] == pairs
            assert {value.dtype for value in result.graph.initializers.values()} <= {
                ir.DataType.FLOAT,
                ir.DataType.FLOAT16,
                ir.DataType.INT8,
            }
            assert distance(unfused(model, feeds), unfused(result, feeds)) < STEPS


def test_biases_of_integers_become_floats() -> None:
    text = """g (float[1, 16, 4, 4] x) => (float[1, 16, 4, 4] y) {
      xq = QuantizeLinear (x, s, z)
      xd = DequantizeLinear (xq, s, z)
      wd = DequantizeLinear <axis=0> (wq, ws, wz)
      bd = DequantizeLinear (b, bs)
      y = Conv (xd, wd, bd)
    }"""
    model = parse(
        text,
        wq=np.random.default_rng(0).integers(-127, 127, (16, 16, 1, 1)).astype(np.int8),
        ws=np.full(16, 0.02, np.float32),
        wz=np.zeros(16, np.int8),
        s=np.float32(0.03),
        z=np.int8(0),
        b=np.arange(16, dtype=np.int32) * 1000,
        bs=np.float32(0.0006),
    )
    result = emitted(model, machine("10.3"))
    conv = next(node for node in result.graph if node.op_type == "Conv")
    bias = conv.inputs[2].const_value.numpy()  # type: ignore[index, union-attr]
    np.testing.assert_allclose(bias, np.arange(16) * 0.6, rtol=1e-6)
    feeds = feeds_of(model)
    assert distance(unfused(model, feeds), unfused(result, feeds)) < EXACT
