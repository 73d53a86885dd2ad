"""Groups of LSTM, GRU and RNN: hidden units, features, what comes before and after."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.groups import analyse

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, FEATURES = 4, 2, 3


def _recurrent(
    g, kind: str, x: str, features: int, hidden: int, both: bool, extras: int = 0, outputs: int = 3, **rest
):
    directions, rows = 2 if both else 1, GATES[kind] * hidden
    inputs = [x, g.random(directions, rows, features), g.random(directions, rows, hidden)]
    if extras > 0:
        inputs.append(g.random(directions, 2 * rows))
    if extras > 1:
        inputs += ["", g.random(directions, BATCH, hidden)]
    if extras > 1 and kind == "LSTM":
        inputs += [g.random(directions, BATCH, hidden), g.random(directions, 3 * hidden)]
    rest |= {"direction": "bidirectional"} if both else {}
    return g.op(kind, *inputs, hidden_size=hidden, outputs=min(outputs, 3 if kind == "LSTM" else 2), **rest)


def _rows(g, y: str, hidden: int, both: bool) -> str:
    """(steps, directions, batch, hidden) as (steps, batch, features)."""
    if not both:
        return g.op("Squeeze", y, g.ints(1))
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))


@settings(max_examples=30)
@given(
    kind=st.sampled_from(sorted(GATES)),
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=2),
    both=st.booleans(),
    extras=st.integers(0, 2),
    end=st.sampled_from(["all", "last", "both"]),
    seed=st.integers(0, 99),
)
def test_random_recurrent_nets(graph, prove, kind, sizes, both, extras, end, seed) -> None:
    g = graph(seed=seed)
    x, features = g.linear(g.input("x", [STEPS, BATCH, FEATURES]), FEATURES, 4, name="before"), 4
    for hidden in sizes:
        y, last, *_ = _recurrent(g, kind, x, features, hidden, both, extras)
        x, features = _rows(g, y, hidden, both), hidden * (1 + both)
    parts = []
    if end != "last":
        parts.append(g.linear(x, features, 2, name="end"))
    if end != "all":
        parts.append(g.linear(last, features // (1 + both), 2, name="state"))
    found = prove(g.model(*parts), seed)
    assert len(found.sizes) == 1 + len(sizes)
    assert [group.size for group in found.structure.prunable if group.kind == "hidden units"] == sizes


def test_reset_before_and_other_activations(graph, prove) -> None:
    g = graph()
    x = g.input("x", [STEPS, BATCH, FEATURES])
    rest = {"linear_before_reset": 1, "activations": ["Sigmoid", "Softsign"]}
    y, _ = _recurrent(g, "GRU", x, FEATURES, 5, False, 1, **rest)
    assert prove(g.model(g.linear(_rows(g, y, 5, False), 5, 2))).sizes == {"GRU0": 5}


def test_an_absent_output_keeps_nothing(graph, prove) -> None:
    """A GRU of which only the last state is read: its first output has no name and no shape."""
    g = graph()
    _recurrent(g, "GRU", g.input("x", [STEPS, BATCH, FEATURES]), FEATURES, 5, False)
    g.nodes[-1].output[0] = ""
    assert prove(g.model(g.linear(g.nodes[-1].output[1], 5, 2, name="end"))).sizes == {"GRU0": 5}


def test_a_first_state_made_of_zeros_of_a_computed_batch(graph, prove) -> None:
    """PyTorch exports it so: a shape of the batch and the hidden size."""
    g = graph()
    x = g.input("x", [STEPS, "N", FEATURES])
    batch = g.op("Gather", g.op("Shape", x), g.ints(1))
    state = g.op("ConstantOfShape", g.op("Concat", g.ints(1), batch, g.ints(5), axis=0))
    weights = [g.random(1, 15, FEATURES), g.random(1, 15, 5), g.random(1, 30)]
    y, _ = g.op("GRU", x, *weights, "", state, hidden_size=5, outputs=2, name="gru")
    assert prove(g.model(g.linear(g.op("Squeeze", y, g.ints(1)), 5, 2))).sizes == {"gru": 5}


def test_a_first_state_from_outside_keeps_the_units(graph, groups) -> None:
    g = graph()
    x, state = g.input("x", [STEPS, BATCH, FEATURES]), g.input("h", [1, BATCH, 5])
    weights = [g.random(1, 15, FEATURES), g.random(1, 15, 5), g.random(1, 30)]
    y, _ = g.op("GRU", x, *weights, "", state, hidden_size=5, outputs=2, name="gru")
    reasons = groups(g.model(g.linear(g.op("Squeeze", y, g.ints(1)), 5, 2, name="end")))
    assert "first state" in reasons["gru"]


def test_batch_first_layout_keeps_the_units(graph, groups) -> None:
    g = graph()
    weights = [g.random(1, 15, FEATURES), g.random(1, 15, 5)]
    y, _ = g.op(
        "GRU",
        g.input("x", [BATCH, STEPS, FEATURES]),
        *weights,
        hidden_size=5,
        layout=1,
        outputs=2,
        name="gru",
    )
    reasons = groups(g.model(g.op("Relu", y)))
    assert "layout" in reasons["gru"]


def test_computed_weights_keep_what_they_read(graph, groups) -> None:
    g = graph()
    x = g.linear(g.input("x", [STEPS, BATCH, FEATURES]), FEATURES, 4, name="before")
    weight = g.op("Mul", g.random(1, 15, 4), g.input("scale", [1]))
    y, _ = g.op("GRU", x, weight, g.random(1, 15, 5), hidden_size=5, outputs=2, name="gru")
    assert "weights are computed" in groups(g.model(y))["before"]


def test_channels_as_steps_stay(graph, groups) -> None:
    """A product over the axis that the net steps along."""
    g = graph()
    x = g.op(
        "MatMul",
        g.random(5, STEPS),
        g.op("Transpose", g.input("x", [BATCH, STEPS, FEATURES]), perm=[0, 1, 2]),
        name="steps",
    )
    x = g.op("Transpose", x, perm=[1, 0, 2])
    y, _ = _recurrent(g, "GRU", x, FEATURES, 4, False)
    assert "steps over it" in groups(g.model(y))["steps"]


def test_site_positions_of_gates(graph) -> None:
    """Every gate, in both directions, loses the unit."""
    g = graph()
    y, _ = _recurrent(g, "GRU", g.input("x", [STEPS, BATCH, FEATURES]), FEATURES, 4, True, 1)
    model = g.model(g.linear(_rows(g, y, 4, True), 8, 2))
    (group,) = analyse(model).prunable
    bias = next(site for site in group.sites if site.axis == 1 and site.positions.shape[1] == 6)
    np.testing.assert_array_equal(bias.positions[1], [1, 5, 9, 13, 17, 21])


@pytest.mark.parametrize("kind", sorted(GATES))
def test_one_hidden_unit_cannot_be_cut(graph, groups, kind) -> None:
    g = graph()
    y, *_ = _recurrent(g, kind, g.input("x", [STEPS, BATCH, FEATURES]), FEATURES, 1, False)
    assert all(reason is not None for reason in groups(g.model(g.op("Relu", y))).values())
