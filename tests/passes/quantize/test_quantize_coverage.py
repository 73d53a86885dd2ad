"""Operators, bodies, and weights that do not fit: what runs as integers, what stays in float, and what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.capabilities import ElementType, Int8Support
from greencc.core.model import check_model, infer_shapes
from greencc.passes._quantize_nodes import quantized_already, quantized_form
from greencc.passes._quantize_placement import place
from greencc.passes._quantize_scales import activation_scale
from greencc.passes._ranges import Range
from greencc.passes.quantize_int8 import QuantizeInt8

MORE_OPS = frozenset({"DepthToSpace", "GatherElements", "LeakyRelu", "ReduceMax", "Where"})


def quantize(kit: Any, model: ir.Model, feeds: dict[str, np.ndarray], **int8: Any) -> Any:
    outcome = QuantizeInt8().apply(model, kit.context(feeds, **int8))
    infer_shapes(model)
    check_model(model)
    return outcome


def left(outcome: Any) -> dict[str, str]:
    found = [finding for finding in outcome.findings if finding.kind == "left-in-float"]
    assert len({finding.node for finding in found}) == len(found), "more than one finding for a node"
    return {finding.node: finding.message for finding in found}


@pytest.mark.parametrize(("rank", "group"), [(1, 1), (1, 8), (2, 2), (3, 1), (3, 8)])
def test_convolutions_of_every_rank(kit: Any, parse: Any, random: Any, rank: int, group: int) -> None:
    dims = ", ".join(["8"] * rank)
    kernel = ",".join(["3"] * rank)
    model = parse(
        f"g (float[N, 8, {dims}] x) => (float[N, 16, {', '.join('ABC'[:rank])}] y) "
        f"{{ y = Conv <kernel_shape=[{kernel}], group={group}> (x, w, b) }}",
        w=random(16, 8 // group, *[3] * rank, scale=0.2),
        b=random(16),
    )
    x = {"x": random(8, 8, *[8] * rank)}
    expected = kit.run(model, x)[0]
    assert quantize(kit, model, x).changed == 1
    assert kit.kernels(model) == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.03 * np.max(np.abs(expected))


CHAINS = {
    "LeakyRelu": ("m = LeakyRelu <alpha=0.1> (a)", {"QLinearLeakyRelu"}),
    "DepthToSpace": ("d = DepthToSpace <blocksize=2> (a) m = Concat <axis=1> (d, d, d, d)", {"DepthToSpace"}),
    "Split": ("p, q = Split <axis=1> (a, halves) m = Concat <axis=1> (q, p)", {"Split", "QLinearConcat"}),
    "Where": ("b = Conv <kernel_shape=[1,1]> (x, v) c = Greater (x, zero) m = Where (c, a, b)", {"QLinearWhere"}),
    "ReduceMax": ("m = ReduceMax <axes=[2,3], keepdims=1> (a)", {"ReduceMax"}),
    "Resize": (
        'm = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (a, , twice)',
        {"Resize"},
    ),
    "GatherElements": ("m = GatherElements <axis=1> (a, order)", {"GatherElements"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_between_two_convolutions(kit: Any, parse: Any, random: Any, name: str) -> None:
    """conv -> operator -> conv has one quantization at the start and one dequantization at the end."""
    text, kernels = CHAINS[name]
    model = parse(
        f"g (float[2, 16, 8, 8] x) => (float[2, 16, H, W] y) {{ a = Conv <kernel_shape=[1,1]> (x, w) {text} "
        "y = Conv <kernel_shape=[1,1]> (m, v) }",
        w=random(16, 16, 1, 1, scale=0.2),
        v=random(16, 16, 1, 1, scale=0.2),
        halves=np.array([8, 8]),
        zero=np.float32(0),
        twice=np.float32([1, 1, 2, 2]),
        order=np.zeros((2, 16, 8, 8), np.int64) + np.arange(16)[::-1, None, None],
    )
    x = {"x": random(2, 16, 8, 8)}
    expected = kit.run(model, x)[0]
    outcome = quantize(kit, model, x, ops=kit.int8.ops | MORE_OPS)
    assert not left(outcome)
    found = kit.kernels(model)
    assert kernels <= set(found)
    assert found["DequantizeLinear"] == found["QuantizeLinear"] == 1
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.06 * np.max(np.abs(expected))


def test_pads_with_zero_only(parse: Any, kit: Any, random: Any) -> None:
    int8 = Int8Support(**{**vars(kit.int8), "ops": kit.int8.ops | {"Pad"}})
    for padding, expected in (("", 1), (", zero", 1), (", one", 0)):
        model = parse(
            "g (float[2, 4, 8, 8] x) => (float[2, 4, H, W] y) { a = Conv <kernel_shape=[1,1]> (x, w) "
            f"p = Pad (a, pads{padding}) y = Conv <kernel_shape=[1,1]> (p, w) }}",
            w=random(4, 4, 1, 1),
            pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            zero=np.float32(0),
            one=np.float32(1),
        )
        plan = place(model.graph, int8, int8.ops, frozenset())
        assert len(plan.others) == expected


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ('m = Resize <mode="linear"> (a, , twice)', 17),
        ("m = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (a)", 19),
        ("m = MaxPool <kernel_shape=[2,2]> (a)", 11),
        ("m = ReduceMax <axes=[2], keepdims=1> (a)", 11),
        ("m = Concat <axis=0> (a, endless)", 17),
        ("m = Where (mask, a, endless)", 17),
    ],
)
def test_what_integers_cannot_express_stays_in_float(
    kit: Any, parse: Any, random: Any, text: str, opset: int
) -> None:
    model = parse(
        f"g (float[2, 4, 8, 8] x) => (float[A, 4, H, W] y) {{ a = Conv <kernel_shape=[1,1]> (x, w) {text} "
        "y = Conv <kernel_shape=[1,1]> (m, w) }",
        opset=opset,
        w=random(4, 4, 1, 1),
        twice=np.float32([1, 1, 2, 2]),
        endless=np.full((2, 4, 8, 8), -np.inf, np.float32),
        mask=np.ones((2, 4, 8, 8), np.bool_),
    )
    plan = place(model.graph, kit.int8, kit.int8.ops | MORE_OPS, frozenset())
    assert not plan.others
    assert len(plan.weighted) == 2


def test_a_pool_follows_integers_but_does_not_start_them(kit: Any, parse: Any, random: Any) -> None:
    text = """
    g (float[2, 4, 8, 8] x) => (float[2, 4, H, W] y) {
      p = MaxPool <kernel_shape=[2,2]> (x)
      a = Conv <kernel_shape=[1,1]> (p, w)
      q = MaxPool <kernel_shape=[2,2]> (a)
      y = Conv <kernel_shape=[1,1]> (q, w)
    }"""
    for follow, expected in ((frozenset({"MaxPool"}), {"q"}), (frozenset(), {"p", "q"})):
        model = parse(text, w=random(4, 4, 1, 1))
        int8 = Int8Support(**{**vars(kit.int8), "follow_only": follow})
        plan = place(model.graph, int8, int8.ops, frozenset())
        assert {node.outputs[0].name for node in plan.others} == expected


@settings(max_examples=12, deadline=None)
@given(high=st.floats(2.0**-7, 128, width=32))
def test_a_clip_from_zero_is_covered_by_its_grid(high: float) -> None:
    int8 = Int8Support(ElementType.UINT8, False, 8, True, ElementType.INT32, frozenset(), True, "")
    scale = activation_scale(Range(0.0, high), int8)
    assert scale.zero_point == 0
    largest = np.float32(scale.scale) * np.float32(255)
    assert high * (1 - 1e-6) <= largest <= high


@pytest.mark.parametrize(
    ("low", "high", "gone"), [(0, 6, True), (0, 4.7, True), (0, 0.5, True), (-1, 1, False), (0.5, 6, False)]
)
def test_clips_that_the_runtime_drops(
    kit: Any, parse: Any, random: Any, low: float, high: float, gone: bool
) -> None:
    model = parse(
        "g (float[N, 4, 8, 8] x) => (float[N, 4, H, W] y) { a = Conv <kernel_shape=[1,1]> (x, w) "
        "c = Clip (a, low, high) y = Conv <kernel_shape=[1,1]> (c, w) }",
        w=random(4, 4, 1, 1, scale=0.7),
        low=np.float32(low),
        high=np.float32(high),
    )
    x = {"x": random(8, 4, 8, 8)}
    expected = kit.run(model, x)[0]
    outcome = quantize(kit, model, x)
    kernels = kit.kernels(model)
    # Absorbed or not, both convolutions run on integers.
    assert kernels["QLinearConv"] == 2
    assert kernels["Clip"] == (0 if gone else 1)
    assert [f.kind for f in outcome.findings] == ([] if gone else ["note"])
    assert np.linalg.norm(kit.run(model, x)[0] - expected) < 0.04 * np.linalg.norm(expected)


def test_float_operators_between_integers_are_named_once_per_kind(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
          a = Conv <kernel_shape=[1,1]> (x, w)
          h = HardSwish (a)
          b = Conv <kernel_shape=[1,1]> (h, w)
          i = HardSwish (b)
          y = Conv <kernel_shape=[1,1]> (i, w)
        }""",
        w=random(4, 4, 1, 1, scale=0.5),
    )
    x = {"x": random(8, 4, 8, 8)}
    outcome = quantize(kit, model, x)
    assert [finding.message for finding in outcome.findings] == [
        "2 HardSwish nodes ('HardSwish_1', ...) stay in float: no integer kernel worth using"
    ]
    listed = parse(
        "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { a = Conv (x, w) h = HardSwish (a) y = Conv (h, w) }",
        w=random(4, 4, 1, 1),
    )
    outcome = quantize(kit, listed, x, ops=kit.int8.ops | {"HardSwish"})
    assert outcome.changed == 3
    assert not outcome.findings


