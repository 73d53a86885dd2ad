"""Every form at full rank is the layer itself, whatever strides, pads, dilations, groups and biases it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.graph import Names
from greencc.passes._decompose_cp import alternating_least_squares, cp_family
from greencc.passes._decompose_factors import Candidate, emit, replace_layer, stored_weights
from greencc.passes._decompose_family import RankChoice, RankRule
from greencc.passes._decompose_forms import Method, candidates, form_problem, two_factor_family
from greencc.passes._decompose_jobs import layer_sizes
from greencc.passes._decompose_kernels import depthwise_family, spatial_family, tucker_families
from greencc.passes._decompose_problem import Metric, Problem, cholesky, metric_of
from greencc.passes._linear_view import LinearView, linear_view

SEED = np.random.default_rng(3)


def moment(size: int, groups: int = 1, rank: int | None = None) -> np.ndarray:
    generator = np.random.default_rng(size)
    rows = generator.standard_normal((groups, 4 * size if rank is None else rank, size))
    return rows.swapaxes(1, 2) @ rows


def layer(model: ir.Model, op_type: str) -> LinearView:
    view = linear_view(next(node for node in model.graph if node.op_type == op_type))
    assert view is not None
    return view


def problem(model: ir.Model, op_type: str, metric: str = "dense") -> Problem:
    view = layer(model, op_type)
    weight = view.matrix(view.node.inputs[1].const_value.numpy()).astype(np.float64)
    taps = int(np.prod(view.kernel))
    size = view.inputs if metric == "dense" else view.inputs // taps
    found = Metric(None, view.inputs) if metric == "none" else metric_of(view, moment(size, view.groups))
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    shapes = {
        str(value.name): tuple(int(dim) for dim in value.shape.numpy())
        for value in values
        if value.shape is not None and value.shape.is_static()
    }
    return Problem(view, weight, found, *layer_sizes(view, shapes), int(model.opset_imports[""]))


def apply(model: ir.Model, found: Candidate, op_type: str) -> ir.Model:
    result = model.clone()
    node = next(node for node in result.graph if node.op_type == op_type)
    names = Names(result)
    weights = stored_weights(result.graph, node, found, np.dtype(np.float32), names)
    replace_layer(result.graph, node, emit(node, found, node.inputs[0], weights, names))
    return result


CONVOLUTIONS = {
    "plain": ("x [2,6,9,8]", (10, 6, 3, 3), "pads=[1,1,1,1]"),
    "strided": ("x [2,6,9,8]", (10, 6, 3, 3), "pads=[0,1,2,1], strides=[2,3]"),
    "dilated": ("x [2,6,12,11]", (4, 6, 3, 2), "dilations=[2,3], strides=[1,2]"),
    "same-upper": ("x [2,6,9,8]", (10, 6, 3, 3), 'auto_pad="SAME_UPPER", strides=[2,2]'),
    "same-lower": ("x [2,6,9,8]", (5, 6, 2, 4), 'auto_pad="SAME_LOWER", strides=[1,2]'),
    "valid": ("x [2,6,9,8]", (5, 6, 2, 4), 'auto_pad="VALID", kernel_shape=[2,4]'),
    "one-d": ("x [2,6,19]", (7, 6, 5), "pads=[3,1], strides=[2]"),
    "three-d": ("x [1,4,5,6,7]", (6, 4, 3, 2, 3), "pads=[1,0,1,1,1,0], strides=[1,2,1]"),
    "one-wide": ("x [1,6,8,8]", (8, 6, 3, 1), "pads=[1,0,1,0]"),
    "pointwise": ("x [2,6,9,8]", (10, 6, 1, 1), "strides=[2,1]"),
}


def convolution(kit: Any, case: str, bias: bool) -> ir.Model:
    source, shape, attributes = CONVOLUTIONS[case]
    generator = np.random.default_rng(len(case))
    weights = {"w": generator.standard_normal(shape).astype(np.float32)}
    if bias:
        weights["b"] = generator.standard_normal(shape[0]).astype(np.float32)
    dims = source.split(" ", 1)[1]
    text = f"g (float{dims} x) => (float y) {{ y = Conv<{attributes}>(x, w{', b' if bias else ''}) }}"
    text = text.replace("(float y)", f"(float[{','.join('abcde'[: len(shape)])}] y)")
    return kit.parse(text, **weights)


def full(method: Method, asked: Problem) -> Candidate:
    match method:
        case Method.TUCKER:
            family = next(tucker_families(asked, [asked.channels]))
        case Method.SPATIAL:
            family = spatial_family(asked)
        case Method.DEPTHWISE:
            family = depthwise_family(asked)
        case _:
            family = two_factor_family(asked)
    return family.candidate(family.top)


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    value = model.graph.inputs[0]
    shape = [dim if isinstance(dim, int) else 2 for dim in value.shape]
    return {str(value.name): SEED.standard_normal(shape).astype(np.float32)}


def assert_same(kit: Any, model: ir.Model, result: ir.Model) -> None:
    data = feeds(model)
    expected, got = kit.outputs(model, data)[0], kit.outputs(result, data)[0]
    assert expected.shape == got.shape
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("metric", ["dense", "channels", "none"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_at_full_rank(kit: Any, case: str, metric: str) -> None:
    model = convolution(kit, case, bias=metric != "channels")
    asked = problem(model, "Conv", metric)
    tried = 0
    for method in Method:
        if method in (Method.AUTO, Method.CP) or form_problem(asked.view, method) is not None:
            continue
        found = full(method, asked)
        assert found.error < 1e-9
        assert_same(kit, model, apply(model, found, "Conv"))
        tried += 1
    assert tried >= (1 if case == "pointwise" else 3)


@pytest.mark.parametrize("case", ["plain", "strided", "same-upper", "one-d", "three-d"])
def test_cp_of_a_kernel_that_is_a_sum_of_products(kit: Any, case: str) -> None:
    model = convolution(kit, case, bias=True)
    view = layer(model, "Conv")
    generator = np.random.default_rng(1)
    parts = [generator.standard_normal((size, 2)) for size in view.weight_shape]
    letters = "abcde"[: len(parts)]
    kernel = np.einsum(",".join(f"{x}z" for x in letters) + f"->{letters}", *parts).astype(np.float32)
    view.node.inputs[1].const_value = ir.tensor(kernel)
    found = cp_family(problem(model, "Conv")).candidate(4)
    assert found.error < 1e-6
    assert [factor.op_type for factor in found.factors] == ["Conv"] * (len(view.kernel) + 2)
    data = feeds(model)
    expected, got = (kit.outputs(m, data)[0] for m in (model, apply(model, found, "Conv")))
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("source", "shape", "attributes"),
    [
        ("[2,8,6,5]", (12, 2, 3, 3), "group=4, pads=[1,1,1,1], strides=[1,2]"),
        ("[2,8,6]", (6, 4, 1), "group=2"),
    ],
)
def test_grouped_convolution(
    kit: Any, random: Any, source: str, shape: tuple[int, ...], attributes: str
) -> None:
    dims = ",".join("abcd"[: len(shape)])
    text = f"g (float{source} x) => (float[{dims}] y) {{ y = Conv<{attributes}>(x, w, b) }}"
    model = kit.parse(text, w=random(*shape), b=random(shape[0]))
    asked = problem(model, "Conv")
    assert_same(kit, model, apply(model, full(Method.CHANNEL, asked), "Conv"))
    assert "without groups" in str(form_problem(asked.view, Method.TUCKER)) or 1 in shape


@pytest.mark.parametrize(
    ("source", "shape", "attributes"),
    [
        ("[2,8,5,4]", (8, 6, 3, 2), "strides=[2,1], pads=[1,0,0,1], output_padding=[1,0]"),
        ("[2,8,5,4]", (8, 3, 2, 2), "strides=[2,2], group=2"),
        ("[2,8,5]", (8, 6, 4), 'strides=[2], auto_pad="SAME_UPPER"'),
        ("[2,8,5,4]", (8, 6, 1, 1), "strides=[1,1]"),
    ],
)
def test_transposed_convolution(
    kit: Any, random: Any, source: str, shape: tuple[int, ...], attributes: str
) -> None:
    dims = ",".join("abcd"[: len(shape)])
    text = f"g (float{source} x) => (float[{dims}] y) {{ y = ConvTranspose<{attributes}>(x, w, b) }}"
    groups = 2 if "group" in attributes else 1
    model = kit.parse(text, w=random(*shape), b=random(shape[1] * groups))
    asked = problem(model, "ConvTranspose")
    assert_same(kit, model, apply(model, full(Method.CHANNEL, asked), "ConvTranspose"))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(kit: Any, random: Any, opset: int, transposed: int) -> None:
    text = f"""g (float[N,12] x) => (float[N,9] y) {{
        y = Gemm<alpha=0.5, beta=2.0, transB={transposed}>(x, w, b)
    }}"""
    model = kit.parse(text, opset, w=random(*((9, 12) if transposed else (12, 9))), b=random(9))
    found = full(Method.SVD, problem(model, "Gemm"))
    assert [factor.op_type for factor in found.factors] == ["MatMul" if opset < 11 else "Gemm", "Gemm"]
    assert_same(kit, model, apply(model, found, "Gemm"))


@pytest.mark.parametrize("source", ["12", "3,12", "2,5,12", "2,2,3,12"])
def test_matmul_of_any_rank(kit: Any, random: Any, source: str) -> None:
    dims = ",".join([*"abcd"[: source.count(",")], "y"])
    model = kit.parse(
        f"g (float[{source}] x) => (float[{dims}] out) {{ out = MatMul(x, w) }}", w=random(12, 20)
    )
    assert_same(kit, model, apply(model, full(Method.SVD, problem(model, "MatMul")), "MatMul"))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6))
def test_whitening_never_loses(outputs: int, inputs: int, samples: int, seed: int) -> None:
    """On the data the whitened factors are the best of their rank, so no worse than those of the plain SVD."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((1, outputs, inputs))
    # Fewer samples than inputs, and scales that differ by orders of magnitude.
    rows = generator.standard_normal((samples, inputs)) * 10.0 ** generator.integers(-2, 3, inputs)
    text_node = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    view = LinearView(text_node, (inputs, outputs), 1, outputs, inputs)
    found = metric_of(view, (rows.T @ rows)[np.newaxis])
    whitened = two_factor_family(Problem(view, weight, found, (1,), (1,)))
    plain = two_factor_family(Problem(view, weight, Metric(None, inputs), (1,), (1,)))
    total = np.square(rows @ weight[0].T).sum()
    for rank in range(1, whitened.top + 1):
        errors = []
        for family in (whitened, plain):
            _, approximation = family.solve(rank)
            assert np.isfinite(approximation).all()
            errors.append(np.square(rows @ (weight - approximation)[0].T).sum() / total)
        # The ridge that keeps the whitening regular may cost its own size.
        assert errors[0] <= errors[1] + 1e-4


