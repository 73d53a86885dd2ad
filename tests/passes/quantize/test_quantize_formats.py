"""The graph TensorRT wants, rule by rule of `targets.md`, and the one ARM's dot products want."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.model import check_model, infer_shapes
from greencc.passes._quantize_insert import insert
from greencc.passes._quantize_placement import place
from greencc.passes._quantize_scales import activation_scale, storable
from greencc.passes._ranges import Range
from greencc.passes.quantize_int8 import QuantizeInt8

POOLS = frozenset({"AveragePool", "GlobalAveragePool", "MaxPool"})
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def tensorrt_int8(*, strong: bool = False) -> Int8Support:
    """TensorRT up to 10 with weak typing, or with strong typing from 10.12 on."""
    return Int8Support(
        activation=ElementType.INT8,
        symmetric_activations=True,
        weight_bits=8,
        per_channel=True,
        bias=ElementType.FLOAT,
        ops=WEIGHTED | POOLS | {"Add", "Concat", "Flatten", "Reshape", "Transpose"},
        quantize_outputs=False,
        reason="TensorRT's explicit quantization",
        scale_type=ElementType.FLOAT16 if strong else ElementType.FLOAT,
        min_opset=19 if strong else 13,
        min_channels=16,
        skip_gemv=True,
        input_ops=POOLS | {"Concat"},
        quantize_skips=True,
    )


@pytest.fixture
def net(parse: Any, random: Any) -> Any:
    """Stem, a residual block with a shortcut convolution, one without, an inception, pools, heads."""
    text = """
    net (float[N, 3, 16, 16] x) => (float[N, 10] logits, float[N, 1] score, float[N, 24, 8, 8] up) {
      stem = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
      r0 = Relu (stem)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r0, w1, b1)
      r1 = Relu (c1)
      c2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r1, w2, b2)
      short = Conv <kernel_shape=[1,1]> (r0, ws, b2)
      a1 = Add (short, c2)
      r2 = Relu (a1)
      c3 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=32> (r2, w3, b3)
      a2 = Add (c3, r2)
      r3 = Relu (a2)
      p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r3)
      left = Conv <kernel_shape=[1,1]> (p, w4)
      avg = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (p)
      both = Concat <axis=1> (left, avg)
      c5 = Conv <kernel_shape=[1,1]> (both, w5, b5)
      up_ = ConvTranspose <kernel_shape=[1,1], group=2> (c5, w6, b6)
      up = Tanh (up_)
      g = GlobalAveragePool (c5)
      f = Flatten (g)
      logits = Gemm <transB=1> (f, w7, b7)
      score = Gemm (f, w8)
    }"""
    shapes = {
        "w0": (16, 3, 3, 3), "w1": (32, 16, 3, 3), "w2": (32, 32, 3, 3), "ws": (32, 16, 1, 1),
        "w3": (32, 1, 3, 3), "w4": (16, 32, 1, 1), "w5": (32, 48, 1, 1), "w6": (32, 12, 1, 1), "w7": (10, 32),
        "w8": (32, 1),
    }  # fmt: skip
    weights = {
        name: random(*shape, scale=1 / np.sqrt(np.prod(shape[1:]) or 1)) for name, shape in shapes.items()
    }
    biases = {"b0": 16, "b1": 32, "b2": 32, "b3": 32, "b5": 32, "b6": 24, "b7": 10}
    return parse(text, opset=19, **weights, **{name: random(size) for name, size in biases.items()})


def producer(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    return "" if node is None else node.op_type


def initializer(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.is_initializer()
    return value.const_value.numpy()


def errors(expected: list[np.ndarray], got: list[np.ndarray]) -> list[float]:
    return [
        float(np.linalg.norm(after - before) / np.linalg.norm(before))
        for before, after in zip(expected, got, strict=True)
    ]


def lint(model: ir.Model, scale_type: type[np.floating]) -> dict[str, set[int]]:
    """Check every rule that holds for any graph; which inputs of which nodes are quantized."""
    quantized: dict[str, set[int]] = {}
    for value in model.graph.initializers.values():
        assert value.dtype is not ir.DataType.INT32, "an INT32 bias"
    for node in model.graph:
        assert not node.op_type.startswith(("QLinear", "MatMulInteger", "ConvInteger", "Dynamic"))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero_point = initializer(node.inputs[1]), initializer(node.inputs[2])
            assert zero_point.dtype == np.int8
            assert zero_point.shape == scale.shape
            assert not zero_point.any()
            assert scale.dtype == scale_type
            assert np.isfinite(scale).all()
            assert (scale > 0).all()
            weight = node.inputs[0].is_initializer()
            assert weight or scale.shape == (), "activations have one scale"
            if node.op_type == "QuantizeLinear":
                # Only for the sake of what reads integers.
                assert [use.node.op_type for use in node.outputs[0].uses()] == ["DequantizeLinear"]
            elif weight:
                (use,) = node.outputs[0].uses()
                transposed = use.node.attributes.get("transB")
                axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else 1, "MatMul": 1}
                assert node.attributes["axis"].as_int() == axis[use.node.op_type]
                assert scale.shape == (node.inputs[0].shape[axis[use.node.op_type]],)
        else:
            here = {i for i, value in enumerate(node.inputs) if producer(value) == "DequantizeLinear"}
            if here:
                quantized[str(node.outputs[0].name)] = here
            if node.op_type == "Relu":
                assert producer(node.inputs[0]) in ("Conv", "Add"), (
                    "a pair between a convolution and its Relu"
                )
    return quantized


@pytest.mark.parametrize("strong", [False, True])
def test_every_rule_of_the_table(kit: Any, net: Any, random: Any, strong: bool) -> None:
    x = {"x": random(16, 3, 16, 16)}
    expected = kit.run(net, x)
    context = kit.context(x)
    context = replace(context, capabilities=replace(context.capabilities, int8=tensorrt_int8(strong=strong)))
    outcome = QuantizeInt8().apply(net, context)
    infer_shapes(net)
    check_model(net)
    quantized = lint(net, np.float32)
    left = {finding.node: finding.message for finding in outcome.findings if finding.kind == "left-in-float"}
    assert {name.split("_")[0] for name in left} == {"Conv", "Gemm"}
    assert any("3 input and 16 output channels" in message for message in left.values())
    assert any("one column" in message for message in left.values())
    both = {0, 1}
    assert quantized == {
        # No stem (3 channels), no score (one column).
        "c1": both, "c2": both, "short": both, "c3": both, "left": both, "c5": both, "up_": both, "logits": both,
        # The shortcut, not the branch that ends last; the skip, not the convolution.
        "a1": {0}, "a2": {1},
        "p": {0}, "avg": {0}, "both": both, "g": {0}, "f": {0},
    }  # fmt: skip
    # Concat's operands and what it gives have one scale.
    pairs = {node.inputs[0].name: node.inputs[1] for node in net.graph if node.op_type == "QuantizeLinear"}
    assert pairs["left"] is pairs["avg"] is pairs["both"]
    if strong:
        for node in net.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                scale = initializer(node.inputs[1])
                np.testing.assert_array_equal(scale.astype(np.float16).astype(np.float32), scale)
    assert max(errors(expected, kit.run(net, x))) < 0.07


def test_an_older_opset_is_refused_with_the_way_out(kit: Any, net: Any, random: Any) -> None:
    net.graph.opset_imports[""] = 17
    x = {"x": random(4, 3, 16, 16)}
    context = kit.context(x)
    context = replace(context, capabilities=replace(context.capabilities, int8=tensorrt_int8(strong=True)))
    outcome = QuantizeInt8().apply(net, context)
    assert outcome.changed == 0
    assert "target = 19 and below = 19" in outcome.findings[0].message


def test_pairs_of_half_precision_need_opset_19(kit: Any, parse: Any, random: Any) -> None:
    """Where FP32 graphs may be older: an FP16 QuantizeLinear came with 19."""
    model = parse(
        "g (float16[4, 16] x) => (float16[4, 16] y) { y = MatMul (x, w) }", w=random(16, 16).astype(np.float16)
    )
    context = kit.context({"x": random(4, 16).astype(np.float16)})
    int8 = replace(tensorrt_int8(strong=True), min_opset=13)
    context = replace(context, capabilities=replace(context.capabilities, int8=int8))
    infer_shapes(model)
    outcome = QuantizeInt8().apply(model, context)
    assert outcome.changed == 0
    assert "target = 19 and below = 19" in outcome.findings[0].message


HALF = """
g ({0}[2, 16, 8, 8] x) => ({0}[2, 8] y) {{
  c = Conv <kernel_shape=[3,3]> (x, w, b)
  r = Relu (c)
  g = GlobalAveragePool (r)
  f = Flatten (g)
  y = Gemm <alpha=0.3, beta=2.0> (f, v, d)
}}"""


def test_a_half_precision_graph_gets_half_precision_scales(parse: Any, kit: Any, random: Any) -> None:
    """TensorRT with strong typing: FP16 graph, FP16 scales, weights dequantized to FP16."""
    bias = random(16)
    weights = {"w": random(16, 16, 3, 3, scale=0.1), "v": random(16, 8, scale=0.3), "b": bias, "d": bias[:8]}
    full = parse(HALF.format("float"), opset=19, **weights)
    model = parse(
        HALF.format("float16"),
        opset=19,
        **{name: array.astype(np.float16) for name, array in weights.items()},
    )
    x = random(2, 16, 8, 8)
    int8 = tensorrt_int8(strong=True)
    plan = place(model.graph, int8, int8.ops, frozenset())
    assert len(plan.weighted) == 2
    assert not plan.findings
    seen = {"x": x} | kit.run_as_written(full, {"x": x}, ["r", "g", "f"])
    scales = {
        value: activation_scale(Range(float(seen[value.name].min()), float(seen[value.name].max())), int8)
        for value in plan.values
    }
    assert not insert(model.graph, plan, scales, int8)
    infer_shapes(model)
    check_model(model)
    lint(model, np.float16)
    expected = kit.run(full, {"x": x})[0]
    got = kit.run(model, {"x": x.astype(np.float16)})[0]
    assert got.dtype == np.float16
    assert np.max(np.abs(got.astype(np.float32) - expected)) < 0.03 * np.max(np.abs(expected))


def test_half_precision_values_are_not_for_other_targets(parse: Any, kit: Any, random: Any) -> None:
    model = parse(
        "g (float16[2, 16] x) => (float16[2, 16] y) { y = MatMul (x, w) }",
        w=random(16, 16).astype(np.float16),
    )
    plan = place(model.graph, kit.int8, kit.int8.ops, frozenset())
    assert "not float32" in plan.findings[0].message


def test_storable_scales_cover_and_fit() -> None:
    int8 = tensorrt_int8(strong=True)
    scales = np.float32([1e-12, 1e-5, 0.1, 0.333, 7.7, 70000.0])
    stored = storable(scales, int8)
    np.testing.assert_array_equal(stored.astype(np.float16).astype(np.float32), stored)
    assert (stored[:-1] >= scales[:-1]).all()
    assert np.isfinite(stored).all()
    # Nothing is rounded for the others.
    np.testing.assert_array_equal(storable(scales, replace(int8, scale_type=ElementType.FLOAT)), scales)


@pytest.mark.parametrize(
    ("rows", "columns", "reason"), [(1, 16, "one row"), (16, 1, "one column"), (16, 16, None)]
)
def test_vectors_are_not_worth_integers(
    parse: Any, random: Any, rows: int, columns: int, reason: str
) -> None:
    int8 = tensorrt_int8()
    weight = random(16, columns)
    for text in (
        f"g (float[{rows}, 16] x) => (float[{rows}, {columns}] y) {{ y = MatMul (x, w) }}",
        f"g (float[4, {rows}, 16] x, float[4, 16, {columns}] z) => (float[4, {rows}, {columns}] y) "
        "{ y = MatMul (x, z) }",
    ):
        model = parse(text, **({"w": weight} if "(x, w)" in text else {}))
        plan = place(model.graph, int8, int8.ops, frozenset())
        assert len(plan.weighted) == (reason is None)
        assert [reason in finding.message for finding in plan.findings] == ([True] if reason else [])
    # An unknown number of rows may be one, and may be a thousand.
    model = parse(f"g (float[N, 16] x) => (float[N, {columns}] y) {{ y = MatMul (x, w) }}", w=weight)
    assert len(place(model.graph, int8, int8.ops, frozenset()).weighted) == (columns != 1)


def test_arm_has_signed_activations_and_symmetric_weights(kit: Any, net: Any, random: Any) -> None:
    from greencc.core.machine import parse_cpuinfo
    from greencc.targets._cpu_capabilities import int8_support

    arm = int8_support(parse_cpuinfo("processor : 0\nFeatures : fp asimd asimddp\nCPU part : 0xd0b\n"))
    x = {"x": random(16, 3, 16, 16)}
    expected = kit.run(net, x)
    context = kit.context(x)
    QuantizeInt8().apply(net, replace(context, capabilities=replace(context.capabilities, int8=arm)))
    kinds = set()
    for node in net.graph:
        if node.op_type == "DequantizeLinear":
            source, zero_point = node.inputs[0], initializer(node.inputs[2])
            kinds.add((source.is_initializer(), zero_point.dtype.name))
            assert not (source.is_initializer() and zero_point.any())
    assert kinds == {(False, "int8"), (True, "int8"), (True, "int32")}
    assert max(errors(expected, kit.run(net, x))) < 0.07
