"""What a parser has not is written in what it has, with the same results."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError
from greencc.targets._tensorrt.emit import emit

from .emitting import distance, emitted, feeds_of, machine, normal, operators, parse, unfused

X = "g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] y)"
ROWS = "g (float[2, 5, 16] x) => (float[2, 5, 16] y)"
BOTH = "g (float[2, 5, 16] x, float[2, 5, 16] z) => (float[2, 5, 16] y)"
MS = "com.microsoft."

# Text, opset, shapes of the weights, and what the graph is at 8.2.
CASES: dict[str, tuple[str, int, dict[str, tuple[int, ...]], set[str]]] = {
    "gelu": (f"{ROWS} {{ y = Gelu (x) }}", 20, {}, {"Div", "Erf", "Add", "Mul"}),
    "gelu-tanh": (f'{ROWS} {{ y = Gelu <approximate="tanh"> (x) }}', 20, {}, {"Mul", "Add", "Tanh"}),
    "hard-swish": (f"{ROWS} {{ y = HardSwish (x) }}", 14, {}, {"HardSigmoid", "Mul"}),
    "mish": (f"{ROWS} {{ y = Mish (x) }}", 18, {}, {"Softplus", "Tanh", "Mul"}),
    "cast-like": (f"{ROWS} {{ c = CastLike (x, i) y = CastLike (c, x) }}", 17, {"i": (1,)}, {"Cast"}),
    "layer-norm": (f"{ROWS} {{ y = LayerNormalization (x, s, b) }}", 17, {"s": (16,), "b": (16,)}, set()),
    "layer-norm-of-two": (
        f"{ROWS} {{ y = LayerNormalization <axis=1, epsilon=0.1> (x, s) }}",
        17,
        {"s": (5, 16)},
        {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"},
    ),
    "group-norm-per-group": (
        f"{X} {{ y = GroupNormalization <num_groups=2> (x, s, b) }}",
        18,
        {"s": (2,), "b": (2,)},
        {"Reshape", "InstanceNormalization", "Mul", "Add", "Shape"},
    ),
    "group-norm-per-channel": (
        f"{X} {{ y = GroupNormalization <num_groups=2> (x, s, b) }}",
        21,
        {"s": (4,), "b": (4,)},
        {"Reshape", "InstanceNormalization", "Mul", "Add", "Shape"},
    ),
    "rms-norm": (f"{ROWS} {{ y = RMSNormalization (x, s) }}", 23, {"s": (16,)}, set()),
    "ms-gelu": (f"{ROWS} {{ y = {MS}Gelu (x) }}", 17, {}, {"Div", "Erf", "Add", "Mul"}),
    "ms-fast-gelu": (f"{ROWS} {{ y = {MS}FastGelu (x) }}", 17, {}, {"Mul", "Add", "Tanh"}),
    "ms-fast-gelu-bias": (f"{ROWS} {{ y = {MS}FastGelu (x, b) }}", 17, {"b": (16,)}, {"Mul", "Add", "Tanh"}),
    "ms-bias-gelu": (f"{ROWS} {{ y = {MS}BiasGelu (x, b) }}", 17, {"b": (16,)}, {"Div", "Erf", "Add", "Mul"}),
    "ms-quick-gelu": (f"{ROWS} {{ y = {MS}QuickGelu <alpha=1.5> (x) }}", 17, {}, {"Mul", "Sigmoid"}),
    "skip-layer-norm": (
        f"{BOTH} {{ y = {MS}SkipLayerNormalization <epsilon=0.01> (x, z, s, b, c) }}",
        17,
        {"s": (16,), "b": (16,), "c": (16,)},
        set(),
    ),
    "skip-layer-norm-and-its-sum": (
        f"{BOTH} {{ n, , , t = {MS}SkipLayerNormalization (x, z, s, b) r = Relu (t) y = Add (n, r) }}",
        17,
        {"s": (16,), "b": (16,)},
        set(),
    ),
    "skip-rms-norm": (
        f"{BOTH} {{ y = {MS}SkipSimplifiedLayerNormalization (x, z, s) }}",
        17,
        {"s": (16,)},
        {"Add", "Mul", "ReduceMean", "Sqrt", "Div"},
    ),
    "rms-norm-by-its-old-name": (
        f"{ROWS} {{ y = SimplifiedLayerNormalization <epsilon=0.01> (x, s) }}",
        17,
        {"s": (16,)},
        {"Mul", "ReduceMean", "Add", "Sqrt", "Div"},
    ),
    "fused-conv": (
        f'{X} {{ y = {MS}FusedConv <activation="Relu", pads=[1,1,1,1]> (x, w, b) }}',
        17,
        {"w": (4, 4, 3, 3), "b": (4,)},
        {"Conv", "Relu"},
    ),
    "fused-conv-sum": (
        f'{X} {{ y = {MS}FusedConv <activation="LeakyRelu", activation_params=[0.3], pads=[1,1,1,1]> (x, w, b, x) }}',
        17,
        {"w": (4, 4, 3, 3), "b": (4,)},
        {"Conv", "Add", "LeakyRelu"},
    ),
    "fused-conv-clip": (
        f'{X} {{ y = {MS}FusedConv <activation="Clip", activation_params=[-0.5, 0.7], pads=[1,1,1,1]> (x, w) }}',
        17,
        {"w": (4, 4, 3, 3)},
        {"Conv", "Clip"},
    ),
    "fused-conv-hard-sigmoid": (
        f'{X} {{ y = {MS}FusedConv <activation="HardSigmoid", activation_params=[0.3, 0.4], pads=[1,1,1,1]> (x, w) }}',
        17,
        {"w": (4, 4, 3, 3)},
        {"Conv", "HardSigmoid"},
    ),
    "fused-gemm": (
        f'g (float[3, 16] x) => (float[3, 8] y) {{ y = {MS}FusedGemm <activation="LeakyRelu", activation_alpha=0.2,'
        " transB=1, alpha=0.5> (x, w, b) }",
        17,
        {"w": (8, 16), "b": (8,)},
        {"Gemm", "LeakyRelu"},
    ),
    "fused-matmul": (
        f"g (float[2, 16, 5] x, float[2, 8, 16] z) => (float[2, 5, 8] y) {{"
        f" y = {MS}FusedMatMul <transA=1, transB=1, alpha=0.25> (x, z) }}",
        17,
        {},
        {"Transpose", "MatMul", "Mul"},
    ),
}
NORM = {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"}


def make(name: str) -> ir.Model:
    text, opset, shapes, _ = CASES[name]
    kinds = {"i": np.float16}
    weights = {
        key: normal(*shape, seed=len(key)).astype(kinds.get(key, np.float32)) for key, shape in shapes.items()
    }
    return parse(text, opset, **weights)


@pytest.mark.parametrize("version", ["8.2", "8.6", "11.4"])
@pytest.mark.parametrize("name", CASES)
def test_decompositions_compute_the_same(name: str, version: str) -> None:
    model = make(name)
    feeds = feeds_of(model)
    expected = unfused(model, feeds)
    result = emitted(model, machine(version))
    assert set(result.opset_imports) == {""}
    assert distance(expected, unfused(result, feeds)) < (1e-3 if name == "cast-like" else 2e-6)
    if version == "8.2":
        assert set(operators(result)) <= (CASES[name][3] or NORM | {"Relu"})


@pytest.mark.parametrize(
    ("name", "operator", "since"),
    [
        ("layer-norm", "LayerNormalization", "8.6"),
        ("skip-layer-norm", "LayerNormalization", "8.6"),
        ("hard-swish", "HardSwish", "8.6"),
        ("gelu", "Gelu", "10.13"),
        ("mish", "Mish", "10.13"),
    ],
)
def test_what_a_parser_has_is_left_to_it(name: str, operator: str, since: str) -> None:
    assert operator in operators(emitted(make(name), machine(since)))
    assert operator not in operators(emitted(make(name), machine("8.2")))


def test_halves_are_normalized_in_float32() -> None:
    """Squares of 300 are beyond FP16."""
    text = """g (float16[2, 16] x, float16[2, 16] z) => (float16[2, 16] y) {
      y = com.microsoft.SkipSimplifiedLayerNormalization (x, z, s)
    }"""
    model = parse(text, s=np.ones(16, np.float16))
    feeds = {
        name: (300 * array.astype(np.float32)).astype(np.float16) for name, array in feeds_of(model).items()
    }
    result = emitted(model, machine("11.4"))
    (got,) = unfused(result, feeds)
    total = feeds["x"].astype(np.float64) + feeds["z"]
    expected = total / np.sqrt((total**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(got, expected, rtol=4e-3, atol=4e-3)


def test_bodies_of_control_flow_are_rewritten_as_well() -> None:
    text = """g (float[2, 16] x, bool c) => (float[2, 16] y) {
      y = If (c) <
        then_branch = t () => (float[2, 16] a) { a = com.microsoft.Gelu (x) },
        else_branch = e () => (float[2, 16] b) { b = HardSwish (x) }
      >
    }"""
    model = parse(text)
    result = emitted(model, machine("8.2"))
    for chosen in (True, False):
        feeds = feeds_of(model) | {"c": np.array(chosen)}
        assert distance(unfused(model, feeds), unfused(result, feeds)) < 1e-6


def test_operators_without_a_form_are_named() -> None:
    cases = [
        (f"{ROWS} {{ y = {MS}Attention <num_heads=2> (x, v, b) }}", {"v": (16, 48), "b": (48,)}, "com.microsoft::Attention"),
        (f"{ROWS} {{ y = {MS}FusedConv <activation=\"Swirl\"> (x, v) }}", {"v": (5, 5, 1)}, "Swirl"),
        ("g (int8[4, 4] x) => (int32[4, 4] y) { y = MatMulInteger (x, x) }", {}, "MatMulInteger"),
        (
            "g (float[2, 5, 16] x) => (float[2, 5, 1] y) { n, y, i = LayerNormalization (x, s) }",
            {"s": (16,)},
            "gives its mean",
        ),
    ]  # fmt: skip
    for text, shapes, message in cases:
        model = parse(text, **{key: normal(*shape) for key, shape in shapes.items()})
        with pytest.raises(InputError, match=message):
            emit(model, machine("8.2"))


def test_an_operator_of_a_newer_opset_is_named_with_the_way_out() -> None:
    text = "g (float[1, 2, 4, 8] q) => (float[1, 2, 4, 8] y) { y = Attention (q, q, q) }"
    with pytest.raises(InputError, match=r"Attention.* did not exist at opset 17.*TensorRT 8\.6") as caught:
        emit(parse(text, 23), machine("8.6"))
    assert "older opset" in caught.value.hint  # type: ignore[operator]
