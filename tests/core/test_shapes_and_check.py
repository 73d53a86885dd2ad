"""Inference forgets, infers and refuses; the check tolerates custom domains; bound sizes reach every shape."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from greencc.core.errors import ExitCode, InputError
from greencc.core.model import bind_dims, check_model, infer_shapes


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def shapes(model: ir.Model) -> dict[str, list[int | str | None]]:
    found: dict[str, list[int | str | None]] = {}
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.shape is not None:
                    found[value.name or ""] = [
                        dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape
                    ]
    return found


def weighted_chain(inner: int) -> ir.Model:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,2] y) { t = MatMul(x, w) u = Relu(t) y = MatMul(u, v) }"""
    )
    for name, shape in (("w", (4, inner)), ("v", (inner, 2))):
        used = next(
            value for node in model.graph for value in node.inputs if value is not None and value.name == name
        )
        used.const_value = ir.tensor(np.ones(shape, np.float32), name=name)
        model.graph.register_initializer(used)
    return model


@pytest.mark.parametrize("inner", [3, 300])
def test_stale_shapes_and_types_are_forgotten(inner: int) -> None:
    model = weighted_chain(inner)
    infer_shapes(model)
    assert shapes(model)["u"] == ["N", inner]
    for name, shape in (("w", (4, 2 * inner)), ("v", (2 * inner, 2))):
        model.graph.initializers[name].const_value = ir.tensor(np.ones(shape, np.float32), name=name)
    model.graph[1].outputs[0].type = ir.TensorType(ir.DataType.INT8)
    infer_shapes(model)
    assert shapes(model)["u"] == ["N", 2 * inner]
    assert model.graph[1].outputs[0].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["w"].shape == [4, 2 * inner]
    check_model(model)


def test_failed_inference_names_the_node_and_leaves_the_model() -> None:
    model = weighted_chain(300)
    infer_shapes(model)
    before = shapes(model)
    model.graph[2].name = "second"
    model.graph.initializers["v"].const_value = ir.tensor(np.ones((7, 2), np.float32), name="v")
    with pytest.raises(InputError, match=r"shape inference failed at node 'second' \(MatMul\)") as caught:
        infer_shapes(model)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert shapes(model) == before


def test_outputs_of_custom_operators_are_kept_and_used() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17, "acme" : 1, "com.microsoft" : 1]>
        g (float[N,4] x) => (float[N,6] y) <float[N,6] a> {
            a = acme.Widen(x) b = Relu(a) c = com.microsoft.FastGelu(b) y = Identity(b)
        }"""
    )
    infer_shapes(model)
    infer_shapes(model)
    assert shapes(model)["a"] == ["N", 6]
    assert shapes(model)["b"] == ["N", 6]
    check_model(model)


def test_shapes_inside_subgraphs_and_across_functions() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["" : 18, "lib" : 1]>
        g (bool c, float[N,4] x) => (float[N,4] y, float[4,N] z) {
            y = If (c) <
                then_branch = t () => (a) { p = Neg(x) a = Relu(p) },
                else_branch = e () => (b) { b = Identity(x) }
            >
            z = lib.turn(x)
        }
        <domain: "lib", opset_import: ["" : 18]> turn (a) => (b) { b = Transpose <perm = [1, 0]> (a) }"""
    )
    infer_shapes(model)
    found = shapes(model)
    assert found["p"] == found["a"] == found["b"] == ["N", 4]
    assert found["z"] == [4, "N"]
    check_model(model)


def test_a_wrong_declared_output_shape_is_corrected() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x) => (float[1,9] y) { y = Relu(x) }"""
    )
    infer_shapes(model)
    assert shapes(model)["y"] == [2, 4]
    check_model(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[N] x) => (float[N] y) { y = Relu <slope = 2.0> (x) }", "Unrecognized attribute: slope"),
        ("g (float[N] x) => (float[N] y) { y = Add(x) }", "at .*Add"),
        ("g (float[N] x) => (float[N] y) { y = Cast(x) }", "Cast"),
        ("g (float[2,3] x) => (float[2,3] y) { y = MatMul(x, x) }", "MatMul"),
    ],
)
def test_the_check_refuses(text: str, message: str) -> None:
    model = model_of('<ir_version: 8, opset_import: ["" : 17]> ' + text)
    with pytest.raises(InputError, match=message) as caught:
        check_model(model)
    assert "\n" not in caught.value.message


def test_values_of_unknown_rank_pass_the_check() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[] x, float[N] s) => (float[] y, float[] z) { y = Relu(x) z = acme.Any(s) }"""
    )
    infer_shapes(model)
    check_model(model)
    assert [value.shape for value in model.graph.outputs] == [None, None]


