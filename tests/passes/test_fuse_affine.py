"""Folding of constant Mul, Add, Sub and Div, of Pad, and merging of convolutions."""

from __future__ import annotations

import numpy as np
import pytest

from greencc.core.capabilities import Capabilities
from greencc.passes.fold_affine import FoldAffine
from greencc.passes.fuse_gemm import FuseGemm
from greencc.passes.fuse_pad import FusePad
from greencc.passes.merge_convolutions import MergeConvolutions


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("constant_first", [False, True])
def test_after_conv(graph, check, op_type, shape, constant_first) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", ["N", 4, 5, 5]), g.random(6, 4, 3, 3), name="conv", pads=[1, 1, 1, 1])
    c = g.random(*shape, positive=True)
    y = g.op(op_type, *((c, y) if constant_first else (y, c)), name="last")
    result = check(g.model(y), FoldAffine())
    # c / y is not affine in y.
    assert result.ops == (["Conv", "Div"] if op_type == "Div" and constant_first else ["Conv"])


@pytest.mark.parametrize("shape", [(5,), (5, 5), (1, 1, 5, 5), (1, 6, 5, 1), (2, 1, 1, 1)])
def test_constants_that_are_not_per_channel_stay(graph, check, shape) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", [2, 4, 5, 5]), g.random(6, 4, 1, 1))
    assert check(g.model(g.op("Mul", y, g.random(*shape))), FoldAffine()).outcome.changed == 0


def test_constant_that_widens_a_single_channel_stays(graph, check) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", ["N", 4, 5, 5]), g.random(1, 4, 1, 1))
    assert check(g.model(g.op("Mul", y, g.random(3, 1, 1))), FoldAffine()).outcome.changed == 0


def test_normalization_of_inputs_folds_into_the_first_layer(graph, check) -> None:
    g = graph()
    y = g.op("Sub", g.input("x", ["N", 3]), g.random(3))
    y = g.op("Div", y, g.random(3, positive=True))
    y = g.op("Gemm", y, g.random(4, 3), g.random(4), transB=1, name="fc")
    assert check(g.model(y), FoldAffine()).names == ["fc"]


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_scale_passes_a_padded_convolution_and_shift_does_not(graph, check, op_type) -> None:
    g = graph()
    y = g.op("Mul", g.input("x", ["N", 4, 5, 5]), g.random(4, 1, 1))
    y = g.op("Add", y, g.random(4, 1, 1))
    y = g.op(op_type, y, g.random(4, 4, 3, 3), pads=[1, 1, 1, 1])
    assert check(g.model(y), FoldAffine()).ops == ["Mul", "Add", op_type]
    g = graph()
    y = g.op("Mul", g.input("x", ["N", 4, 5, 5]), g.random(4, 1, 1))
    y = g.op(op_type, y, g.random(4, 4, 3, 3), pads=[1, 1, 1, 1])
    assert check(g.model(y), FoldAffine()).ops == [op_type]


def test_transposed_gemm_input_is_left_alone(graph, check) -> None:
    g = graph()
    y = g.op("Mul", g.input("x", [3, 3]), g.random(3))
    assert check(g.model(g.op("Gemm", y, g.random(3, 4), transA=1)), FoldAffine()).outcome.changed == 0


def test_chains_without_a_linear_operator_merge(graph, check) -> None:
    g = graph()
    y = g.op("Mul", g.op("Relu", g.input("x", ["N", 4])), g.random(4))
    y = g.op("Div", y, g.random(1, positive=True))
    y = g.op("Add", y, g.random(4))
    y = g.op("Sub", y, g.random(), name="last")
    assert check(g.model(g.op("Relu", y)), FoldAffine()).ops == ["Relu", "Mul", "Add", "Relu"]


def test_integers_are_left_alone(graph, check) -> None:
    from onnx import TensorProto

    g = graph()
    y = g.op("Div", g.input("x", ["N", 4], TensorProto.INT64), g.const([2]))
    assert check(g.model(g.op("Mul", y, g.const([2]))), FoldAffine()).outcome.changed == 0


def test_pad_becomes_the_padding_of_a_conv(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4, 6, 6])
    y = g.op("Pad", x, g.const([0, 0, 1, 0, 0, 0, 2, 3]), g.const(0.0))
    y = g.op("Conv", y, g.random(6, 4, 3, 3), name="conv", pads=[1, 1, 1, 1])
    result = check(g.model(y), FusePad())
    assert result.names == ["conv"]
    assert list(result.node("Conv").attributes["pads"].as_ints()) == [2, 1, 3, 4]


