"""QDQ to QOperator: the same numbers, what keeps its pairs, and that nothing is half converted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import RewriteLog
from greencc.passes.convert_qoperator import ConvertQOperator
from greencc.passes.quantize_int8 import QuantizeInt8


def convert(kit: Any, model: ir.Model, feeds: dict[str, np.ndarray], steps: float = 0, **int8: Any) -> Any:
    """Quantize, convert, and compare ONNX Runtime's outputs of the two forms."""
    QuantizeInt8().apply(model, kit.context(feeds, **int8))
    pairs = kit.run(model, feeds)
    names = [value.name for value in model.graph.outputs]
    context = kit.context(None)
    outcome = ConvertQOperator().apply(model, context)
    assert outcome.changed == len(context.rewrites.applied)
    infer_shapes(model)
    check_model(model)
    assert [value.name for value in model.graph.outputs] == names
    for before, after in zip(pairs, kit.run(model, feeds), strict=True):
        assert np.max(np.abs(after - before)) <= steps
    assert ConvertQOperator().apply(model, kit.context(None)).changed == 0
    return outcome


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_network_of_everything(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        net (float[N, 8, 8, 8] x) => (float[N, 10] y) {
          c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
          r0 = Relu (c0)
          c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r0, w1, b1)
          r1 = Clip (c1, zero, six)
          a = Add (r1, r0)
          l = LeakyRelu <alpha=0.1> (a)
          s = Sigmoid (a)
          m = Mul (l, s)
          p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (m)
          v = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (p)
          k = Concat <axis=1> (p, v)
          h, i = Split <axis=1> (k, halves)
          j = Concat <axis=1> (i, h)
          c2 = Conv <kernel_shape=[1,1]> (j, w2)
          g = GlobalAveragePool (c2)
          f = Flatten (g)
          d = MatMul (f, w3)
          y = Gemm <alpha=0.5, transB=1> (d, w4, b4)
        }""",
        w0=random(8, 8, 3, 3, scale=0.2),
        b0=random(8),
        w1=random(8, 1, 3, 3, scale=0.3),
        b1=random(8),
        w2=random(16, 16, 1, 1, scale=0.3),
        w3=random(16, 16, scale=0.3),
        w4=random(10, 16),
        b4=random(10),
        zero=np.float32(0),
        six=np.float32(6),
        halves=np.array([8, 8]),
    )
    outcome = convert(kit, model, {"x": random(4, 8, 8, 8)})
    assert not outcome.findings
    assert ops(model) == [
        "QuantizeLinear", "QLinearConv", "QLinearConv", "QLinearAdd", "QLinearLeakyRelu", "QLinearSigmoid",
        "QLinearMul", "MaxPool", "QLinearAveragePool", "QLinearConcat", "Split", "QLinearConcat", "QLinearConv",
        "QLinearGlobalAveragePool", "Flatten", "QLinearMatMul", "QGemm",
    ]  # fmt: skip
    assert model.opset_imports["com.microsoft"] == 1
    kinds = {value.dtype for value in model.graph.initializers.values()}
    assert {ir.DataType.INT8, ir.DataType.INT32, ir.DataType.UINT8} <= kinds
    assert not [name for name in ("w0", "b0", "w4", "b4") if name in model.graph.initializers]


def test_attention_products(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        attention (float[N, 8, 16] x) => (float[N, 8, 16] y) {
          q = MatMul (x, wq)
          k = MatMul (x, wk)
          t = Transpose <perm=[0,2,1]> (k)
          s = MatMul (q, t)
          p = Softmax <axis=-1> (s)
          y = MatMul (p, x)
        }""",
        wq=random(16, 16, scale=0.2),
        wk=random(16, 16, scale=0.2),
    )
    outcome = convert(kit, model, {"x": random(4, 8, 16)})
    assert ops(model).count("MatMulIntegerToFloat") == 2
    assert ops(model).count("QLinearMatMul") == 2
    assert "MatMul" not in ops(model)
    assert not outcome.findings


