"""Folding of BatchNormalization into its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from greencc.passes.fold_batch_norm import FoldBatchNorm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_after_conv(graph, check, bias, group) -> None:
    g = graph()
    x = g.input("x", ["N", 4, 6, 6])
    inputs = [x, g.random(8, 4 // group, 3, 3, name="w"), *([g.random(8, name="b")] if bias else [])]
    y = g.op("Conv", *inputs, name="conv", group=group, pads=[1, 1, 1, 1])
    y = g.batch_norm(y, 8, name="bn")
    result = check(g.model(y), FoldBatchNorm())
    assert result.ops == ["Conv"]
    assert result.names == ["conv"]
    assert "w" in result.model.graph.initializers
    assert result.log == [("fold-batch-norm", "bn")]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_after_conv_transpose(graph, check, bias, group) -> None:
    g = graph()
    x = g.input("x", ["N", 4, 5, 5])
    inputs = [x, g.random(4, 3, 2, 2), *([g.random(3 * group)] if bias else [])]
    y = g.batch_norm(g.op("ConvTranspose", *inputs, group=group, strides=[2, 2]), 3 * group)
    assert check(g.model(y), FoldBatchNorm()).ops == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), ()])
def test_after_gemm_with_alpha_and_beta(graph, check, transposed, bias) -> None:
    g = graph()
    x = g.input("x", ["N", 3])
    weight = g.random(5, 3) if transposed else g.random(3, 5)
    inputs = [x, weight, *([] if bias is None else [g.random(*bias)])]
    y = g.batch_norm(g.op("Gemm", *inputs, transB=transposed, alpha=0.5, beta=2.0), 5)
    assert check(g.model(y), FoldBatchNorm()).ops == ["Gemm"]


@pytest.mark.parametrize("bias", [False, True])
def test_after_matmul_leaves_one_add(graph, check, bias) -> None:
    g = graph()
    y = g.op("MatMul", g.input("x", ["N", 3]), g.random(3, 5), name="mm")
    if bias:
        y = g.op("Add", y, g.random(5), name="add")
    y = g.batch_norm(y, 5)
    assert check(g.model(y), FoldBatchNorm()).ops == ["MatMul", "Add"]


def test_before_unpadded_conv_and_gemm(graph, check) -> None:
    g = graph()
    y = g.op("Relu", g.input("x", ["N", 4, 6, 6]))
    y = g.op("Conv", g.batch_norm(y, 4), g.random(6, 2, 3, 3), g.random(6), group=2)
    y = g.op("Flatten", g.op("Relu", y))
    y = g.op("Gemm", g.batch_norm(y, 96), g.random(96, 3), name="fc")
    assert check(g.model(y), FoldBatchNorm()).ops == ["Relu", "Conv", "Relu", "Flatten", "Gemm"]


def test_before_padded_conv_is_refused_with_the_reason(graph, check) -> None:
    g = graph()
    y = g.batch_norm(g.op("Relu", g.input("x", ["N", 4, 6, 6])), 4, name="bn")
    y = g.op("Conv", y, g.random(6, 4, 3, 3), name="conv", pads=[1, 1, 1, 1])
    result = check(g.model(y), FoldBatchNorm())
    assert result.ops == ["Relu", "BatchNormalization", "Conv"]
    assert "'bn'" in result.reasons
    assert "padding would no longer be zero" in result.reasons


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_automatic_padding_counts_as_padding(graph, check, auto_pad) -> None:
    g = graph()
    y = g.batch_norm(g.op("Relu", g.input("x", [1, 4, 6, 6])), 4)
    y = g.op("Conv", y, g.random(6, 4, 3, 3), auto_pad=auto_pad)
    assert "BatchNormalization" in check(g.model(y), FoldBatchNorm()).ops


def test_scale_alone_passes_through_padding(graph, check) -> None:
    g = graph()
    y = g.op("Relu", g.input("x", ["N", 4, 6, 6]))
    zeros, ones = np.zeros(4), np.ones(4)
    y = g.op("BatchNormalization", y, g.random(4), g.const(zeros), g.const(zeros), g.const(ones))
    y = g.op("Conv", y, g.random(6, 4, 3, 3), pads=[1, 1, 1, 1])
    assert check(g.model(y), FoldBatchNorm()).ops == ["Relu", "Conv"]


def test_other_consumers_of_the_convolution_are_named(graph, check) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", ["N", 4, 6, 6]), g.random(4, 4, 3, 3), name="conv")
    z = g.op("Add", g.batch_norm(y, 4, name="bn"), y)
    result = check(g.model(z), FoldBatchNorm())
    assert result.outcome.changed == 0
    assert "'conv' (Conv): its output has other consumers" in result.reasons


def test_graph_output_of_the_convolution_stays(graph, check) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", ["N", 4, 6, 6]), g.random(4, 4, 3, 3))
    assert check(g.model(g.batch_norm(y, 4), y), FoldBatchNorm()).outcome.changed == 0


def test_shared_weights_are_copied_not_changed(graph, check) -> None:
    g = graph()
    x, w = g.input("x", ["N", 4, 6, 6]), g.random(4, 4, 1, 1, name="w")
    y = g.batch_norm(g.op("Conv", x, w), 4)
    model = g.model(y, g.op("Conv", x, w))
    before = model.graph.initializers["w"].const_value.numpy().copy()
    result = check(model, FoldBatchNorm())
    assert result.ops == ["Conv", "Conv"]
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), before)
    np.testing.assert_array_equal(result.model.graph.initializers["w"].const_value.numpy(), before)


def test_the_original_model_keeps_its_weights(graph, check) -> None:
    g = graph()
    y = g.batch_norm(g.op("Conv", g.input("x", ["N", 4, 6, 6]), g.random(4, 4, 1, 1, name="w")), 4)
    model = g.model(y)
    before = model.graph.initializers["w"].const_value.numpy().copy()
    check(model, FoldBatchNorm())
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), before)


def test_weights_that_are_graph_inputs_are_not_folded(graph, check) -> None:
    g = graph()
    x = g.input("x", ["N", 4, 6, 6])
    w = g.random(4, 4, 1, 1, name="w")
    g.input("w", [4, 4, 1, 1])
    result = check(g.model(g.batch_norm(g.op("Conv", x, w), 4)), FoldBatchNorm())
    assert result.outcome.changed == 0
    assert "not constant" in result.reasons


def test_float16_weights_stay_float16(graph, check) -> None:
    g = graph(opset=15)
    x = g.input("x", [1, 4, 6, 6], TensorProto.FLOAT16)
    half = np.float16
    w = g.const(g.rng.standard_normal((4, 4, 3, 3)), "w", half)
    parameters = [g.const(np.abs(g.rng.standard_normal(4)) + 0.5, dtype=half) for _ in range(4)]
    y = g.op("BatchNormalization", g.op("Conv", x, w), *parameters)
    result = check(g.model(y), FoldBatchNorm(), tolerance=5e-3)
    assert result.ops == ["Conv"]
    assert result.model.graph.initializers["w"].const_value.numpy().dtype == half


def test_float16_overflow_is_refused(graph, check) -> None:
    g = graph(opset=15)
    x = g.input("x", [1, 1, 2, 2], TensorProto.FLOAT16)
    half = np.float16
    y = g.op("Conv", x, g.const(np.full((1, 1, 1, 1), 200.0), dtype=half))
    y = g.op("Mul", y, g.const(1e-3, dtype=half), name="down")
    parameters = [g.const([value], dtype=half) for value in (6e4, 0.0, 0.0, 1.0)]
    y = g.op(
        "BatchNormalization",
        g.op("Conv", g.op("Relu", y), g.const(np.full((1, 1, 1, 1), 9.0), dtype=half)),
        *parameters,
    )
    result = check(g.model(y), FoldBatchNorm(), tolerance=5e-3)
    assert "BatchNormalization" in result.ops
    assert "overflow" in result.reasons


def test_training_mode_is_refused(graph, check) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", [2, 4, 6, 6]), g.random(4, 4, 1, 1))
    parameters = [g.random(4), g.random(4), g.random(4), g.random(4, positive=True)]
    y, _, _ = g.op("BatchNormalization", y, *parameters, training_mode=1, outputs=3)
    model = g.model(y)
    from greencc.core.passes import Context

    outcome = FoldBatchNorm().apply(model, Context(None, None, []))  # type: ignore[arg-type]
    assert outcome.changed == 0
    assert "batch statistics" in outcome.findings[0].message


def test_a_chain_of_constants_and_normalizations_folds_whole(graph, check) -> None:
    g = graph()
    y = g.op("Conv", g.input("x", ["N", 4, 6, 6]), g.random(4, 4, 3, 3), name="conv")
    y = g.op("Add", y, g.random(1, 4, 1, 1))
    y = g.batch_norm(y, 4)
    y = g.op("Mul", y, g.random(4, 1, 1))
    y = g.batch_norm(y, 4)
    assert check(g.model(y), FoldBatchNorm()).ops == ["Conv"]


def test_axis_one_of_a_sequence_is_not_the_output_channel(graph, check) -> None:
    g = graph()
    y = g.op("MatMul", g.input("x", ["N", 5, 3]), g.random(3, 5))
    assert check(g.model(g.batch_norm(y, 5)), FoldBatchNorm()).outcome.changed == 0