def test_tanh_and_hard_sigmoid_have_fixed_ranges(kit: Any, parse: Any, random: Any) -> None:
    for function, low, high in (("Tanh", -1, 1), ("HardSigmoid", 0, 1), ("Sigmoid", 0, 1)):
        model = parse(
            f"g (float[N, 4] x) => (float[N, 4] y) {{ a = {function} (x) y = MatMul (a, w) }}", w=random(4, 4)
        )
        quantize(kit, model, {"x": random(8, 4, scale=0.1)})
        scale = model.graph.initializers["a_scale"].const_value.numpy()
        np.testing.assert_allclose(scale, (high - low) / 255, rtol=1e-6)


LOOP = """
g (float[2, 4] x) => (float[2, 4] y) {
  a = MatMul (x, w)
  y = Loop (trips, go, a) <
    body = step (int64 i, bool c, float[2, 4] s) => (bool c_out, float[2, 4] s_out) {
      c_out = Identity (c)
      m = MatMul (s, w)
      n = Add (m, a)
      s_out = Tanh (n)
    }
  >
}"""
SCAN = """
g (float[2, 4] x) => (float[2, 4] y, float[2, 4] all) {
  a = MatMul (x, w)
  y, all = Scan <num_scan_inputs=1> (a, x) <
    body = step (float[2, 4] s, float[4] r) => (float[2, 4] s_out, float[4] o) {
      m = MatMul (s, w)
      s_out = Add (m, a)
      o = Tanh (r)
    }
  >
}"""
IF = """
g (float[2, 4] x) => (float[2, 4] y) {
  a = MatMul (x, w)
  y = If (go) <
    then_branch = yes () => (float[2, 4] t) { t = MatMul (a, w) },
    else_branch = no () => (float[2, 4] e) { e = Neg (a) }
  >
}"""


