"""Dynamic INT8: integer products with activations quantized at run time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.errors import UsageError
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context
from greencc.passes.quantize_dynamic import QuantizeDynamic
from greencc.targets.cpu import CpuTarget

KERNELS = frozenset(
    {
        "ai.onnx::ConvInteger",
        "ai.onnx::DynamicQuantizeLinear",
        "ai.onnx::MatMulInteger",
        "com.microsoft::DynamicQuantizeLSTM",
    }
)
ALL = QuantizeDynamic(min_elements=1)
QKV = """
g (float[N, 6, 16] x) => (float[N, 6, 16] y) {
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  kb = Add (k, bk)
  kt = Transpose <perm=[0,2,1]> (kb)
  s = MatMul (q, kt)
  p = Softmax (s)
  v = MatMul (x, wv)
  a = MatMul (p, v)
  y = MatMul (a, wo)
}"""


def dynamic(context: Any, fused: frozenset[str] = KERNELS) -> Any:
    return replace(context, capabilities=replace(context.capabilities, fused_ops=fused))


def error(expected: Any, got: Any) -> float:
    return float(np.linalg.norm(expected - got) / np.linalg.norm(expected))


@pytest.fixture
def attention(parse: Any, random: Any) -> Any:
    weights = {name: random(16, 16, scale=0.3) for name in ("wq", "wk", "wv", "wo")}
    return parse(QKV, bk=random(16), **weights)


def test_products_become_the_runtimes_fused_kernels(kit: Any, attention: Any, random: Any) -> None:
    x = {"x": random(2, 6, 16)}
    expected = kit.run(attention, x)[0]
    outcome = ALL.apply(attention, dynamic(kit.context(None)))
    assert outcome.changed == 4
    kernels = kit.kernels(attention)
    # The queries, keys and values share one quantization of x; the last product has its own.
    assert kernels["DynamicQuantizeLinear"] == 1
    assert kernels["MatMulIntegerToFloat"] == 3
    assert kernels["DynamicQuantizeMatMul"] == 1
    # What is left in float are the two products of activations.
    assert kernels["MatMul"] + kernels["FusedMatMul"] == 2
    assert kernels["MatMulInteger"] == 0
    assert error(expected, kit.run(attention, x)[0]) < 0.03
    told = [
        finding.message for finding in outcome.findings if "both operands are activations" in finding.message
    ]
    assert len(told) == 2
    assert not {"wq", "wk", "wv", "wo"} & set(attention.graph.initializers)


def test_the_result_is_what_integer_arithmetic_gives(kit: Any, parse: Any, random: Any) -> None:
    weight = random(12, 5)
    model = parse("g (float[N, 12] x) => (float[N, 5] y) { y = MatMul (x, w) }", w=weight)
    x = random(3, 12)
    ALL.apply(model, dynamic(kit.context(None)))
    low, high = min(x.min(), 0), max(x.max(), 0)
    x_scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / x_scale), 0, 255)
    x_q = np.clip(np.rint(x / x_scale) + zero, 0, 255) - zero
    w_scale = np.abs(weight).max(axis=0) / 127
    w_q = np.rint(weight / w_scale)
    np.testing.assert_allclose(
        kit.run(model, {"x": x})[0], (x_q @ w_q) * x_scale * w_scale, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (1,), (3, 1)])
def test_gemm_with_its_factors_and_bias(
    kit: Any, parse: Any, random: Any, transposed: int, shape: Any
) -> None:
    text = "g (float[3, 12] x) => (float[3, 8] y) { y = Gemm <alpha=-0.5, beta=2.0, transB=%d> (x, w, b) }"
    weight = random(8, 12) if transposed else random(12, 8)
    model = parse(text % transposed, w=weight, b=random(*shape))
    x = {"x": random(3, 12)}
    expected = kit.run(model, x)[0]
    assert ALL.apply(model, dynamic(kit.context(None))).changed == 1
    assert error(expected, kit.run(model, x)[0]) < 0.02
    assert kit.kernels(model)["Gemm"] == 0


def test_what_stays_in_float_says_why(kit: Any, parse: Any, random: Any) -> None:
    nan = random(12, 8)
    nan[0, 0] = np.nan
    model = parse(
        """
        g (float[3, 12] x, float[8] c, float[12, 8] w) => (float[3, 8] a, float[3, 8] b, float[3, 8] d, float[12, 8] e,
                                                            float[3] f) {
          a = MatMul (x, nan)
          b = Gemm <beta=2.0> (x, fine, c)
          d = MatMul (x, w)
          e = Gemm <transA=1> (x, tall)
          f = MatMul (x, vector)
        }""",
        nan=nan,
        fine=random(12, 8),
        tall=random(3, 8),
        vector=random(12),
    )
    outcome = ALL.apply(model, dynamic(kit.context(None)))
    assert outcome.changed == 0
    text = " | ".join(finding.message for finding in outcome.findings)
    for reason in ("not finite", "scaled by beta", "both operands", "transposes its activations", "a vector"):
        assert reason in text
    assert len(outcome.findings) == 5
    assert len(model.graph) == 5


def test_a_shared_weight_is_quantized_once_and_kept_for_its_float_reader(
    kit: Any, parse: Any, random: Any
) -> None:
    model = parse(
        """
        g (float[N, 8] x) => (float[N, 8] y, float[8, 8] z) {
          a = MatMul (x, w)
          y = MatMul (a, w)
          z = Relu (w)
        }""",
        w=random(8, 8),
    )
    x = {"x": random(4, 8)}
    expected = kit.run(model, x)
    assert ALL.apply(model, dynamic(kit.context(None))).changed == 2
    integers = [v for v in model.graph.initializers.values() if v.dtype is ir.DataType.INT8]
    assert len(integers) == 1
    assert "w" in model.graph.initializers
    got = kit.run(model, x)
    assert error(expected[0], got[0]) < 0.02
    np.testing.assert_array_equal(expected[1], got[1])


def test_seven_bit_weights_and_one_scale_per_tensor(kit: Any, parse: Any, random: Any) -> None:
    weight = random(8, 8)
    model = parse("g (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=weight)
    ALL.apply(model, dynamic(kit.context(None, weight_bits=7, per_channel=False)))
    (integers,) = [v for v in model.graph.initializers.values() if v.dtype is ir.DataType.INT8]
    assert np.abs(integers.const_value.numpy().astype(int)).max() == 64
    scale = next(v for v in model.graph.initializers.values() if v.dtype is ir.DataType.FLOAT)
    assert scale.const_value.numpy().shape == ()
    assert "w" not in model.graph.initializers


def test_zero_channels_and_a_huge_outlier(kit: Any, parse: Any, random: Any) -> None:
    weight = random(8, 4)
    weight[:, 1] = 0
    weight[3, 2] = 1e8
    model = parse("g (float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)
    x = {"x": random(4, 8)}
    expected = kit.run(model, x)[0]
    ALL.apply(model, dynamic(kit.context(None)))
    got = kit.run(model, x)[0]
    assert (got[:, 1] == 0).all()
    # The outlier costs its own channel alone.
    assert error(expected[:, [0, 3]], got[:, [0, 3]]) < 0.02


@pytest.mark.parametrize("bias", [None, "initializer", "input"])
def test_conv_only_on_request(kit: Any, parse: Any, random: Any, bias: str | None) -> None:
    extra = ", float[6] b" if bias == "input" else ""
    conv = "Conv <pads=[1,1,1,1], strides=[2,2], group=2> (x, w" + (", b)" if bias else ")")
    weights = {"w": random(6, 2, 3, 3)} | ({"b": random(6)} if bias == "initializer" else {})
    model = parse(f"g (float[N, 4, 8, 8] x{extra}) => (float[N, 6, 4, 4] y) {{ y = {conv} }}", **weights)
    feeds = {"x": random(2, 4, 8, 8)} | ({"b": random(6)} if bias == "input" else {})
    expected = kit.run(model, feeds)[0]
    untouched = model.clone()
    outcome = ALL.apply(untouched, dynamic(kit.context(None)))
    assert outcome.changed == 0
    assert "1 x Conv: not among the operators asked for" in outcome.findings[0].message
    assert replace(ALL, ops=("Conv",)).apply(model, dynamic(kit.context(None))).changed == 1
    assert kit.kernels(model)["ConvInteger"] == 1
    assert error(expected, kit.run(model, feeds)[0]) < 0.02


def recurrent(op_type: str, random: Any, *, directions: int = 2, hidden: int = 12, layout: int = 0) -> Any:
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op_type]
    shapes = {
        "W": (directions, gates * hidden, 8),
        "R": (directions, gates * hidden, hidden),
        "B": (directions, 2 * gates * hidden),
        "h0": (directions, 3, hidden),
        "c0": (directions, 3, hidden),
        "P": (directions, 3 * hidden),
    }
    names = ["x", "W", "R", "B", "lengths", "h0"] + (["c0", "P"] if op_type == "LSTM" else [])
    # Channels of very different size: one scale for all would not do.
    sizes = np.logspace(-2, 0, gates * hidden, dtype=np.float32)[:, None]
    arrays = {name: random(*shapes[name], scale=0.5) for name in names if name in shapes}
    arrays["W"] *= sizes
    arrays["lengths"] = np.int32([5, 3, 4])
    if layout:
        arrays = {k: v.swapaxes(0, 1).copy() if k in ("h0", "c0") else v for k, v in arrays.items()}
    outputs = ["y", "yh"] + (["yc"] if op_type == "LSTM" else [])
    attributes = {"layout": layout} if layout else {}
    node = helper.make_node(
        op_type,
        names,
        outputs,
        name="cell",
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, [5, 3, 8])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm_with_states_and_peepholes(kit: Any, random: Any, directions: int) -> None:
    model = recurrent("LSTM", random, directions=directions)
    x = {"x": random(5, 3, 8)}
    expected = kit.run(model, x)
    outcome = ALL.apply(model, dynamic(kit.context(None)))
    assert outcome.changed == 1
    assert kit.kernels(model)["DynamicQuantizeLSTM"] == 1
    assert model.opset_imports["com.microsoft"] == 1
    check_model(model)
    for before, after in zip(expected, kit.run(model, x), strict=True):
        assert error(before, after) < 0.02


@pytest.mark.parametrize("op_type", ["GRU", "RNN", "LSTM"])
def test_cells_without_an_integer_kernel_store_integers(kit: Any, random: Any, op_type: str) -> None:
    model = recurrent(op_type, random)
    x = {"x": random(5, 3, 8)}
    expected = kit.run(model, x)
    size = kit.save(model, "float.onnx").stat().st_size
    outcome = ALL.apply(model, dynamic(kit.context(None), frozenset()))
    assert outcome.changed == 1
    assert [finding.kind for finding in outcome.findings] == ["left-in-float"]
    assert kit.save(model, "integers.onnx").stat().st_size < 0.75 * size
    # The runtime folds the weights when it loads the model: a run costs nothing more.
    assert set(kit.kernels(model)) == {op_type}
    for before, after in zip(expected, kit.run(model, x), strict=True):
        assert error(before, after) < 0.02


def test_an_lstm_with_batches_first_only_stores_integers(kit: Any, random: Any) -> None:
    model = recurrent("LSTM", random, layout=1)
    ALL.apply(model, dynamic(kit.context(None)))
    assert [node.op_type for node in model.graph][-1] == "LSTM"


def test_bodies_of_subgraphs(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (bool c, float[4, 8] x) => (float[4, 8] y) {
          a = MatMul (x, outer)
          y = If (c) <
            then_branch = t () => (float[4, 8] p) { b = MatMul (a, outer) p = Relu (b) },
            else_branch = e () => (float[4, 8] q) { q = MatMul (a, other) }
          >
        }""",
        outer=random(8, 8),
        other=random(8, 8),
    )
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"n{number}"
    feeds = [{"c": np.array(flag), "x": random(4, 8)} for flag in (True, False)]
    expected = [kit.run(model, feed)[0] for feed in feeds]
    outcome = ALL.apply(model, dynamic(kit.context(None)))
    assert outcome.changed == 3
    assert not any(node.op_type == "MatMul" for node in model.graph.all_nodes())
    for feed, before in zip(feeds, expected, strict=True):
        assert error(before, kit.run(model, feed)[0]) < 0.03


