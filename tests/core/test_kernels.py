"""Nodes grouped into kernels, against counts by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.kernels import Kernels, Work, in_precision, kernels_of
from greencc.core.model import infer_shapes

HEAD = '<ir_version: 10, opset_import: ["" : 21, "custom" : 1]> g '


def kernels(text: str, *, fused: bool = False, **weights: tuple[int, ...] | np.ndarray) -> Kernels:
    model = ir.from_onnx_text(HEAD + text)
    for name, given in weights.items():
        array = given if isinstance(given, np.ndarray) else np.ones(given, np.float32)
        uses = [
            value for node in model.graph for value in node.inputs if value is not None and value.name == name
        ]
        [first, *others] = dict.fromkeys(uses)
        first.const_value = ir.tensor(array, name=name)
        for other in others:
            other.replace_all_uses_with(first)
        model.graph.register_initializer(first)
    infer_shapes(model)
    return kernels_of(model, fused_conversions=fused)


def test_an_activation_joins_its_convolution_and_moves_nothing() -> None:
    text = "(float[1,3,8,8] x) => (float[1,4,8,8] y) { c = Conv <pads=[1,1,1,1]> (x, w) y = Relu(c) }"
    [kernel] = kernels(text, w=(4, 3, 3, 3)).items
    assert kernel.op_type == "Conv+Relu"
    assert kernel.operations == {Work.PRODUCT: 2.0 * 4 * 64 * 27}
    assert (kernel.weight_bytes, kernel.activation_bytes) == (4 * 108, 4 * (192 + 256))


def test_a_residual_is_read_once() -> None:
    [first, second] = kernels(
        "(float[1,4,8,8] x) => (float[1,4,8,8] y) "
        "{ a = Conv <pads=[1,1,1,1]> (x, w) b = Conv <pads=[1,1,1,1]> (a, w) s = Add(b, a) y = Relu(s) }",
        w=(4, 4, 3, 3),
    ).items
    assert [first.op_type, second.op_type] == ["Conv", "Conv+Add+Relu"]
    assert first.activation_bytes == 4 * 512
    # Reads a twice (as input and as residual), writes y.
    assert second.activation_bytes == 4 * 3 * 256


def test_a_value_with_two_readers_is_written() -> None:
    found = kernels(
        "(float[1,8] x) => (float[1,8] y, float[1,8] z) { a = MatMul(x, w) y = Relu(a) z = Neg(a) }", w=(8, 8)
    )
    assert [kernel.op_type for kernel in found.items] == ["MatMul", "Relu", "Neg"]


def test_a_value_multiplied_with_itself_joins() -> None:
    [kernel] = kernels("(float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) y = Mul(a, a) }", w=(8, 8)).items
    assert (kernel.op_type, kernel.activation_bytes) == ("MatMul+Mul", 4 * 16)


def test_views_and_constant_nodes_cost_nothing() -> None:
    found = kernels(
        "(float[1,2,4] x) => (float[8] y) <int64[1] s = {8}, float[8] c = {1,1,1,1,1,1,1,1}> "
        "{ a = Softmax(x) f = Reshape(a, s) d = Neg(c) y = Mul(f, d) }"
    )
    [kernel] = found.items
    assert kernel.op_type == "Softmax+Mul"
    assert kernel.operations == {Work.FUNCTION: 8.0}


def test_a_depthwise_convolution_is_grouped() -> None:
    text = "(float[1,6,5,5] x) => (float[1,6,5,5] y) { y = Conv <group=6, pads=[1,1,1,1]> (x, w) }"
    [kernel] = kernels(text, w=(6, 1, 3, 3)).items
    assert kernel.operations == {Work.GROUPED: 2.0 * 6 * 25 * 9}
    assert kernel.multiplications == 2.0 * 6 * 25 * 9


def test_a_lookup_reads_what_it_returns() -> None:
    [kernel] = kernels("(int64[1,2] i) => (float[1,2,16] y) { y = Gather(t, i) }", t=(1000, 16)).items
    assert kernel.weight_bytes == 4 * 32
    assert kernel.activation_bytes <= 2 * 4 * 32


def test_quantizers_belong_to_the_integer_operator() -> None:
    text = (
        "(uint8[1,8] q) => (uint8[1,8] y) <float s = {0.1}, uint8 z = {0}, int8 n = {0}> "
        "{ x = DequantizeLinear(q, s, z) w = DequantizeLinear(b, s, n) m = MatMul(x, w) y = QuantizeLinear(m, s, z) }"
    )
    [kernel] = kernels(text, b=np.ones((8, 8), np.int8)).items
    assert (kernel.dtype, kernel.multiplications) == ("UINT8", 2.0 * 64)
    assert kernel.activation_bytes == 16
    assert 64 <= kernel.weight_bytes < 80


def test_unknown_work_is_named_and_left_out() -> None:
    found = kernels("(float[1,8] x) => (float[1,8] y) { a = Relu(x) y = custom.Thing(a) }")
    assert [cost.op_type for cost in found.unknown] == ["custom::Thing"]
    assert [kernel.op_type for kernel in found.items] == ["Relu"]


def test_counted_as_integers() -> None:
    found = kernels("(float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) y = Softmax(a) }", w=(8, 8))
    product, softmax = in_precision(found, "INT8").items
    assert (product.dtype, product.weight_bytes, product.activation_bytes) == ("INT8", 64.0, 16.0)
    assert product.operations == found.items[0].operations
    assert softmax == found.items[1]
    half = in_precision(found, "FLOAT16").items[1]
    assert (half.dtype, half.activation_bytes) == ("FLOAT16", 32.0)
    # A wider type than there is changes nothing.
    assert in_precision(in_precision(found, "FLOAT16"), "FLOAT").items[0].dtype == "FLOAT16"


# Two convolutions and a skip, quantized as TensorRT wants it: at inputs, and the skip, never between Conv and Relu.
RESIDUAL = """
(float[1,4,8,8] x) => (float[1,4,8,8] y) <float s = {0.1}, int8 z = {0}> {
  xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) v = DequantizeLinear(a, s, z)
  c = Conv <pads=[1,1,1,1]> (xd, v) r = Relu(c)
  q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(b, s, z)
  e = Conv <pads=[1,1,1,1]> (d, w)
  p = QuantizeLinear(r, s, z) t = DequantizeLinear(p, s, z)
  f = Add(e, t) y = Relu(f)
}"""


def test_conversions_are_launches_unless_the_builder_fuses_them() -> None:
    weight = np.ones((4, 4, 3, 3), np.int8)
    apart = kernels(RESIDUAL, a=weight, b=weight)
    assert [kernel.op_type for kernel in apart.items if kernel.operator == "QuantizeLinear"]
    first, second = kernels(RESIDUAL, fused=True, a=weight, b=weight).items
    assert (first.op_type, first.dtype, second.op_type, second.dtype) == (
        "Conv+Relu", "INT8", "Conv+Add+Relu", "INT8"
    )  # fmt: skip
    # Reads the float input, which nothing could write in integers, and writes integers.
    assert first.activation_bytes == 4 * 256 + 256
    # Reads integers twice, as input and as skip, and writes the float output.
    assert second.activation_bytes == 2 * 256 + 4 * 256
    # The input's quantizer may be a kernel of its own, and so may the sum.
    assert [kernel.launches for kernel in (first, second)] == [(1, 2), (1, 2)]


def test_a_value_that_is_read_as_it_is_and_quantized_is_written_twice() -> None:
    text = (
        "(float[1,8] x) => (float[1,8] y, float[1,8] n) <float s = {0.1}, int8 z = {0}> { m = MatMul(x, v) "
        "q = QuantizeLinear(m, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(b, s, z) "
        "y = MatMul(d, w) n = Softmax(m) }"
    )
    found = kernels(text, fused=True, v=(8, 8), b=np.ones((8, 8), np.int8)).items
    assert [(kernel.op_type, kernel.activation_bytes) for kernel in found] == [
        ("MatMul", 4 * 8 + 4 * 8 + 8), ("MatMul", 8 + 4 * 8), ("Softmax", 4 * 16)
    ]  # fmt: skip


def test_casts_at_the_border_of_a_half_precision_form_are_part_of_its_kernels() -> None:
    text = "(float[1,8] x) => (float[1,8] y) { h = Cast <to=10> (x) a = MatMul(h, w) y = Cast <to=1> (a) }"
    weight = np.ones((8, 8), np.float16)
    assert [kernel.op_type for kernel in kernels(text, w=weight).items] == ["Cast", "MatMul+Cast"]
    [product] = kernels(text, fused=True, w=weight).items
    assert (product.op_type, product.dtype, product.launches) == ("MatMul", "FLOAT16", (1, 2))
    assert (product.weight_bytes, product.activation_bytes) == (2 * 64, 4 * 8 + 2 * 8)


def test_weights_stored_as_floats_behind_a_pair_count_as_integers() -> None:
    text = (
        "(float[1,8] x) => (float[1,8] y) <float s = {0.1}, int8 z = {0}> { q = QuantizeLinear(x, s, z) "
        "d = DequantizeLinear(q, s, z) p = QuantizeLinear(w, s, z) v = DequantizeLinear(p, s, z) y = MatMul(d, v) }"
    )
    [product] = kernels(text, fused=True, w=(8, 8)).items
    assert (product.dtype, product.weight_bytes, product.activation_bytes) == ("INT8", 64, 4 * 16)


def test_how_often_a_runtime_launches_is_a_range() -> None:
    text = "(float[1,8] x) => (float[1,8] y) { m = Sub(x, s) a = MatMul(m, w) r = Relu(a) y = Tanh(r) }"
    found = kernels(text, w=(8, 8), s=(8,)).items
    # The subtraction may be part of the product, and Tanh a kernel of its own; Relu never is.
    assert [(kernel.op_type, kernel.launches) for kernel in found] == [
        ("Sub", (0, 1)), ("MatMul+Relu+Tanh", (1, 2))
    ]  # fmt: skip