def test_pad_with_axes(graph, check) -> None:
    g = graph(opset=18)
    x = g.input("x", ["N", 4, 6, 6])
    y = g.op("Pad", x, g.const([1, 2, 3, 4]), "", g.const([-1, 2]))
    result = check(g.model(g.op("Conv", y, g.random(6, 4, 3, 3))), FusePad())
    assert list(result.node("Conv").attributes["pads"].as_ints()) == [2, 1, 4, 3]


@pytest.mark.parametrize(
    ("pads", "value", "mode", "reason"),
    [
        ([0, 1, 0, 0, 0, 1, 0, 0], 0.0, "constant", "channel"),
        ([0, 0, -1, 0, 0, 0, 0, 0], 0.0, "constant", "crops"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.0, "constant", "not with zero"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "reflect", "reflect"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "edge", "edge"),
    ],
)
def test_other_pads_are_refused(graph, check, pads, value, mode, reason) -> None:
    g = graph()
    y = g.op("Pad", g.input("x", ["N", 3, 6, 6]), g.const(pads), g.const(value), mode=mode)
    channels = 5 if reason == "channel" else 3
    result = check(g.model(g.op("Conv", y, g.random(2, channels, 3, 3))), FusePad())
    assert result.outcome.changed == 0
    assert reason in result.reasons


def test_zero_pad_goes_into_average_pooling_that_counts_it(graph, check) -> None:
    g = graph()
    y = g.op("Pad", g.input("x", ["N", 3, 6, 6]), g.const([0, 0, 1, 1, 0, 0, 1, 1]))
    result = check(g.model(g.op("AveragePool", y, kernel_shape=[2, 2])), FusePad())
    assert result.ops == ["AveragePool"]
    assert result.node("AveragePool").attributes["count_include_pad"].as_int() == 1


@pytest.mark.parametrize(
    ("value", "after_relu", "fused"), [(0.0, False, False), (0.0, True, True), (-np.inf, False, True)]
)
def test_pad_before_max_pooling(graph, check, value, after_relu, fused) -> None:
    g = graph()
    x = g.input("x", ["N", 3, 6, 6])
    y = g.op("Pad", g.op("Relu", x) if after_relu else x, g.const([0, 0, 1, 1, 0, 0, 1, 1]), g.const(value))
    result = check(g.model(g.op("MaxPool", y, kernel_shape=[2, 2])), FusePad())
    assert ("Pad" not in result.ops) == fused


@pytest.mark.parametrize("biases", [(False, False), (True, False), (False, True), (True, True)])
def test_pointwise_convolutions_merge(graph, check, biases) -> None:
    g = graph()
    y = g.op(
        "Conv",
        g.input("x", ["N", 4, 6, 6]),
        g.random(8, 4, 1, 1),
        *([g.random(8)] if biases[0] else []),
        strides=[2, 2],
    )
    y = g.op("Conv", y, g.random(4, 8, 1, 1), *([g.random(4)] if biases[1] else []), name="second")
    result = check(g.model(y), MergeConvolutions())
    assert result.names == ["second"]


def test_bottleneck_of_pointwise_convolutions_stays(graph, check) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", ["N", 16, 6, 6]), g.random(2, 16, 1, 1))
    result = check(g.model(g.op("Conv", y, g.random(16, 2, 1, 1))), MergeConvolutions())
    assert result.outcome.changed == 0
    assert "more multiplications" in result.reasons


def test_matmul_and_add_become_gemm_only_where_it_gains(graph, check) -> None:
    g = graph()
    y = g.op("MatMul", g.input("x", ["N", 4]), g.random(4, 3), name="mm")
    model = g.model(g.op("Add", g.random(3), y, name="add"))
    assert check(model, FuseGemm()).names == ["mm"]
    without = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), False)
    assert check(model, FuseGemm(), capabilities=without).ops == ["MatMul", "Add"]


def test_matmul_of_sequences_does_not_become_gemm(graph, check) -> None:
    g = graph()
    y = g.op("MatMul", g.input("x", ["N", 5, 4]), g.random(4, 3))
    assert check(g.model(g.op("Add", y, g.random(3))), FuseGemm()).outcome.changed == 0
