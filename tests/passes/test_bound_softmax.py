"""Masked scores are kept out of the denormal numbers where the samples say that it pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from greencc.core.capabilities import Capabilities
from greencc.core.errors import UsageError
from greencc.core.passes import Context
from greencc.passes.bound_softmax import BoundSoftmax

SLOW = Capabilities(None, frozenset(), frozenset(), 23, frozenset(), False, slow_denormals=True)


def masked(g, *, fill: float, kept: int = 2, axis: int = -1):
    """Scores (N, 3, 8) of which all but the first `kept` of a row are masked."""
    x = g.op("Relu", g.input("x", ["N", 3, 8]))
    mask = np.where(np.arange(8) < kept, 0.0, fill)
    return g.op("Softmax", g.op("Add", x, g.const(mask)), axis=axis)


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("fill", [-1e4, -1e30, -np.inf])
def test_masked_scores_are_bounded(graph, check, opset, fill) -> None:
    g = graph(opset=opset)
    result = check(g.model(masked(g, fill=fill)), BoundSoftmax(), capabilities=SLOW, tolerance=1e-7)
    assert result.ops == ["Relu", "Add", "ReduceMax", "Sub", "Max", "Softmax"]
    assert list(result.node("Sub").outputs[0].shape)[1:] == [3, 1]


def test_rows_without_anything_left_stay_what_they_were(graph, check) -> None:
    g = graph()
    assert check(
        g.model(masked(g, fill=-1e4, kept=0)), BoundSoftmax(least=0.0), capabilities=SLOW
    ).outcome.changed


def test_where_is_a_mask_too(graph, check) -> None:
    g = graph()
    x = g.op("Relu", g.input("x", ["N", 3, 8]))
    y = g.op("Softmax", g.op("Where", g.const(np.arange(8) < 3), x, g.const(-1e38)), axis=2)
    assert "Max" in check(g.model(y), BoundSoftmax(), capabilities=SLOW).ops


@pytest.mark.parametrize(
    ("fill", "kept", "axis", "reason"),
    [(-20.0, 2, -1, "0% of its scores"), (-1e4, 7, -1, "12% of its scores"), (-1e4, 2, 1, "")],
)
def test_softmax_that_would_not_gain_stays(graph, check, fill, kept, axis, reason) -> None:
    g = graph()
    model = g.model(masked(g, fill=fill, kept=kept, axis=axis))
    result = check(model, BoundSoftmax(), capabilities=SLOW)
    assert result.outcome.changed == 0
    assert reason in result.reasons
    assert bool(reason) == bool(result.reasons)


def test_scores_that_are_wanted_or_not_masked_stay(graph, check) -> None:
    g = graph()
    y = masked(g, fill=-1e4)
    scores = g.nodes[-1].input[0]
    plain = g.op("Softmax", g.op("Relu", g.input("z", ["N", 3, 8])))
    assert check(g.model(y, scores, plain), BoundSoftmax(), capabilities=SLOW).outcome.changed == 0


def test_only_where_denormals_are_slow(graph, check) -> None:
    g = graph()
    quick = replace(SLOW, slow_denormals=False)
    assert check(g.model(masked(g, fill=-1e4)), BoundSoftmax(), capabilities=quick).outcome.changed == 0


def test_without_samples_it_says_so(graph) -> None:
    g = graph()
    outcome = BoundSoftmax().apply(g.model(masked(g, fill=-1e4)), Context(SLOW, _unused, ()))
    assert outcome.changed == 0
    assert "no sample inputs" in outcome.findings[0].message


@pytest.mark.parametrize("least", [-0.1, 1.1])
def test_least_is_a_share(least) -> None:
    with pytest.raises(UsageError, match="least"):
        BoundSoftmax(least=least)


def _unused(model: object, outputs: object = None) -> None:
    raise AssertionError("nothing to observe")
