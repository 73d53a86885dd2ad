"""Work, traffic and parameters against numbers computed by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.describe import describe, input_specs, nodes_cost, output_specs
from greencc.core.model import infer_shapes


def model_of(text: str, **weights: tuple[int, ...] | np.ndarray) -> ir.Model:
    """A model from text; names that nothing defines become weights of the given shape."""
    model = ir.from_onnx_text(text)
    for name, given in weights.items():
        array = given if isinstance(given, np.ndarray) else np.ones(given, np.float32)
        values = [
            value for graph in model.graphs() for node in graph for value in node.inputs if value is not None
        ]
        found = [value for value in dict.fromkeys(values) if value.name == name]
        [first, *others] = found
        first.const_value = ir.tensor(array, name=name)
        for other in others:
            other.replace_all_uses_with(first)
        model.graph.register_initializer(first)
    infer_shapes(model)
    return model


HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> g '

CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], int]] = {
    "Conv 2-D": (
        "(float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv(x, w) }",
        {"w": (4, 3, 3, 3)},
        4 * 6 * 6 * 3 * 9,
    ),
    "Conv 1-D strided": (
        "(float[N,2,10] x) => (float[N,5,4] y) { y = Conv <strides = [2]> (x, w) }",
        {"w": (5, 2, 3)},
        5 * 4 * 2 * 3,
    ),
    "Conv 3-D": (
        "(float[N,1,4,4,4] x) => (float[N,2,3,3,3] y) { y = Conv(x, w) }",
        {"w": (2, 1, 2, 2, 2)},
        2 * 27 * 8,
    ),
    "Conv depthwise": (
        "(float[N,6,5,5] x) => (float[N,6,5,5] y) { y = Conv <group = 6, pads = [1,1,1,1]> (x, w) }",
        {"w": (6, 1, 3, 3)},
        6 * 25 * 9,
    ),
    "Conv grouped": (
        "(float[N,4,5,5] x) => (float[N,8,5,5] y) { y = Conv <group = 2> (x, w) }",
        {"w": (8, 2, 1, 1)},
        8 * 25 * 2,
    ),
    "ConvTranspose": (
        "(float[N,3,4,4] x) => (float[N,5,9,9] y) { y = ConvTranspose <strides = [2,2]> (x, w) }",
        {"w": (3, 5, 3, 3)},
        3 * 16 * 5 * 9,
    ),
    "Gemm": (
        "(float[N,7] x) => (float[N,5] y) { y = Gemm <transB = 1> (x, w, b) }",
        {"w": (5, 7), "b": (5,)},
        7 * 5,
    ),
    "Gemm of a transposed input": (
        "(float[7,2] x) => (float[2,5] y) { y = Gemm <transA = 1> (x, w) }",
        {"w": (7, 5)},
        2 * 7 * 5,
    ),
    "MatMul batched": (
        "(float[N,6,4] x, float[N,4,5] z) => (float[N,6,5] y) { y = MatMul(x, z) }",
        {},
        6 * 4 * 5,
    ),
    "LSTM both ways": (
        "(float[9,N,3] x) => (y) { y = LSTM <hidden_size = 4, direction = \"bidirectional\"> (x, w, r) }",
        {"w": (2, 16, 3), "r": (2, 16, 4)},
        9 * 2 * 4 * 4 * (3 + 4),
    ),
    "GRU": (
        "(float[5,N,3] x) => (y) { y = GRU <hidden_size = 2> (x, w, r) }",
        {"w": (1, 6, 3), "r": (1, 6, 2)},
        5 * 3 * 2 * (3 + 2),
    ),
    "Einsum": (
        '(float[N,3,4] x, float[N,5,4] z) => (y) { y = Einsum <equation = "bij,bkj->bik"> (x, z) }',
        {},
        3 * 4 * 5,
    ),
    "Einsum with dots": (
        '(float[N,3,4] x) => (y) { y = Einsum <equation = "...ij, jk -> ...ik"> (x, w) }',
        {"w": (4, 6)},
        3 * 4 * 6,
    ),
    "FusedConv": (
        '(float[N,3,4,4] x) => (y) <float[N,2,4,4] f> {'
        ' f = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [1,1]> (x, w) y = Identity(f) }',
        {"w": (2, 3, 1, 1)},
        2 * 16 * 3,
    ),
    "fused attention": (
        "(float[N,10,8] x) => (y) <float[N,10,8] f> {"
        " f = com.microsoft.Attention <num_heads = 2> (x, w, b) y = Identity(f) }",
        {"w": (8, 24), "b": (24,)},
        10 * 8 * 24 + 2 * 10 * 10 * 8,
    ),
    "multi-head attention": (
        "(float[N,6,8] q, float[N,9,8] k, float[N,9,8] v) => (y) <float[N,6,8] f> {"
        " f = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) y = Identity(f) }",
        {},
        2 * 6 * 9 * 8,
    ),
    "4-bit MatMul": (
        "(float[N,32] x) => (y) <float[N,6] f> {"
        " f = com.microsoft.MatMulNBits <K = 32, N = 6, bits = 4, block_size = 16> (x, w, s) y = Identity(f) }",
        {"w": (6, 2, 8), "s": (12,)},
        32 * 6,
    ),
    "element-wise": ("(float[N,32] x) => (y) { a = Relu(x) b = Softmax(a) y = Add(a, b) }", {}, 0),
    "If takes the costlier branch": (
        "(bool c, float[N,4] x) => (float[N,Q] y) { y = If (c) <"
        " then_branch = t () => (a) { p = MatMul(x, w) a = MatMul(p, v) },"
        " else_branch = e () => (b) { b = Identity(x) } > }",
        {"w": (4, 6), "v": (6, 4)},
        4 * 6 * 2,
    ),
    "Loop counts its iterations": (
        "(float[N,4] x) => (float[N,4] y) { n = Constant <value = int64 {5}> () y = Loop (n, , x) <"
        " body = l (int64 i, bool k, float[N,4] v) => (bool k2, float[N,4] u)"
        " { k2 = Identity(k) u = MatMul(v, w) } > }",
        {"w": (4, 4)},
        5 * 16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_macs(case: str, batch: int) -> None:
    body, weights, expected = CASES[case]
    model = model_of(HEAD + body, **weights)
    per_sample = "N" in body
    description = describe(model, {"N": batch})
    assert description.macs == expected * (batch if per_sample else 1)
    assert description.findings == ()


def test_attention_of_opset_23() -> None:
    model = model_of(
        '<ir_version: 11, opset_import: ["" : 23]> g '
        "(float[N,4,6,8] q, float[N,2,9,8] k, float[N,2,9,5] v) => (y) { y = Attention(q, k, v) }"
    )
    assert describe(model).macs == 4 * 6 * 9 * (8 + 5)


def test_a_node_pays_for_its_weights_and_its_tensors() -> None:
    model = model_of(
        HEAD + "(float[N,3,8,8] x) => (y) { t = Conv(x, w, b) y = Relu(t) }", w=(4, 3, 3, 3), b=(4,)
    )
    conv, relu = nodes_cost(model, {"N": 2})
    assert conv.op_type == "Conv"
    assert conv.weight_bytes == 4 * (4 * 27 + 4)
    assert conv.activation_bytes == 4 * 2 * (3 * 64 + 4 * 36)
    assert conv.dtype == "FLOAT"
    assert (relu.macs, relu.weight_bytes, relu.activation_bytes) == (0, 0, 4 * 2 * 2 * 4 * 36)


QDQ = (
    HEAD
    + """(float[N,3,8,8] x) => (y) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, t, u)
    c = Conv(xd, wd)
    cq = QuantizeLinear(c, s, z)
    y = DequantizeLinear(cq, s, z)
}"""
)


def test_integer_operators_move_integers() -> None:
    model = model_of(
        QDQ,
        s=np.array(0.1, np.float32),
        z=np.array(128, np.uint8),
        t=np.array(0.2, np.float32),
        u=np.array(0, np.int8),
        w=np.ones((4, 3, 3, 3), np.int8),
    )
    costs = {cost.op_type + str(index): cost for index, cost in enumerate(nodes_cost(model))}
    conv = costs["Conv3"]
    assert conv.dtype == "UINT8"
    assert conv.macs == 4 * 36 * 27
    assert conv.weight_bytes == 4 * 27 + 4 + 1
    assert conv.activation_bytes == 3 * 64 + 4 * 36
    assert [
        costs[name].activation_bytes for name in ("DequantizeLinear1", "DequantizeLinear2", "QuantizeLinear4")
    ] == [
        0,
        0,
        0,
    ]
    assert costs["QuantizeLinear0"].activation_bytes == 5 * 3 * 64
    assert costs["DequantizeLinear5"].activation_bytes == 5 * 4 * 36
    description = describe(model)
    assert description.params == 4 * 27
    assert description.weight_bytes == 4 * 27 + 4 + 1 + 4 + 1


def test_parameters_are_counted_once_and_only_where_used() -> None:
    model = model_of(
        HEAD
        + """(float[N,4] x) => (y) {
            a = MatMul(x, w)
            b = MatMul(a, w)
            target = Constant <value = int64[2] {-1, 4}> ()
            y = Reshape(b, target)
        }""",
        w=(4, 4),
    )
    unused = ir.Value(name="unused", const_value=ir.tensor(np.ones(99, np.float32), name="unused"))
    model.graph.register_initializer(unused)
    description = describe(model)
    assert description.params == 16
    assert description.weight_bytes == 4 * 16 + 2 * 8
    assert description.macs == 32
    assert description.ops == {"MatMul": 2, "Constant": 1, "Reshape": 1}
    assert description.nodes == 4
    assert description.opset == 21
    assert description.domains == {"ai.onnx": 21, "com.microsoft": 1}


def test_packed_weights_have_their_packed_size() -> None:
    model = model_of(
        HEAD + "(float[N,6] x) => (y) { wd = DequantizeLinear <axis = 1> (w, s) y = MatMul(x, wd) }",
        w=np.ones((6, 3), ml_dtypes.int4),
        s=np.ones(3, np.float32),
    )
    description = describe(model)
    assert description.params == 18
    assert description.weight_bytes == 9 + 12
    assert description.costs[1].dtype == "FLOAT"


def test_functions_are_inlined() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 18, "lib" : 1]>
        g (float[N,4] x) => (float[N,4] y) { t = lib.square(x) y = lib.square(t) }
        <domain: "lib", opset_import: ["" : 18]>
        square (a) => (b) { c = Transpose(a) d = MatMul(c, a) b = MatMul(a, d) }"""
    )
    infer_shapes(model)
    description = describe(model, {"N": 3})
    assert description.macs == 2 * (4 * 3 * 4 + 3 * 4 * 4)
    assert [cost.op_type for cost in description.costs] == ["Transpose", "MatMul", "MatMul"] * 2


