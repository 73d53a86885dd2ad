"""The pass: patterns in the layout that kernels want, what is refused, what it says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import constant_of
from greencc.passes._sparsity_patterns import Pattern
from greencc.passes.sparsify import Sparsify, SparsityMethod

CNN = """
g (float[N, 8, 10, 10] x) => (float[N, 10] y) {
  a = Conv <pads=[1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  d = ConvTranspose <strides=[2, 2]> (r, w2)
  c = Conv <group=2> (d, w3)
  p = GlobalAveragePool (c)
  f = Flatten (p)
  h = Gemm <transB=1> (f, w4, b4)
  y = MatMul (h, w5)
}"""
FREE = Sparsify(pattern=Pattern.UNSTRUCTURED, sparsity=0.6, min_elements=0)
PAIRS = Sparsify(min_elements=0)


def weights(random: Any) -> dict[str, Any]:
    return {
        "w1": random(16, 8, 3, 3, scale=0.2),
        "b1": random(16),
        "w2": random(16, 8, 2, 2, scale=0.2),
        "w3": random(12, 4, 3, 3, scale=0.2),
        "w4": random(20, 12, scale=0.2),
        "b4": random(20),
        "w5": random(20, 10, scale=0.2),
    }


@pytest.fixture
def cnn(parse: Any, random: Any) -> Any:
    return parse(CNN, **weights(random))


@pytest.fixture
def feeds() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((8, 8)) / np.arange(1, 9)
    x = np.einsum("nchw,cd->ndhw", generator.standard_normal((24, 8, 10, 10)), mix)
    return {"x": x.astype(np.float32)}


def groups_of(node: ir.Node) -> Any:
    """Consecutive input channels of every output channel and kernel position, last axis 4."""
    weight = np.array(constant_of(node.inputs[1]))
    if node.op_type == "Conv":
        weight = np.moveaxis(weight, 1, -1)
    elif node.op_type == "ConvTranspose":
        weight = np.moveaxis(weight, 0, -1)
    elif "transB" not in node.attributes:
        weight = weight.T
    return weight.reshape(*weight.shape[:-1], -1, 4)


def reasons(outcome: Any) -> str:
    return " | ".join(finding.message for finding in outcome.findings)


@pytest.mark.parametrize("method", list(SparsityMethod))
@pytest.mark.parametrize(("pattern", "kept"), [(Pattern.TWO_OF_FOUR, 2), (Pattern.ONE_OF_FOUR, 1)])
def test_every_layer_has_the_pattern_along_its_input_channels(
    cnn: Any, feeds: Any, kit: Any, method: SparsityMethod, pattern: Pattern, kept: int
) -> None:
    step = replace(PAIRS, pattern=pattern, method=method)
    context = kit.context(feeds)
    outcome = step.apply(cnn, context)
    assert outcome.changed == len(context.rewrites.applied) == 5
    for node in cnn.graph:
        if node.op_type in step.ops:
            assert (groups_of(node) != 0).sum(axis=-1).max() == kept, node.name
    assert np.isfinite(kit.run(cnn, feeds)[0]).all()
    assert step.apply(cnn, kit.context(feeds)).changed == 0


def test_unstructured_prunes_the_share_exactly(cnn: Any, feeds: Any, kit: Any) -> None:
    assert FREE.apply(cnn, kit.context(feeds)).changed == 5
    for node in cnn.graph:
        if node.op_type in FREE.ops:
            weight = constant_of(node.inputs[1])
            assert int((weight == 0).sum()) == int(np.ceil(0.6 * weight.size - 1e-6)), node.name
    again = FREE.apply(cnn, kit.context(feeds))
    assert again.changed == 0
    assert "all 5 layers are 60 % sparse already" in reasons(again)


@pytest.mark.parametrize("step", [PAIRS, FREE])
def test_second_order_loses_less_than_magnitude(cnn: Any, feeds: Any, kit: Any, step: Sparsify) -> None:
    expected = kit.run(cnn, feeds)[0]
    errors = {}
    for method in SparsityMethod:
        for sequential in (False, True):
            model = cnn.clone()
            outcome = replace(step, method=method, sequential=sequential).apply(model, kit.context(feeds))
            got = kit.run(model, feeds)[0]
            errors[method, sequential] = float(np.square(got - expected).mean())
            assert ("second-order updates" in reasons(outcome)) == (method is SparsityMethod.SECOND_ORDER)
    magnitude = errors[SparsityMethod.MAGNITUDE, False]
    assert errors[SparsityMethod.SECOND_ORDER, False] < 0.7 * magnitude
    assert errors[SparsityMethod.SECOND_ORDER, True] < 0.7 * magnitude


def test_without_data_masks_go_by_magnitude_and_it_says_so(cnn: Any, feeds: Any, kit: Any) -> None:
    other = cnn.clone()
    outcome = PAIRS.apply(cnn, kit.context(None))
    assert outcome.changed == 5
    assert "5 weights are pruned by magnitude: there is no calibration data" in reasons(outcome)
    replace(PAIRS, method=SparsityMethod.MAGNITUDE).apply(other, kit.context(None))
    np.testing.assert_array_equal(kit.run(cnn, feeds)[0], kit.run(other, feeds)[0])


def test_it_says_what_it_is_worth(cnn: Any, feeds: Any, kit: Any) -> None:
    context = kit.context(feeds)
    capable = replace(context, capabilities=replace(context.capabilities, sparse_kernels=frozenset({"2:4"})))
    assert "size-only: the target has no kernels for 2:4" in reasons(PAIRS.apply(cnn.clone(), context))
    assert "size-only" not in reasons(PAIRS.apply(cnn.clone(), capable))
    assert "no kernels for unstructured" in reasons(FREE.apply(cnn.clone(), capable))
    summary = reasons(FREE.apply(cnn, context))
    assert "60." in summary
    assert "kB instead of" in summary


def test_clones_share_weights_and_stay_as_they_are(cnn: Any, feeds: Any, kit: Any) -> None:
    other = cnn.clone()
    before = kit.run(other, feeds)[0]
    FREE.apply(cnn, kit.context(feeds))
    np.testing.assert_array_equal(kit.run(other, feeds)[0], before)


def test_rewrites_that_are_not_allowed_are_not_done(cnn: Any, feeds: Any, kit: Any) -> None:
    outcome = PAIRS.apply(cnn, kit.context(feeds, limit=2))
    assert outcome.changed == 2
    dense = [node for node in cnn.graph if node.op_type in PAIRS.ops and groups_of(node).all()]
    assert len(dense) == 3


SHARED = """
g (float[N, 16] x) => (float[N, 16] y) {
  a = Gemm <transB=1> (x, w)
  r = Relu (a)
  y = Gemm <transB=1> (r, w)
}"""


def test_a_shared_weight_is_pruned_once_for_all_its_inputs(parse: Any, random: Any, kit: Any) -> None:
    model = parse(SHARED, w=random(16, 16))
    outcome = PAIRS.apply(model, kit.context({"x": random(40, 16)}))
    assert outcome.changed == 1
    assert (groups_of(model.graph[0]) != 0).sum(axis=-1).max() == 2
    assert model.graph[0].inputs[1] is model.graph[2].inputs[1]


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        (SHARED.replace("<transB=1> (r, w)", "(r, w)"), {"w": (16, 16)}, "read it in different ways"),
        (
            "g (float[N, 16] x) => (float[N, 16] y) { a = MatMul (x, w)  y = Add (a, w) }",
            {"w": (16, 16)},
            "Add reads the weight too",
        ),
        ("g (float[N, 6] x) => (float[N, 5] y) { y = MatMul (x, w) }", {"w": (6, 5)}, "no multiple of 4"),
        (
            "g (float[N, 8, 4, 4] x) => (float[N, 8, 2, 2] y) { y = Conv <group=8> (x, w) }",
            {"w": (8, 1, 3, 3)},
            "a depthwise weight",
        ),
        (
            "g (float[N, 16] x) => (float[N, 16] y, float[16, 16] w) { y = MatMul (x, w) }",
            {"w": (16, 16)},
            "an output of the model",
        ),
        (
            """g (float[N, 16] x, bool c) => (float[N, 16] y, float[M, 16] z) {
              y = MatMul (x, w)
              z = If (c) <then_branch = t () => (float[M, 16] u) { u = Identity (w) },
                          else_branch = e () => (float[M, 16] v) { v = Identity (x) }>
            }""",
            {"w": (16, 16)},
            "a sub-graph reads the weight",
        ),
    ],
)
def test_what_stays_dense_and_why(
    parse: Any, random: Any, kit: Any, text: str, shapes: Any, reason: str
) -> None:
    model = parse(text, **{name: random(*shape) for name, shape in shapes.items()})
    outcome = PAIRS.apply(model, kit.context(None))
    assert outcome.changed == 0
    assert reason in reasons(outcome)
    assert outcome.findings[0].kind == "refused"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(cnn: Any, feeds: Any, kit: Any, bad: float) -> None:
    value = cnn.graph.initializers["w5"]
    array = np.array(value.const_value.numpy())
    array[3, 3] = bad
    value.const_value = ir.tensor(array, name="w5")
    outcome = replace(PAIRS, method=SparsityMethod.MAGNITUDE).apply(cnn, kit.context(feeds))
    assert outcome.changed == 4
    assert "NaN or infinity" in reasons(outcome)


def test_bad_samples_are_refused(cnn: Any, feeds: Any, kit: Any) -> None:
    feeds["x"][3, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="sample 3"):
        PAIRS.apply(cnn, kit.context(feeds))


def test_an_initializer_that_is_an_input_is_no_weight(parse: Any, random: Any, kit: Any) -> None:
    model = parse(
        "g (float[N, 16] x, float[16, 8] w) => (float[N, 8] y) { y = MatMul (x, w) }", w=random(16, 8)
    )
    outcome = PAIRS.apply(model, kit.context(None))
    assert outcome.changed == 0
    assert "no Conv" in reasons(outcome)


def test_constants_and_their_identities_and_half_precision(parse: Any, random: Any, kit: Any) -> None:
    model = parse("g (float16[N, 16] x) => (float16[N, 8] y) { i = Identity (w)  y = MatMul (x, i) }")
    tensor = ir.tensor(random(16, 8).astype(np.float16), name="w")
    constant = ir.node("Constant", [], {"value": tensor}, name="weight")
    constant.outputs[0].name = "w"
    graph = model.graph
    graph[0].replace_input_with(0, constant.outputs[0])
    graph.insert_before(graph[0], constant)
    outcome = PAIRS.apply(model, kit.context(None))
    assert outcome.changed == 1
    weight = constant_of(graph[2].inputs[1])
    assert weight.dtype == np.float16
    assert (weight.T.reshape(8, 4, 4) != 0).sum(axis=-1).max() == 2


def test_layers_the_data_never_reaches_go_by_magnitude(parse: Any, random: Any, kit: Any) -> None:
    model = parse(SHARED, w=random(16, 16))
    outcome = PAIRS.apply(model, kit.context({"x": np.zeros((4, 16), np.float32)}))
    assert outcome.changed == 1
    assert "never reaches" in reasons(outcome)


@pytest.mark.parametrize("sequential", [False, True])
def test_inputs_whose_products_overflow_go_by_magnitude(
    parse: Any, random: Any, kit: Any, sequential: bool
) -> None:
    text = """g (float[N, 16] x) => (float[N, 8] y) {
      a = MatMul (x, w)
      h = Mul (a, huge)
      y = MatMul (h, v)
    }"""
    model = parse(text, w=random(16, 16), huge=np.float32([1e20]), v=random(16, 8))
    plain = model.clone()
    step = replace(PAIRS, sequential=sequential)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        outcome = step.apply(model, kit.context({"x": random(40, 16)}))
    assert outcome.changed == 2
    assert "1 weights are pruned by magnitude: their inputs are too large" in reasons(outcome)
    replace(PAIRS, method=SparsityMethod.MAGNITUDE).apply(plain, kit.context(None))
    for number, same in ((0, False), (2, True)):
        got, magnitude = (constant_of(found.graph[number].inputs[1]) for found in (model, plain))
        assert np.isfinite(got).all()
        assert np.array_equal(got, magnitude) is same


@pytest.mark.parametrize("ops", [("MatMul",), ("Conv",)])
def test_excluding_what_there_is_not(parse: Any, random: Any, kit: Any, ops: Any) -> None:
    """It is said besides why nothing was done, not instead."""
    model = parse("g (float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", w=random(16, 16))
    outcome = replace(PAIRS, ops=ops, exclude=("nope",)).apply(model, kit.context(None))
    assert outcome.changed == (ops == ("MatMul",))
    assert [item.kind for item in outcome.findings].count("warning") == 1
    assert "no node is named 'nope'" in reasons(outcome)
    assert ("no Conv has a constant weight" in reasons(outcome)) == (ops == ("Conv",))


def test_a_pattern_fixes_the_sparsity() -> None:
    for pattern in (Pattern.TWO_OF_FOUR, Pattern.ONE_OF_FOUR):
        Sparsify(pattern=pattern)
        with pytest.raises(UsageError, match="fixes it"):
            Sparsify(pattern=pattern, sparsity=0.7)


def test_excluded_and_small_layers_stay_dense(cnn: Any, kit: Any) -> None:
    step = replace(PAIRS, exclude=(cnn.graph[0].name,), min_elements=1000)
    assert step.apply(cnn, kit.context(None)).changed == 0
    step = replace(PAIRS, ops=("MatMul",))
    assert step.apply(cnn, kit.context(None)).changed == 1


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.0},
        {"sparsity": 1.0},
        {"sparsity": float("nan")},
        {"block": 6},
        {"block": 0},
        {"damping": 0.0},
        {"damping": 2.0},
        {"min_elements": -1},
        {"ops": ("Conf",)},
    ],
)
def test_options_out_of_range(options: Any) -> None:
    with pytest.raises(UsageError):
        Sparsify(**options)


def test_layers_that_read_the_same_come_out_as_they_would_alone(parse: Any, random: Any, kit: Any) -> None:
    text = "g (float[N, 16] x) => (float[N, 8] y) { a = MatMul (x, w)  b = MatMul (x, v)  y = Add (a, b) }"
    data = {"x": random(60, 16) @ random(16, 16)}
    both, alone = (parse(text, w=random(16, 8), v=random(16, 8)) for _ in range(2))
    for name in ("w", "v"):
        alone.graph.initializers[name].const_value = both.graph.initializers[name].const_value
    PAIRS.apply(both, kit.context(data))
    for node in list(alone.graph)[:2]:
        replace(PAIRS, exclude=tuple(other.name for other in alone.graph if other is not node)).apply(
            alone, kit.context(data)
        )
    for first, second in zip(list(both.graph)[:2], list(alone.graph)[:2], strict=True):
        np.testing.assert_array_equal(constant_of(first.inputs[1]), constant_of(second.inputs[1]))
