"""Choose among forms: accuracy on the planning split, latency measured side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from greencc.compiler.data import Splits
from greencc.compiler.forms import CLEANED_RANK, Form, FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import CompileOptions, Precision
from greencc.compiler.session import Session
from greencc.core.data import DataSource, Feeds
from greencc.core.engine import Engine
from greencc.core.errors import InputError, LimitError, UnavailableError
from greencc.core.report import Accuracy, Candidate, Interval
from greencc.measure.latency import quick_compare
from greencc.passes.quantize_int8 import RangeMethod
from greencc.verify.compare import compare

# A drop below this share of the limit leaves nothing worth another calibration.
_GOOD_ENOUGH = 0.25
# A smaller gain than this is not worth leaving a safer form for, whatever the interval says.
_WORTH = 0.02


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


@dataclass
class Choice:
    """Contenders in order of preference, the chosen one first; `all` is in the order they were built."""

    ranked: list[Contender]
    all: list[Contender] = field(default_factory=list)

    def candidates(self, chosen: Contender) -> tuple[Candidate, ...]:
        """What the report says of every form."""
        return tuple(
            Candidate(item.form.name, item.latency_ms, item.loss, item is chosen, item.explanation)
            for item in self.all
        )

    def close(self) -> None:
        for item in self.all:
            item.engine.close()


def observed_loss(accuracy: Accuracy) -> float:
    """What `--max-drop` is compared with: the drop where there are labels, else the share of changed decisions."""
    if accuracy.drop is not None:
        return accuracy.drop
    return 0.0 if accuracy.agreement is None else 1.0 - accuracy.agreement


def choose(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> Choice:
    """Build the forms that the options ask for, and rank them.

    Raises:
        LimitError: The precision that was asked for loses more accuracy than allowed.
        UnavailableError: The target has no kernels for it.
    """
    options, capabilities = session.options, session.target.capabilities()
    if options.recipe is not None:
        return _only(session, builder.recipe(options.recipe), baseline, splits)
    if options.precision is Precision.FP32:
        return _only(session, builder.cleaned(), baseline, splits)
    if options.precision is Precision.FP16:
        return _only(
            session, _required(builder.float16(), "FP16", bool(capabilities.float16)), baseline, splits
        )
    if options.precision is Precision.INT8:
        tried = _int8(session, builder, baseline, splits)
        _required(tried[0].form, "INT8", capabilities.int8 is not None)
        return Choice(tried[:1], tried)
    return _automatic(session, builder, baseline, original, splits, feeds)


def _only(session: Session, form: Form, baseline: Engine, splits: Splits) -> Choice:
    item = _contender(session, form, baseline, splits)
    item.reason = "as asked"
    return Choice([item], [item])


def _required(form: Form, what: str, supported: bool) -> Form:
    """Refuse a form in which nothing was converted: the target's fault, or the model's where it is `supported`."""
    if not form.applied:
        reasons = [finding.message for record in form.records for finding in record.findings]
        detail = f": {reasons[-1]}" if reasons else ""
        message = f"no node of the model could be built in {what} for this target{detail}"
        raise InputError(message) if supported else UnavailableError(message)
    return form


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


def _contender(session: Session, form: Form, baseline: Engine, splits: Splits) -> Contender:
    with session.phase("planning"), closed_on_error(session.target.open(form.artifact)) as engine:
        planning = judge(session, baseline, engine, splits.planning)
    return Contender(form, engine, planning)


def _int8(session: Session, builder: FormBuilder, baseline: Engine, splits: Splits) -> list[Contender]:
    """Min-max ranges; where they lose accuracy, percentile ranges as well. The better of the two comes first."""
    first = _contender(session, builder.int8(RangeMethod.MINMAX), baseline, splits)
    first.reason = "min-max ranges"
    if not first.form.applied or (first.loss or 0.0) <= _GOOD_ENOUGH * session.options.max_drop:
        return [first]
    second = _contender(session, builder.int8(RangeMethod.PERCENTILE), baseline, splits)
    second.reason = "percentile ranges"
    better, worse = sorted(
        (first, second), key=lambda item: (item.loss or 0.0, -(item.sqnr or 0.0), item is second)
    )
    better.note(f"they lose less on the planning split ({_percent(better)} against {_percent(worse)})")
    worse.place = "not chosen: the other ranges lose less on the planning split"
    return [better, worse]


def _automatic(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> Choice:
    """Whatever measured best within the limit; the safer form wins where the difference is within the noise."""
    start = Contender(original, baseline, reason="the model as it came")
    contenders = [start]
    cleaned = builder.cleaned()
    if cleaned.applied:
        contenders.append(_contender(session, cleaned, baseline, splits))
    else:
        start.note("the clean-up found nothing to change")
    if session.target.capabilities().float16:
        contenders.append(_contender(session, builder.float16(), baseline, splits))
    discarded: list[Contender] = []
    if splits.calibration is None:
        session.warn("INT8 was not considered: it needs calibration data (--calibration)")
    elif splits.planning.synthetic:
        session.warn(
            "INT8 was not considered: nothing can be verified on synthetic data (ask with --precision int8)"
        )
    else:
        best, *discarded = _int8(session, builder, baseline, splits)
        contenders.append(best)
    eligible = [item for item in contenders if _eligible(item, session.options)]
    with session.phase("comparing forms"):
        verdict = quick_compare(
            [item.timed for item in eligible], feeds, confidence=session.options.confidence
        )
    for item, milliseconds in zip(eligible, verdict.median_ms, strict=True):
        item.latency_ms = milliseconds
    return Choice(_ranked(eligible, verdict.ratios), [*contenders, *discarded])


def _eligible(item: Contender, options: CompileOptions) -> bool:
    if not item.form.applied:
        item.reason = "nothing could be converted"
        return False
    loss = item.loss
    if loss is not None and loss > options.max_drop:
        item.reason = f"loses {loss:.2%} on the planning split, more than the limit of {options.max_drop:.3g}"
        return False
    return True


def _ranked(eligible: Sequence[Contender], ratios: Sequence[Interval]) -> list[Contender]:
    """The form to ship, then the safer ones to fall back to, each no slower than the ones after it.

    The cleaned-up model computes the same function as the original, so it only must not be slower. Every other form
    must be faster than the original with its whole interval, and faster than the safer forms by a margin.

    Args:
        eligible: The original first, then from safe to aggressive.
        ratios: Latency of the original divided by that of each of the others.
    """
    ladder = [eligible[0]]
    for item, ratio in zip(eligible[1:], ratios, strict=True):
        best = ladder[-1]
        assert item.latency_ms is not None
        assert best.latency_ms is not None
        if item.form.rank == CLEANED_RANK:
            better = ratio.high >= 1.0 and item.latency_ms <= best.latency_ms * (1.0 + _WORTH)
        else:
            better = ratio.low > 1.0 and item.latency_ms < best.latency_ms * (1.0 - _WORTH)
        if better:
            ladder.append(item)
    best = ladder[-1]
    for item in eligible:
        if item is not best:
            item.place = f"not chosen: {item.latency_ms:.3g} ms against {best.latency_ms:.3g} ms"
    best.place = "the fastest form within the limit"
    return ladder[::-1]


def _percent(item: Contender) -> str:
    return f"{item.loss:.2%}" if item.loss is not None else "unknown"


def refuse(accuracy: Accuracy, options: CompileOptions, *, synthetic: bool = False) -> LimitError | None:
    """The error for a form that certification data show to be outside the limit, or None.

    What synthetic data show says nothing about the task, so it never counts against a form.
    """
    loss = observed_loss(accuracy)
    if loss > options.max_drop and not synthetic:
        what = "accuracy drops by" if accuracy.drop is not None else "the decisions change on"
        return LimitError(
            f"{what} {loss:.2%} of the {accuracy.n} certification samples, "
            f"more than the limit of {options.max_drop * 100:.3g}%",
            hint="raise --max-drop, give more calibration samples, or use --precision auto",
        )
    if options.require_certified and not accuracy.certified:
        return LimitError(
            f"the accuracy could not be certified: {accuracy.reason}",
            hint="give more evaluation samples, raise --max-drop, or leave --require-certified out",
        )
    return None
