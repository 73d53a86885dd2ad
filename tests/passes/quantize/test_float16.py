"""FP16 and BF16 conversion; ONNX Runtime's CPU provider runs FP16 graphs through casts of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import UsageError
from greencc.passes.float16 import Borders, ConvertFloat16, HalfType, Scope

HALF = frozenset(
    [
        "Add",
        "Clip",
        "Conv",
        "Flatten",
        "Gather",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Relu",
        "Resize",
        "Softmax",
        "Tanh",
    ]
)

TEXT = """
net (float[N, 3, 8, 8] x) => (float[N, 10] y, float[N, 128] f) {
  c = Conv <kernel_shape=[3,3]> (x, w0, b0)
  r = Clip (c, zero, six)
  up = Resize <mode="nearest"> (r, , scales)
  d = Conv <kernel_shape=[5,5], strides=[2,2]> (up, w1)
  f = Flatten (d)
  s = Softmax <axis=1> (f)
  y = Gemm (s, w2, b2)
}"""


@pytest.fixture
def model(parse: Any, random: Any) -> Any:
    return parse(
        TEXT,
        w0=random(8, 3, 3, 3, scale=0.3),
        b0=random(8),
        zero=np.float32(0),
        six=np.float32(6),
        scales=np.float32([1, 1, 2, 2]),
        w1=random(8, 8, 5, 5, scale=0.1),
        w2=random(128, 10),
        b2=random(10),
    )


def half(context: Any, ops: frozenset[str] = HALF, bfloat16: frozenset[str] = frozenset()) -> Any:
    return replace(context, capabilities=replace(context.capabilities, float16=ops, bfloat16=bfloat16))


def test_regions_are_cast_at_their_borders_only(kit: Any, model: Any, random: Any) -> None:
    x = {"x": random(4, 3, 8, 8)}
    expected = kit.run(model, x)
    size = kit.save(model, "float.onnx").stat().st_size
    outcome = ConvertFloat16().apply(model, half(kit.context(x)))
    assert outcome.changed == 6
    casts = [
        (node.inputs[0].name, node.attributes["to"].as_int())
        for node in model.graph
        if node.op_type == "Cast"
    ]
    # In: x and the Softmax. Out: f, which the Softmax and an output share, and y.
    assert sorted(casts) == [("f_float16", 1), ("s", 10), ("x", 10), ("y_float16", 1)]
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [
        ("y", ir.DataType.FLOAT),
        ("f", ir.DataType.FLOAT),
    ]
    # Resize's scales are not data and stay in float.
    assert model.graph.initializers["scales"].dtype is ir.DataType.FLOAT
    assert "w0" not in model.graph.initializers
    assert kit.save(model, "half.onnx").stat().st_size < 0.75 * size
    for before, after in zip(expected, kit.run(model, x), strict=True):
        assert np.max(np.abs(after - before)) < 5e-3 * np.max(np.abs(before))


def test_a_target_without_half_kernels(kit: Any, model: Any) -> None:
    for element in HalfType:
        outcome = ConvertFloat16(element=element, scope=Scope.COMPUTE).apply(
            model, half(kit.context(None), frozenset())
        )
        assert outcome.changed == 0
        assert f"no {element.value.upper()} kernels" in outcome.findings[0].message


def test_large_weights_and_activations_stay_in_float(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 16] x) => (float[N, 16] y) {
          a = MatMul (x, huge)
          b = Mul (a, tiny)
          y = MatMul (b, w)
        }""",
        huge=random(16, 16, scale=1e5),
        tiny=np.float32([1e-5]),
        w=random(16, 16),
    )
    x = {"x": random(32, 16)}
    expected = kit.run(model, x)[0]
    outcome = ConvertFloat16().apply(model, half(kit.context(x)))
    assert outcome.changed == 1
    left = [finding for finding in outcome.findings if finding.kind == "left-in-float"]
    assert ["'huge'" in left[0].message, "'a'" in left[1].message] == [True, True]
    got = kit.run(model, x)[0]
    assert np.max(np.abs(got - expected)) < 5e-3 * np.max(np.abs(expected))


def test_without_calibration_data_the_check_is_said_to_be_missing(kit: Any, model: Any) -> None:
    outcome = ConvertFloat16().apply(model, half(kit.context(None)))
    assert outcome.changed == 6
    assert any("no activation was checked" in finding.message for finding in outcome.findings)