@pytest.mark.parametrize("kind", ["Loop", "Scan", "If"])
def test_bodies_stay_in_float(kit: Any, parse: Any, random: Any, kind: str) -> None:
    text = {"Loop": LOOP, "Scan": SCAN, "If": IF}[kind]
    text = text.replace("<\n    body", "<body").replace("\n  >", ">")
    model = parse(_attributes(text), w=random(4, 4, scale=0.4), trips=np.array(3), go=np.array(True))
    for graph in model.graph.subgraphs():
        for node in graph:
            node.name = f"inner_{node.op_type}"
    x = {"x": random(2, 4)}
    expected = kit.run(model, x)
    outcome = quantize(kit, model, x)
    assert kit.kernels(model)["MatMulIntegerToFloat"] + kit.kernels(model)["QLinearMatMul"] == 1
    messages = left(outcome)
    assert "inside the body" in messages["inner_MatMul"]
    inner = {node.op_type for graph in model.graph.subgraphs() for node in graph}
    assert not inner & {"QuantizeLinear", "DequantizeLinear"}
    for before, after in zip(expected, kit.run(model, x), strict=True):
        assert np.max(np.abs(after - before)) < 0.05 * np.max(np.abs(before))


def _attributes(text: str) -> str:
    """ONNX's text form wants the attributes in front of the inputs."""
    head, _, rest = text.partition("<body" if "<body" in text else "<\n    then_branch")
    if not rest:
        return text
    line = head.rsplit("\n", 1)[1]
    call, _, arguments = line.partition(" (")
    attributes, _, after = rest.rpartition(">")
    opened = "<body" if "<body" in text else "<then_branch"
    own = ""
    if "<num" in call:
        call, _, own = call.partition(" <num")
        own = ", num" + own.rstrip("> ")
    return f"{head.rsplit(chr(10), 1)[0]}\n{call} {opened}{attributes.rstrip()}{own}> ({arguments.rstrip()}{after}"


