"""Shapes that the graph computes: what only reads other axes locks nothing, what reads the channels is followed."""

from __future__ import annotations

import numpy as np
import pytest


def _stem(graph, shape=("N", 3, "H", "W")):
    g = graph()
    return g, g.conv(g.input("x", list(shape)), 3, 8, name="stem")


@pytest.mark.parametrize("form", ["gather", "slice", "start", "squeeze", "cast"])
def test_the_batch_of_a_shape_locks_nothing(graph, prove, form) -> None:
    g, x = _stem(graph, ("N", 3, 4, 4))
    shape = g.op("Shape", x, **({"start": 0, "end": 1} if form == "start" else {}))
    if form == "gather":
        batch = g.op("Unsqueeze", g.op("Gather", shape, g.const(np.int64(0))), g.ints(0))
    elif form == "slice":
        batch = g.op("Slice", shape, g.ints(0), g.ints(1), g.ints(0))
    elif form == "squeeze":
        batch = g.op("Reshape", g.op("Squeeze", g.op("Gather", shape, g.ints(0)), g.ints(0)), g.ints(-1))
    elif form == "cast":
        batch = g.op("Cast", g.op("Cast", g.op("Gather", shape, g.ints(0)), to=6), to=7)
    else:
        batch = shape
    y = g.op("Reshape", x, g.op("Concat", batch, g.ints(8, 16), axis=0))
    y = g.op("MatMul", y, g.random(16, 2), name="positions")
    y = g.op("Reshape", y, g.op("Concat", batch, g.ints(-1), axis=0))
    assert prove(g.model(g.linear(y, 16, 2, name="end")))


def test_constant_entries_of_a_target_are_edited(graph, prove) -> None:
    """Concat(batch, 8, 4, 4) is read twice: the node that is not cut keeps its numbers."""
    g, x = _stem(graph, ("N", 3, 4, 4))
    batch = g.op("Gather", g.op("Shape", x), g.ints(0))
    target = g.op("Concat", batch, g.ints(8, 4), g.ints(4), axis=0)
    y = g.op("Reshape", g.op("Relu", x), target, name="cut")
    z = g.op("Reshape", g.op("Concat", g.input("z", ["N", 8, 4, 4]), axis=1), target, name="kept")
    found = prove(g.model(g.conv(y, 8, 2, name="end"), z))
    assert found.sizes == {"stem": 8}
    reshapes = {node.name: node for node in found.model.graph if node.op_type == "Reshape"}
    assert reshapes["cut"].inputs[1] is not reshapes["kept"].inputs[1]


def test_a_target_with_all_sizes_of_another_value(graph, prove) -> None:
    """view(b, c, -1) and back: the entry that counts the channels follows by itself."""
    g, x = _stem(graph)
    shape = g.op("Shape", x)
    first = g.op("Slice", shape, g.ints(0), g.ints(2), g.ints(0))
    y = g.op("Reshape", x, g.op("Concat", first, g.ints(-1), axis=0))
    y = g.op("Softmax", y, axis=-1)
    y = g.op("Reshape", y, shape)
    assert prove(g.model(g.conv(y, 8, 2, name="end")), least=0)


@pytest.mark.parametrize("form", ["slice", "constant"])
def test_resize_to_the_size_of_another_value(graph, prove, form) -> None:
    g, x = _stem(graph)
    y = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    shape = g.op("Shape", x)
    first = g.op("Slice", g.op("Shape", y), g.ints(0), g.ints(2), g.ints(0))
    if form == "constant":
        first = g.op("Concat", g.op("Gather", shape, g.ints(0)), g.ints(8), axis=0)
    spatial = g.op("Slice", shape, g.ints(2), g.ints(4), g.ints(0))
    y = g.op("Resize", y, "", "", g.op("Concat", first, spatial, axis=0), mode="nearest")
    y = g.op("Concat", y, x, axis=1)
    model = g.model(g.op("GlobalAveragePool", g.conv(y, 16, 2, name="end")))
    assert prove(_square(model)).sizes == {"stem": 8}


