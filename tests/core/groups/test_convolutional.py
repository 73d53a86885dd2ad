"""Groups of convolutional nets: random graphs, and the forms that need care one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.groups import analyse


class _Net:
    """Grows a random net; every tensor is (2, channels, size, size)."""

    def __init__(self, graph: Any, data: st.DataObject) -> None:
        self.draw = data.draw
        self.g = graph(opset=21, seed=self.draw(st.integers(0, 99)))
        self.pool = [(self.g.conv(self.g.input("x", [2, 3, 8, 8]), 3, 4, 3), 4, 8)]

    def number(self, *choices: int) -> int:
        return int(self.draw(st.sampled_from(choices)))

    def grow(self) -> None:
        x, channels, size = self.pool[self.draw(st.integers(0, len(self.pool) - 1))]
        step = self.draw(st.sampled_from(_STEPS))
        made = step(self, x, channels, size)
        if made is not None:
            self.pool.append(made)

    def model(self) -> Any:
        outputs = []
        for number, (x, channels, size) in enumerate(self.pool[-2:]):
            if number % 2:
                flat = self.g.op("Flatten", x)
                outputs.append(
                    self.g.op(
                        "Gemm",
                        flat,
                        self.g.random(channels * size * size, 3),
                        self.g.random(3),
                        name=f"end{number}",
                    )
                )
            else:
                outputs.append(self.g.conv(x, channels, 2, name=f"end{number}"))
        return self.g.model(*outputs)


_Step = tuple[str, int, int] | None


def _conv(net: _Net, x: str, c: int, s: int) -> _Step:
    out, stride = net.number(2, 3, 4, 6, 8), net.number(1, 1, 2)
    y = net.g.conv(x, c, out, net.number(1, 3), strides=[stride] * 2, bias=bool(net.number(0, 1)))
    return y, out, -(-s // stride)


def _grouped(net: _Net, x: str, c: int, s: int) -> _Step:
    group = net.number(*[n for n in range(1, c + 1) if c % n == 0])
    out = group * net.number(1, 2, 3)
    return net.g.conv(x, c, out, 3, group=group), out, s


def _transposed(net: _Net, x: str, c: int, s: int) -> _Step:
    if s > 8:
        return None
    group = net.number(*[n for n in range(1, c + 1) if c % n == 0])
    per = net.number(1, 2, 3)
    weight = net.g.random(c, per, 2, 2)
    y = net.g.op("ConvTranspose", x, weight, net.g.random(group * per), group=group, strides=[2, 2])
    return y, group * per, 2 * s


def _unary(net: _Net, x: str, c: int, s: int) -> _Step:
    kind = net.draw(st.sampled_from(["Relu", "Sigmoid", "HardSwish", "PRelu", "Tanh", "Softmax", "Clip"]))
    extra = [net.g.random(c, 1, 1)] if kind == "PRelu" else []
    return net.g.op(kind, x, *extra, **({"axis": 2} if kind == "Softmax" else {})), c, s


def _normal(net: _Net, x: str, c: int, s: int) -> _Step:
    kind = net.number(0, 1, 2)
    if kind == 0:
        return net.g.batch_norm(x, c), c, s
    if kind == 1:
        return net.g.op("InstanceNormalization", x, net.g.random(c), net.g.random(c)), c, s
    return net.g.op("LRN", x, size=3), c, s


def _join(net: _Net, x: str, c: int, s: int) -> _Step:
    others = [other for other in net.pool if other[2] == s]
    y, d, _ = others[net.draw(st.integers(0, len(others) - 1))]
    if c != d:
        y = net.g.conv(y, d, c)
    return net.g.op(net.draw(st.sampled_from(["Add", "Mul", "Sub", "Max", "Sum"])), x, y), c, s


def _concat(net: _Net, x: str, c: int, s: int) -> _Step:
    others = [other for other in net.pool if other[2] == s]
    y, d, _ = others[net.draw(st.integers(0, len(others) - 1))]
    return (net.g.op("Concat", x, y, axis=1), c + d, s) if c + d <= 16 else None


def _split(net: _Net, x: str, c: int, s: int) -> _Step:
    if c < 3:
        return None
    first = net.number(*range(1, c))
    a, b = net.g.op("Split", x, net.g.ints(first, c - first), axis=1, outputs=2)
    form = net.number(0, 1, 2)
    if form == 0:
        return net.g.op("Concat", net.g.conv(a, first, 3), b, axis=1), 3 + c - first, s
    if form == 1:
        return net.g.op("Concat", net.g.op("Relu", b), a, axis=1), c, s
    return a, first, s


def _shuffle(net: _Net, x: str, c: int, s: int) -> _Step:
    group = net.number(*[n for n in range(1, c + 1) if c % n == 0])
    y = net.g.op("Reshape", x, net.g.ints(2, group, c // group, s, s))
    y = net.g.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return net.g.op("Reshape", y, net.g.ints(0, net.number(-1, c), s, s)), c, s


def _pixels(net: _Net, x: str, c: int, s: int) -> _Step:
    if net.number(0, 1) and s % 2 == 0 and c <= 4:
        return net.g.op("SpaceToDepth", x, blocksize=2), 4 * c, s // 2
    if c % 4 or s > 8:
        return None
    form = net.number(0, 1, 2)
    if form < 2:
        return net.g.op("DepthToSpace", x, blocksize=2, mode=["DCR", "CRD"][form]), c // 4, 2 * s
    y = net.g.op("Reshape", x, net.g.ints(2, c // 4, 2, 2, s, s))
    y = net.g.op("Transpose", y, perm=[0, 1, 4, 2, 5, 3])
    return net.g.op("Reshape", y, net.g.ints(2, c // 4, 2 * s, 2 * s)), c // 4, 2 * s


def _excite(net: _Net, x: str, c: int, s: int) -> _Step:
    y = net.g.op("GlobalAveragePool", x)
    y = net.g.op("Relu", net.g.conv(y, c, 2))
    gate = net.g.op("Sigmoid", net.g.conv(y, 2, c))
    if net.number(0, 1):
        gate = net.g.op("Expand", gate, net.g.ints(2, net.number(1, c), s, s))
    return net.g.op("Mul", x, gate), c, s


def _pool(net: _Net, x: str, c: int, s: int) -> _Step:
    if s % 2:
        return None
    return (
        net.g.op(
            net.draw(st.sampled_from(["MaxPool", "AveragePool"])), x, kernel_shape=[2, 2], strides=[2, 2]
        ),
        c,
        s // 2,
    )


def _resize(net: _Net, x: str, c: int, s: int) -> _Step:
    if s > 8:
        return None
    if net.number(0, 1):
        return net.g.op("Resize", x, "", net.g.const(np.float32([1, 1, 2, 2])), mode="nearest"), c, 2 * s
    return net.g.op("Resize", x, "", "", net.g.ints(2, c, 2 * s, 2 * s), mode="nearest"), c, 2 * s


def _move(net: _Net, x: str, c: int, s: int) -> _Step:
    form = net.number(0, 1, 2, 3, 4, 5)
    if form == 0:
        return net.g.op("Pad", x, net.g.ints(0, 0, 1, 1, 0, 0, 1, 1)), c, s + 2
    if form == 1:
        return net.g.op("Pad", x, net.g.ints(0, 1, 0, 0, 0, 0, 0, 0)), c + 1, s
    if form == 2:
        start, end = net.number(0, 1), net.number(c, -1) if c > 2 else c
        taken = len(range(c)[start:end])
        bounds = [net.g.ints(start), net.g.ints(end), net.g.ints(1), net.g.ints(1)]
        return net.g.op("Slice", x, *bounds), taken, s
    if form == 3:
        chosen = net.draw(st.lists(st.integers(-c, c - 1), min_size=1, max_size=6))
        return net.g.op("Gather", x, net.g.ints(*chosen), axis=1), len(chosen), s
    if form == 4:
        return net.g.op("Tile", x, net.g.ints(1, 2, 1, 1)), 2 * c, s
    y = net.g.op("Transpose", x, perm=[0, 2, 3, 1])
    y = net.g.op("MatMul", y, net.g.random(c, 5))
    return net.g.op("Transpose", y, perm=[0, 3, 1, 2]), 5, s


_STEPS = [_conv, _grouped, _transposed, _unary, _normal, _join, _concat, _split, _shuffle, _pixels]
_STEPS += [_excite, _pool, _resize, _move]


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 99))
def test_random_nets(graph, prove, data, seed) -> None:
    net = _Net(graph, data)
    for _ in range(data.draw(st.integers(1, 8))):
        net.grow()
    prove(net.model(), seed)


def test_a_residual_net_has_one_group_for_the_stream(graph, prove) -> None:
    g = graph()
    x = g.conv(g.input("x", ["N", 3, 8, 8]), 3, 8, 3, name="stem")
    for number in range(3):
        y = g.op("Relu", g.conv(x, 8, 6, 3, name=f"first{number}"))
        x = g.op("Relu", g.op("Add", x, g.conv(y, 6, 8, 3, name=f"second{number}")))
    found = prove(g.model(g.conv(x, 8, 2, name="end")))
    assert found.sizes == {"stem": 8, "first0": 6, "first1": 6, "first2": 6}
    assert len(found.group("stem").readers) == 4


@pytest.mark.parametrize(("group", "width", "size"), [(2, 6, 6), (6, 2, 6), (12, 1, 12)])
def test_groups_of_a_convolution_stay_equally_wide(graph, prove, group, width, size) -> None:
    """Few wide groups lose the same places; many narrow ones are lost whole; a depthwise one follows its input."""
    g = graph()
    x = g.conv(g.input("x", [1, 3, 6, 6]), 3, 12, name="before")
    x = g.conv(x, 12, 12, 3, group=group, name="grouped")
    found = prove(g.model(g.conv(x, 12, 2, name="end")))
    assert found.group("before").size == size
    assert found.group("before").width == 12 // size


@pytest.mark.parametrize("number", [2, 4, 8])
def test_group_normalization_loses_whole_groups(graph, prove, number) -> None:
    g = graph(opset=21)
    x = g.conv(g.input("x", [2, 3, 6, 6]), 3, 8, name="before")
    x = g.op("GroupNormalization", x, g.random(8), g.random(8), num_groups=number)
    found = prove(_shaped(g.model(g.conv(x, 8, 2, name="end")), 2, 8, 6, 6))
    assert found.sizes == {"before": number}


def _shaped(model: Any, *shape: int) -> Any:
    """ONNX infers no shape for GroupNormalization."""
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                value.shape = ir.Shape(shape)
    return model


def test_group_normalization_with_parameters_per_group(graph) -> None:
    """Opset 18: it has one scale for each group."""
    g = graph(opset=18)
    x = g.conv(g.input("x", [2, 3, 6, 6]), 3, 8, name="before")
    x = g.op("GroupNormalization", x, g.random(4, name="scale"), g.random(4), num_groups=4)
    structure = analyse(_shaped(g.model(g.conv(x, 8, 2, name="end")), 2, 8, 6, 6))
    (group,) = structure.prunable
    (scale,) = (site for site in group.sites if site.tensor == "scale")
    assert scale.positions.tolist() == [[0], [1], [2], [3]]
    assert group.width == 2


def test_group_normalization_written_out_loses_whole_groups(graph, prove) -> None:
    g = graph()
    x = g.conv(g.input("x", [2, 3, 4, 4]), 3, 8, name="before")
    y = g.op("Reshape", x, g.ints(0, 4, -1))
    y = g.op("InstanceNormalization", y, g.const(np.ones(4)), g.const(np.zeros(4)))
    y = g.op("Reshape", y, g.ints(2, 8, 4, 4))
    y = g.op("Add", g.op("Mul", y, g.random(8, 1, 1)), g.random(8, 1, 1))
    found = prove(g.model(g.conv(y, 8, 2, name="end")))
    assert found.sizes == {"before": 4}


def test_one_group_normalized_together_stays(graph, groups) -> None:
    g = graph(opset=21)
    x = g.conv(g.input("x", [2, 3, 6, 6]), 3, 8, name="before")
    x = g.op("GroupNormalization", x, g.random(8), g.random(8), num_groups=1)
    model = _shaped(g.model(g.conv(x, 8, 2, name="end")), 2, 8, 6, 6)
    assert groups(model)["before"] == "it has one channel"


def test_a_fused_convolution_with_a_sum(graph, prove) -> None:
    g = graph()
    x = g.conv(g.input("x", [1, 3, 6, 6]), 3, 8, name="stem")
    weight, bias = g.random(8, 8, 1, 1), g.random(8)
    y = g.op("FusedConv", x, weight, bias, x, domain="com.microsoft", activation="Relu", name="fused")
    g.declared[y] = [1, 8, 6, 6]
    assert prove(g.model(g.conv(y, 8, 2, name="end"))).sizes == {"stem": 8}


def test_indices_of_a_max_pool_keep_the_channels(graph, groups) -> None:
    """They count through all channels."""
    g = graph()
    x = g.conv(g.input("x", [1, 3, 4, 4]), 3, 8, name="stem")
    y, indices = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    y = g.op("Add", g.conv(y, 8, 2, name="end"), g.op("Cast", g.op("ReduceMax", indices), to=1))
    assert "cannot be cut" in groups(g.model(y))["stem"]


def test_channels_on_the_axis_of_positions_stay(graph, groups) -> None:
    """A convolution slides over what a product made."""
    g = graph()
    x = g.op("MatMul", g.input("x", [1, 4, 5]), g.random(5, 6), name="product")
    x = g.op("Conv", x, g.random(3, 4, 3), name="sliding")
    assert "slides over it" in groups(g.model(g.op("Relu", x)))["product"]


def test_a_zero_that_copies_another_axis(graph, prove) -> None:
    """0 in a target takes the size of the same place of the input, which is not the axis that is cut."""
    g = graph()
    x = g.op("MatMul", g.input("x", [2, 4, 3]), g.random(3, 4), name="product")
    x = g.op("Reshape", x, g.ints(-1, 0))
    assert prove(g.model(g.op("MatMul", x, g.random(4, 2), name="end"))).sizes == {"product": 4}


def test_a_zero_that_would_copy_the_channels(graph, groups) -> None:
    """12 rows as 3 of 4: the 0 takes its 4 from the channels, which are elsewhere."""
    g = graph()
    x = g.op("MatMul", g.input("x", [12, 3]), g.random(3, 4), name="product")
    x = g.op("Reshape", x, g.ints(3, 0, 4), name="reshape")
    reasons = groups(g.model(g.op("MatMul", x, g.random(4, 2), name="end")))
    assert reasons["product"] == "'reshape' (Reshape) copies its size"


@pytest.mark.parametrize(
    ("kind", "cuttable"), [("InstanceNormalization", False), ("BatchNormalization", True)]
)
def test_channels_on_the_axis_of_positions_of_a_normalization(graph, groups, kind, cuttable) -> None:
    g = graph()
    x = g.op("MatMul", g.input("x", [1, 4, 5]), g.random(5, 6), name="product")
    x = g.batch_norm(x, 4) if kind == "BatchNormalization" else g.op(kind, x, g.random(4), g.random(4))
    reasons = groups(g.model(g.op("MatMul", x, g.random(6, 2), name="end")))
    assert (reasons["product"] is None) == cuttable
