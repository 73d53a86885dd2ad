"""Hostile and odd models through every quantizing pass: a right result or a clear message, never a corrupt model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from greencc.core.capabilities import Capabilities, ElementType
from greencc.core.engine import EngineBuilder
from greencc.core.errors import GreenccError, InputError
from greencc.core.graph import all_nodes, graphs_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Finding, Pass
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.equalize_layers import EqualizeLayers, Objective
from greencc.passes.float16 import ConvertFloat16, Scope
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.passes.quantize_weights import QuantizeWeights, WeightForm, WeightMethod
from greencc.passes.smooth_quant import SmoothQuant
from greencc.passes.split_outlier_channels import SplitOutlierChannels
from greencc.targets.cpu import CpuTarget

OPSET = 21
HALF = frozenset(
    ["Add", "Clip", "Concat", "Conv", "Flatten", "Gather", "Gemm", "MatMul", "Mul", "Relu", "Sigmoid"]
)
FUSED = frozenset(
    [
        "ai.onnx::ConvInteger",
        "ai.onnx::DequantizeLinear:int4",
        "ai.onnx::DynamicQuantizeLinear",
        "ai.onnx::MatMulInteger",
        "com.microsoft::GatherBlockQuantized",
        "com.microsoft::MatMulNBits",
        "com.microsoft::MatMulNBits:8",
    ]
)
WEIGHTED = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")
DYNAMIC = ("Conv", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
NBITS = {"bits": 4, "block_size": 16, "ops": WEIGHTED, "min_elements": 1}
PASSES: dict[str, tuple[Pass, ...]] = {
    "int8": (QuantizeInt8(),),
    "qoperator": (QuantizeInt8(), ConvertQOperator()),
    "repaired int8": (
        EqualizeLayers(worth=0.0),
        SplitOutlierChannels(expand=0.5, worth=0.0),
        SmoothQuant(gain=0.0, insert=True, insert_gain=0.0),
        QuantizeInt8(),
    ),
    "weights": (QuantizeWeights(ops=WEIGHTED, min_elements=1),),
    "weights in blocks": (QuantizeWeights(**NBITS),),
    "weights in standard blocks": (QuantizeWeights(**NBITS, form=WeightForm.DEQUANTIZE, symmetric=False),),
    "gptq": (QuantizeWeights(**NBITS, method=WeightMethod.GPTQ),),
    "dynamic": (QuantizeDynamic(ops=DYNAMIC, min_elements=1),),
    "half": (ConvertFloat16(scope=Scope.COMPUTE),),
    "half storage": (ConvertFloat16(scope=Scope.STORAGE, min_elements=1),),
    "equalized by weights": (EqualizeLayers(objective=Objective.WEIGHTS),),
}
# They cannot do without calibration data.
NEED_DATA = frozenset(["gptq", "int8", "qoperator", "repaired int8"])
# They look at activations where there is data.
LOOK = NEED_DATA | {"half"}
# 4 bits leave a sixteenth; small sums do not average it out.
COARSE = frozenset(["weights in blocks", "weights in standard blocks", "gptq"])


@dataclass
class Case:
    """A model, inputs, and what is odd about it.

    Attributes:
        model: The model.
        feeds: Calibration samples and inputs of the comparison.
        tolerance: Largest relative error after 8-bit passes; 4-bit ones may have five times as much.
        loose: Passes whose error is not looked at, since no numbers of theirs fit.
        more: Inputs beside the calibrated ones to run with.
    """

    model: ir.Model
    feeds: dict[str, np.ndarray]
    tolerance: float = 0.05
    loose: frozenset[str] = frozenset()
    more: dict[str, np.ndarray] = field(default_factory=dict)


def random(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(sum(shape) + 7 * len(shape)).normal(size=shape) * scale).astype(np.float32)


def make(
    text: str,
    *,
    opset: int = OPSET,
    domains: dict[str, int] | None = None,
    overridable: tuple[str, ...] = (),
    **constants: Any,
) -> ir.Model:
    graph = onnx.parser.parse_graph(text)
    for position, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
        for attribute in node.attribute:
            for inner, child in enumerate(attribute.g.node):
                child.name = f"{attribute.name}_{child.op_type}_{inner}"
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph.initializer.extend(tensors)
    graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        for item in tensors
        if item.name in overridable
    )
    imports = [helper.make_opsetid(name, version) for name, version in {"": opset, **(domains or {})}.items()]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10 if opset > 18 else 8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


NET = """
net (float[N, 16, 6, 6] x) => (float[N, 16] y) {
  c = Conv <pads=[1,1,1,1]> (x, w0, b0)
  r = Relu (c)
  d = Conv <pads=[1,1,1,1]> (r, w1)
  e = Relu (d)
  g = GlobalAveragePool (e)
  f = Flatten (g)
  y = Gemm (f, w2, b2)
}"""


def weights(**changed: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "w0": random(16, 16, 3, 3, scale=0.1),
        "b0": random(16),
        "w1": random(16, 16, 3, 3, scale=0.15),
        "w2": random(16, 16, scale=0.4),
        "b2": random(16, scale=0.3),
    } | changed


IMAGES = {"x": random(6, 16, 6, 6)}


def zero_channels() -> Case:
    w0, w1, w2 = random(16, 16, 3, 3, scale=0.1), random(16, 16, 3, 3, scale=0.15), random(16, 16)
    w0[3], w0[:, 5], w1[:, 2], w2[:, 7], w2[4] = 0, 0, 0, 0, 0
    return Case(make(NET, **weights(w0=w0, w1=w1, w2=w2)), IMAGES)


def zero_weights() -> Case:
    return Case(make(NET, **weights(w1=np.zeros((16, 16, 3, 3), np.float32))), IMAGES)


def dead_relus() -> Case:
    b0 = random(16)
    b0[::2] = -100
    return Case(make(NET, **weights(b0=b0)), IMAGES)


def all_dead() -> Case:
    return Case(make(NET, **weights(b0=np.full(16, -100, np.float32))), IMAGES)


def one_huge_weight() -> Case:
    w1 = random(16, 16, 3, 3, scale=0.15)
    w1[4, 5, 1, 1] = 1e6
    # FP16 does not hold it, 8 bits leave nothing of the others in its channel, but the output is its alone.
    return Case(make(NET, **weights(w1=w1)), IMAGES, tolerance=0.2)


def one_huge_bias() -> Case:
    b0 = random(16)
    b0[3] = 1e5
    return Case(make(NET, **weights(b0=b0)), IMAGES, tolerance=0.2)


def tiny_numbers() -> Case:
    small = {name: array * np.float32(1e-9) for name, array in weights().items()}
    return Case(make(NET, **small), {"x": IMAGES["x"] * np.float32(1e-9)}, loose=frozenset(PASSES))


def denormal_weights() -> Case:
    return Case(make(NET, **weights(w1=random(16, 16, 3, 3) * np.float32(1e-41))), IMAGES)


SHARED = """
net (float[N, 16] x) => (float[N, 16] y, float[N, 16] z) {
  a = MatMul (x, w)
  r = Relu (a)
  y = Gemm (r, w, b)
  z = Gemm <transB = 1> (r, w, b)
}"""
ROWS = {"x": random(8, 16)}


def weight_shared_by_products() -> Case:
    return Case(make(SHARED, w=random(16, 16, scale=0.3), b=random(16)), ROWS)


def weight_shared_with_float() -> Case:
    text = """
    net (float[16, 16] x) => (float[16, 16] y, float[16, 16] z) {
      a = MatMul (x, w)
      y = Relu (a)
      z = Sub (y, w)
    }"""
    return Case(make(text, w=random(16, 16, scale=0.3)), {"x": random(16, 16)})


def weight_shared_with_a_body() -> Case:
    text = """
    net (float[N, 16] x, bool c) => (float[N, 16] y) {
      a = MatMul (x, w)
      r = Relu (a)
      b = MatMul (r, w)
      y = If (c) <
        then_branch = t () => (float[N, 16] u) { p = MatMul (b, w) u = Add (p, r) },
        else_branch = e () => (float[N, 16] v) { v = Sub (r, b) }
      >
    }"""
    model = make(text, w=random(16, 16, scale=0.3))
    return Case(model, ROWS | {"c": np.array([True])}, more={"c": np.array([False])})


def loop_reads_from_outside() -> Case:
    text = """
    net (float[N, 16] x) => (float[N, 16] y) {
      a = MatMul (x, w)
      r = Relu (a)
      s = MatMul (r, w)
      y = Loop (trips, go, s) <body = b (int64 i, bool more, float[N, 16] before)
        => (bool again, float[N, 16] after) {
          again = Identity (more)
          t = MatMul (before, w)
          after = Add (t, r)
        }>
    }"""
    model = make(text, w=random(16, 16, scale=0.2), trips=np.int64(2), go=np.array(True))
    return Case(model, ROWS, tolerance=0.1)


def body_gives_out_a_quantized_value() -> Case:
    text = """
    net (float[N, 16] x, bool c) => (float[N, 16] y) {
      a = MatMul (x, w)
      r = Relu (a)
      b = MatMul (r, w)
      y = If (c) <
        then_branch = t () => (float[N, 16] u) { u = Identity (r) },
        else_branch = e () => (float[N, 16] v) { v = Identity (b) }
      >
    }"""
    model = make(text, w=random(16, 16, scale=0.3))
    return Case(model, ROWS | {"c": np.array([True])}, more={"c": np.array([False])})


def overridable() -> Case:
    model = make(NET, overridable=("w0", "b2"), **weights())
    return Case(model, IMAGES, more={"w0": -weights()["w0"], "b2": np.zeros(16, np.float32)})


def empty() -> Case:
    return Case(make("net (float[N, 16] x) => (float[N, 16] x) { }"), ROWS)


def nothing_to_quantize() -> Case:
    return Case(make("net (float[N, 16] x) => (float[N, 16] y) { r = Relu (x) y = Tanh (r) }"), ROWS)


def outputs_inside() -> Case:
    text = """
    net (float[N, 16, 6, 6] x) => (
      float[N, 16, 6, 6] c, float[N, 16, 6, 6] r, float[N, 16, 6, 6] y, float[N, 16, 6, 6] p
    ) {
      c = Conv <pads=[1,1,1,1]> (x, w0, b0)
      r = Relu (c)
      y = Conv <pads=[1,1,1,1]> (r, w1)
      p = MaxPool <kernel_shape=[1,1]> (y)
    }"""
    return Case(make(text, **{name: weights()[name] for name in ("w0", "b0", "w1")}), IMAGES)


def input_is_output() -> Case:
    text = """
    net (float[N, 16] x) => (float[N, 16] x, float[N, 16] y) {
      y = MatMul (x, w)
    }"""
    return Case(make(text, w=random(16, 16)), ROWS)


def same_operand_twice() -> Case:
    text = """
    net (float[N, 16, 16] x) => (float[N, 16, 32] y, float[N, 16, 16] z) {
      a = MatMul (x, w)
      s = MatMul (a, a)
      d = Add (a, a)
      m = Mul (d, d)
      k = Concat <axis = 2> (a, a)
      y = MatMul (k, v)
      e = Add (s, m)
      z = MatMul (e, w)
    }"""
    model = make(text, w=random(16, 16, scale=0.3), v=random(32, 32, scale=0.3))
    return Case(model, {"x": random(3, 16, 16)}, tolerance=0.1)


def dynamic_shapes() -> Case:
    text = """
    net (float[N, 16, H, W] x) => (float[N, K] y) {
      c = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w0, b0)
      r = Relu (c)
      s = Shape <end = 2> (r)
      t = Concat <axis = 0> (s, rest)
      u = Reshape (r, t)
      m = ReduceMean <keepdims = 0> (u, axis)
      y = Gemm (m, w2, b2)
    }"""
    parts = {name: weights()[name] for name in ("w0", "b0", "w2", "b2")}
    model = make(text, rest=np.array([-1]), axis=np.array([2]), **parts)
    return Case(model, IMAGES, more={"x": random(2, 16, 9, 5)})


def no_known_shapes() -> Case:
    model = make(NET, **weights())
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None
    return Case(model, IMAGES)


def no_elements() -> Case:
    text = """
    net (float[N, 16] x) => (float[N, 0] y, float[N, 16] z) {
      y = MatMul (x, w)
      z = Gemm (x, v, b)
    }"""
    model = make(text, w=np.zeros((16, 0), np.float32), v=random(16, 16), b=np.float32(1))
    return Case(model, ROWS)


def infinite_mask() -> Case:
    text = """
    net (float[N, 16, 16] x) => (float[N, 16, 16] y) {
      q = MatMul (x, w)
      k = Transpose <perm = [0, 2, 1]> (q)
      s = MatMul (q, k)
      m = Add (s, mask)
      p = Softmax (m)
      a = MatMul (p, q)
      y = MatMul (a, w)
    }"""
    mask = np.where(np.tri(16, dtype=bool), 0, -np.inf).astype(np.float32)
    return Case(make(text, w=random(16, 16, scale=0.2), mask=mask), {"x": random(3, 16, 16)}, tolerance=0.1)


def contributed_operator() -> Case:
    text = NET.replace("r = Relu (c)", "r = com.microsoft.Gelu (c)")
    return Case(make(text, domains={"com.microsoft": 1}, **weights()), IMAGES)


def model_function() -> Case:
    text = NET.replace("r = Relu (c)", "r = local.Twice (c)")
    proto = ir.to_proto(make(text, domains={"local": 1}, **weights()))
    body = [helper.make_node("Add", ["i", "i"], ["o"])]
    imports = [helper.make_opsetid("", OPSET)]
    proto.functions.append(helper.make_function("local", "Twice", ["i"], ["o"], body, imports))
    return Case(ir.from_proto(proto), IMAGES)


def weight_behind_an_identity() -> Case:
    text = """
    net (float[N, 16] x) => (float[N, 16] y, float[N, 16] k) {
      i = Identity (w)
      a = MatMul (x, i)
      r = Relu (a)
      y = Gemm (r, w, b)
      k = Add (r, b)
    }"""
    return Case(make(text, w=random(16, 16, scale=0.3), b=random(16)), ROWS)


def weight_is_an_output() -> Case:
    model = make("net (float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", w=random(16, 16))
    model.graph.outputs.append(model.graph.initializers["w"])
    return Case(model, ROWS)


def names_already_taken() -> Case:
    text = """
    net (float[N, 16] x) => (float[N, 16] x_scale, float[N, 16] y) {
      x_dequantized = MatMul (x, w)
      w_scale = Relu (x_dequantized)
      x_quantized = MatMul (w_scale, w)
      x_scale = Relu (x_quantized)
      y = Add (x_scale, w_quantized)
    }"""
    return Case(make(text, w=random(16, 16, scale=0.3), w_quantized=random(16)), ROWS)


CASES: dict[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        all_dead,
        body_gives_out_a_quantized_value,
        weight_behind_an_identity,
        contributed_operator,
        dead_relus,
        denormal_weights,
        dynamic_shapes,
        empty,
        infinite_mask,
        input_is_output,
        loop_reads_from_outside,
        model_function,
        names_already_taken,
        no_elements,
        no_known_shapes,
        nothing_to_quantize,
        one_huge_bias,
        one_huge_weight,
        outputs_inside,
        overridable,
        same_operand_twice,
        tiny_numbers,
        weight_is_an_output,
        weight_shared_by_products,
        weight_shared_with_a_body,
        weight_shared_with_float,
        zero_channels,
        zero_weights,
    )
}


def context(
    kit: Any, feeds: dict[str, np.ndarray] | None, build: EngineBuilder | None = None, **int8: Any
) -> Context:
    # 7 bits: sums of products saturate nowhere.
    made: Context = kit.context(feeds, weight_bits=7, **int8)
    facts: Capabilities = replace(made.capabilities, float16=HALF, fused_ops=FUSED)
    return replace(made, capabilities=facts, build=build or CpuTarget(threads=1).reference)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def assert_sound(model: ir.Model) -> None:
    """Valid by the full check, every name once, nothing read that does not exist, nothing kept that nobody reads."""
    infer_shapes(model)
    check_model(model)
    names = [node.name for node in all_nodes(model)]
    assert len(set(names)) == len(names)
    for graph in graphs_of(model):
        if isinstance(graph, ir.Graph):
            values = [*graph.inputs, *graph.initializers.values()]
            values += [value for node in graph for value in node.outputs if value.name]
            unique = {id(value): value.name for value in values}
            assert len(set(unique.values())) == len(unique)
    for node in all_nodes(model):
        for value in node.inputs:
            if value is None:
                continue
            assert value.producer() is not None or value.is_graph_input() or value.const_value is not None
        if node.op_type == "DequantizeLinear":
            assert all(value is None or value.const_value is not None for value in node.inputs[1:])


def relative(expected: np.ndarray, got: np.ndarray) -> float:
    """Norm of the error relative to the norm of what is expected."""
    size = np.linalg.norm(expected.astype(np.float64))
    return float(np.linalg.norm(got.astype(np.float64) - expected) / (size or 1.0))


def apply(name: str, model: ir.Model, ctx: Context) -> list[Finding]:
    findings: list[Finding] = []
    for step in PASSES[name]:
        findings += step.apply(model, ctx).findings
    return findings


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES)
def test_odd_models(kit: Any, case: str, name: str) -> None:
    made = CASES[case]()
    model = made.model
    runs = [made.feeds, made.feeds | made.more] if made.more else [made.feeds]
    if "c" in made.feeds:
        runs = [feeds | {"c": feeds["c"].reshape(())} for feeds in runs]
    outputs = [value.name for value in model.graph.outputs]
    before = [run(model, feeds) for feeds in runs]
    floats = ir.to_proto(model).SerializeToString(deterministic=True)
    candidate = model.clone()
    # A condition has no batch axis, so it is no data.
    feeds = {key: value for key, value in made.feeds.items() if key != "c"}
    ctx = context(kit, feeds, build=_condition(CpuTarget(threads=1).reference) if "c" in made.feeds else None)
    findings = apply(name, candidate, ctx)
    rewritten = bool(ctx.rewrites.applied)
    if case not in ("empty", "nothing_to_quantize") and not name.startswith("equal"):
        assert rewritten or any(finding.kind in ("left-in-float", "refused") for finding in findings)
    assert all(finding.message for finding in findings)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == floats
    assert [value.name for value in candidate.graph.outputs] == outputs
    assert_sound(candidate)
    for given, expected in zip(runs, before, strict=True):
        got = run(candidate, given)
        for key, value in expected.items():
            assert got[key].shape == value.shape
            assert got[key].dtype == value.dtype
            assert np.isfinite(got[key]).all()
            limit = 1e-5 if name.startswith("equal") else made.tolerance * (5 if name in COARSE else 1)
            if name not in made.loose:
                assert relative(value, got[key]) <= limit, key


def _condition(build: EngineBuilder) -> EngineBuilder:
    """Engines that always take the first branch, so that calibration data need not have the scalar condition."""

    def make_engine(model: ir.Model, outputs: Any = None) -> Any:
        engine = build(model, outputs)

        class Fixed:
            inputs = engine.inputs
            outputs = engine.outputs

            def run(self, feeds: Any, outputs: Any = None) -> Any:
                return engine.run({**feeds, "c": np.array(True)}, outputs)

            def close(self) -> None:
                engine.close()

        return Fixed()

    return make_engine


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay_as_they_are(kit: Any, name: str, value: float) -> None:
    w1 = random(16, 16, 3, 3, scale=0.15)
    w1[3, 2, 1, 1] = value
    text = """
    net (float[N, 16, 6, 6] x) => (float[N, 16] y, float[N, 16, 4, 4] z) {
      g = GlobalAveragePool (x)
      f = Flatten (g)
      y = Gemm (f, w2, b2)
      z = Conv (x, w1)
    }"""
    model = make(text, **{key: array for key, array in weights(w1=w1).items() if key in ("w1", "w2", "b2")})
    before = run(model, IMAGES)
    findings = apply(name, model, context(kit, IMAGES))
    assert_sound(model)
    after = run(model, IMAGES)
    np.testing.assert_array_equal(np.isfinite(after["z"]), np.isfinite(before["z"]))
    assert relative(before["y"], after["y"]) < (0.25 if name in COARSE else 0.05)
    # 16 bits hold both.
    if name not in ("equalized by weights", "half storage"):
        told = [finding.message for finding in findings if finding.kind == "left-in-float"]
        assert any("finite" in message or "nan" in message for message in told), told


@pytest.mark.parametrize("name", PASSES)
def test_activations_that_are_not_finite_are_named(kit: Any, name: str) -> None:
    model = make(NET.replace("r = Relu (c)", "l = Log (c) r = Relu (l)"), **weights())
    ctx = context(kit, IMAGES)
    if name in LOOK:
        with pytest.raises(InputError, match=r"activation '(l|r)' becomes NaN or infinity") as caught:
            apply(name, model, ctx)
        assert caught.value.hint
    else:
        apply(name, model, ctx)
        assert_sound(model)


@pytest.mark.parametrize("name", PASSES)
def test_samples_that_are_not_finite_are_named(kit: Any, name: str) -> None:
    images = random(6, 16, 6, 6)
    images[4, 3, 2, 1] = np.inf
    model = make(NET, **weights())
    ctx = context(kit, {"x": images})
    if name in LOOK:
        with pytest.raises(InputError, match=r"calibration sample 4 .* NaN or infinity in input 'x'"):
            apply(name, model, ctx)
    else:
        apply(name, model, ctx)
        assert_sound(model)


@pytest.mark.parametrize("name", sorted(NEED_DATA))
def test_without_calibration_data_the_user_is_told(kit: Any, name: str) -> None:
    with pytest.raises(InputError, match="calibration data") as caught:
        apply(name, make(NET, **weights()), context(kit, None))
    assert "--calibration" in str(caught.value.hint)
    with pytest.raises(InputError, match="no samples"):
        apply(name, make(NET, **weights()), context(kit, {"x": np.zeros((0, 16, 6, 6), np.float32)}))


def in_pairs(kit: Any) -> ir.Model:
    model = make(NET, **weights())
    apply("int8", model, context(kit, IMAGES))
    return model


def in_integer_operators(kit: Any) -> ir.Model:
    model = make(NET, **weights())
    apply("qoperator", model, context(kit, IMAGES))
    return model


def in_blocks(kit: Any) -> ir.Model:
    model = make(NET, **weights())
    apply("weights in blocks", model, context(kit, IMAGES))
    # Convolutions have no such operator; theirs stay in float, or DequantizeLinear would give it away.
    assert any(node.op_type == "MatMulNBits" for node in model.graph)
    return model


def in_dynamic_form(kit: Any) -> ir.Model:
    model = make(NET, **weights())
    apply("dynamic", model, context(kit, IMAGES))
    return model


QUANTIZED = (in_pairs, in_integer_operators, in_blocks, in_dynamic_form)
# They make integers; the others only change floats, of which such a model still has some.
INTEGER = frozenset(["dynamic", "int8", "qoperator"])


@pytest.mark.parametrize("name", [name for name in PASSES if name != "repaired int8"])
@pytest.mark.parametrize("quantized", QUANTIZED)
def test_quantized_models_are_refused_or_stay_right(kit: Any, quantized: Any, name: str) -> None:
    model = quantized(kit)
    before = run(model, IMAGES)["y"]
    proto = ir.to_proto(model).SerializeToString(deterministic=True)
    if name in INTEGER:
        findings = PASSES[name][0].apply(model, context(kit, IMAGES)).findings
        (refused,) = (finding for finding in findings if finding.kind == "refused")
        assert "quantized already" in refused.message
        assert "float model" in refused.message
        assert ir.to_proto(model).SerializeToString(deterministic=True) == proto
        return
    apply(name, model, context(kit, IMAGES))
    assert_sound(model)
    assert relative(before, run(model, IMAGES)["y"]) <= (0.25 if name in COARSE else 0.02)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_old_opsets_are_refused_or_stay_right(kit: Any, opset: int, name: str) -> None:
    model = make(NET, opset=opset, **weights())
    before = run(model, IMAGES)["y"]
    findings = apply(name, model, context(kit, IMAGES))
    # Of the whole model: those of SmoothQuant are of single nodes.
    refusals = [finding.message for finding in findings if finding.kind == "refused" and finding.node is None]
    assert all("upgrade-opset" in message for message in refusals)
    needed = {"int8": 10, "qoperator": 10, "repaired int8": 10, "dynamic": 11, "half": 0, "half storage": 0}
    least = 0 if name.startswith("equal") else needed.get(name, 13)
    assert bool(refusals) == (opset < least)
    assert_sound(model)
    assert relative(before, run(model, IMAGES)["y"]) < 0.05


@pytest.mark.parametrize("name", PASSES)
def test_operators_that_no_engine_runs(kit: Any, name: str) -> None:
    text = NET.replace("r = Relu (c)", "r = my.ops.Thing (c)")
    model = make(text, domains={"my.ops": 1}, **weights())
    ctx = context(kit, IMAGES)
    if name in NEED_DATA:
        with pytest.raises(GreenccError, match=r"Thing|my\.ops"):
            apply(name, model, ctx)
        return
    # FP16 only looks at what comes before the operator: the types behind it are not known.
    apply(name, model, ctx)
    assert_sound(model)
    assert sum(node.op_type == "Thing" for node in model.graph) == 1


def test_scales_that_fp16_cannot_hold_are_raised(kit: Any) -> None:
    small = {key: array * np.float32(1e-9) for key, array in weights().items()}
    images = {"x": IMAGES["x"] * np.float32(1e-9)}
    model = make(NET, **small)
    ctx = context(
        kit,
        images,
        activation=ElementType.INT8,
        symmetric_activations=True,
        bias=ElementType.FLOAT,
        scale_type=ElementType.FLOAT16,
    )
    assert QuantizeInt8().apply(model, ctx).changed
    assert_sound(model)
    scales = [
        node.inputs[1].const_value.numpy()
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert scales
    for scale in scales:
        half = scale.astype(np.float16)
        assert (half > 0).all()
        np.testing.assert_array_equal(half.astype(np.float32), scale.astype(np.float32))
    assert np.isfinite(run(model, images)["y"]).all()