def test_a_new_name_is_not_hidden_by_a_body(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        _attributes(IF.replace("<\n    then_branch", "<\n    then_branch")), w=random(4, 4), go=np.array(True)
    )
    # The body already uses the name that the quantized weight would get.
    inner = next(iter(model.graph.subgraphs()))
    inner[0].outputs[0].name = "w_quantized"
    x = {"x": random(2, 4)}
    expected = kit.run(model, x)[0]
    quantize(kit, model, x)
    assert "w_quantized" not in model.graph.initializers
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.05 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        ("y = MatMul (x, w)", "w", "weight is an initializer that an input can override"),
        ("y = MatMul (w, x)", "w", "first operand is an initializer that an input can override"),
        ("y = Gemm (x, v, b)", "b", "bias is an initializer that an input can override"),
    ],
)
def test_overridable_initializers_stay_in_float(
    kit: Any, parse: Any, random: Any, text: str, name: str, reason: str
) -> None:
    model = parse(
        f"g (float[4, 4] x) => (float[4, 4] y) {{ {text} }}",
        w=random(4, 4),
        v=random(4, 4),
        b=random(4),
    )
    model.graph.inputs.append(model.graph.initializers[name])
    x = {"x": random(4, 4)}
    outcome = quantize(kit, model, x)
    assert outcome.changed == 0
    assert reason in next(iter(left(outcome).values()))


def test_a_weight_that_a_float_node_reads_too(kit: Any, parse: Any, random: Any) -> None:
    weight = random(4, 4)
    model = parse(
        "g (float[2, 4] x) => (float[2, 4] y, float[4, 4] z) { y = MatMul (x, w) z = Exp (w) }", w=weight
    )
    x = {"x": random(2, 4)}
    expected = kit.run(model, x)
    quantize(kit, model, x)
    got = kit.run(model, x)
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weight)
    assert np.max(np.abs(got[0] - expected[0])) < 0.03 * np.max(np.abs(expected[0]))


