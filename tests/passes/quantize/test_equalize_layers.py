"""Cross-layer equalization keeps the float function, and helps where one scale serves channels of many sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.errors import UsageError
from greencc.core.graph import constant_of
from greencc.core.model import check_model, infer_shapes
from greencc.core.passes import Context, Outcome, RewriteLog
from greencc.passes.equalize_layers import EqualizeLayers, Objective
from greencc.passes.quantize_int8 import QuantizeInt8
from tests.passes.conftest import Graph, Runner, random_feeds
from tests.passes.quantize.conftest import Arrays, OrtEngine

WEIGHTS = EqualizeLayers(Objective.WEIGHTS)
ALWAYS = EqualizeLayers(worth=0.0)
INT8 = Int8Support(
    ElementType.UINT8,
    False,
    8,
    True,
    ElementType.INT32,
    frozenset({"Conv", "Gemm", "MatMul"}),
    True,
    "a test",
)


def context(feeds: dict[str, Any] | None = None, limit: int | None = None, **int8: Any) -> Context:
    capabilities = Capabilities(replace(INT8, **int8), frozenset(), frozenset(), 23, frozenset(), True)
    source = None if feeds is None else Arrays(feeds)
    return Context(capabilities, OrtEngine, [], source, RewriteLog(limit))


def equalized(
    model: ir.Model, step: EqualizeLayers = WEIGHTS, calibrate: bool = False, **options: Any
) -> tuple[ir.Model, Outcome]:
    """Run the pass and check what always holds: valid, same outputs up to rounding, source left as it was."""
    feeds = random_feeds(model, 3, 4)
    expected = Runner(model).run(feeds)
    candidate = model.clone()
    outcome = step.apply(candidate, context(feeds if calibrate else None, **options))
    infer_shapes(candidate)
    check_model(candidate)
    got = Runner(candidate).run(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=3e-5 * max(np.abs(array).max(), 1e-3))
    again = Runner(model).run(feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(again[name], array)
    return candidate, outcome


def uneven(graph: Graph, outputs: int, inputs: int, *kernel: int) -> str:
    """A weight whose output channels differ by factors up to 100."""
    spread = 10.0 ** graph.rng.uniform(-1, 1, outputs)
    return graph.const(
        graph.rng.standard_normal((outputs, inputs, *kernel)) * spread.reshape(-1, *[1] * (1 + len(kernel)))
    )


def weight_of(model: ir.Model, name: str, index: int = 1) -> Any:
    node = next(node for node in model.graph if node.name == name)
    return constant_of(node.inputs[index])


def conv(
    graph: Graph, x: str, outputs: int, inputs: int, name: str, kernel: int = 1, **attributes: Any
) -> str:
    return graph.op(
        "Conv",
        x,
        uneven(graph, outputs, inputs, kernel, kernel),
        graph.random(outputs),
        name=name,
        **attributes,
    )


def ranges(weight: Any, axis: int) -> Any:
    return np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(axis=1)


def test_a_pair_gets_equal_ranges_before_and_after(graph: type[Graph]) -> None:
    g = graph()
    x = g.op("Relu", conv(g, g.input("x", ["N", 3, 5, 5]), 8, 3, "first"))
    model = g.model(conv(g, x, 4, 8, "second"))
    result, outcome = equalized(model)
    assert outcome.changed == 1
    first, second = ranges(weight_of(result, "first"), 0), ranges(weight_of(result, "second"), 1)
    ratio = first / second
    assert ratio.max() < 1.05 * ratio.min()
    assert (weight_of(result, "first", 2) / weight_of(model, "first", 2) > 0).all()


def test_depthwise_chains_are_one_pass(graph: type[Graph]) -> None:
    g = graph()
    x = g.op("Relu", conv(g, g.input("x", ["N", 3, 6, 6]), 8, 3, "expand"))
    x = g.op("Relu", conv(g, x, 8, 1, "depthwise", 3, group=8, pads=[1, 1, 1, 1]))
    model = g.model(conv(g, x, 4, 8, "project"))
    result, outcome = equalized(model)
    assert outcome.changed == 2
    for name, before in (("depthwise", "expand"), ("project", "depthwise")):
        into = ranges(weight_of(result, name), 0 if name == "depthwise" else 1)
        ratio = into / ranges(weight_of(result, before), 0)
        assert ratio.max() < 1.1 * ratio.min(), name


def test_everything_that_meets_at_an_add_shares_its_scales(graph: type[Graph]) -> None:
    g = graph()
    a = conv(g, g.input("x", ["N", 3, 6, 6]), 8, 3, "a")
    b = conv(g, g.op("Relu", a), 8, 8, "b")
    joined = g.op("Relu", g.op("Add", a, b))
    model = g.model(conv(g, joined, 4, 8, "c"))
    result, outcome = equalized(model)
    assert outcome.changed == 1
    scale = weight_of(result, "a")[:, 0, 0, 0] / weight_of(model, "a")[:, 0, 0, 0]
    assert (scale > 0).all()
    assert scale.max() > 1.5 * scale.min()
    np.testing.assert_allclose(
        weight_of(result, "b"),
        weight_of(model, "b") * scale.reshape(-1, 1, 1, 1) / scale.reshape(-1, 1, 1),
        rtol=1e-5,
    )


def test_a_concat_takes_slices_and_keeps_fixed_operands(graph: type[Graph]) -> None:
    g = graph()
    x = g.input("x", ["N", 3, 6, 6])
    a, b = conv(g, x, 4, 3, "a"), g.op("Sigmoid", conv(g, x, 5, 3, "b"))
    c = conv(g, x, 6, 3, "c")
    model = g.model(conv(g, g.op("Concat", a, b, c, axis=1), 4, 15, "last"))
    result, outcome = equalized(model)
    assert outcome.changed == 1
    np.testing.assert_array_equal(weight_of(result, "b"), weight_of(model, "b"))
    np.testing.assert_array_equal(weight_of(result, "last")[:, 4:9], weight_of(model, "last")[:, 4:9])
    assert not np.allclose(weight_of(result, "last")[:, :4], weight_of(model, "last")[:, :4])
    assert not np.allclose(weight_of(result, "last")[:, 9:], weight_of(model, "last")[:, 9:])


@pytest.mark.parametrize(
    "between",
    [
        lambda g, x: g.op("LeakyRelu", x, alpha=0.2),
        lambda g, x: g.op("PRelu", x, g.random(8, 1, 1)),
        lambda g, x: g.op("MaxPool", x, kernel_shape=[2, 2]),
        lambda g, x: g.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        lambda g, x: g.op("GlobalAveragePool", x),
        lambda g, x: g.op("Pad", x, g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))),
        lambda g, x: g.op("Mul", x, g.random(8, 1, 1)),
        lambda g, x: g.op("Add", x, g.random(8, 1, 1)),
        lambda g, x: g.op("Sub", g.const(np.float32(2.0)), x),
        lambda g, x: g.op("Clip", x, g.const(np.float32(0.0))),
        lambda g, x: g.op("Dropout", x),
        lambda g, x: g.op("ReduceMean", x, axes=[2, 3], keepdims=0),
        lambda g, x: g.op("Resize", x, "", g.const(np.array([1, 1, 2, 2], np.float32)), mode="linear"),
        lambda g, x: g.op("Transpose", g.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]),
        # A channel shuffle.
        lambda g, x: g.op(
            "Reshape",
            g.op("Transpose", g.op("Reshape", x, g.const(np.array([0, 2, 4, 6, 6]))), perm=[0, 2, 1, 3, 4]),
            g.const(np.array([0, 8, 6, 6])),
        ),
        lambda g, x: g.op("Concat", *g.op("Split", x, g.const(np.array([3, 5])), axis=1, outputs=2), axis=1),
        lambda g, x: g.op("Gather", x, g.const(np.array([7, 6, 5, 4, 3, 2, 1, 0])), axis=1),
        lambda g, x: g.op(
            "Mul", x, g.op("Sigmoid", g.op("GlobalAveragePool", g.input("gate", ["N", 8, 2, 2])))
        ),
    ],
)
def test_what_commutes_with_a_scale_is_passed(
    graph: type[Graph], between: Callable[[Graph, str], str]
) -> None:
    g = graph()
    x = between(g, conv(g, g.input("x", ["N", 3, 6, 6]), 8, 3, "first"))
    if g.nodes[-1].op_type == "ReduceMean":
        y = g.op("Gemm", x, g.random(8, 4), g.random(4), name="second")
    else:
        y = conv(g, x, 4, 8, "second")
    model = g.model(y)
    result, outcome = equalized(model)
    assert outcome.changed == 1
    assert not np.allclose(weight_of(result, "second"), weight_of(model, "second"))


@pytest.mark.parametrize(
    "between",
    [
        lambda g, x: g.op("Clip", x, g.const(np.float32(0.0)), g.const(np.float32(6.0))),
        lambda g, x: g.op("HardSwish", x),
        lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
        lambda g, x: g.op("Softmax", x, axis=1),
        lambda g, x: g.op("Pad", x, g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), g.const(np.float32(1.0))),
        lambda g, x: g.op("Max", x, g.const(np.float32(1.0))),
        lambda g, x: g.op(
            "Div", g.const(np.float32(1.0)), g.op("Add", g.op("Abs", x), g.const(np.float32(1.0)))
        ),
    ],
)
def test_what_does_not_commute_ends_a_chain(graph: type[Graph], between: Callable[[Graph, str], str]) -> None:
    g = graph()
    x = between(g, conv(g, g.input("x", ["N", 3, 6, 6]), 8, 3, "first"))
    _, outcome = equalized(g.model(conv(g, x, 4, 8, "second")))
    assert outcome.changed == 0


def test_graph_outputs_and_shared_weights_are_left_alone(graph: type[Graph]) -> None:
    g = graph()
    inner = conv(g, g.input("x", ["N", 3, 6, 6]), 8, 3, "first")
    _, outcome = equalized(g.model(conv(g, inner, 4, 8, "second"), inner))
    assert outcome.changed == 0
    g = graph()
    shared = uneven(g, 8, 8, 1, 1)
    x = g.op("Conv", g.input("x", ["N", 8, 6, 6]), shared)
    _, outcome = equalized(g.model(g.op("Conv", g.op("Relu", x), shared)))
    assert outcome.changed == 0


def test_a_value_read_in_a_subgraph_keeps_its_scale(parse: Callable[..., ir.Model]) -> None:
    rng = np.random.default_rng(0)
    model = parse(
        """g (float[2, 4] x, bool c) => (float[2, 3] y, float[2, 6] z) {
            h = Gemm(x, w1)
            y = Gemm(h, w2)
            z = If(c) <then_branch = t () => (float[2, 6] a) { a = Exp(h) },
                       else_branch = e () => (float[2, 6] b) { b = Neg(h) }>
        }""",
        w1=(rng.standard_normal((4, 6)) * [0.1, 1, 10, 0.1, 1, 10]).astype(np.float32),
        w2=rng.standard_normal((6, 3)).astype(np.float32),
    )
    _, outcome = equalized(model)
    assert outcome.changed == 0


def test_dynamic_positions_flattened_into_channels_end_the_chain(graph: type[Graph]) -> None:
    g = graph()
    x = conv(g, g.input("x", [2, 3, 2, 2]), 8, 3, "first")
    x = g.op("Flatten", g.op("Relu", x))
    model = g.model(g.op("Gemm", x, g.random(32, 5), name="second"))
    _, outcome = equalized(model)
    assert outcome.changed == 1
    g = graph()
    x = conv(g, g.input("x", [2, 3, "H", 2]), 8, 3, "first")
    x = g.op("Reshape", g.op("Relu", x), g.const(np.array([-1, 8])))
    _, outcome = equalized(g.model(g.op("Gemm", x, g.random(8, 5), name="second")))
    assert outcome.changed == 0


def test_attention_values_carry_scales_and_scores_do_not(graph: type[Graph]) -> None:
    g = graph()
    x = g.input("x", ["N", 5, 8])
    q, k, v = (
        g.op("Add", g.op("MatMul", x, g.const(uneven_matrix(g, 8, 8)), name=n), g.random(8))
        for n in ("q", "k", "v")
    )
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    model = g.model(g.op("MatMul", g.op("MatMul", scores, v), g.random(8, 8), name="out"))
    result, outcome = equalized(model)
    assert outcome.changed == 1
    np.testing.assert_array_equal(weight_of(result, "q"), weight_of(model, "q"))
    assert not np.allclose(weight_of(result, "v"), weight_of(model, "v"))


def uneven_matrix(g: Graph, inputs: int, outputs: int) -> Any:
    return g.rng.standard_normal((inputs, outputs)) * 10.0 ** g.rng.uniform(-1, 1, outputs)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(
        st.sampled_from(["conv", "depthwise", "transpose", "residual", "pool", "grouped", "clip"]), max_size=6
    ),
    objective=st.sampled_from(list(Objective)),
    per_channel=st.booleans(),
)
def test_random_chains_keep_their_outputs(
    seed: int, kinds: list[str], objective: Objective, per_channel: bool
) -> None:
    g = Graph(seed=seed)
    x = conv(g, g.input("x", ["N", 3, 6, 6]), 8, 3, "stem")
    for position, kind in enumerate(kinds):
        name = f"layer{position}"
        if kind == "conv":
            x = conv(g, g.op("Relu", x), 8, 8, name, 3, pads=[1, 1, 1, 1])
        elif kind == "depthwise":
            x = conv(g, g.op("LeakyRelu", x), 8, 1, name, 3, group=8, pads=[1, 1, 1, 1])
        elif kind == "grouped":
            x = conv(g, g.op("Relu", x), 8, 4, name, 1, group=2)
        elif kind == "transpose":
            x = g.op("ConvTranspose", g.op("Relu", x), uneven(g, 8, 4, 2, 2), g.random(8), name=name, group=2)
            x = g.op("AveragePool", x, kernel_shape=[2, 2])
        elif kind == "residual":
            x = g.op("Add", x, conv(g, g.op("Relu", x), 8, 8, name))
        elif kind == "pool":
            x = g.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        else:
            x = g.op("Clip", x, g.const(np.float32(0)), g.const(np.float32(6)))
    x = g.op("Flatten", g.op("GlobalAveragePool", g.op("Relu", x)))
    model = g.model(g.op("Gemm", x, g.random(8, 5), g.random(5)))
    for initializer in model.graph.initializers.values():
        # Some channels are dead, one weight is huge.
        array = constant_of(initializer)
        if array is not None and array.ndim == 4 and g.rng.random() < 0.5:
            changed = array.copy()
            changed[0] = 0
            changed[-1, 0, 0, 0] = 1e4
            initializer.const_value = ir.tensor(changed, name=initializer.name)
    equalized(model, EqualizeLayers(objective, worth=0.0), calibrate=True, per_channel=per_channel)


def test_quantization_gains_where_channels_differ(graph: type[Graph]) -> None:
    g = graph()
    spread = 10.0 ** np.linspace(-1.5, 1.5, 16)
    w1 = g.rng.standard_normal((16, 3, 1, 1)) * spread.reshape(-1, 1, 1, 1)
    w2 = g.rng.standard_normal((6, 16, 1, 1)) / spread.reshape(1, -1, 1, 1)
    x = g.op("Relu", g.op("Conv", g.input("x", ["N", 3, 8, 8]), g.const(w1)))
    model = g.model(g.op("Conv", x, g.const(w2)))
    feeds = {"x": g.rng.standard_normal((16, 3, 8, 8)).astype(np.float32)}
    expected = Runner(model).run(feeds)

    def error(step: EqualizeLayers | None, per_channel: bool) -> float:
        candidate = model.clone()
        if step is not None:
            assert step.apply(candidate, context(feeds, per_channel=per_channel)).changed == 1
        QuantizeInt8().apply(candidate, context(feeds, per_channel=per_channel))
        got = Runner(candidate).run(feeds)
        return float(sum(np.square(got[name] - expected[name]).sum() for name in expected))

    for per_channel in (True, False):
        plain = error(None, per_channel)
        for objective in Objective:
            assert error(EqualizeLayers(objective), per_channel) < 0.05 * plain


def test_without_data_the_weights_decide(graph: type[Graph]) -> None:
    g = graph()
    x = g.op("Relu", conv(g, g.input("x", ["N", 3, 5, 5]), 8, 3, "first"))
    _, outcome = equalized(g.model(conv(g, x, 4, 8, "second")), EqualizeLayers())
    assert outcome.changed == 1
    assert "without calibration data" in outcome.findings[0].message


def test_too_small_a_gain_is_refused_with_its_number(graph: type[Graph]) -> None:
    g = graph()
    x = g.op("Relu", g.op("Conv", g.input("x", ["N", 3, 5, 5]), g.random(8, 3, 1, 1)))
    model = g.model(g.op("Conv", x, g.random(4, 8, 1, 1)))
    _, outcome = equalized(model, EqualizeLayers(worth=30.0), calibrate=True)
    assert outcome.changed == 0
    assert outcome.findings[0].kind == "refused"
    assert "dB" in outcome.findings[0].message


def test_the_log_can_stop_any_group(graph: type[Graph]) -> None:
    g = graph()
    x = g.input("x", ["N", 3, 5, 5])
    for name, inputs in (("a", 3), ("b", 8), ("c", 8), ("d", 8)):
        x = conv(g, g.op("Relu", x), 8, inputs, name)
    model = g.model(x)
    for limit in range(4):
        result, outcome = equalized(model, limit=limit)
        assert outcome.changed == limit
        moved = [n for n in "abcd" if not np.array_equal(weight_of(result, n), weight_of(model, n))]
        assert moved == (list("abcd")[: limit + 1] if limit else [])


def test_weights_that_are_not_finite_and_constant_inputs(graph: type[Graph]) -> None:
    g = graph()
    weight = g.rng.standard_normal((8, 3, 1, 1))
    weight[2] = np.inf
    x = g.op("Relu", g.op("Conv", g.input("x", ["N", 3, 5, 5]), g.const(weight)))
    model = g.model(conv(g, x, 4, 8, "second"))
    assert WEIGHTS.apply(model, context()).changed == 0
    g = graph()
    x = g.op("Relu", conv(g, g.input("x", ["N", 3, 5, 5]), 8, 3, "first"))
    model = g.model(conv(g, x, 4, 8, "second"))
    outcome = ALWAYS.apply(model, context({"x": np.zeros((3, 3, 5, 5), np.float32)}))
    assert outcome.changed in (0, 1)
    assert np.isfinite(weight_of(model, "second")).all()


def test_initializers_that_are_inputs_are_no_constants(graph: type[Graph]) -> None:
    g = graph()
    x = g.op("Relu", conv(g, g.input("x", ["N", 3, 5, 5]), 8, 3, "first"))
    weight = uneven(g, 4, 8, 1, 1)
    g.input(weight, [4, 8, 1, 1])
    _, outcome = equalized(g.model(g.op("Conv", x, weight)))
    assert outcome.changed == 0


@pytest.mark.parametrize("options", [{"limit": 1.0}, {"limit": 1e6}, {"worth": -1.0}, {"batch": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EqualizeLayers(**options)
