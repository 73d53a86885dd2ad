"""A budget for a device that nothing is timed on here: forms of the whole model x power modes, by estimate.

The forms are built and judged on held-out data as in any compile; what they take on the device is estimated from its
profile in every power mode (`greencc.compiler.untimed`). A form whose interval reaches a limit may keep it, and ships
with these words; only one that breaks it even at the best end is refused. Layers are not decided one by one:
differences that small are below what an estimate tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from greencc.compiler.contender import Contender
from greencc.compiler.data import Splits
from greencc.compiler.forms import CLEANED_RANK, Form, FormBuilder
from greencc.compiler.measurement import Measurement
from greencc.compiler.memo import MemoEngine
from greencc.compiler.placing import folder_size
from greencc.compiler.planning.compressed import compressed_forms
from greencc.compiler.planning.estimated_report import estimated_info, out_of_reach
from greencc.compiler.planning.mode_points import Ask, ModePoint
from greencc.compiler.planning.modes import modes_of_profile
from greencc.compiler.planning.plan import Plan
from greencc.compiler.planning.verifier import macs_of
from greencc.compiler.select import WORTH_ESTIMATED, Forms, automatic_forms, eligible_forms
from greencc.compiler.session import Session
from greencc.compiler.slices import Slice, make_slice
from greencc.compiler.untimed import BY_ESTIMATE, Estimator
from greencc.core.data import Feeds
from greencc.core.engine import Engine
from greencc.core.errors import LimitError
from greencc.core.report import LayerChoice
from greencc.core.report_plan import LimitVerdict, PlanInfo
from greencc.meters.device import PowerMode
from greencc.planner.budget import Objective
from greencc.planner.limits import conflicts
from greencc.targets import format_spec
from greencc.verify.divergence import divergence
from greencc.verify.metrics import parse_metric

# A smaller gain than this is not worth another mode, or another form where sizes and errors decide: those are known.
_WORTH = 0.02
# Forms that are certified: each costs a run over the certification split.
_LADDER = 4
# Samples that tell the divergence of the outputs.
_SAMPLES = 16


@dataclass
class EstimatedPlan(Plan):
    """What was found.

    Attributes:
        ask: Budget, objective and modes.
        estimator: Of the device.
        points: All forms in all modes.
        ladder: Points of the ranked contenders, the preferred one last.
        forms: All that were judged.
        backend: The spec of the target.
    """

    ask: Ask
    estimator: Estimator
    points: list[ModePoint]
    ladder: list[ModePoint]
    forms: Forms
    backend: str

    @property
    def ranked(self) -> list[Contender]:
        """The preferred one first."""
        return [point.contender for point in reversed(self.ladder)]

    def point_of(self, item: Contender) -> ModePoint:
        """The point of a ranked contender."""
        return next(point for point in self.ladder if point.contender is item)

    def left(self) -> list[Contender]:
        """Those that are not ranked."""
        return self.forms.left(self.ranked)

    def mode_of(self, item: Contender) -> PowerMode | None:
        """The mode that a contender was estimated in."""
        return self.point_of(item).mode

    def layers_of(self, item: Contender) -> tuple[LayerChoice, ...]:
        """Of the form that the search was about."""
        return self.forms.layers if item in self.forms.contenders and item.form.fitted else ()

    def others(self, held: Contender | None) -> Iterator[Contender]:
        """The best points of other forms that are better than one that held."""
        least = float("inf") if held is None else self.ask.value(self.point_of(held)) * (1.0 - _WORTH)
        tested = {id(point.contender) for point in self.ladder}
        for point in sorted(_best_of_each(self.ask, self.points), key=self.ask.value):
            if id(point.contender) in tested:
                continue
            if self.ask.value(point) >= least:
                return
            self.ladder.append(point)
            yield point.contender

    def verdicts(self, shipped: Contender, measured: Measurement) -> tuple[LimitVerdict, ...]:
        """The shipped artifact's estimate and its size against the budget."""
        point = replace(self.point_of(shipped), size_bytes=measured.artifact.size_bytes)
        return self.ask.verdicts(point)

    def keeps(self, measured: Measurement) -> bool:
        """Always: nothing is known in the end that was not known when the points were ranked."""
        return True

    def objection(self, measured: Measurement) -> None:
        """None: likewise."""
        return

    def out_of_reach(self, found: str = "") -> LimitError:
        """With the nearest points."""
        return out_of_reach(self.ask, self.points, found)

    def info(self, shipped: Contender, measured: Measurement) -> PlanInfo:
        """With all points by mode."""
        for point in self.ladder:
            # What came of it later than the ranking, such as a refusal on the certification split.
            point.place = point.contender.place or point.place
        return estimated_info(
            self.ask,
            self.estimator,
            self.points,
            self.point_of(shipped),
            self.verdicts(shipped, measured),
            self.backend,
        )