def test_expand_to_the_shape_of_another_value(graph, prove) -> None:
    g, x = _stem(graph)
    y = g.op("Expand", g.op("GlobalAveragePool", x), g.op("Shape", x))
    z = g.op("Expand", g.op("ReduceMean", x, g.ints(1, 2, 3)), g.op("Shape", x))
    y = g.op("Add", g.op("Mul", x, y), z)
    assert prove(_square(g.model(g.op("GlobalAveragePool", g.conv(y, 8, 2, name="end")))), least=0)


def _square(model):
    """Inputs of 4 by 4, so that the names of sizes stay and the model still runs."""
    for value in model.graph.inputs:
        assert value.shape is not None
    return model


@pytest.mark.parametrize("op_type", ["Mul", "Div", "Add", "ReduceProd", "Range", "Size"])
def test_arithmetic_with_the_number_of_channels_locks(graph, groups, op_type) -> None:
    g, x = _stem(graph)
    count = g.op("Gather", g.op("Shape", x), g.const(np.int64(1)))
    if op_type == "Range":
        number = g.op("ReduceMax", g.op("Range", g.const(np.int64(0)), count, g.const(np.int64(1))))
    elif op_type == "ReduceProd":
        number = g.op("ReduceProd", g.op("Shape", x))
    elif op_type == "Size":
        number = g.op("Size", x)
    else:
        number = g.op(op_type, count, g.const(np.int64(2)))
    y = g.op("Mul", g.conv(x, 8, 2, name="end"), g.op("Cast", number, to=1))
    assert "size" in groups(g.model(y))["stem"]


def test_the_number_of_channels_as_an_output_locks(graph, groups) -> None:
    g, x = _stem(graph)
    count = g.op("Gather", g.op("Shape", x), g.ints(1))
    assert groups(g.model(g.conv(x, 8, 2, name="end"), count))["stem"] == "it is an output of the model"


def test_the_size_of_something_else_locks(graph, groups) -> None:
    """The channels' number makes an axis that is not theirs."""
    g, x = _stem(graph)
    count = g.op("Gather", g.op("Shape", x), g.ints(1))
    y = g.op("Reshape", g.input("y", ["N", 16]), g.op("Concat", g.ints(-1), count, axis=0))
    assert groups(g.model(g.conv(x, 8, 2, name="end"), g.op("Relu", y)))["stem"] is not None


def test_channels_joined_as_whole_numbers(graph, prove) -> None:
    """A vector of 64-bit integers that is no shape."""
    g = graph()
    x = g.op("Gather", g.random(5, 6), g.input("x", [], 7), name="row")
    whole = g.op("Concat", g.op("Cast", x, to=7), g.ints(3, 4), axis=0)
    y = g.op("Unsqueeze", g.op("Cast", whole, to=1), g.ints(0))
    assert prove(g.model(g.linear(y, 8, 2, name="end"))).sizes == {"row": 6}


def test_a_target_that_is_an_input_locks(graph, groups) -> None:
    g, x = _stem(graph, (2, 3, 4, 4))
    y = g.op("Reshape", x, g.input("target", [2], 7))
    assert groups(g.model(g.op("Relu", y)))["stem"] is not None


def test_slice_with_computed_bounds_of_positions(graph, prove) -> None:
    g, x = _stem(graph)
    half = g.op("Div", g.op("Gather", g.op("Shape", x), g.ints(2)), g.ints(2))
    y = g.op("Slice", x, g.ints(0), half, g.ints(2))
    y = g.op("GlobalAveragePool", g.conv(y, 8, 2, name="end"))
    assert prove(g.model(y)).sizes == {"stem": 8}


def test_slice_with_computed_bounds_of_channels_locks(graph, groups) -> None:
    g, x = _stem(graph)
    half = g.op("Div", g.op("Gather", g.op("Shape", x), g.ints(2)), g.ints(2))
    y = g.op("Slice", x, g.ints(0), half, g.ints(1))
    assert "bounds are computed" in groups(g.model(g.op("ReduceMean", y, g.ints(1))))["stem"]


def test_bounds_of_32_bits_stay_so(graph, prove) -> None:
    """Starts, ends and axes of one Slice have one type."""
    g, x = _stem(graph)
    bounds = [g.ints(value, dtype=np.int32) for value in (2, 7, 1)]
    y = g.op("Slice", x, *bounds)
    assert prove(g.model(g.op("GlobalAveragePool", g.conv(y, 5, 2, name="end"))), least=2)