def test_what_is_unknown_is_none_with_a_finding() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
        g (float[N,T,4] x) => (y) { a = MatMul(x, w) b = acme.Wonder(a) y = Relu(a) }""",
        w=(4, 4),
    )
    description = describe(model)
    assert description.macs is None
    assert description.activation_bytes is None
    assert [finding.node for finding in description.findings] == ["Wonder_b", "MatMul_a"]
    assert "a size is unknown" in description.findings[1].message
    bound = describe(model, {"T": 5})
    assert [cost.macs for cost in bound.costs] == [80, None, 0]


def test_interface() -> None:
    model = model_of(HEAD + "(int64[N,3] ids, float16[B,2] x, string[1] s) => (y, z, r) "
                     "{ y = Cast <to = 16> (ids) z = Relu(x) r = Identity(s) }")  # fmt: skip
    ids, x, s = input_specs(model)
    assert (ids.name, ids.dtype, ids.shape) == ("ids", np.dtype(np.int64), ("N", 3))
    assert (x.dtype, x.shape, x.batch) == (np.dtype(np.float16), ("B", 2), None)
    assert s.batch == 1
    y, z, _ = output_specs(model)
    assert (y.name, y.dtype, y.shape) == ("y", np.dtype(ml_dtypes.bfloat16), ("N", 3))
    assert z.shape == ("B", 2)


@pytest.mark.parametrize("dtype", [ir.DataType.UNDEFINED, ir.DataType.STRING])
def test_values_without_a_size_do_not_fail_the_count(dtype: ir.DataType) -> None:
    model = ir.from_onnx_text(HEAD + "(float[2] x) => (float[2] y) { v = Relu(x) y = Relu(v) }")
    value = next(iter(model.graph)).outputs[0]
    value.dtype, value.shape = dtype, ir.Shape([2])
    assert len(nodes_cost(model)) == 2
