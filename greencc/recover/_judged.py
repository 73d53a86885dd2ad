"""Whether fine-tuning helped, and whether its result is within what was asked."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.compiler.contender import judge, observed_loss
from greencc.compiler.options import CompileOptions
from greencc.compiler.select import refuse
from greencc.compiler.session import Session
from greencc.core.data import DataSource
from greencc.core.engine import Engine
from greencc.core.errors import LimitError
from greencc.core.report import Accuracy
from greencc.recover.evaluator import Evaluator


@dataclass(frozen=True)
class Judged:
    """What is known of the bundle as it came and of the recovered network.

    Attributes:
        losses: Observed on the planning split, before and after.
        scores: The evaluator's, of the original model, before and after; None without an evaluator.
    """

    losses: tuple[float, float]
    scores: tuple[float, float, float] | None = None

    def text(self) -> str:
        if self.scores is not None:
            return "the evaluator gives {:.4g} for the original, {:.4g} before and {:.4g} after".format(
                *self.scores
            )
        return f"loss on the planning split {self.losses[0]:.2%} before, {self.losses[1]:.2%} after"

    @property
    def worse(self) -> bool:
        if self.scores is not None:
            return self.scores[2] < self.scores[1]
        return self.losses[1] > self.losses[0]


def compare(
    session: Session,
    engines: tuple[Engine, Engine, Engine],
    planning: DataSource,
    evaluator: Evaluator | None,
) -> Judged:
    """Judge a bundle before and after on the planning split, and by the evaluator where there is one.

    Args:
        session: Options of the judging.
        engines: The original model, the bundle as it came, the recovered network.
        planning: The planning split.
        evaluator: The evaluator, or None.

    Raises:
        LimitError: The recovered network is no better.
    """
    baseline, before, after = engines
    losses = (
        observed_loss(judge(session, baseline, before, planning)),
        observed_loss(judge(session, baseline, after, planning)),
    )
    scores = None
    if evaluator is not None:
        scores = (evaluator.score(baseline), evaluator.score(before), evaluator.score(after))
    judged = Judged(losses, scores)
    if judged.worse:
        raise LimitError(
            f"fine-tuning did not help: {judged.text()}",
            hint="give more data or epochs, lower --lr, or try --mixup",
        )
    return judged


def refuse_result(accuracy: Accuracy, judged: Judged, options: CompileOptions) -> None:
    """Refuse a result outside the limit.

    With an evaluator the limit is on its score; `require_certified` asks for the certificate as well.

    Args:
        accuracy: On data that nothing else has seen.
        judged: On the planning split.
        options: The limit.

    Raises:
        LimitError: It is outside.
    """
    if judged.scores is None:
        problem = refuse(accuracy, options)
        if problem is not None:
            raise LimitError(problem.message, hint="give more data or epochs, or raise --max-drop")
        return
    best, _, found = judged.scores
    drop = (best - found) / max(abs(best), 1e-9)
    if drop > options.max_drop:
        raise LimitError(
            f"the evaluator's score falls by {drop:.2%}, more than the limit of {options.max_drop:.3g}: "
            + judged.text(),
            hint="give more data or epochs, or raise --max-drop",
        )
    if options.require_certified and not accuracy.certified:
        raise LimitError(
            f"the accuracy could not be certified: {accuracy.reason}",
            hint="give more held-out samples with --eval, raise --max-drop, or leave --require-certified out",
        )