@pytest.mark.parametrize("name", ["Softmax", "Where", "Pad", "Resize", "DepthToSpace"])
def test_operators_by_themselves(kit: Any, parse: Any, random: Any, name: str) -> None:
    text = {
        "Softmax": "m = Softmax <axis=1> (a)",
        "Where": "m = Where (mask, a, c)",
        "Pad": "m = Pad (a, pads)",
        "Resize": 'm = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> '
        "(a, , twice)",
        "DepthToSpace": "d = DepthToSpace <blocksize=2> (a) m = Concat <axis=1> (d, d, d, d)",
    }[name]
    model = parse(
        "g (float[2, 4, 8, 8] x) => (float[2, 4, H, W] y) { a = Conv <kernel_shape=[1,1]> (x, w) "
        f"c = Conv <kernel_shape=[1,1]> (x, v) {text} y = Conv <kernel_shape=[1,1]> (m, w) }}",
        w=random(4, 4, 1, 1),
        v=random(4, 4, 1, 1),
        mask=random(2, 4, 8, 8) > 0,
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        twice=np.float32([1, 1, 2, 2]),
    )
    if name != "Where":
        model.graph.remove(next(node for node in model.graph if node.outputs[0].name == "c"), safe=True)
        del model.graph.initializers["v"]
    more = kit.int8.ops | {"DepthToSpace", "Pad", "Softmax", "Where"}
    # Padding with 0 needs no kernel of its own, but ONNX Runtime pads the float values.
    outcome = convert(kit, model, {"x": random(2, 4, 8, 8)}, steps=1e-5, ops=more)
    assert not outcome.findings
    expected = f"QLinear{name}" if name in ("Softmax", "Where") else name
    assert expected in ops(model)
    assert ops(model).count("DequantizeLinear") == 1
    assert ops(model).count("QuantizeLinear") == 1


def test_what_has_no_integer_form_keeps_its_pairs(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
          a = Conv <kernel_shape=[1,1]> (x, w)
          h = HardSwish (a)
          y = Conv <kernel_shape=[1,1]> (h, w)
          z = Add (a, h)
        }""",
        w=random(4, 4, 1, 1),
    )
    outcome = convert(kit, model, {"x": random(4, 4, 8, 8)})
    assert {finding.message for finding in outcome.findings} == {
        "HardSwish 'HardSwish_1': it has no integer form",
        "Add 'Add_3': not all its operands are quantized with one constant scale",
    }
    assert all(finding.kind == "left-in-float" for finding in outcome.findings)
    assert ops(model).count("QLinearConv") == 2
    assert {"HardSwish", "Add"} <= set(ops(model))


def test_an_integer_value_that_is_an_output(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] mid, float[N, 4, 8, 8] y) {
          mid = Conv <kernel_shape=[1,1]> (x, w)
          y = Conv <kernel_shape=[1,1]> (mid, w)
        }""",
        w=random(4, 4, 1, 1),
    )
    convert(kit, model, {"x": random(4, 4, 8, 8)})
    assert ops(model).count("QLinearConv") == 2
    assert ops(model).count("DequantizeLinear") == 2