def test_regions_without_a_product_are_left_alone(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { a = Relu (x) y = Tanh (a) }")
    assert ConvertFloat16().apply(model, half(kit.context({"x": random(2, 4)}))).changed == 0
    assert len(model.graph) == 2


def test_bfloat16(kit: Any, parse: Any, random: Any) -> None:
    weight = random(16, 8, scale=1e6)
    model = parse("g (float[N, 16] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=weight)
    outcome = ConvertFloat16(element=HalfType.BFLOAT16).apply(
        model, half(kit.context(None), frozenset(), frozenset({"MatMul"}))
    )
    assert outcome.changed == 1
    kit.save(model)
    stored = model.graph.initializers["w_bfloat16"].const_value
    assert stored.dtype is ir.DataType.BFLOAT16
    np.testing.assert_allclose(stored.numpy().astype(np.float32), weight, rtol=1 / 256)


def test_excluded_nodes_and_refused_rewrites(kit: Any, model: Any, random: Any) -> None:
    x = {"x": random(4, 3, 8, 8)}
    name = next(node.name for node in model.graph if node.op_type == "Gemm")
    clone = model.clone()
    assert ConvertFloat16(exclude=(str(name),)).apply(clone, half(kit.context(x))).changed == 5
    context = half(kit.context(x, limit=1))
    assert ConvertFloat16().apply(model, context).changed == 1
    kit.run(model, x)


@pytest.mark.parametrize("options", [{"limit": 0.0}, {"limit": 1e5}, {"batch": 0}, {"min_elements": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ConvertFloat16(**options)


STORAGE = ConvertFloat16(min_elements=16)


@pytest.mark.parametrize("element", HalfType)
def test_storage_halves_the_file_and_computes_in_float(
    kit: Any, model: Any, random: Any, element: HalfType
) -> None:
    x = {"x": random(4, 3, 8, 8)}
    expected, before = kit.run(model, x), kit.kernels(model)
    size = kit.save(model, "float.onnx").stat().st_size
    outcome = replace(STORAGE, element=element).apply(model, half(kit.context(None), frozenset()))
    assert outcome.changed == 3
    assert kit.save(model, "half.onnx").stat().st_size < 0.65 * size
    # The runtime has folded the casts: it runs what it ran before.
    assert kit.kernels(model) == before
    assert [value.name for value in model.graph.outputs] == ["y", "f"]
    for left, right in zip(expected, kit.run(model, x), strict=True):
        assert np.max(np.abs(left - right)) < (2e-3 if element is HalfType.FLOAT16 else 2e-2) * np.max(
            np.abs(left)
        )


def test_storage_leaves_what_sixteen_bits_cannot_hold(kit: Any, parse: Any, random: Any) -> None:
    weights = {"big": random(8, 8, scale=3e5), "tiny": random(8, 8, scale=1e-8), "fine": random(8, 8)}
    weights["dust"] = random(8, 8)
    weights["dust"][:, 3] *= 1e-8
    weights["mask"] = np.where(random(8, 8) > 0, 0, -np.inf).astype(np.float32)
    model = parse(
        """
        g (float[N, 8] x) => (float[N, 8] y, float[8, 8] z) {
          a = MatMul (x, big) b = MatMul (a, tiny) c = MatMul (b, fine) y = MatMul (c, dust) z = Softmax (mask)
        }""",
        **weights,
    )
    outcome = STORAGE.apply(model, half(kit.context(None), frozenset()))
    stored = {name for name, value in model.graph.initializers.items() if value.dtype is ir.DataType.FLOAT16}
    assert stored == {"fine_float16", "dust_float16", "mask_float16"}
    text = " | ".join(finding.message for finding in outcome.findings if finding.kind == "left-in-float")
    assert "'big': it has values beyond" in text
    assert "'tiny': FLOAT16 would change a channel" in text
    # BF16 has the range of float32.
    other = parse("g (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, big) }", big=weights["big"])
    assert (
        replace(STORAGE, element=HalfType.BFLOAT16).apply(other, half(kit.context(None), frozenset())).changed
        == 1
    )


def test_storage_in_bodies_and_of_shared_and_public_constants(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (bool c, float[4, 8] x, float[8, 8] given) => (float[4, 8] y, float[8, 8] public) {
          a = MatMul (x, shared)
          b = MatMul (a, given)
          public = Relu (out)
          y = If (c) <
            then_branch = t () => (float[4, 8] p) {
              k = Constant <value = float[8, 2] {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}> ()
              kt = Transpose (k)
              d = MatMul (b, k)
              p = MatMul (d, kt)
            },
            else_branch = e () => (float[4, 8] q) { q = MatMul (b, shared) }
          >
        }""",
        shared=random(8, 8),
        out=random(8, 8),
        given=random(8, 8),
    )
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"n{number}"
    x = {"x": random(4, 8), "given": random(8, 8)}
    feeds = [{"c": np.array(flag), **x} for flag in (True, False)]
    expected = [kit.run(model, feed)[0] for feed in feeds]
    # shared, out, and k in the body; `given` can be overridden by a caller.
    assert STORAGE.apply(model, half(kit.context(None), frozenset())).changed == 3
    assert model.graph.initializers["given"].dtype is ir.DataType.FLOAT
    for feed, before in zip(feeds, expected, strict=True):
        np.testing.assert_allclose(kit.run(model, feed)[0], before, rtol=2e-2, atol=2e-2)


def test_storage_obeys_the_options_and_the_log(kit: Any, model: Any) -> None:
    context = half(kit.context(None, limit=1), frozenset())
    assert STORAGE.apply(model.clone(), context).changed == 1
    name = str(next(node.name for node in model.graph if node.op_type == "Gemm"))
    clone = model.clone()
    assert replace(STORAGE, exclude=(name,)).apply(clone, half(kit.context(None), frozenset())).changed == 2
    assert clone.graph.initializers["w2"].dtype is ir.DataType.FLOAT
    assert ConvertFloat16(min_elements=10**6).apply(clone, half(kit.context(None), frozenset())).changed == 0


def test_bf16_needs_opset_13(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w) }", opset=12, w=random(8, 8))
    outcome = replace(STORAGE, element=HalfType.BFLOAT16).apply(model, half(kit.context(None), frozenset()))
    assert (outcome.changed, outcome.findings[0].kind) == (0, "refused")


def test_half_inputs_and_outputs(kit: Any, model: Any, random: Any) -> None:
    x = random(4, 3, 8, 8)
    expected = kit.run(model, {"x": x})
    ConvertFloat16(io=Borders.HALF).apply(model, half(kit.context({"x": x})))
    graph = model.graph
    assert [value.dtype for value in (*graph.inputs, *graph.outputs)] == [ir.DataType.FLOAT16] * 3
    assert [value.name for value in (*graph.inputs, *graph.outputs)] == ["x", "y", "f"]
    assert sum(node.op_type == "Cast" for node in graph) == 2
    for before, after in zip(expected, kit.run(model, {"x": x.astype(np.float16)}), strict=True):
        assert np.max(np.abs(after - before)) < 5e-3 * np.max(np.abs(before))
