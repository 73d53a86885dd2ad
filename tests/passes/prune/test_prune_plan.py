"""Channels that are given: exactly those groups are cut to exactly those numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.data import Feeds
from greencc.core.engine import Timing
from greencc.core.errors import UsageError
from greencc.core.graph import constant_tensor
from greencc.core.groups import analyse
from greencc.core.model import check_model
from greencc.core.pass_list import format_passes, parse_passes
from greencc.core.passes import RewriteLog
from greencc.core.recipe import dump_recipe, parse_recipe
from greencc.passes import PASSES
from greencc.passes import _score_second_order as second_order
from greencc.passes._prune_plan import after_round, parse_channels, rounds_of
from greencc.passes._scores import Score, channel_scores
from greencc.passes.prune import Prune
from tests.passes.prune.test_prune import context, data, redundant

__all__ = ["data"]


def bytes_of(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def sizes(model: ir.Model) -> dict[str, int]:
    return {
        str(node.name): int(tensor.shape.numpy()[0])
        for node in model.graph
        if node.op_type == "Conv" and (tensor := constant_tensor(node.inputs[1])) is not None
    }


def never(models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
    raise AssertionError("a plan is not measured")


def test_a_plan_is_done_to_the_letter(data: Any) -> None:
    model = redundant()
    step = Prune(channels=("second=3", "first=13"), align=8, limit=0.1, ratio=0.01)
    outcome = step.apply(model, context(model, data, time=never))
    check_model(model)
    assert sizes(model) == {"first": 13, "second": 3}
    assert outcome.changed == 2
    assert sorted(outcome.chosen["channels"]) == ["first=13", "second=3"]
    messages = [finding.message for finding in outcome.findings]
    assert "second: 3 of 16 channels stay" in messages
    assert not any("instead of" in message or "align" in message for message in messages)


def test_the_least_needed_channels_go(data: Any) -> None:
    model = redundant(copies=False)
    ctx = context(model, data)
    scores = channel_scores(model, analyse(model).prunable, Score.SECOND_ORDER, ctx)["first"]
    weight = np.array(constant_tensor(model.graph.node("first").inputs[1]).numpy())
    Prune(channels=("first=10",), repair=False).apply(model, ctx)
    left = constant_tensor(model.graph.node("first").inputs[1]).numpy()
    np.testing.assert_array_equal(left, weight[np.sort(np.argsort(scores, kind="stable")[6:])])


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.4},
        {"ratio": 0.5, "rounds": 3},
        {"ratio": 0.4, "score": Score.MAGNITUDE},
        {"ratio": 0.4, "score": Score.ACTIVATION, "exclude": ("second",)},
        {"ratio": 0.4, "score": Score.CORRELATION, "repair": False},
    ],
)
def test_what_was_chosen_can_be_given_back(options: dict[str, Any], data: Any) -> None:
    first, again = redundant(copies=False), redundant(copies=False)
    outcome = Prune(measured=False, **options).apply(first, context(first, data))
    assert outcome.chosen["channels"]
    step = Prune(channels=outcome.chosen["channels"], **options)
    repeated = step.apply(again, context(again, data, time=never))
    assert bytes_of(again) == bytes_of(first)
    assert repeated.chosen == outcome.chosen


def test_rounds_that_leave_a_group_alone_are_told(data: Any) -> None:
    model = redundant(copies=False)
    step = Prune(channels=("first=16:9", "second=12"))
    outcome = step.apply(model, context(model, data))
    assert sizes(model) == {"first": 9, "second": 12}
    assert sorted(outcome.chosen["channels"]) == ["first=16:9", "second=12"]
    plan = parse_channels(step.channels, "here")
    assert rounds_of(plan) == 2
    assert [after_round(plan, number) for number in range(2)] == [
        {"first": 16, "second": 12},
        {"first": 9, "second": 12},
    ]


def test_named_groups_alone_are_scored_with_the_same_result(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = redundant(copies=False)
    groups, ctx = analyse(model).prunable, context(model, data)
    whole = {
        score: channel_scores(model, groups, score, ctx) for score in (Score.SECOND_ORDER, Score.MAGNITUDE)
    }
    eliminated: list[int] = []
    plain = second_order.eliminate

    def eliminate(parts: Any, size: int) -> Any:
        eliminated.append(size)
        return plain(parts, size)

    monkeypatch.setattr(second_order, "eliminate", eliminate)
    for score, expected in whole.items():
        alone = channel_scores(model, groups, score, ctx, only=["second"])
        assert list(alone) == ["second"]
        np.testing.assert_array_equal(alone["second"], expected["second"])
    assert len(eliminated) == 1
    assert channel_scores(model, groups, Score.SECOND_ORDER, ctx, only=[]) == {}
    # What a group may hold depends on the others where memory is short: then all are scored.
    monkeypatch.setattr(second_order, "BUDGET_BYTES", 0)
    assert set(channel_scores(model, groups, Score.SECOND_ORDER, ctx, only=["second"])) == {"first", "second"}


def test_a_plan_goes_through_recipes_and_lists() -> None:
    step = Prune(channels=("/a:0/conv=48", "b=c#1=56:48"))
    assert parse_recipe(dump_recipe([step]), PASSES) == (step,)
    assert parse_passes(format_passes([step]), PASSES) == (step,)
    text = "prune:channels=/conv=48+/fc=100:repair=false,decompose"
    first, second = parse_passes(text, PASSES)
    assert first == Prune(channels=("/conv=48", "/fc=100"), repair=False)
    assert second.name == "decompose"
    rounds = parse_passes("prune:channels=/conv=56:48:score=magnitude", PASSES)
    assert rounds == (Prune(channels=("/conv=56:48",), score=Score.MAGNITUDE),)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (("conv",), "no group with its number of channels"),
        (("=4",), "no group with its number of channels"),
        (("conv=-4",), "no group with its number of channels"),
        (("conv=4.5",), "no group with its number of channels"),
        (("conv=0",), "leaves no channel"),
        (("conv=4:5",), "grows from round to round"),
        (("conv=4", "conv=5"), "'conv' comes twice"),
    ],
)
def test_a_malformed_plan_is_refused_at_once(items: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prune(channels=items)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ("frst=4",)}, "no group is named 'frst'.*did you mean 'first'"),
        ({"channels": ("first=16",)}, "16 of 'first' cannot stay, it has 16 channels.*between 1 and 15"),
        ({"channels": ("first=20:4",)}, "20 of 'first' cannot stay"),
        ({"channels": ("classify=2",)}, "'classify' cannot be cut: it is an output of the model"),
        ({"channels": ("first=4",), "exclude": ("first",)}, "excluded by the options"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(options: dict[str, Any], message: str, data: Any) -> None:
    model = redundant()
    before = bytes_of(model)
    with pytest.raises(UsageError) as caught:
        Prune(**options).apply(model, context(model, data))
    assert _matches(message, f"{caught.value.message} ({caught.value.hint})")
    assert bytes_of(model) == before


def _matches(pattern: str, text: str) -> bool:
    parts: Iterator[str] = iter(pattern.split(".*"))
    return all(part in text for part in parts)


def test_rewrites_that_are_not_allowed_are_not_done(data: Any) -> None:
    model = redundant()
    ctx = replace(context(model, data), rewrites=RewriteLog(1))
    outcome = Prune(channels=("first=8", "second=8")).apply(model, ctx)
    assert outcome.changed == 1
    assert sizes(model) == {"first": 8, "second": 16}
    assert outcome.chosen["channels"] == ("first=8",)


def test_without_data_a_plan_needs_none_that_asks_for_none() -> None:
    model = redundant()
    outcome = Prune(channels=("first=8",), score=Score.MAGNITUDE, repair=False).apply(model, context(model))
    assert sizes(model) == {"first": 8, "second": 16}
    assert outcome.changed == 1
