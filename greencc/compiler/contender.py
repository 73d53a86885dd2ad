"""A form that is being considered, with what is known of it, and how it is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from greencc.compiler.ahead import Ahead
from greencc.compiler.data import Splits
from greencc.compiler.forms import Form
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions
from greencc.compiler.session import Session
from greencc.core.cache import cache_key
from greencc.core.data import Array, DataSource
from greencc.core.engine import Engine, Target
from greencc.core.errors import GreenccError
from greencc.core.files import sha256_file
from greencc.core.report import Accuracy
from greencc.report.json_out import from_plain, to_plain
from greencc.verify.compare import compare
from greencc.verify.metrics import parse_metric
from greencc.verify.user import UserMetric

_KIND = "accuracy"


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


def judged_by_the_user(options: CompileOptions) -> bool:
    """Whether a function of the user's judges: what it said is not kept, because its code may change."""
    return isinstance(parse_metric(options.metric), UserMetric)


def judge(
    session: Session,
    baseline: Engine,
    artifact: Engine,
    data: DataSource,
    built: Path | None = None,
    target: Target | None = None,
) -> Accuracy:
    """Compare an engine with the baseline on `data`, by the limits and the metric of the compile.

    What was found of the files of an artifact (`built` is the main one) is kept, unless the user's own code judges: it
    may change; an entry that cannot be read is computed again. `target` is what runs the artifact (None: that of the
    session; the baseline always runs there). Where the session has several workers, those run what was built, and this
    process compares; the result is the same.
    """
    options = session.options
    runs_on = target or session.target
    key = None
    if built is not None and options.metric is None and session.source:
        files = sorted(file for file in built.parent.rglob("*") if file.is_file())
        key = cache_key(
            session.source,
            type(artifact).__qualname__,
            [sha256_file(file) for file in files],
            data.digest(),
            options.max_drop,
            options.confidence,
            session.target.versions(),
            runs_on.versions(),
            runs_on.device().fingerprint,
        )
        known = _read(session.cache.get(_KIND, key))
        if known is not None:
            return known
    if built is None or session.scratch not in built.parents or session.free_workers < 2:
        accuracy = _compare(session, baseline, artifact, data)
        _keep(session, key, data, accuracy)
        return accuracy
    ahead = Ahead(session, artifact, data, built, runs_on, key)
    try:
        accuracy = _compare(session, baseline, ahead, ahead)
    finally:
        ahead.close()
    _keep(session, key, data, accuracy)
    ahead.forget()
    return accuracy


def _read(entry: Mapping[str, Array] | None) -> Accuracy | None:
    """What an entry of the cache says; None where there is none, or not one that was written here."""
    if entry is None:
        return None
    try:
        return from_plain(json.loads(str(entry["accuracy"])), Accuracy, "cached accuracy")
    except (GreenccError, KeyError, ValueError, TypeError, RecursionError):
        return None


def _keep(session: Session, key: str | None, data: DataSource, accuracy: Accuracy) -> None:
    if key is not None:
        text = json.dumps(to_plain(accuracy, "accuracy"))
        session.cache.put(_KIND, key, {"accuracy": np.array(text)}, label=f"accuracy on {data.count} samples")


def _compare(session: Session, baseline: Engine, artifact: Engine, data: DataSource) -> Accuracy:
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
    """Open a form on what it was built for and judge it on the planning split."""
    target = form.target or session.target
    with session.phase("planning"), closed_on_error(target.open(form.artifact)) as engine:
        session.engines.append(engine)
        planning = judge(session, baseline, engine, splits.planning, form.artifact, target)
    return Contender(form, engine, planning)
