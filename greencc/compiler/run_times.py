"""The run time as one more choice: the best forms built for every other one of the same device class, and measured.

Forms are chosen with the times of the compile's own target. Each other run time gets the best plain and the best
quantized one, the latter quantized where its own kernels want integers. Whatever is not plainly slower is judged, and
timed beside the best form so far. It takes that one's place only if it is faster beyond the noise, and by more than a
little (by far, where other processes were busy): the compile's own target is the one with nothing more to install.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greencc.compiler.contender import Contender, closed_on_error, judge
from greencc.compiler.data import Splits
from greencc.compiler.forms import PLAN_RANK, Form, FormBuilder
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import Precision, QuantizedFormat
from greencc.compiler.patience import not_waited_for
from greencc.compiler.select import Choice
from greencc.compiler.session import Session
from greencc.core.data import Feeds
from greencc.core.engine import Target
from greencc.core.errors import GreenccError
from greencc.core.report import BackendTrial, Interval
from greencc.measure.latency import quick_compare
from greencc.measure.profiles import GLANCE, QUICK
from greencc.targets import format_spec
from greencc.targets.backends import backends

# A smaller gain than this is not worth another run time, whatever the interval says.
WORTH = 0.03
# Beside other processes, who may slow one run time down more than another, the whole interval has to be above this.
WORTH_BUSY = 1.2
# A loss below this share of the limit is as good as none.
_SAFE = 0.5


@dataclass
class Trial:
    """A form on a run time, and what was found of it: nothing but a `reason` where it could not be tried.

    `ratio` is the latency of the best form of the compile's own target divided by this one's.
    `busy`: other processes disturbed that comparison.
    """

    target: Target
    name: str
    contender: Contender | None = None
    latency_ms: float | None = None
    ratio: Interval | None = None
    busy: bool = False
    reason: str = ""

    def row(self, chosen: Contender) -> BackendTrial:
        """What the report says of it, now that it is known what is shipped."""
        item = self.contender
        return BackendTrial(
            backend=format_spec(self.target),
            form=self.name,
            latency_ms=self.latency_ms,
            ratio=self.ratio,
            drop=None if item is None else item.loss,
            chosen=item is chosen,
            reason=self.reason or ("" if item is None else item.place),
            busy=self.busy,
        )


def try_run_times(
    session: Session,
    builder: FormBuilder,
    choice: Choice,
    baseline: MemoEngine,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> list[Trial]:
    """Try the other run times; the fastest form becomes the preferred one of the choice, with all others behind it.

    Returns:
        What was tried, the best form on the compile's own target first; nothing where there is no other run time.
    """
    others = backends(session.target)[1:]
    # Integer operators, rather than Q/DQ, are ONNX Runtime's own.
    if not others or session.options.format is QuantizedFormat.QOPERATOR:
        return []
    best = choice.ranked[0]
    tried = [Trial(session.target, best.form.name, best)]
    for target in others:
        for form in _forms(choice, session.options.max_drop):
            tried.append(_built(session, builder, form, target, feeds[0]))
    able = [trial for trial in tried[1:] if trial.contender is not None]
    if able:
        _decide(session, choice, tried[0], able, baseline, splits, feeds)
    for trial in able:
        assert trial.contender is not None
        if trial.contender is choice.ranked[0]:
            choice.all.append(trial.contender)
        else:
            trial.contender.engine.close()
    return tried


def _forms(choice: Choice, max_drop: float) -> list[Form]:
    """What every other run time gets: the plain form, and the best one in lower precision."""
    plain = next((item for item in choice.ranked if item.form.precision is Precision.FP32), None)
    lower = _quantized(choice, max_drop)
    if lower is None and choice.ranked[0] is not plain:
        lower = choice.ranked[0]
    return [item.form for item in (plain, lower) if item is not None]


def _quantized(choice: Choice, max_drop: float) -> Contender | None:
    """The best statically quantized form within the limit, without the layers that only this target computes slower."""
    found = [
        item
        for item in choice.all
        if item.form.float_model is not None and item.form.applied and (item.loss or 0.0) <= max_drop
    ]
    if not found:
        return None
    best = found[0]
    allowed = max(best.loss or 0.0, _SAFE * max_drop)
    if best.form.precision is Precision.MIXED:
        whole = (item for item in found if item.form.precision is Precision.INT8)
        return next((item for item in whole if (item.loss or 0.0) <= allowed), best)
    return best


def _built(session: Session, builder: FormBuilder, form: Form, target: Target, feeds: Feeds) -> Trial:
    """A form, built for a run time and opened there."""
    name = f"{form.name} on {target.name}"
    trial = Trial(target, name)
    if reason := not_waited_for(target, form.model, session.options.effort):
        trial.reason = f"not tried: {reason}"
        return trial
    try:
        built = builder.on(form, target, name)
        if not built.applied:
            trial.reason = "nothing could be converted"
            return trial
        with closed_on_error(target.open(built.artifact)) as engine:
            session.engines.append(engine)
            # What cannot run is found out here, not while it is timed beside others.
            engine.run(feeds)
    except GreenccError as error:
        trial.reason = f"not tried: {error.message}"
        session.warn(f"{form.name} was not tried on {format_spec(target)}: {error.message}")
        return trial
    trial.contender = Contender(built, engine)
    return trial


def _decide(
    session: Session,
    choice: Choice,
    own: Trial,
    able: Sequence[Trial],
    baseline: MemoEngine,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> None:
    """Time, judge, time again what is left, and put the winner first."""
    options = session.options
    with session.phase("comparing run times"):
        _time(own, able, feeds, session, glance=True)
    rivals = []
    for trial in able:
        assert trial.contender is not None
        assert trial.ratio is not None
        if trial.ratio.high < 1.0:
            trial.reason = _slower(trial, own)
            continue
        item, form = trial.contender, trial.contender.form
        with session.phase("planning"):
            item.planning = judge(
                session, baseline, item.engine, splits.planning, form.artifact, trial.target
            )
        if (item.loss or 0.0) > options.max_drop:
            trial.reason = (
                f"loses {item.loss:.2%} on the planning split, more than the limit of {options.max_drop:.3g}"
            )
            continue
        rivals.append(trial)
    if not rivals:
        return
    with session.phase("comparing run times"):
        _time(own, rivals, feeds, session, glance=False)
    best = _fastest(own, rivals)
    for trial in rivals:
        if trial is not best:
            trial.reason = _slower(trial, best or own)
    if best is None:
        return
    assert best.contender is not None
    assert best.ratio is not None
    best.contender.form.rank = PLAN_RANK
    best.contender.place = (
        f"{_times(best.ratio)} as fast as {own.name} on {own.target.name}, measured side by side"
    )
    choice.ranked[
        0
    ].place = f"not chosen: {own.latency_ms:.3g} ms against {best.latency_ms:.3g} ms of {best.name}"
    choice.ranked.insert(0, best.contender)


def _fastest(own: Trial, rivals: Sequence[Trial]) -> Trial | None:
    """The fastest that is worth another run time, or None.

    What is no faster beyond doubt, or hardly, is not worth it; nor is, on a busy machine, what is not far beyond doubt.
    """
    assert own.latency_ms is not None
    worth = [
        trial
        for trial in rivals
        if trial.ratio is not None
        and trial.latency_ms is not None
        and trial.ratio.low > (WORTH_BUSY if trial.busy else 1.0)
        and trial.latency_ms < own.latency_ms * (1.0 - WORTH)
    ]
    return min(worth, key=lambda trial: trial.latency_ms or 0.0, default=None)


def _time(
    own: Trial, others: Sequence[Trial], feeds: Sequence[Feeds], session: Session, *, glance: bool
) -> None:
    """Run them in turns, the best form of the compile's own target first."""
    items = [trial.contender for trial in (own, *others) if trial.contender is not None]
    verdict = quick_compare(
        [item.timed for item in items],
        feeds,
        profile=GLANCE if glance else QUICK,
        confidence=session.options.confidence,
    )
    ratios = (Interval(1.0, 1.0, 1.0), *verdict.ratios)
    # Times of forms are compared with those that were taken before: only the ratio is of this run.
    known = items[0].latency_ms
    for trial, item, milliseconds, ratio in zip(
        (own, *others), items, verdict.median_ms, ratios, strict=True
    ):
        trial.latency_ms, trial.ratio, trial.busy = milliseconds, ratio, not verdict.clean
        if trial is not own:
            item.latency_ms = milliseconds if known is None else known / ratio.value


def _slower(trial: Trial, best: Trial) -> str:
    assert trial.ratio is not None
    if best.ratio is not None and best.ratio != Interval(1.0, 1.0, 1.0):
        return f"not chosen: {trial.latency_ms:.3g} ms against {best.latency_ms:.3g} ms of {best.name}"
    told = "slower than" if trial.ratio.high < 1.0 else "not faster beyond doubt than"
    if trial.ratio.low > 1.0:
        told = f"less than {WORTH:.0%} faster than"
    if trial.busy and trial.ratio.high >= 1.0:
        told = "the machine was busy: not told apart from"
    return f"not chosen: {told} {best.name} on {best.target.name} ({_times(trial.ratio)} as fast)"


def _times(ratio: Interval) -> str:
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def rows(tried: Sequence[Trial], chosen: Contender) -> tuple[BackendTrial, ...]:
    """What the report says of all run times; nothing where there was no choice."""
    return tuple(trial.row(chosen) for trial in tried) if len(tried) > 1 else ()
