"""A form that is being considered, with what is known of it, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from greencc.compiler.data import Splits
from greencc.compiler.forms import Form
from greencc.compiler.memo import MemoEngine
from greencc.compiler.session import Session
from greencc.core.data import DataSource
from greencc.core.engine import Engine
from greencc.core.report import Accuracy
from greencc.verify.compare import compare


@dataclass
class Contender:
    """A form with its open engine and what is known of it so far.

    `reason` is what it is and what happened to it; `place` why it comes first, or does not.
    """

    form: Form
    engine: Engine
    planning: Accuracy | None = None
    latency_ms: float | None = None
    reason: str = ""
    place: str = ""

    def note(self, text: str) -> None:
        self.reason = f"{self.reason}; {text}" if self.reason else text

    @property
    def sqnr(self) -> float | None:
        """Lowest SQNR of any output in dB: tells forms apart that make the same mistakes."""
        found = [item.sqnr_db for item in self.planning.outputs] if self.planning is not None else []
        return min((value for value in found if value is not None), default=None)

    @property
    def explanation(self) -> str:
        return "; ".join(text for text in (self.reason, self.place) if text)

    @property
    def timed(self) -> Engine:
        """The engine to take times of."""
        return self.engine.engine if isinstance(self.engine, MemoEngine) else self.engine

    @property
    def loss(self) -> float | None:
        return None if self.planning is None else observed_loss(self.planning)


def observed_loss(accuracy: Accuracy) -> float:
    """What `--max-drop` is compared with: the drop where there are labels, else the share of changed decisions."""
    if accuracy.drop is not None:
        return accuracy.drop
    return 0.0 if accuracy.agreement is None else 1.0 - accuracy.agreement


def judge(session: Session, baseline: Engine, artifact: Engine, data: DataSource) -> Accuracy:
    """Compare an engine with the baseline on `data`, by the limits and the metric of the compile."""
    return compare(
        baseline,
        artifact,
        data,
        metric=session.options.metric,
        epsilon=session.options.max_drop,
        confidence=session.options.confidence,
        progress=session.progress,
    )


@contextmanager
def closed_on_error(engine: Engine) -> Iterator[Engine]:
    """Hand an engine over, but close it when the block fails."""
    try:
        yield engine
    except BaseException:
        engine.close()
        raise


def contender(session: Session, form: Form, baseline: Engine, splits: Splits) -> Contender:
    """Open a form and judge it on the planning split."""
    with session.phase("planning"), closed_on_error(session.target.open(form.artifact)) as engine:
        session.engines.append(engine)
        planning = judge(session, baseline, engine, splits.planning)
    return Contender(form, engine, planning)