def test_refusals(kit: Any, parse: Any, random: Any) -> None:
    text = "g (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w) }"
    old = parse(text, opset=10, w=random(8, 8))
    assert "upgrade-opset" in ALL.apply(old, dynamic(kit.context(None))).findings[0].message
    model = parse(text, w=random(8, 8))
    context = dynamic(kit.context(None))
    without = replace(context, capabilities=replace(context.capabilities, int8=None))
    assert "no INT8 kernels" in ALL.apply(model, without).findings[0].message
    assert (
        "no kernel for DynamicQuantizeLinear"
        in ALL.apply(model, dynamic(context, frozenset())).findings[0].message
    )
    assert ALL.apply(model, context).changed == 1
    again = ALL.apply(model, context)
    assert (again.changed, again.findings[0].kind) == (0, "refused")
    assert "quantized already" in again.findings[0].message


def test_options_and_refused_rewrites(kit: Any, attention: Any) -> None:
    names = [str(node.name) for node in attention.graph if node.op_type == "MatMul"]
    clone = attention.clone()
    outcome = replace(ALL, exclude=(names[0], "nobody")).apply(clone, dynamic(kit.context(None)))
    assert outcome.changed == 3
    text = " | ".join(finding.message for finding in outcome.findings)
    assert "excluded by the options" in text
    assert "no node is named 'nobody'" in text
    assert QuantizeDynamic(min_elements=257).apply(attention.clone(), dynamic(kit.context(None))).changed == 0
    context = dynamic(kit.context(None, limit=2))
    assert ALL.apply(attention, context).changed == 2
    assert len(context.rewrites.applied) == 2
    check_model(attention)
    with pytest.raises(UsageError, match="Gather"):
        QuantizeDynamic(ops=("Gather",))
    with pytest.raises(UsageError, match="min_elements"):
        QuantizeDynamic(min_elements=-1)


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    gemm=st.booleans(),
    seed=st.integers(0, 99),
    exponent=st.integers(-20, 20),
)
def test_random_chains_stay_near_the_float_result(
    sizes: list[int], gemm: bool, seed: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for index, (rows, columns) in enumerate(pairwise(sizes)):
        weights.append(numpy_helper.from_array(rng.standard_normal((rows, columns), np.float32), f"w{index}"))
        nodes.append(
            helper.make_node("Gemm" if gemm else "MatMul", [value, f"w{index}"], [f"v{index}"], f"n{index}")
        )
        value = f"v{index}"
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", sizes[0]])],
        [helper.make_tensor_value_info(value, kind, None)],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = ir.from_proto(proto)
    x = {"x": np.ldexp(rng.standard_normal((4, sizes[0]), np.float32), exponent)}
    build = CpuTarget(threads=1).reference
    int8 = Int8Support(
        activation=ElementType.UINT8,
        symmetric_activations=False,
        weight_bits=7,
        per_channel=True,
        bias=ElementType.FLOAT,
        ops=frozenset(),
        quantize_outputs=False,
        reason="a test",
    )
    capabilities = Capabilities(int8, frozenset(), frozenset(), 23, KERNELS, gemm_gains=True)
    (before,) = build(model).run(x).values()
    outcome = ALL.apply(model, Context(capabilities, build, []))
    assert outcome.changed == len(nodes)
    infer_shapes(model)
    check_model(model)
    (after,) = build(model).run(x).values()
    scale = np.ldexp(np.prod([np.abs(numpy_helper.to_array(w)).sum(axis=0).max() for w in weights]), exponent)
    # Half a step of either operand in every product, of the largest sum there can be.
    assert np.abs(before - after).max() <= len(nodes) * (8 / 255 + 0.5 / 64) * scale