def test_two_convolutions_share_a_weight_with_different_biases(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y) {
          a = Conv <kernel_shape=[1,1]> (x, w, b)
          r = Relu (a)
          y = Conv <kernel_shape=[1,1]> (r, w, c)
        }""",
        w=random(4, 4, 1, 1),
        b=random(4),
        c=random(4, scale=100),
    )
    x = {"x": random(2, 4, 6, 6)}
    expected = kit.run(model, x)[0]
    quantize(kit, model, x)
    assert "w" not in model.graph.initializers
    assert sum(value.shape == [4, 4, 1, 1] for value in model.graph.initializers.values()) == 1
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.03 * np.max(np.abs(expected))


def test_recurrent_and_custom_products_are_named(kit: Any, random: Any) -> None:
    nodes = [
        onnx.helper.make_node("LSTM", ["x", "w", "r"], ["h"], name="cell", hidden_size=4),
        onnx.helper.make_node("Wonder", ["x", "dense"], ["z"], name="magic", domain="acme"),
        onnx.helper.make_node("Squeezer", ["z"], ["u"], name="small", domain="acme"),
    ]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", floats, [3, 1, 4])],
        [
            onnx.helper.make_tensor_value_info("h", floats, None),
            onnx.helper.make_tensor_value_info("u", floats, None),
        ],
        [
            onnx.numpy_helper.from_array(random(*shape), name)
            for name, shape in (("w", (1, 16, 4)), ("r", (1, 16, 4)), ("dense", (4, 4)))
        ],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("acme", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports))
    plan = place(model.graph, kit.int8, kit.int8.ops, frozenset())
    assert [(finding.node, finding.kind) for finding in plan.findings] == [
        ("cell", "left-in-float"),
        ("magic", "left-in-float"),
    ]
    assert "'acme'" in plan.findings[1].message


def test_one_huge_weight_is_reported(kit: Any, parse: Any, random: Any) -> None:
    weight = random(32, 4)
    weight[0, 2] = 1e4
    model = parse("g (float[N, 32] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)
    outcome = quantize(kit, model, {"x": random(8, 32)})
    (finding,) = outcome.findings
    assert finding.kind == "warning"
    assert finding.node == "MatMul_0"
    assert "97 % of the weights of its channel 2 round to zero" in finding.message
    assert "leaves 1 of 254 levels" in finding.message


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
def test_sparse_weights_are_not_outliers(kit: Any, parse: Any, random: Any, density: float) -> None:
    keep = np.random.default_rng(0).random((64, 8)) < density
    model = parse("g (float[N, 64] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=random(64, 8) * keep)
    x = {"x": random(8, 64)}
    outcome = quantize(kit, model, x)
    assert outcome.changed == 1
    assert not outcome.findings
    assert np.isfinite(kit.run(model, x)[0]).all()


@pytest.mark.parametrize(
    ("op_type", "domain", "form"),
    [
        ("QuantizeLinear", "", "pairs"),
        ("DequantizeLinear", "", "pairs"),
        ("QLinearConv", "", "integer operators"),
        ("QGemm", "com.microsoft", "integer operators"),
        ("QAttention", "com.microsoft", "integer operators"),
        ("DynamicQuantizeLinear", "", "dynamic"),
        ("MatMulInteger", "", "dynamic"),
        ("MatMulNBits", "com.microsoft", "block-wise"),
        ("GatherBlockQuantized", "com.microsoft", "block-wise"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_every_quantized_form_is_recognised(op_type: str, domain: str, form: str, nested: bool) -> None:
    x = ir.Value(name="x")
    inner = ir.node(op_type, [x], domain=domain, name="it")
    nodes = [inner]
    if nested:
        body = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="body")
        nodes = [
            ir.node("If", [x], {"then_branch": body, "else_branch": ir.Graph([], [], nodes=[])}, name="if")
        ]
    found = quantized_already(ir.Graph([x], [], nodes=nodes))
    assert found is inner
    assert form in quantized_form(found)


def test_stacked_weights_take_one_scale(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[3, 4, 8] x) => (float[3, 4, 6] y) { y = MatMul (x, w) }", w=random(3, 8, 6))
    x = {"x": random(3, 4, 8)}
    expected = kit.run(model, x)[0]
    quantize(kit, model, x)
    assert model.graph.initializers["w_scale"].shape == []
    assert kit.kernels(model)["MatMulIntegerToFloat"] == 1
    assert np.max(np.abs(kit.run(model, x)[0] - expected)) < 0.03 * np.max(np.abs(expected))


def test_a_transposed_convolution_shares_scales_among_its_groups(kit: Any, parse: Any, random: Any) -> None:
    weight = random(6, 3, 2, 2) * np.float32([0.01, 1, 100]).reshape(1, 3, 1, 1)
    bias = random(6) * np.tile(np.float32([0.01, 1, 100]), 2)
    model = parse(
        "g (float[N, 6, 4, 4] x) => (float[N, 6, 8, 8] y) "
        "{ y = ConvTranspose <kernel_shape=[2,2], strides=[2,2], group=2> (x, w, b) }",
        w=weight,
        b=bias,
    )
    x = {"x": random(8, 6, 4, 4)}
    expected = kit.run(model, x)[0]
    # The output has one scale, so that only the float result shows how good the weights are.
    quantize(kit, model, x, float_output=frozenset({"ConvTranspose"}))
    assert model.graph.initializers["w_scale"].shape == [3]
    biases = next(
        v for v in model.graph.initializers.values() if v.dtype is ir.DataType.INT32 and v.shape == [6]
    )
    assert np.abs(biases.const_value.numpy()).max() < 2**30
    got = kit.run(model, x)[0]
    for channel in range(6):
        error = np.max(np.abs(got[:, channel] - expected[:, channel]))
        assert error < 0.03 * np.max(np.abs(expected[:, channel]))