COMPUTED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,C,H,W] x) => (float[N,K] y) {
    s = Shape(x)
    zero = Constant <value = int64[1] {0}> ()
    three = Constant <value = int64[1] {3}> ()
    one = Constant <value = int64[1] {1}> ()
    n = Slice(s, zero, one)
    rest = Slice(s, one, three)
    f = Cast <to = 1> (rest)
    half = Constant <value = float {2.0}> ()
    g1 = Div(f, half)
    g2 = Mul(g1, half)
    back = Cast <to = 7> (g2)
    p = ReduceProd <keepdims = 1> (back)
    w = Constant <value = int64[1] {-1}> ()
    target = Concat <axis = 0> (n, w)
    flat = Reshape(x, target)
    ones = ConstantOfShape(target2)
    target2 = Concat <axis = 0> (n, p)
    y = Identity(flat)
}"""


def test_bound_sizes_reach_shapes_that_are_computed() -> None:
    model = model_of(COMPUTED)
    model.graph.sort()
    infer_shapes(model)
    before = shapes(model)
    bound = bind_dims(model, {"x": (2, 3, 4, 5)})
    assert shapes(bound)["flat"] == [2, 60]
    assert shapes(bound)["ones"] == [2, 12]
    assert bound.graph.inputs[0].shape == [2, 3, 4, 5]
    assert bound.graph.outputs[0].shape == [2, 60]
    assert len(bound.graph) == len(model.graph)
    assert shapes(model) == before
    check_model(bound)


def test_a_named_dimension_is_bound_everywhere() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[N,T] x, float[N,3] m) => (float[N,T] y) <float[N,T] a> { a = acme.Mix(x, m) y = Relu(a) }"""
    )
    bound = bind_dims(model, {"x": (2, 7)})
    assert bound.graph.inputs[1].shape == [2, 3]
    assert shapes(bound) == {"a": [2, 7], "y": [2, 7]}


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": (1, 4)}, "no input 'z'.*known: x"),
        ({"x": (4,)}, "input 'x' .* cannot take"),
        ({"x": (2, 5)}, "cannot take"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(feeds: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        bind_dims(weighted_chain(3), feeds)
    caught.match(message)


def test_huge_computed_sizes_are_not_materialised() -> None:
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x) => (float[M] y) {
            big = Constant <value = int64[2] {4000000, 4000000}> ()
            z = ConstantOfShape(big)
            r = Expand(z, big)
            s = Shape(r)
            f = Cast <to = 1> (s)
            y = Identity(f)
        }"""
    )
    bound = bind_dims(model, {"x": (3,)})
    assert shapes(bound)["r"] == [4_000_000, 4_000_000]
    assert shapes(bound)["y"] == [2]


def test_what_follows_a_fused_gelu_has_a_shape() -> None:
    weight = onnx.numpy_helper.from_array(np.ones((5, 7), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Gelu", ["x"], ["g"], "gelu", domain="com.microsoft"),
        onnx.helper.make_node("MatMul", ["g", "w"], ["y"], "product"),
        onnx.helper.make_node("Relu", ["y"], ["z"], "relu"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "gelu",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 5])],
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 7])],
        [weight],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    infer_shapes(model)
    shapes = {str(value.name): value.shape for node in model.graph for value in node.outputs}
    assert [str(dim) for dim in shapes["g"] or ()] == ["n", "5"]
    assert [str(dim) for dim in shapes["y"] or ()] == ["n", "7"]
    assert model.graph[0].op_type == "Gelu", "only the inference sees something else"