def test_a_refused_rewrite_leaves_a_valid_model(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        """
        g (float[N, 16] x) => (float[N, 4] y) {
          a = Gemm (x, v, b)
          r = Relu (a)
          y = MatMul (r, w)
        }""",
        v=random(16, 16),
        b=random(16),
        w=random(16, 4),
    )
    x = {"x": random(8, 16)}
    QuantizeInt8().apply(model, kit.context(x))
    expected = kit.run(model, x)[0]
    context = kit.context(None, limit=1)
    assert isinstance(context.rewrites, RewriteLog)
    assert ConvertQOperator().apply(model, context).changed == 1
    assert ops(model).count("QGemm") == 1
    assert ops(model).count("MatMul") == 1
    infer_shapes(model)
    check_model(model)
    np.testing.assert_allclose(kit.run(model, x)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("bias scale", "the scale of its bias"),
        ("bias offset", "zero point of its bias"),
        ("axis", "lie along axis 1"),
        ("float bias", "not quantized to INT32"),
    ],
)
def test_pairs_that_do_not_fit_stay(kit: Any, parse: Any, random: Any, change: str, reason: str) -> None:
    model = parse(
        "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv <kernel_shape=[1,1]> (x, w, b) }",
        w=random(4, 4, 1, 1),
        b=random(4),
    )
    x = {"x": random(2, 4, 8, 8)}
    QuantizeInt8().apply(model, kit.context(x))
    node = next(node for node in model.graph if node.op_type == "Conv")
    weight, bias = (value.producer() for value in node.inputs[1:])

    def double(value: ir.Value, plus: int = 0) -> None:
        array = value.const_value.numpy()
        value.const_value = ir.tensor(
            (array * (1 if plus else 2) + plus).astype(array.dtype), name=value.name
        )

    match change:
        case "bias scale":
            double(bias.inputs[1])
        case "bias offset":
            double(bias.inputs[2], 1)
        case "axis":
            weight.attributes["axis"] = ir.AttrInt64("axis", 1)
        case "float bias":
            floats = ir.Value(
                name="floats",
                type=ir.TensorType(ir.DataType.FLOAT),
                shape=ir.Shape([4]),
                const_value=ir.tensor(np.ones(4, np.float32), name="floats"),
            )
            model.graph.register_initializer(floats)
            node.replace_input_with(2, floats)
    outcome = ConvertQOperator().apply(model, kit.context(None))
    assert outcome.changed == 0
    assert reason in outcome.findings[0].message
    assert "Conv" in ops(model)


def test_a_movement_between_different_scales_stays(kit: Any, parse: Any, random: Any) -> None:
    model = parse(
        "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { a = Conv <kernel_shape=[1,1]> (x, w) "
        "t = Transpose <perm=[0,1,3,2]> (a) y = Conv <kernel_shape=[1,1]> (t, w) }",
        w=random(4, 4, 1, 1),
    )
    x = {"x": random(2, 4, 8, 8)}
    QuantizeInt8().apply(model, kit.context(x))
    quantize = next(node for node in model.graph if node.name == "t_QuantizeLinear")
    other = ir.Value(
        name="other",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([]),
        const_value=ir.tensor(np.float32(0.5), name="other"),
    )
    model.graph.register_initializer(other)
    quantize.replace_input_with(1, other)
    outcome = ConvertQOperator().apply(model, kit.context(None))
    assert [finding.message for finding in outcome.findings] == [
        "Transpose 'Transpose_1': its input and output have different scales"
    ]


def test_a_relu_that_still_cuts_stays(kit: Any, parse: Any, random: Any) -> None:
    """The grid reaches below 0, so only the Relu keeps negative numbers out."""
    model = parse(
        "g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { a = Conv <kernel_shape=[1,1]> (x, w) r = Relu (a) "
        "y = Conv <kernel_shape=[1,1]> (r, w) }",
        w=random(4, 4, 1, 1),
    )
    x = {"x": random(2, 4, 8, 8)}
    QuantizeInt8().apply(model, kit.context(x))
    zero_point = model.graph.initializers["r_zero_point"]
    zero_point.const_value = ir.tensor(np.uint8(10), name="r_zero_point")
    expected = kit.run(model, x)[0]
    outcome = ConvertQOperator().apply(model, kit.context(None))
    assert [finding.node for finding in outcome.findings] == ["Conv_0"]
    assert "Relu" in ops(model)
    np.testing.assert_allclose(kit.run(model, x)[0], expected, atol=1e-6)


def test_a_float_model_is_left_alone(kit: Any, parse: Any, random: Any) -> None:
    model = parse("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(4, 4))
    outcome = ConvertQOperator().apply(model, kit.context(None))
    assert (outcome.changed, outcome.findings) == (0, [])
    assert "com.microsoft" not in model.opset_imports