def plan_by_estimate(
    session: Session,
    estimator: Estimator,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> EstimatedPlan:
    """Plan.

    Raises:
        LimitError: Even at the best end of the estimates no form keeps the budget within the accuracy.
        UsageError: The budget contradicts itself, or names a power mode of another device.
    """
    options = session.options
    objective = options.minimize or Objective.ENERGY
    for warning in conflicts(options.limits, objective, options.rate):
        session.warn(warning)
    modes = modes_of_profile(estimator.profile, options.limits)
    ask = Ask(options.limits, objective, options.rate, options.max_drop, modes, splits.planning.count)
    forms = automatic_forms(session, builder, baseline, original, splits, feeds)
    eligible_forms(session, forms)
    integer = next((item for item in forms.contenders if item.form.precision.needs_calibration), None)
    forms.contenders += compressed_forms(session, builder, baseline, splits, integer)
    samples = make_slice(baseline.engine, splits.planning, _SAMPLES)
    points: list[ModePoint] = []
    with session.phase("comparing forms"):
        for item in forms.contenders:
            if item.form.applied:
                points += _points(session, estimator, ask, item, feeds[0], samples)
    ladder = _ladder(ask, points)
    if not ladder:
        raise out_of_reach(ask, points)
    for point in points:
        if point.contender.latency_ms is None and not modes.closed(point.mode):
            point.contender.latency_ms, point.contender.place = point.estimate.latency_ms.value, point.place
    return EstimatedPlan(ask, estimator, points, ladder, forms, format_spec(session.target))


def _points(
    session: Session, estimator: Estimator, ask: Ask, item: Contender, feeds: Feeds, samples: Slice
) -> Iterator[ModePoint]:
    """A form in every power mode."""
    form = item.form
    size, macs = folder_size(form.artifact.parent), macs_of(form)
    error = _error(session, item.engine, samples)
    found = estimator.in_modes(form.qdq, feeds, ask.modes.all, ask.rate)
    for mode, estimate in zip(ask.modes.all, found, strict=True):
        yield ModePoint(item, mode, estimate, size, macs, error)


def _error(session: Session, engine: Engine, samples: Slice) -> float:
    found = [engine.run(feeds) for feeds in samples.feeds]
    return divergence(samples.outputs, found, parse_metric(session.options.metric))


def _ladder(ask: Ask, points: Sequence[ModePoint]) -> list[ModePoint]:
    """From the safest form to the preferred one, each in its best mode and better than the one before by a margin."""
    best = _best_of_each(ask, points)
    margin = WORTH_ESTIMATED if ask.objective in (Objective.ENERGY, Objective.LATENCY) else _WORTH
    ladder: list[ModePoint] = []
    for point in sorted(best, key=lambda item: item.contender.form.rank):
        last = ladder[-1] if ladder else None
        # The cleaned-up model computes the same function: it must only not be worse.
        factor = 1.0 + _WORTH if point.contender.form.rank == CLEANED_RANK else 1.0 - margin
        if last is None or ask.value(point) < ask.value(last) * factor:
            ladder.append(point)
        else:
            point.place = f"not chosen: no better than {ask.named(last)} by a margin, {BY_ESTIMATE}"
    for point in ladder[:-1]:
        point.place = f"safer than {ask.named(ladder[-1])}, and not as good, {BY_ESTIMATE}"
    if ladder:
        ladder[-1].place = f"the best of all forms and modes, {BY_ESTIMATE}"
    kept = [*ladder[:1], *ladder[1:][-(_LADDER - 1) :]]
    for point in kept:
        point.contender.latency_ms = point.estimate.latency_ms.value
        point.contender.place = point.place
    return kept


def _best_of_each(ask: Ask, points: Sequence[ModePoint]) -> list[ModePoint]:
    """For every form that may be chosen its best mode: where central estimates keep the budget, of those alone."""
    usable = []
    for point in points:
        broken = [verdict for verdict in ask.verdicts(point) if verdict.met is False]
        if closed := ask.modes.closed(point.mode):
            point.place = closed
        elif lost := ask.loses_too_much(point.contender):
            point.place = lost
        elif broken:
            point.place = f"does not keep {ask.missed(point)}"
        else:
            usable.append(point)
    expected = [point for point in usable if ask.expected(point)]
    for point in usable:
        if expected and point not in expected:
            point.place = "may keep the budget, but not by the central estimate, as others do"
    best: dict[int, ModePoint] = {}
    for point in expected or usable:
        known = best.get(id(point.contender))
        if known is None:
            best[id(point.contender)] = point
            continue
        worse, better = point, known
        if ask.value(point) < ask.value(known) * (1.0 - _WORTH):
            worse, better = known, point
            best[id(point.contender)] = point
        worse.place = f"not chosen: {better.mode.name} is the better mode for this form, {BY_ESTIMATE}"
    return list(best.values())
