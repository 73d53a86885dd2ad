"""The rounding optimiser: its gradients, what it wins, and the bounds it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import UsageError
from greencc.passes._adaround import (
    AdaRoundOptions,
    Relaxation,
    RoundingMethod,
    _MiniBatches,
    gram_gradient,
    greedy,
    penalty_gradient,
    solve,
)
from greencc.passes._rounding_layer import Layer, Rows, Statistics, error, statistics

ADAROUND = AdaRoundOptions(method=RoundingMethod.ADAROUND, iterations=300, learning_rate=0.05)
GREEDY = AdaRoundOptions(method=RoundingMethod.GREEDY)
METHODS = {"adaround": ADAROUND, "batches": replace(ADAROUND, gram_limit=0), "greedy": GREEDY}


def problem(
    groups: int = 1,
    outputs: int = 6,
    inputs: int = 24,
    *,
    limit: int = 7,
    rows: int = 600,
    seed: int = 0,
    low: float = -np.inf,
    high: float = np.inf,
) -> tuple[Layer, Rows, Rows]:
    """Correlated inputs with a mean, as behind a Relu; rows to learn from and rows to judge by."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs)
    x = np.maximum(rng.standard_normal((groups, rows, inputs)) @ mix + 0.3, 0).astype(np.float32)
    weight = rng.standard_normal((groups, outputs, inputs)).astype(np.float32)
    scales = (np.abs(weight).max(axis=2, keepdims=True) / limit).astype(np.float32)
    bias = rng.standard_normal((groups, 1, outputs)).astype(np.float32)
    layer = Layer(weight, scales, limit, bias, low, high)
    y = x @ weight.swapaxes(1, 2) + bias
    half = rows // 2
    return layer, Rows(x[:, :half], y[:, :half]), Rows(x[:, half:], y[:, half:])


def nearest(layer: Layer) -> Any:
    return np.clip(np.rint(layer.weight / layer.scales), -layer.limit, layer.limit).astype(np.float32)


def wide(layer: Layer) -> Layer:
    return Layer(
        layer.weight.astype(np.float64),
        layer.scales.astype(np.float64),
        layer.limit,
        layer.bias.astype(np.float64),
        layer.low,
        layer.high,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [7, 127])
@pytest.mark.parametrize("method", METHODS)
def test_beats_nearest_on_correlated_inputs(method: str, limit: int) -> None:
    layer, taught, judged = problem(limit=limit)
    start = nearest(layer)
    found = solve(layer, taught, start, METHODS[method])
    assert error(layer, judged, found).sum() < 0.75 * error(layer, judged, start).sum()


@pytest.mark.parametrize("method", METHODS)
def test_groups_are_solved_as_if_alone(method: str) -> None:
    layer, taught, _ = problem(groups=3, outputs=1, inputs=9)
    options = METHODS[method]
    together = solve(layer, taught, nearest(layer), options)
    for group in range(3):
        one = slice(group, group + 1)
        alone = Layer(layer.weight[one], layer.scales[one], layer.limit, layer.bias[one])
        rows = Rows(taught.inputs[one], taught.targets[one])
        np.testing.assert_array_equal(together[one], solve(alone, rows, nearest(alone), options))


@given(
    seed=st.integers(0, 10**6),
    limit=st.sampled_from([1, 7, 8, 64, 127]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 3),
)
@settings(max_examples=15, deadline=None)
def test_rounds_to_a_neighbour_inside_the_range(seed: int, limit: int, inputs: int, outputs: int) -> None:
    layer, taught, _ = problem(outputs=outputs, inputs=inputs, limit=limit, rows=40, seed=seed)
    # Weights beyond the range, as after a clipped scale, and one channel of zeros.
    weight = layer.weight * 1.3
    weight[:, 0] = 0
    layer = Layer(weight, layer.scales, limit, layer.bias)
    for options in (GREEDY, replace(ADAROUND, iterations=10), replace(METHODS["batches"], iterations=10)):
        found = solve(layer, taught, nearest(layer), options)
        ratio = layer.weight / layer.scales
        assert np.abs(found).max() <= limit
        np.testing.assert_array_equal(found, np.rint(found))
        inside = np.abs(ratio) <= limit
        assert (np.abs(found - ratio)[inside] <= 1).all()
        assert (found == np.clip(ratio, -limit, limit))[~inside].all()
        assert (found[:, 0] == 0).all() or (np.abs(found[:, 0]) <= 1).all()