@pytest.mark.parametrize("case", ["plain", "strided", "same-lower", "one-d"])
@pytest.mark.parametrize(
    "method", [Method.CHANNEL, Method.TUCKER, Method.SPATIAL, Method.CP, Method.DEPTHWISE]
)
def test_the_error_is_that_of_the_data(kit: Any, case: str, method: Method) -> None:
    """What a candidate says it loses is what the layer's outputs lose on the data of its statistics."""
    model = convolution(kit, case, bias=False)
    view = layer(model, "Conv")
    if form_problem(view, method) is not None:
        pytest.skip("the form is not for it")
    data = feeds(model)
    columns = view.columns(next(iter(data.values()))).astype(np.float64)
    asked = problem(model, "Conv")
    asked = Problem(
        view, asked.weight, metric_of(view, columns.swapaxes(1, 2) @ columns), asked.before, asked.after
    )
    choice = RankChoice(RankRule.LAYER_RATIO, 0.9, 0.3, 1)
    (found,) = candidates(asked, method, choice)
    assert found.form == method.value
    assert found.macs <= 0.7 * asked.macs
    lost = kit.energy_lost(model, apply(model, found, "Conv"), data)
    assert 0 < found.error < 1
    assert lost == pytest.approx(found.error, rel=1e-3, abs=1e-5)


def test_moments_without_full_rank() -> None:
    for rank in (0, 1, 3):
        root = cholesky(moment(6, rank=rank)[0] if rank else np.zeros((6, 6)))
        assert np.isfinite(root).all()
        assert np.allclose(np.triu(root, 1), 0)
        assert (np.diag(root) > 0).all()


def test_alternating_least_squares_is_deterministic() -> None:
    tensor = np.random.default_rng(0).standard_normal((5, 4, 3))
    first, second = alternating_least_squares(tensor, 6), alternating_least_squares(tensor, 6)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
