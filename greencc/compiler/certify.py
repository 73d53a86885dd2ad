"""Certify the preferred form on data that nothing else has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from greencc.compiler.contender import Contender, judge
from greencc.compiler.data import Splits
from greencc.compiler.select import Choice, refuse
from greencc.compiler.session import Session
from greencc.core.engine import Engine
from greencc.core.errors import LimitError
from greencc.core.report import Accuracy
from greencc.verify.certificate import fixed_sequence

# Plans that are tested after the preferred one failed.
_OTHERS = 3
ANOTHER = "the best plan that held on the certification split"


@dataclass(frozen=True)
class Held:
    """A form that stayed within the limit on the certification split."""

    contender: Contender
    accuracy: Accuracy


Others = Callable[[Contender | None], Iterator[Contender]]
"""What else may be shipped and is better than a contender that held (None: nothing did), the best first."""


def certify(
    session: Session, choice: Choice, baseline: Engine, splits: Splits, others: Others | None = None
) -> list[Held]:
    """Test the forms from safe to aggressive up to the preferred one; return those that hold, in that order.

    This is the fixed sequence of docs/adr/0005-certificate.md: where a safer form fails, a more aggressive one is not
    tested, and where a safer one is not certified, neither is what comes after it. So a certificate costs no
    correction for having had a choice.

    Where nothing holds of a precision that was asked for by name, safer forms of it are built (`_safer`). Where the
    preferred one of a plan fails, `others` that are better than what is left are tested, without a certificate.

    Raises:
        LimitError: Not even the safest form that may be shipped holds.
    """
    held: list[Held] = []
    problem: LimitError | None = None
    for item in sorted(choice.ranked, key=lambda item: item.form.rank):
        accuracy = _judge(session, item, baseline, splits)
        problem = refuse(accuracy, session.options, item.form, synthetic=splits.certification.synthetic)
        if problem is not None:
            item.place = f"refused on the certification split: {problem.message}"
            break
        held.append(Held(item, accuracy))
    if problem is not None and not held:
        if others is None:
            return [_safer(session, choice, baseline, splits, problem)]
        held = another(session, others(None), baseline, splits)
        if not held:
            raise problem
        return held
    if problem is not None:
        session.warn(f"{choice.ranked[0].form.name} was not kept: {problem.message}")
        held[-1].contender.place = "the best form that held on the certification split"
    held = _sequential(held)
    if problem is not None and others is not None:
        held += another(session, others(held[-1].contender), baseline, splits)
    return held


def another(session: Session, others: Iterator[Contender], baseline: Engine, splits: Splits) -> list[Held]:
    """The first of some contenders that holds, without a certificate; none where only a certified one may be shipped.

    The fixed sequence has ended with what was refused before: these were chosen by the same samples.
    """
    if session.options.require_certified:
        return []
    for item in islice(others, _OTHERS):
        accuracy = _judge(session, item, baseline, splits)
        refused = refuse(accuracy, session.options, item.form, synthetic=splits.certification.synthetic)
        if refused is None:
            item.place = ANOTHER
            return [Held(item, _withdrawn(accuracy, "another plan was tested before it"))]
        item.place = f"refused on the certification split: {refused.message}"
    return []


def _safer(session: Session, choice: Choice, baseline: Engine, splits: Splits, problem: LimitError) -> Held:
    """Build safer forms of a precision that was asked for, until one holds. None of them is called certified.

    The fixed sequence has ended with the form that failed: what is tested after it was chosen by these very samples.

    Raises:
        LimitError: None holds; it says what the first form lost.
    """
    failed = choice.ranked[0].form.name
    while (item := choice.next_safer()) is not None:
        accuracy = _judge(session, item, baseline, splits)
        refused = refuse(accuracy, session.options, item.form, synthetic=splits.certification.synthetic)
        if refused is None and session.options.require_certified:
            break
        if refused is None:
            session.warn(f"{failed} was not kept: {problem.message}")
            item.place = "the first form that held on the certification split"
            return Held(item, _withdrawn(accuracy, "a form with fewer layers in float was tested before it"))
        item.place = f"refused on the certification split: {refused.message}"
    raise problem


def _judge(session: Session, item: Contender, baseline: Engine, splits: Splits) -> Accuracy:
    with session.phase("certifying"):
        accuracy = judge(
            session, baseline, item.engine, splits.certification, item.form.built, item.form.target
        )
    made_up = splits.info is not None and splits.info.synthetic and item.form.fitted
    if made_up:
        # What the certificate would say is true of these samples; ranges from noise deserve no seal all the same.
        what = "the ranges come from" if item.form.precision.needs_calibration else "it was fitted to"
        return replace(accuracy, certified=False, reason=f"not certified: {what} synthetic data")
    return accuracy


def _sequential(held: list[Held]) -> list[Held]:
    """Withdraw the certificates after the first form that has none: the fixed sequence proves nothing beyond it."""
    last = fixed_sequence(item.accuracy.certified for item in held)
    proven = 0 if last is None else last + 1
    return held[:proven] + [
        replace(item, accuracy=_withdrawn(item.accuracy, f"a safer form was not ({item.accuracy.reason})"))
        for item in held[proven:]
    ]


def _withdrawn(accuracy: Accuracy, why: str) -> Accuracy:
    """The accuracy without its certificate, where it had one."""
    if not accuracy.certified:
        return accuracy
    return replace(accuracy, certified=False, reason=f"not certified, because {why}")
