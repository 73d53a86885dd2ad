"""Which nodes become one kernel, and with which constants."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.data import Array
from greencc.core.graph import ensure_names
from greencc.core.shapes import infer_shapes
from greencc.targets._tvm.epilogue import AddTensor, Apply, Clip, Epilogue, Function, Quantize
from greencc.targets._tvm.fusion import Fused, fuse
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import BatchedProduct, Conv, Dense, Depthwise, Pool, PoolKind, Window

X86 = Machine("x86_64-linux-gnu", "znver4", frozenset({"avx2", "avx512f", "avx512vl", "avx512vnni"}))
ARM = Machine("aarch64-linux-gnu", "cortex-a76", frozenset({"neon", "dotprod"}))
RNG = np.random.default_rng(3)


def kernels(
    body: str,
    weights: Mapping[str, Array],
    *,
    machine: Machine = X86,
    inputs: str = "float[N,8,6,6] x",
    output: str = "float[N,8,6,6] y",
    opset: int = 17,
) -> list[Fused]:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {{ {body} }}'
    words = set(re.findall(r"\w+", body))
    read = [ir.tensor(array, name=name) for name, array in weights.items() if name in words]
    model = ir.from_onnx_text(text, initializers=read)
    ensure_names(model)
    infer_shapes(model)
    return fuse(model, machine)


def float32(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def test_a_normalisation_goes_into_weights_and_bias() -> None:
    weights = {"w": float32(8, 8, 3, 3), "b": float32(8), "g": float32(8), "s": float32(8), "m": float32(8)}
    weights["v"] = np.abs(float32(8)) + 0.1
    (found,) = kernels(
        "c = Conv<pads=[1,1,1,1]>(x, w, b) d = BatchNormalization<epsilon=0.001>(c, g, s, m, v) y = Relu(d)",
        weights,
    )
    assert [node.op_type for node in found.nodes] == ["Conv", "BatchNormalization", "Relu"]
    assert found.workload == Conv(
        Window(6, 6, (3, 3), pads=(1, 1, 1, 1)),
        (8, 8),
        epilogue=Epilogue(bias=True, steps=(Clip(0.0, np.inf),)),
    )
    factor = weights["g"] / np.sqrt(weights["v"].astype(np.float64) + 0.001)
    np.testing.assert_allclose(found.weights, weights["w"] * factor.reshape(-1, 1, 1, 1), rtol=1e-5)
    (bias,) = found.arguments
    np.testing.assert_allclose(
        bias, (weights["b"] - weights["m"]) * factor + weights["s"], rtol=1e-4, atol=1e-6
    )


QUANTIZED = {
    "sx": scalar(0.1),
    "zx": np.array(7, np.uint8),
    "w": RNG.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8),
    "sw": (np.abs(float32(8)) + 0.1),
    "zw": np.zeros(8, np.int8),
    "b": RNG.integers(-500, 500, 8).astype(np.int32),
    "sy": scalar(0.3),
    "zy": np.array(3, np.uint8),
}
QUANTIZED["sb"] = QUANTIZED["sx"] * QUANTIZED["sw"]
QUANTIZED["zb"] = np.zeros(8, np.int32)
PRODUCT = (
    "xf = DequantizeLinear(x, sx, zx) wf = DequantizeLinear<axis=0>(w, sw, zw) "
    "bf = DequantizeLinear<axis=0>(b, sb, zb) c = Conv(xf, wf, bf) "
)


def test_integers_up_to_the_quantized_output() -> None:
    (found,) = kernels(
        PRODUCT + "r = Relu(c) y = QuantizeLinear(r, sy, zy)",
        QUANTIZED,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,6,6] y",
    )
    assert found.integers
    assert found.workload == Conv(
        Window(6, 6),
        (8, 8),
        data="uint8",
        zero_point=7,
        pairs_fit=True,
        epilogue=Epilogue(
            bias=True,
            multiplier=True,
            steps=(Clip(0.0, np.inf),),
            quantize=Quantize("uint8", 1.0, 3, near=True),
        ),
    )
    bias, multiplier = found.arguments
    sums = QUANTIZED["w"].astype(np.int32).sum((1, 2, 3))
    np.testing.assert_array_equal(bias, QUANTIZED["b"] - 7 * sums)
    np.testing.assert_array_equal(multiplier, (QUANTIZED["sx"] * QUANTIZED["sw"]) / QUANTIZED["sy"])


@pytest.mark.parametrize(("scale", "near"), [(0.3, True), (1e-6, False)])
def test_how_far_sums_can_be(scale: float, near: bool) -> None:
    (found,) = kernels(
        PRODUCT + "y = QuantizeLinear(c, sy, zy)",
        {**QUANTIZED, "sy": scalar(scale)},
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,6,6] y",
    )
    multiplier = found.arguments[1]
    assert isinstance(multiplier, np.ndarray)
    farthest = (255 * np.abs(QUANTIZED["w"].astype(float)).sum((1, 2, 3)) * multiplier).max()
    assert bool(farthest < 2**20) is near
    assert found.workload.epilogue.quantize == Quantize("uint8", 1.0, 3, near=near)


def test_a_bound_in_steps_of_the_output() -> None:
    weights = {**QUANTIZED, "low": scalar(0.0), "high": scalar(6.0)}
    (found,) = kernels(
        PRODUCT + "r = Clip(c, low, high) y = QuantizeLinear(r, sy, zy)",
        weights,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,6,6] y",
    )
    (step,) = found.workload.epilogue.steps
    assert step == Clip(0.0, float(np.float32(6.0) / np.float32(0.3)))


def test_the_skip_of_a_sum_is_read_as_integers() -> None:
    weights = {**QUANTIZED, "ss": scalar(0.25), "zs": np.array(9, np.uint8)}
    (found,) = kernels(
        PRODUCT
        + "sf = DequantizeLinear(skip, ss, zs) a = Add(sf, c) r = Relu(a) y = QuantizeLinear(r, sy, zy)",
        weights,
        inputs="uint8[N,8,6,6] x, uint8[N,8,6,6] skip",
        output="uint8[N,8,6,6] y",
    )
    epilogue = found.workload.epilogue
    assert epilogue.steps == (AddTensor("uint8", 0.25, 9), Clip(0.0, np.inf))
    assert epilogue.quantize == Quantize("uint8", float(np.float32(0.3)), 3)
    _, multiplier, skip = found.arguments
    np.testing.assert_array_equal(multiplier, QUANTIZED["sx"] * QUANTIZED["sw"])
    assert isinstance(skip, ir.Value)
    assert skip.name == "skip"


def test_signed_machines_read_unsigned_integers_128_lower() -> None:
    (found,) = kernels(
        PRODUCT + "y = QuantizeLinear(c, sy, zy)",
        QUANTIZED,
        machine=ARM,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,6,6] y",
    )
    assert isinstance(found.workload, Conv)
    assert (found.dtype, found.workload.data, found.workload.zero_point) == ("uint8", "int8", 7 - 128)
    sums = QUANTIZED["w"].astype(np.int32).sum((1, 2, 3))
    np.testing.assert_array_equal(found.arguments[0], QUANTIZED["b"] - (7 - 128) * sums)


@pytest.mark.parametrize(
    "change",
    [
        {"zw": np.full(8, 1, np.int8)},
        {"w": QUANTIZED["w"].astype(np.uint8), "zw": np.zeros(8, np.uint8)},
    ],
    ids=["zero point", "unsigned"],
)
def test_weights_that_no_kernel_takes_are_computed_in_float(change: Mapping[str, Array]) -> None:
    weights = {**QUANTIZED, **change}
    (found,) = kernels(
        PRODUCT + "y = Identity(c)", weights, inputs="uint8[N,8,6,6] x", output="float[N,8,6,6] y"
    )
    assert not found.integers
    shifted = weights["w"].astype(np.float32) - weights["zw"].astype(np.float32).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(found.weights, shifted * weights["sw"].reshape(-1, 1, 1, 1), rtol=1e-6)


def test_a_bias_on_another_grid_is_added_as_float() -> None:
    weights = {**QUANTIZED, "sb": QUANTIZED["sb"] * np.float32(1.5)}
    (found,) = kernels(
        PRODUCT + "y = QuantizeLinear(c, sy, zy)",
        weights,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,6,6] y",
    )
    assert found.workload.epilogue.offset
    _, _, offset = found.arguments
    np.testing.assert_array_equal(offset, QUANTIZED["b"].astype(np.float32) * weights["sb"] / QUANTIZED["sy"])


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        ("s = Sigmoid(c) y = Mul(c, s)", (Apply(Function.SILU),)),
        ("s = HardSigmoid<alpha=0.16666667>(c) y = Mul(s, c)", (Apply(Function.HARD_SWISH),)),
        ("y = LeakyRelu<alpha=0.5>(c)", (Apply(Function.LEAKY_RELU, 0.5),)),
        ("a = Add(c, x) y = Relu(a)", (AddTensor("float32"), Clip(0.0, np.inf))),
        ("a = Max(c, low) y = Min(high, a)", (Clip(-1.5, 2.5),)),
        ("a = Relu(c) y = Clip(a, low, high)", (Clip(0.0, 2.5),)),
        (
            "a = Relu(c) b = Add(a, x) y = Relu(b)",
            (Clip(0.0, np.inf), AddTensor("float32"), Clip(0.0, np.inf)),
        ),
        ("y = Clip(c, high, low)", (Clip(-1.5, -1.5),)),
    ],
)
def test_functions_behind_a_convolution(body: str, steps: tuple[object, ...]) -> None:
    weights = {"w": float32(8, 8, 1, 1), "low": scalar(-1.5), "high": scalar(2.5)}
    (found,) = kernels("c = Conv(x, w)" + body, weights)
    assert found.workload.epilogue.steps == steps
    assert found.output.name == "y"


@pytest.mark.parametrize("body", ["y = Clip(c, low, none)", "y = Clip(c, none)", "y = Max(c, none)"])
def test_a_bound_that_is_no_number_is_left_alone(body: str) -> None:
    weights = {"w": float32(8, 8, 1, 1), "low": scalar(-1.5), "none": scalar(np.nan)}
    (found,) = kernels("c = Conv(x, w)" + body, weights)
    assert found.output.name == "c"


def test_all_bounds_before_the_quantized_output_hold() -> None:
    weights = {**QUANTIZED, "low": scalar(-1.0), "high": scalar(6.0)}
    (found,) = kernels(
        PRODUCT + "r = Relu(c) k = Clip(r, low, high) y = QuantizeLinear(k, sy, zy)",
        weights,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,6,6] y",
    )
    assert found.workload.epilogue.steps == (Clip(0.0, float(np.float32(6.0) / np.float32(0.3))),)


@pytest.mark.parametrize("scale", [0.0, -0.3, np.inf, np.nan])
def test_integers_on_a_grid_that_is_none_are_computed_in_float(scale: float) -> None:
    body = PRODUCT + "y = QuantizeLinear(c, sy, zy)"
    shapes = {"inputs": "uint8[N,8,6,6] x", "output": "uint8[N,8,6,6] y"}
    (found,) = kernels(body, {**QUANTIZED, "sy": scalar(scale)}, **shapes)
    assert found.integers
    assert found.output.name == "c"
    (found,) = kernels(body, {**QUANTIZED, "sx": scalar(scale)}, **shapes)
    assert not found.integers
    steps = np.append(np.float32(scale), QUANTIZED["sw"][1:]).astype(np.float32)
    (found,) = kernels(body, {**QUANTIZED, "sw": steps}, **shapes)
    assert not found.integers
    np.testing.assert_array_equal(
        found.weights, QUANTIZED["w"].astype(np.float32) * steps.reshape(-1, 1, 1, 1)
    )


@pytest.mark.parametrize(("shape", "taken"), [((8,), True), ((1, 8), True), ((1, 1), True), ((8, 1), False)])
def test_a_bias_per_row_is_none_of_the_channels(shape: tuple[int, ...], taken: bool) -> None:
    found = kernels(
        "y = Gemm(x, w, b)",
        {"w": float32(4, 8), "b": float32(*shape)},
        inputs="float[8,4] x",
        output="float[8,8] y",
    )
    assert bool(found) is taken


def test_what_is_read_elsewhere_is_stored() -> None:
    (found,) = kernels("c = Conv(x, w) r = Relu(c) y = Add(r, c)", {"w": float32(8, 8, 1, 1)})
    assert found.output.name == "c"
    assert found.workload.epilogue == Epilogue()


def test_a_constant_that_varies_within_a_channel_is_no_bias() -> None:
    (found,) = kernels("c = Conv(x, w) y = Add(c, t)", {"w": float32(8, 8, 1, 1), "t": float32(1, 8, 6, 6)})
    assert found.output.name == "c"


def test_a_constant_that_widens_the_result_is_no_bias() -> None:
    found = kernels(
        "c = MatMul(x, w) y = Add(c, t)",
        {"w": float32(8, 4), "t": float32(1, 1, 1)},
        inputs="float[N,8] x",
        output="float[1,N,4] y",
    )
    assert found[0].output.name == "c"


def test_depthwise_and_groups() -> None:
    first, second = kernels(
        "a = Conv<group=8, pads=[1,1,1,1]>(x, d) y = Conv<group=2>(a, g)",
        {"d": float32(8, 1, 3, 3), "g": float32(8, 4, 1, 1)},
    )
    assert isinstance(first.workload, Depthwise)
    assert isinstance(second.workload, Conv)
    assert second.workload.groups == 2


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0))])
def test_automatic_padding(mode: str, pads: tuple[int, ...]) -> None:
    (found,) = kernels(
        f'y = Conv<auto_pad="{mode}", strides=[2,2]>(x, w)',
        {"w": float32(8, 8, 3, 3)},
        output="float[N,8,3,3] y",
    )
    assert isinstance(found.workload, Conv)
    assert found.workload.window.pads == pads
    assert found.workload.window.output == (3, 3)


def test_rows_columns_or_channels_that_vary_have_no_kernel() -> None:
    assert not kernels(
        "y = Conv(x, w)",
        {"w": float32(8, 8, 1, 1)},
        inputs="float[N,8,H,6] x",
        output="float[N,8,H,6] y",
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_integers(transposed: bool) -> None:
    stored = QUANTIZED["w"].reshape(8, 8)
    axis = 0 if transposed else 1
    (found,) = kernels(
        f"xf = DequantizeLinear(x, sx, zx) wf = DequantizeLinear<axis={axis}>(w, sw, zw) "
        f"c = Gemm<transB={int(transposed)}>(xf, wf) y = QuantizeLinear(c, sy, zy)",
        {**QUANTIZED, "w": stored},
        inputs="uint8[N,8] x",
        output="uint8[N,8] y",
    )
    assert isinstance(found.workload, Dense)
    assert found.weights is not None
    ordered = stored.T if transposed else stored
    np.testing.assert_array_equal(found.weights, ordered)
    np.testing.assert_array_equal(found.arguments[0], -7 * ordered.astype(np.int32).sum(0))


def test_a_product_of_activations() -> None:
    (found,) = kernels(
        "y = MatMul(a, b)", {}, inputs="float[N,2,5,4] a, float[N,2,4,3] b", output="float[N,2,5,3] y"
    )
    assert found.workload == BatchedProduct((5, 4, 3))
    assert found.second is not None


def test_a_product_that_broadcasts_is_left_alone() -> None:
    assert not kernels(
        "y = MatMul(a, b)", {}, inputs="float[N,2,5,4] a, float[1,2,4,3] b", output="float[N,2,5,3] y"
    )


def test_a_maximum_of_integers_on_one_grid() -> None:
    (found,) = kernels(
        "f = DequantizeLinear(x, sx, zx) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(f) "
        "y = QuantizeLinear(p, sx, zx)",
        QUANTIZED,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,3,3] y",
    )
    assert found.workload == Pool(Window(6, 6, (2, 2), (2, 2)), 8, PoolKind.MAX, "uint8", zero_point=7)


def test_a_mean_of_integers() -> None:
    (found,) = kernels(
        "f = DequantizeLinear(x, sx, zx) p = GlobalAveragePool(f) y = QuantizeLinear(p, sy, zy)",
        QUANTIZED,
        inputs="uint8[N,8,6,6] x",
        output="uint8[N,8,1,1] y",
    )
    assert isinstance(found.workload, Pool)
    assert found.workload.window == Window(6, 6, (6, 6))
    assert found.workload.epilogue == Epilogue(multiplier=True, quantize=Quantize("uint8", 1.0, 3))
    np.testing.assert_array_equal(found.arguments[0], np.full(8, np.float32(0.1) / np.float32(0.3)))


def test_a_window_that_rounds_up_is_left_to_the_runtime() -> None:
    assert not kernels(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", {}, output="float[N,8,3,3] y"
    )
