"""The questions and edits passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from greencc.core.graph import (
    Names,
    add_initializer,
    all_nodes,
    attribute_int,
    attribute_ints,
    constant_of,
    constant_tensor,
    consumers,
    ensure_names,
    input_at,
    is_op,
    label,
    opset_of,
    sole_consumer,
    static_shape,
    subgraphs_of,
)

TEXT = """<ir_version: 8, opset_import: ["" : 17, "acme" : 2]>
g (bool c, float[N,3] x, float[3] d) => (float[N,3] y, float[3] k)
<float[3] w = {1.0, 2.0, 3.0}, float[3] d = {0.0,0.0,0.0}> {
    k = Constant <value_floats = [1.0, 2.0, 3.0]> ()
    i = Identity(w)
    j = Identity(i)
    a = Add(x, j)
    b = acme.Add <axes = [1, 2], keep = 0> (a, d)
    y = If (c) <
        then_branch = t () => (float[N,3] p) { p = Neg(a) },
        else_branch = e () => (float[N,3] q) { q = Abs(b) }
    >
}"""


def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def values(given: ir.Model) -> dict[str, ir.Value]:
    return {
        value.name or "": value for node in given.graph for value in (*node.inputs, *node.outputs) if value
    }


def test_constants_are_seen_through_identities_and_constant_nodes() -> None:
    found = values(model())
    for name in ("w", "i", "j", "k"):
        array = constant_of(found[name])
        assert array is not None
        np.testing.assert_array_equal(array, np.array([1, 2, 3], np.float32))
    assert constant_of(found["x"]) is None
    assert constant_of(found["a"]) is None
    assert constant_of(found["d"]) is None, "an input with a default is not a constant"
    assert constant_of(None) is None


def test_asking_for_a_constant_changes_nothing() -> None:
    given = model()
    before = ir.to_proto(given)
    for value in values(given).values():
        constant_tensor(value)
    assert ir.to_proto(given) == before


def test_every_kind_of_constant_attribute() -> None:
    given = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]> g () => (float a) {
            a = Constant <value_float = 1.5> () b = Constant <value_int = 3> () c = Constant <value_ints = [4, 5]> ()
            d = Constant <value_string = "s"> () e = Constant <value_strings = ["u", "v"]> ()
            f = Constant <value = double[2] {1.0, 2.0}> ()
        }"""
    )
    arrays = [constant_of(node.outputs[0]) for node in given.graph]
    assert all(array is not None for array in arrays)
    kinds = [(array.dtype.kind, array.shape) for array in arrays if array is not None]
    assert [shape for _, shape in kinds] == [(), (), (2,), (), (2,), (2,)]
    assert [kind for kind, _ in kinds[:3]] == ["f", "i", "i"]


def test_consumers_include_subgraphs() -> None:
    found = values(model())
    assert [node.op_type for node in consumers(found["a"])] == ["Add", "Neg"]
    assert sole_consumer(found["a"]) is None
    only = sole_consumer(found["j"])
    assert only is not None
    assert only.op_type == "Add"
    assert sole_consumer(found["k"]) is None, "a graph output has a reader outside"


def test_names_are_unique_stable_and_kept() -> None:
    first, second = model(), model()
    first.graph[3].name = second.graph[3].name = "Identity_i"
    assert ensure_names(first) == 7
    ensure_names(second)
    names = [node.name for node in all_nodes(first)]
    assert names == [node.name for node in all_nodes(second)]
    assert len(set(names)) == len(names) == 8
    assert first.graph[3].name == "Identity_i"
    assert first.graph[1].name == "Identity_i_1"
    assert ensure_names(first) == 0


def test_new_names_avoid_those_in_use() -> None:
    names = Names(model())
    assert [names.value("w"), names.value("w"), names.value("p"), names.value("new")] == [
        "w_1",
        "w_2",
        "p_1",
        "new",
    ]
    assert [names.node("n"), names.node("n")] == ["n", "n_1"]


def test_initializers_are_typed() -> None:
    given = model()
    value = add_initializer(given.graph, "fresh", np.ones((2, 3), np.float16))
    assert given.graph.initializers["fresh"] is value
    assert (value.dtype, static_shape(value)) == (ir.DataType.FLOAT16, (2, 3))


def test_small_questions() -> None:
    given = model()
    custom, branch = given.graph[4], given.graph[5]
    assert is_op(given.graph[3], "Add", "Mul")
    assert not is_op(custom, "Add")
    assert not is_op(None, "Add")
    assert attribute_ints(custom, "axes", ()) == (1, 2)
    assert attribute_ints(custom, "none", (7,)) == (7,)
    assert attribute_int(custom, "keep", 1) == 0
    assert label(custom) == "'Add_b' (acme::Add)"
    assert [graph.name for graph in subgraphs_of(branch)] == ["t", "e"]
    assert input_at(custom, 1) is custom.inputs[1]
    assert input_at(custom, 2) is None
    assert static_shape(custom.inputs[0]) is None
    assert opset_of(given) == 17
