"""Which constants are trained, and how they go back into the graph: no PyTorch needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from greencc.core.errors import InputError
from greencc.core.graph import constant_of
from greencc.core.model import infer_shapes, load_model
from greencc.core.pipeline import output_error
from greencc.recover._float_graph import float_graph, is_quantized, refuse_integer_graph
from greencc.targets import CpuTarget
from greencc.torch_graph.parameters import find_parameters, write_back
from greencc.torch_graph.quantized import Quantizer


def outputs(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    engine = CpuTarget(threads=1).reference(model)
    try:
        return engine.run({"x": x})
    finally:
        engine.close()


def test_weights_go_back_under_their_names_and_into_this_model_only(float_files: Path) -> None:
    model = load_model(float_files / "model.onnx")
    clone = model.clone()
    parameters = find_parameters(clone)
    assert list(parameters) == ["w0", "b0", "w1", "b1", "w2", "b2"]
    x = np.ones((2, 2, 6, 6), np.float32)
    before = outputs(model, x)["logits"]
    write_back(clone, {name: 2 * item.start for name, item in parameters.items() if name in ("w2", "b2")})
    assert np.allclose(outputs(clone, x)["logits"], 2 * before, rtol=1e-5)
    assert np.array_equal(outputs(model, x)["logits"], before)
    with pytest.raises(ValueError, match="shape"):
        write_back(clone, {"w2": np.zeros((1, 1), np.float32)})
    with pytest.raises(KeyError):
        write_back(clone, {"none": np.zeros(1, np.float32)})


def small(nodes: list, constants: list, opset: int = 17) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        constants,
    )
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )
    infer_shapes(model)
    return model


def test_constants_that_nothing_learned_stay() -> None:
    def array(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Constant", [], ["w"], name="held", value=array("t", 4, 4)),
        helper.make_node("Identity", ["w"], ["same"], name="same"),
        helper.make_node("Sub", ["x", "mean"], ["a"], name="centre"),
        helper.make_node("MatMul", ["a", "same"], ["b"], name="product"),
        helper.make_node("Add", ["b", "bias"], ["c"], name="bias"),
        helper.make_node("Mul", ["c", "scale"], ["y"], name="scale"),
    ]
    model = small(nodes, [array("mean", 4), array("bias", 4), array("scale", 4)])
    assert list(find_parameters(model)) == ["w", "bias"]
    write_back(model, {"w": np.full((4, 4), 3.0, np.float32)})
    result = outputs(model, np.full((1, 4), 2.0, np.float32))["y"]
    assert np.allclose(result, 3 * 4 + 1)
    assert list(find_parameters(model)) == ["w", "bias"]


def test_a_shared_weight_is_one_parameter() -> None:
    shared = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two"),
    ]
    model = small(nodes, [shared])
    assert list(find_parameters(model)) == ["w"]


def test_the_float_graph_of_a_quantized_one(int8_files: Path) -> None:
    model = load_model(int8_files / "damaged.greencc" / "artifact" / "model.onnx")
    assert is_quantized(model)
    plain = float_graph(model)
    assert not is_quantized(plain)
    assert is_quantized(model)
    assert [value.name for value in plain.graph.outputs] == ["logits"]
    x = np.load(int8_files / "eval.npz")["x"][:8]
    assert output_error([outputs(model, x)], [outputs(plain, x)], 1e-9) < 0.1
    names = {node.name for node in plain.graph}
    assert {"conv0", "conv1", "head"} <= names
    weights = find_parameters(plain)
    assert all(item.quantizer is None for item in weights.values())


def test_quantized_weights_go_back_as_integers(int8_files: Path) -> None:
    model = load_model(int8_files / "damaged.greencc" / "artifact" / "model.onnx")
    parameters = find_parameters(model)
    wide = [item for item in parameters.values() if item.rounded]
    assert len(wide) == 3
    stored = {name: constant_of(item.value) for name, item in parameters.items()}
    write_back(model, {name: item.start for name, item in parameters.items()})
    for name, item in find_parameters(model).items():
        # What the integers stand for is on their grid: nothing may move.
        assert np.array_equal(constant_of(item.value), stored[name])


@settings(max_examples=30)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=20),
    st.floats(1e-3, 1e3),
    st.sampled_from([(ir.DataType.INT8, -127.0, 127.0, 0.0), (ir.DataType.UINT8, 0.0, 255.0, 128.0)]),
)
def test_quantizing_is_within_half_a_step_or_at_the_end(
    values: list[float], scale: float, kind: tuple[ir.DataType, float, float, float]
) -> None:
    dtype, low, high, zero = kind
    quantizer = Quantizer(np.float32(scale), np.float32(zero), low, high, dtype)  # type: ignore[arg-type]
    array = np.array(values, np.float32)
    again = quantizer.dequantize(quantizer.quantize(array))
    ends = np.clip(array, (low - zero) * scale, (high - zero) * scale)
    assert np.all(np.abs(again - ends) <= 0.5 * scale * (1 + 1e-3) + 1e-3 * np.abs(ends))


def test_integer_arithmetic_is_refused() -> None:
    constants = [
        numpy_helper.from_array(np.zeros((4, 4), np.int8), "w"),
        numpy_helper.from_array(np.zeros((), np.int8), "z"),
    ]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "zp"], name="dynamic"),
        helper.make_node("MatMulInteger", ["q", "w", "zp", "z"], ["i"], name="product"),
        helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    with pytest.raises(InputError, match="DynamicQuantizeLinear 'dynamic'"):
        refuse_integer_graph(small(nodes, constants), "b.greencc")
