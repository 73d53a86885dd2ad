"""`columns @ matrix.T + bias` is what ONNX Runtime computes, for every layout of a weighted operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.passes._linear_view import linear_view

CASES = {
    "conv 1d": ("Conv", (2, 4, 9), (6, 4, 3), {"pads": [1, 2], "strides": [2]}),
    "conv 2d": ("Conv", (2, 4, 7, 8), (6, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
    "conv 3d": ("Conv", (1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {}),
    "depthwise": ("Conv", (2, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "grouped": ("Conv", (2, 4, 6, 6), (6, 2, 3, 3), {"group": 2}),
    "same upper": ("Conv", (1, 3, 7, 6), (2, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ("Conv", (1, 3, 7, 6), (2, 3, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ("Conv", (1, 3, 7, 6), (2, 3, 4, 3), {"auto_pad": "VALID"}),
    "transpose": ("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1]}),
    "transpose grouped": (
        "ConvTranspose",
        (2, 4, 5, 4),
        (4, 3, 3, 3),
        {"group": 2, "strides": [2, 1], "dilations": [1, 2], "output_padding": [1, 0]},
    ),
    "transpose same": ("ConvTranspose", (1, 2, 5, 5), (2, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "transpose shape": ("ConvTranspose", (1, 2, 5, 5), (2, 3, 3, 3), {"output_shape": [10, 9], "strides": [2, 2]}),
    "transpose much padding": ("ConvTranspose", (1, 2, 6, 6), (2, 3, 2, 2), {"pads": [2, 2, 1, 1]}),
    "gemm": ("Gemm", (5, 4), (4, 3), {}),
    "gemm transposed": ("Gemm", (5, 4), (3, 4), {"transB": 1}),
    "matmul": ("MatMul", (2, 5, 4), (4, 3), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_view_computes_the_node(case: str) -> None:
    op_type, x_shape, w_shape, attributes = CASES[case]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(x_shape).astype(np.float32)
    w = rng.standard_normal(w_shape).astype(np.float32)
    node = helper.make_node(op_type, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (y,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    view = linear_view(next(iter(ir.from_proto(proto).graph)))
    assert view is not None
    np.testing.assert_array_equal(view.stored(view.matrix(w)), w)
    rows = view.columns(x) @ view.matrix(w).swapaxes(1, 2)
    np.testing.assert_allclose(rows, view.targets(y), rtol=1e-4, atol=1e-5)
    pick = np.array([3, 0, 4])
    np.testing.assert_array_equal(view.columns(x, pick), view.columns(x)[:, pick])
    np.testing.assert_array_equal(view.targets(y, pick), view.targets(y)[:, pick])
    assert view.row_count(y) == rows.shape[1]


def test_what_is_no_constant_product_has_no_view() -> None:
    x, w = ir.Value(name="x"), ir.Value(name="w")
    assert linear_view(ir.node("MatMul", [x, w])) is None
    assert linear_view(ir.node("Relu", [x])) is None
