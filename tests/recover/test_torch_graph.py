"""Every operator in PyTorch against ONNX Runtime, and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.core.errors import InputError
from greencc.core.model import infer_shapes
from greencc.core.pipeline import output_error
from greencc.targets import CpuTarget

torch = pytest.importorskip("torch", reason="needs greencc[finetune]")

from greencc.torch_graph.graph import TorchGraph, fake_quantize  # noqa: E402

IMAGE, ROWS = (2, 4, 7, 6), (3, 8)


def graph(
    op: str,
    shape: tuple[int, ...],
    constants: list[Any],
    opset: int = 17,
    outputs: int = 1,
    inputs: list[str] | None = None,
    **attributes: Any,
) -> ir.Model:
    """A model of one node that reads `x` and constants."""
    arrays = [np.asarray(item) for item in constants]
    names = [f"k{index}" for index in range(len(arrays))]
    tensors = [
        numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name)
        for array, name in zip(arrays, names, strict=True)
    ]
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, inputs or ["x", *names], results, name="node", **attributes)
    proto = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
        tensors,
    )
    ir_version = 8 if opset < 20 else 10
    model = ir.from_proto(
        helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    )
    infer_shapes(model)
    return model


def r(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any]]] = [
    ("Conv", IMAGE, [r(6, 4, 3, 3), r(6)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", IMAGE, [r(8, 1, 3, 3)], {"group": 4, "dilations": [2, 1]}),
    ("Conv", IMAGE, [r(5, 4, 2, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", IMAGE, [r(5, 4, 2, 3)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", (2, 4, 9), [r(6, 2, 3)], {"group": 2, "pads": [1, 1]}),
    ("ConvTranspose", IMAGE, [r(4, 3, 3, 2), r(3)], {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("ConvTranspose", IMAGE, [r(4, 2, 2, 2)], {"strides": [2, 2], "group": 2, "output_padding": [1, 0]}),
    ("ConvTranspose", IMAGE, [r(4, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 2], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", IMAGE, [], {}),
    ("GlobalMaxPool", IMAGE, [], {}),
    ("BatchNormalization", IMAGE, [r(4), r(4), r(4), np.abs(r(4)) + 0.1], {"epsilon": 1e-3}),
    ("InstanceNormalization", IMAGE, [r(4), r(4)], {}),
    ("LayerNormalization", ROWS, [r(8), r(8)], {}),
    ("LayerNormalization", (2, 3, 8), [r(3, 8)], {"axis": 1}),
    ("LpNormalization", ROWS, [], {}),
    ("Resize", IMAGE, [np.zeros(0, np.float32), np.float32([1, 1, 2, 2])], {
        "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", IMAGE, [np.zeros(0, np.float32), np.float32([1, 1, 2, 1.5])], {"mode": "linear"}),
    ("Gemm", ROWS, [r(5, 8), r(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", (2, 3, 8), [r(8, 5)], {}),
    ("Add", IMAGE, [r(4, 1, 1)], {}),
    ("Div", ROWS, [np.abs(r(8)) + 1], {}),
    ("Pow", ROWS, [np.float32(2)], {}),
    ("Max", ROWS, [r(8), r(3, 1)], {}),
    ("PRelu", IMAGE, [r(4, 1, 1)], {}),
    ("Clip", ROWS, [np.float32(-0.3), np.float32(0.4)], {}),
    ("Relu", ROWS, [], {}),
    ("LeakyRelu", ROWS, [], {"alpha": 0.2}),
    ("Elu", ROWS, [], {"alpha": 0.7}),
    ("HardSigmoid", ROWS, [], {"alpha": 0.3}),
    ("HardSwish", ROWS, [], {}),
    ("Sigmoid", ROWS, [], {}),
    ("Tanh", ROWS, [], {}),
    ("Softplus", ROWS, [], {}),
    ("Erf", ROWS, [], {}),
    ("Softmax", (2, 3, 4), [], {"axis": 1}),
    ("LogSoftmax", ROWS, [], {}),
    ("ReduceMean", IMAGE, [], {"axes": [2, 3], "keepdims": 0}),
    ("ReduceSum", IMAGE, [i(1)], {}),
    ("ReduceMax", IMAGE, [], {"axes": [-1]}),
    ("ReduceL2", ROWS, [], {}),
    ("Reshape", IMAGE, [i(0, -1, 2)], {}),
    ("Flatten", IMAGE, [], {"axis": -2}),
    ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", ROWS, [], {}),
    ("Squeeze", (3, 1, 4, 1), [i(1, -1)], {}),
    ("Unsqueeze", ROWS, [i(0, -1)], {}),
    ("Concat", ROWS, [r(3, 2)], {"axis": -1}),
    ("Slice", IMAGE, [i(1, -1), i(1 << 62, -(1 << 62)), i(1, 3), i(2, -2)], {}),
    ("Slice", IMAGE, [i(-3), i(-1), i(2)], {}),
    ("Gather", IMAGE, [i(-1, 0)], {"axis": 1}),
    ("Gather", IMAGE, [np.array(2, np.int64)], {"axis": 2}),
    ("Expand", (3, 1, 4), [i(2, 1, 5, 1)], {}),
    ("Tile", ROWS, [i(2, 3)], {}),
    ("Pad", IMAGE, [i(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)], {}),
    ("Pad", IMAGE, [i(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    ("DepthToSpace", IMAGE, [], {"blocksize": 2}),
    ("DepthToSpace", IMAGE, [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", (2, 3, 4, 6), [], {"blocksize": 2}),
]  # fmt: skip


def assert_same(model: ir.Model, shape: tuple[int, ...]) -> None:
    feeds = {"x": r(*shape)}
    engine = CpuTarget(threads=1).reference(model)
    wanted = engine.run(feeds)
    engine.close()
    with torch.no_grad():
        found = {name: value.numpy() for name, value in TorchGraph(model).run(feeds).items()}
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape
    assert output_error([wanted], [found], 1e-9) < 1e-5


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)]
)
def test_an_operator_computes_what_the_runtime_computes(
    op: str, shape: tuple[int, ...], constants: list[Any], attributes: dict[str, Any]
) -> None:
    assert_same(graph(op, shape, constants, **attributes), shape)


@pytest.mark.parametrize(
    ("op", "shape", "opset", "attributes"),
    [
        ("Gelu", ROWS, 20, {"approximate": "tanh"}),
        ("Softmax", (2, 3, 4), 11, {"axis": 1}),
        ("Clip", ROWS, 10, {"min": -0.5, "max": 0.5}),
        ("Squeeze", (3, 1, 4), 11, {"axes": [1]}),
        ("Split", ROWS, 18, {"axis": 1, "num_outputs": 3}),
    ],
)
def test_other_operator_sets(op: str, shape: tuple[int, ...], opset: int, attributes: dict[str, Any]) -> None:
    outputs = attributes.get("num_outputs", 1)
    assert_same(graph(op, shape, [], opset=opset, outputs=outputs, **attributes), shape)


def test_an_unknown_operator_is_named() -> None:
    model = graph("Hardmax", ROWS, [])
    with pytest.raises(InputError, match="Hardmax 'node'"):
        TorchGraph(model)


def test_an_unknown_way_to_resize_is_named() -> None:
    model = graph("Resize", IMAGE, [np.zeros(0, np.float32), np.float32([1, 1, 2, 2])], mode="cubic")
    with pytest.raises(InputError, match="cubic"):
        TorchGraph(model).run({"x": r(*IMAGE)})


def test_weights_have_gradients_and_the_input_graph_is_untouched() -> None:
    weight = r(5, 8)
    model = graph("Gemm", ROWS, [weight, r(5)], transB=1)
    found = TorchGraph(model)
    found.run({"x": r(*ROWS)})["y0"].sum().backward()
    assert torch.allclose(found.parameters["k0"].grad, torch.from_numpy(r(*ROWS).sum(axis=0)).expand(5, 8))
    with torch.no_grad():
        found.parameters["k0"].zero_()
    assert np.array_equal(model.graph.initializers["k0"].const_value.numpy(), weight)


def test_rounding_passes_gradients_inside_the_range_only() -> None:
    value = torch.tensor([-300.0, -1.26, 0.0, 0.3, 300.0], requires_grad=True)
    one = torch.tensor(0.5)
    rounded = fake_quantize(value, one, torch.tensor(0.0), -127.0, 127.0)
    rounded.sum().backward()
    assert rounded.tolist() == [-63.5, -1.5, 0.0, 0.5, 63.5]
    assert value.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