@given(seed=st.integers(0, 10**6), inputs=st.integers(1, 80))
@settings(max_examples=15, deadline=None)
def test_greedy_never_raises_what_it_descends(seed: int, inputs: int) -> None:
    layer, taught, _ = problem(inputs=inputs, rows=60, seed=seed)
    facts = statistics(layer, taught, 0.0)
    start = nearest(layer)

    def loss(integers: Any) -> float:
        u = (integers - layer.weight / layer.scales).astype(np.float64)
        return float(np.sum((u @ facts.gram) * u) - 2 * np.sum(u * facts.cross))

    found = greedy(layer, facts, start, 10)
    assert loss(found) <= loss(start) + 1e-4 * abs(loss(start))


def test_greedy_ends_where_no_single_move_helps() -> None:
    layer, taught, _ = problem(inputs=40, outputs=3)
    facts = statistics(layer, taught, 0.0)
    found = greedy(layer, facts, nearest(layer), 50)
    best = error(layer, taught, found)
    lower = layer.floor()
    for column in range(40):
        moved = found.copy()
        moved[:, :, column] = 2 * lower[:, :, column] + layer.step()[:, :, column] - found[:, :, column]
        assert (error(layer, taught, moved) >= best * (1 - 1e-3)).all()


def test_statistics_are_the_error() -> None:
    layer, taught, _ = problem(groups=2)
    targets = taught.targets + np.float32(0.1)
    facts = statistics(layer, Rows(taught.inputs, targets), 0.0)
    found, start = nearest(layer), layer.floor()

    def quadratic(integers: Any) -> Any:
        u = integers - layer.weight / layer.scales
        return np.sum((u @ facts.gram) * u, axis=2) - 2 * np.sum(u * facts.cross, axis=2)

    rows = Rows(taught.inputs, targets)
    change = error(layer, rows, found) - error(layer, rows, start)
    mean = np.mean(np.square(taught.inputs), axis=(1, 2)).reshape(2, 1) * layer.scales[:, :, 0] ** 2
    np.testing.assert_allclose(change, (quadratic(found) - quadratic(start)) * mean, rtol=1e-3)


def test_gradient_of_the_quadratic_form_equals_finite_differences() -> None:
    layer, taught, _ = problem(inputs=7, outputs=2)
    facts = statistics(layer, taught, 0.1)
    exact = Statistics(facts.gram.astype(np.float64), facts.cross.astype(np.float64))  # type: ignore[arg-type]
    distance = np.random.default_rng(1).uniform(-0.5, 0.5, layer.weight.shape)

    def loss(u: Any) -> float:
        return float(np.sum((u @ exact.gram) * u) - 2 * np.sum(u * exact.cross))

    check(loss, gram_gradient(exact, distance.copy()), distance)  # type: ignore[arg-type]


def test_gradient_of_mini_batches_equals_finite_differences() -> None:
    layer, taught, _ = problem(inputs=7, outputs=2, low=0.0, high=2.0)
    layer, rows = wide(layer), Rows(taught.inputs.astype(np.float64), taught.targets.astype(np.float64))  # type: ignore[arg-type]
    distance = np.random.default_rng(1).uniform(-0.5, 0.5, layer.weight.shape)
    batches = _MiniBatches(layer, rows, 50, np.random.default_rng(3))
    gradient = batches.gradient(distance)  # type: ignore[arg-type]
    pick = np.random.default_rng(3).integers(0, rows.count, 50)
    power = np.mean(np.square(rows.inputs))
    goal = np.clip(rows.targets[:, pick], 0, 2)

    def loss(u: Any) -> float:
        y = np.clip(
            rows.inputs[:, pick] @ (layer.weight + u * layer.scales).swapaxes(1, 2) + layer.bias, 0, 2
        )
        return float(np.sum(np.square(y - goal) / 50 / power / layer.scales.reshape(1, 1, -1) ** 2))

    check(loss, gradient, distance)


