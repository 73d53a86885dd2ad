"""What is shipped, and what may be called certified, when the preferred form fails on samples it has not seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from greencc.compiler import certify
from greencc.compiler.contender import Contender
from greencc.compiler.forms import INT8_RANK, MIXED_RANK, Form
from greencc.compiler.options import Precision
from greencc.compiler.select import Choice, Safer
from greencc.core.errors import LimitError
from greencc.core.report import Accuracy, LayerChoice

from .conftest import Bench


def observed(drop: float, *, certified: bool = False) -> Accuracy:
    return Accuracy(
        metric="top-1", baseline=0.9, artifact=0.9 - drop, drop=drop, low=drop, high=drop, agreement=1.0, n=500,
        certified=certified, epsilon=0.05, confidence=0.95, failures=0, p_value=0.01, n_needed=None, reason="why",
    )  # fmt: skip


def form(bench: Bench, name: str, rank: int) -> Contender:
    return Contender(Form(name, Precision.INT8, rank, bench.source, bench.path), bench.baseline)


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> dict[str, Accuracy]:
    """What the certification split says of forms, by name."""
    known: dict[str, Accuracy] = {}

    def judge(_session: object, item: Contender, *_: object) -> Accuracy:
        return known[item.form.name]

    monkeypatch.setattr(certify, "_judge", judge)
    return known


def test_a_form_asked_for_by_name_gives_way_to_safer_ones(bench: Bench, drops: dict[str, Accuracy]) -> None:
    drops |= {"int8": observed(0.08), "less": observed(0.06), "least": observed(0.0, certified=True)}
    layers = (LayerChoice("head", "Conv", "float", "costs accuracy", 0.1, None, None),)
    safer = iter([Safer(form(bench, "less", MIXED_RANK)), Safer(form(bench, "least", MIXED_RANK), layers)])
    choice = Choice([form(bench, "int8", INT8_RANK)], safer=safer)
    (held,) = certify.certify(bench.session, choice, bench.baseline, bench.splits)
    assert held.contender.form.name == "least"
    assert not held.accuracy.certified, "it was chosen by the very samples"
    assert "tested before it" in held.accuracy.reason
    assert choice.layers == layers
    assert any("int8 was not kept" in warning for warning in bench.session.warnings)


@pytest.mark.parametrize("strict", [False, True])
def test_where_nothing_holds_the_first_loss_is_told(
    bench: Bench, drops: dict[str, Accuracy], strict: bool
) -> None:
    bench.session.options = replace(bench.session.options, require_certified=strict)
    # A form after the end of the sequence is never certified, so where that is required it is of no use.
    drops |= {"int8": observed(0.08), "less": observed(0.0 if strict else 0.06, certified=strict)}
    choice = Choice([form(bench, "int8", INT8_RANK)], safer=iter([Safer(form(bench, "less", MIXED_RANK))]))
    with pytest.raises(LimitError, match=r"drops by 8\.00%"):
        certify.certify(bench.session, choice, bench.baseline, bench.splits)


def test_a_form_that_holds_needs_no_safer_one(bench: Bench, drops: dict[str, Accuracy]) -> None:
    drops["int8"] = observed(0.01, certified=True)
    choice = Choice([form(bench, "int8", INT8_RANK)], safer=iter([Safer(form(bench, "less", MIXED_RANK))]))
    (held,) = certify.certify(bench.session, choice, bench.baseline, bench.splits)
    assert held.accuracy.certified
    assert next(choice.safer, None) is not None, "none was built"
