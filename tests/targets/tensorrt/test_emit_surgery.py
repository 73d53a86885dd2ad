"""What must survive emission: weights untouched, metadata, names, the types that callers see."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.graph import all_nodes
from greencc.core.model import infer_shapes
from greencc.targets._tensorrt.emit import emit
from greencc.targets._tensorrt.surgery import operate

from .emitting import (
    block,
    cnn,
    distance,
    emitted,
    feeds_of,
    int8,
    machine,
    normal,
    operators,
    parse,
    unfused,
)

TEXT = """g (float[2, 64] x) => (float[2, 64] y) {
  a = MatMul (x, w)
  h = com.microsoft.Gelu (a)
  y = Add (h, b)
}"""


def test_weights_pass_surgery_unread() -> None:
    class Unreadable(ir.ExternalTensor):
        def numpy(self) -> np.ndarray:
            raise AssertionError("a weight was read")

        tobytes = numpy  # type: ignore[assignment]

    model = parse(TEXT, w=normal(64, 64), b=normal(64))
    tensor = Unreadable("absent.bin", 0, 64 * 64 * 4, ir.DataType.FLOAT, shape=ir.Shape([64, 64]), name="w")
    model.graph.initializers["w"].const_value = tensor
    operate(model, lambda graph: None)
    assert model.graph.initializers["w"].const_value is tensor
    assert [node.op_type for node in model.graph] == ["MatMul", "Gelu", "Add"]


def test_metadata_of_model_graph_and_nodes_is_kept() -> None:
    model = parse(TEXT, w=normal(64, 64), b=normal(64))
    model.metadata_props["author"] = "somebody"
    model.graph.metadata_props["part"] = "whole"
    node = next(node for node in model.graph if node.op_type == "MatMul")
    node.name, node.metadata_props["layer"] = "product", "first"
    node.doc_string = "a product"
    result = emitted(model, machine("8.2"))
    assert result.metadata_props["author"] == "somebody"
    assert result.graph.metadata_props["part"] == "whole"
    kept = next(each for each in result.graph if each.op_type == "MatMul")
    assert (kept.name, kept.metadata_props["layer"], kept.doc_string) == ("product", "first", "a product")


def test_brain_float_constants_keep_their_type() -> None:
    """onnx-graphsurgeon takes them for integers."""
    text = "g (bfloat16[2, 4] x) => (bfloat16[2, 4] y) { a = Mul (x, c) y = com.microsoft.Gelu (a) }"
    model = parse(text)
    kind = ir.DataType.BFLOAT16
    constant = ir.Value(name="c", const_value=ir.tensor(np.ones(4, kind.numpy()), name="c"))
    constant.type, constant.shape = ir.TensorType(kind), ir.Shape([4])
    model.graph.register_initializer(constant)
    product = model.graph[0]
    product.replace_input_with(1, constant)
    infer_shapes(model)
    result = emit(model, machine("11.4"))
    assert {value.dtype for value in result.graph.initializers.values()} == {kind}


def test_inputs_and_outputs_keep_names_order_and_types() -> None:
    for network in (cnn, block):
        for version in ("8.2", "11.4"):
            on = machine(version)
            model = int8(network(), on)
            result = emitted(model, on)
            for before, after in (
                (model.graph.inputs, result.graph.inputs),
                (model.graph.outputs, result.graph.outputs),
            ):
                assert [(v.name, v.dtype) for v in before] == [(v.name, v.dtype) for v in after]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_inputs_of_other_types_stay_and_are_cast(kind: str) -> None:
    text = f"g ({kind}[2, 16] x) => ({kind}[2, 16] y, {kind}[2, 16] r) {{ a = MatMul (x, w) y = Relu (a) r = Neg (y) }}"
    model = parse(text, w=normal(16, 16).astype(kind))
    for version in ("8.2", "11.4"):
        result = emitted(model, machine(version))
        native = kind == "float16" and version == "11.4"
        inner = {node.outputs[0].dtype for node in result.graph if node.op_type != "Cast"}
        assert inner == {ir.DataType.FLOAT16 if native else ir.DataType.FLOAT}
        assert operators(result).get("Cast", 0) == (0 if native else 3)
        feeds = feeds_of(model)
        assert distance(unfused(model, feeds), unfused(result, feeds)) < 2e-3


def test_casts_that_change_nothing_any_more_are_gone() -> None:
    text = """g (float[2, 16] x) => (float[2, 16] y) {
      h = Cast <to=10> (x)
      a = MatMul (h, w)
      y = Cast <to=1> (a)
    }"""
    model = parse(text, w=normal(16, 16).astype(np.float16))
    result = emitted(model, machine("8.2"))
    assert operators(result) == {"MatMul": 1}
    assert result.graph.outputs[0].name == "y"


def test_initializers_are_no_inputs() -> None:
    text = "g (float[2, 16] x, float[16, 16] w) => (float[2, 16] y) { y = MatMul (x, w) }"
    model = parse(text, w=normal(16, 16))
    assert len(model.graph.inputs) == 2
    assert [value.name for value in emitted(model, machine("8.2")).graph.inputs] == ["x"]


def test_constants_are_folded_and_large_repetitions_are_not() -> None:
    text = """g (float[2, 4] x) => (float[2, 4] y, float[1000, 1000] z) {
      two = Constant <value_float=2.0> ()
      four = Mul (two, two)
      y = Mul (x, four)
      z = Expand (two, size)
    }"""
    model = parse(text, size=np.array([1000, 1000]))
    result = emitted(model, machine("10.3"))
    assert operators(result) == {"Mul": 1, "Expand": 1}
    feeds = feeds_of(model)
    assert distance(unfused(model, feeds), unfused(result, feeds)) == 0.0


def test_shape_computations_stay_int64() -> None:
    text = """g (float[N, 4, 5] x) => (float[A, B] y) {
      s = Shape (x)
      n = Gather (s, zero)
      u = Unsqueeze (n, axes)
      t = Concat <axis=0> (u, rest)
      y = Reshape (x, t)
    }"""
    model = parse(text, zero=np.array(0), axes=np.array([0]), rest=np.array([20]))
    result = emitted(model, machine("8.2"))
    kinds = {node.op_type: node.outputs[0].dtype for node in all_nodes(result)}
    assert kinds["Shape"] is kinds["Concat"] is ir.DataType.INT64


def test_functions_are_inlined() -> None:
    proto_text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[2, 4] x) => (float[2, 4] y) { y = local.twice (x) }
    <domain: "local", opset_import: ["" : 17]>
    twice (a) => (b) { b = Add (a, a) }"""
    from onnx import parser

    model = ir.from_proto(parser.parse_model(proto_text))
    infer_shapes(model)
    result = emitted(model, machine("8.2"))
    assert not result.functions
    assert operators(result) == {"Add": 1}


def test_emission_needs_onnx_graphsurgeon_only_where_it_operates() -> None:
    """It takes a fifth of a second to import."""
    code = (
        "import sys, greencc.targets._tensorrt.emit, greencc.targets._tensorrt.flags;"
        "raise SystemExit('onnx_graphsurgeon' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