def test_gradient_through_the_rectified_sigmoid_equals_finite_differences() -> None:
    layer, _, _ = problem(inputs=7, outputs=2)
    relaxed = Relaxation(wide(layer))
    variable = np.random.default_rng(1).uniform(-3, 3, layer.weight.shape)
    relaxed.variable = variable  # type: ignore[assignment]
    target = np.random.default_rng(2).uniform(0, 1, layer.weight.shape)

    def loss(v: Any) -> float:
        relaxed.variable = v
        _, gate = relaxed.forward()
        penalty = 0.3 * np.sum(relaxed.free * (1 - np.abs(2 * gate - 1) ** 4.0))
        return float(np.sum((relaxed.free * (gate - target)) ** 2) + penalty)

    sigmoid, gate = relaxed.forward()
    slope = 2 * relaxed.free * (gate - target) + penalty_gradient(gate, 4.0, 0.3)
    check(loss, relaxed.backward(slope, sigmoid, gate), variable)


def check(loss: Any, gradient: Any, at: Any) -> None:
    step = 1e-5
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        numeric = (loss(up) - loss(down)) / (2 * step)
        assert gradient[index] == pytest.approx(numeric, rel=1e-3, abs=1e-3)


def test_the_relaxation_starts_at_the_float_weight() -> None:
    layer, _, _ = problem()
    relaxed = Relaxation(layer)
    _, gate = relaxed.forward()
    np.testing.assert_allclose(relaxed.distance(gate), 0, atol=2e-3)


def test_rows_that_a_relu_cuts_off_do_not_count_for_depthwise() -> None:
    layer, taught, _ = problem(groups=4, outputs=1, inputs=9, low=0.0)
    alone = statistics(layer, taught, 0.0)
    # Rows whose outputs are far below 0 in both models.
    hidden = -1e3 * np.sign(layer.weight.swapaxes(1, 2)).swapaxes(1, 2) * np.ones((4, 50, 9), np.float32)
    outputs = hidden @ layer.weight.swapaxes(1, 2) + layer.bias
    assert (outputs < 0).all()
    rows = Rows(
        np.concatenate([taught.inputs, hidden], axis=1), np.concatenate([taught.targets, outputs - 7], axis=1)
    )
    facts = statistics(layer, rows, 0.0)
    np.testing.assert_allclose(facts.gram, alone.gram, rtol=1e-5)
    np.testing.assert_allclose(facts.cross, alone.cross, atol=1e-3)


def test_dead_inputs_keep_nearest_rounding() -> None:
    layer, taught, _ = problem()
    rows = Rows(np.zeros_like(taught.inputs), np.zeros_like(taught.targets) + layer.bias)
    np.testing.assert_array_equal(solve(layer, rows, nearest(layer), GREEDY), nearest(layer))


@pytest.mark.parametrize("method", METHODS)
def test_is_deterministic(method: str) -> None:
    layer, taught, _ = problem()
    first, second = (solve(layer, taught, nearest(layer), METHODS[method]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_leaves_its_arguments_alone() -> None:
    layer, taught, _ = problem()
    start = nearest(layer)
    copies = [layer.weight.copy(), taught.inputs.copy(), taught.targets.copy(), start.copy()]
    for options in METHODS.values():
        solve(layer, taught, start, options)
    for now, before in zip([layer.weight, taught.inputs, taught.targets, start], copies, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"iterations": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"damping": -1.0},
        {"warm_up": 1.0},
        {"gram_limit": -1},
    ],
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        AdaRoundOptions(**wrong)
