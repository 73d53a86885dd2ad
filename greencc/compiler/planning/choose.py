"""A budget in, the best verified plans out: the planner's part of the choice among forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from greencc.compiler.contender import Contender, contender
from greencc.compiler.data import Splits
from greencc.compiler.forms import CLEANED_RANK, ORIGINAL_RANK, PLAN_RANK, Form, FormBuilder
from greencc.compiler.measurement import Measurement
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import Precision
from greencc.compiler.planning.assembly import Corrections, make_problem
from greencc.compiler.planning.backends import try_backends
from greencc.compiler.planning.budget import Asked, missed
from greencc.compiler.planning.info import plan_info
from greencc.compiler.planning.plan import Plan
from greencc.compiler.planning.points import Figures, Point, PointStore, dominates
from greencc.compiler.planning.prepare import Preparation, Prepared
from greencc.compiler.planning.reach import require_above_idle, require_possible, tables_bound
from greencc.compiler.planning.search import ROUNDS, Search, aim_of, loss_allowed
from greencc.compiler.planning.verifier import CannotBuildError, Verifier, macs_of
from greencc.compiler.sensitivity import facts_key
from greencc.compiler.session import Deadline, Session
from greencc.compiler.slices import make_slice
from greencc.compiler.tables import LARGE_SLICE
from greencc.core.cache import cache_key
from greencc.core.data import Feeds
from greencc.core.errors import LimitError
from greencc.core.report import Interval
from greencc.core.report_plan import LimitVerdict, PlanInfo
from greencc.planner.budget import Objective
from greencc.targets import format_spec
from greencc.targets.backends import backends

# A smaller gain than this is not worth leaving a safer plan for.
_WORTH = 0.02
# Quick figures must keep the budget with this much to spare, where any plan does: the last measurement decides.
_SPARE = 0.97
# Plans that are certified: each costs a run over the certification split.
_LADDER = 4
# More than this share of the time is said.
_OVERRUN = 1.25
_NEAREST = 5
# Plans that are timed side by side in the end.
_RIVALS = 4


@dataclass
class PlanChoice(Plan):
    """Contenders in order of preference, and all that is known of the others.

    Attributes:
        asked: Budget and objective.
        points: Everything that was verified.
        ladder: Points of the ranked contenders, the preferred one last.
        search: What it did; None where there was nothing to search.
        prepared: Space and tables; None likewise.
        verifier: Builds plans again.
    """

    asked: Asked
    points: list[Point]
    ladder: list[Point]
    search: Search | None
    prepared: Prepared | None
    verifier: Verifier
    discarded: list[Contender] = field(default_factory=list)

    @property
    def ranked(self) -> list[Contender]:
        """The preferred one first."""
        return [point.contender for point in reversed(self.ladder) if point.contender is not None]

    def point_of(self, item: Contender) -> Point:
        """The point of a ranked contender."""
        return next(point for point in self.ladder if point.contender is item)

    def left(self) -> list[Contender]:
        """Forms that are no points."""
        return self.discarded

    def others(self, held: Contender | None) -> Iterator[Contender]:
        """Contenders beside the ladder that are better than one that held, the best first; any where none did."""
        least = float("inf")
        if held is not None:
            least = self.point_of(held).figures.value(self.asked.objective.weights) * (1.0 - _WORTH)
        tested = {id(point) for point in self.ladder}
        for point in _best_first(self.asked, self.points):
            if id(point) in tested or not self.asked.keeps(point.figures):
                continue
            if point.figures.value(self.asked.objective.weights) >= least:
                return
            try:
                item = self.verifier.opened(point)
            except CannotBuildError:
                continue
            item.form.rank = PLAN_RANK + len(self.ladder)
            item.reason = item.reason or point.summary
            self.ladder.append(point)
            yield item

    def verdicts(self, measured: Measurement) -> tuple[LimitVerdict, ...]:
        """What was measured in the end against the budget."""
        return self.asked.of_measurement(measured)

    def keeps(self, measured: Measurement) -> bool:
        """Whether what was measured in the end keeps the budget."""
        return all(verdict.met for verdict in self.verdicts(measured))

    def objection(self, measured: Measurement) -> str | None:
        """Why what was measured in the end is not shipped, or None."""
        verdicts = self.verdicts(measured)
        if not all(verdict.met for verdict in verdicts):
            return f"the last measurement did not keep {missed(verdicts)}"
        ratio = measured.ratio
        found = {
            Objective.LATENCY: ratio.latency.value,
            Objective.ENERGY: (ratio.energy or ratio.latency).value,
            Objective.SIZE: ratio.size.value,
            Objective.ERROR: 1.0,
        }[self.asked.objective]
        original = self.points[0]
        if found < 1.0 and self.asked.keeps(original.figures):
            return f"it measured worse than the original in {self.asked.objective.value} in the end"
        return None

    def out_of_reach(self, found: str = "") -> LimitError:
        """The error for a budget that nothing keeps, with the nearest points."""
        return _out_of_reach(self.asked, self.points, found)

    def info(self, shipped: Contender, measured: Measurement) -> PlanInfo:
        """With all points, and what was decided for every unit."""
        return plan_info(self, shipped, measured)


def choose_plan(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    feeds: Sequence[Feeds],
) -> PlanChoice:
    """Plan.

    Raises:
        LimitError: No plan keeps the budget within the accuracy; the message has the nearest points.
        UsageError: The budget contradicts itself.
    """
    deadline = Deadline(session.options.time_budget)
    if session.options.engine != "local":
        # A cluster that is not there should not be found out after minutes.
        with session.phase("starting workers"):
            _ = session.executor
    asked = Asked.of(session.options, session.target.device())
    asked.max_drop = loss_allowed(session.options.max_drop, splits.planning.count)
    for warning in asked.warnings:
        session.warn(warning)
    require_above_idle(asked)
    verifier = Verifier(
        session,
        builder,
        baseline,
        splits,
        feeds,
        make_slice(baseline.engine, splits.planning, LARGE_SLICE),
        PointStore(session.cache, _context(session, splits)),
        original.artifact,
    )
    asked.learn_tails(verifier.reference_ms)
    points = _whole_models(session, builder, baseline, original, splits, verifier)
    cleaned = points[-1].figures.latency_ms[50]
    prepared = search = None
    if deadline.over:
        session.warn("the time budget was over before the first plan (raise --time-budget)")
    else:
        job = Preparation(session, builder, baseline, splits, feeds, verifier, asked, deadline)
        prepared = job.run(cleaned)
        untouched = make_problem(prepared.space, prepared.tables, Corrections())
        require_possible(asked, session.target.device(), untouched, feeds[0])
        points += _timed_forms(verifier, prepared, session)
        earlier = _earlier(session, verifier)
        search = _search(session, verifier, prepared, asked, deadline, job, splits, earlier)
        points += search.points
        known = {str(point.steps) for point in points if point.steps is not None}
        points += [point for point in earlier if str(point.steps) not in known]
    points += try_backends(session, verifier, _best_first(asked, points), deadline)
    ladder = _compared(asked, session, verifier, points)
    if not ladder:
        bound = "" if search is None else tables_bound(asked, search.problem())
        raise _out_of_reach(asked, points, bound)
    usable = _open(verifier, ladder, session)
    if not usable:
        raise _out_of_reach(asked, points, "no plan that keeps the budget could be built again")
    shown = {id(point.form) for point in usable}
    rest = [] if prepared is None else [item for item in prepared.forms if id(item.form) not in shown]
    return PlanChoice(asked, points, usable, search, prepared, verifier, rest)


def _context(session: Session, splits: Splits) -> str:
    """Everything that points depend on, but the budget."""
    options = session.options
    return cache_key(
        session.source,
        "" if splits.calibration is None else splits.calibration.digest(),
        splits.planning.digest(),
        repr(options.metric),
        options.seed,
        options.effort.value,
        options.format.value,
        options.confidence,
        [(format_spec(target), target.versions()) for target in backends(session.target)],
        session.target.device().fingerprint,
        facts_key(session.target.capabilities()),
    )


def _whole_models(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    original: Form,
    splits: Splits,
    verifier: Verifier,
) -> list[Point]:
    """The model as it came, in half precision where the target computes so, and cleaned up, which comes last."""
    target = session.target
    start = Contender(original, baseline, reason="the model as it came")
    reference = verifier.reference_ms
    figures = Figures(
        0.0,
        0.0,
        Interval(1.0, 1.0, 1.0),
        reference,
        verifier.energy(original, reference[50]),
        verifier.size(original),
        macs_of(original),
    )
    points = [Point("original", "the model as it came", figures, target, contender=start, origin="form")]
    if target.capabilities().float16:
        half = contender(session, builder.half(Precision.FP16), baseline, splits)
        points.append(
            Point("fp16", "half precision", verifier.figures(half), target, contender=half, origin="form")
        )
    form = builder.cleaned()
    if not form.applied:
        return points
    item = contender(session, form, baseline, splits)
    points.append(Point("fp32", "cleaned up", verifier.figures(item), target, contender=item, origin="form"))
    return points


def _timed_forms(verifier: Verifier, prepared: Prepared, session: Session) -> list[Point]:
    """Forms that were judged while preparing; of those with static INT8 the best one is timed."""
    found = [] if prepared.full is None else [prepared.full]
    for item in prepared.forms:
        if item.form.precision is Precision.INT8_DYNAMIC and item.form.applied:
            point = Point(
                item.form.name,
                "weights in INT8, activations quantized at run time",
                verifier.figures(item),
                session.target,
                contender=item,
                origin="form",
            )
            found.append(point)
    return found


def _search(
    session: Session,
    verifier: Verifier,
    prepared: Prepared,
    asked: Asked,
    deadline: Deadline,
    job: Preparation,
    splits: Splits,
    earlier: Sequence[Point],
) -> Search:
    search = Search(
        verifier,
        prepared.space,
        prepared.tables,
        asked.objective,
        asked.rows,
        lambda point: asked.keeps(point.figures),
        lambda plans: job.measure_errors(prepared.space, plans),
        aim_of(session.options.max_drop, splits.planning.count),
        1.0 / max(splits.planning.count, 1),
        deadline,
        ROUNDS[session.options.effort],
        earlier=earlier,
    )
    made_up = splits.planning.synthetic
    if made_up and not prepared.space.units:
        search.log.ended = "no plan can be verified on synthetic data"
        session.warn("nothing was planned: without real data no plan can be verified (--calibration, --eval)")
    elif not prepared.space.units:
        search.log.ended = "there is nothing to decide"
    else:
        if made_up:
            session.warn(
                "only weights in fewer bits were considered, and judged on synthetic data, which say little of the "
                "task (--calibration, --eval)"
            )
        with session.phase("searching"):
            search.run(prepared.full)
            if not deadline.over:
                search.expect_front()
        if not search.points:
            session.warn(f"no plan was built layer by layer: {search.log.ended} (raise --time-budget)")
        if deadline.elapsed > _OVERRUN * deadline.seconds:
            session.warn(
                f"planning took {deadline.elapsed:.0f} s, more than --time-budget: what is under way is finished"
            )
        if search.refused:
            session.warn(
                f"{len(search.refused)} plans could not be built and were left out, the first because of "
                f"{search.refused[0]}"
            )
    return search


def _earlier(session: Session, verifier: Verifier) -> list[Point]:
    """What earlier compiles verified of this model on this target, with other budgets."""
    spec = format_spec(session.target)
    found = []
    for number, kept in enumerate(verifier.store.all(verifier.reference_ms[50]), start=1):
        if kept.backend != spec:
            continue
        point = Point(
            f"earlier plan {number}",
            kept.summary,
            kept.figures,
            session.target,
            kept.steps,
            kept.chosen,
            origin="cache",
            passes=verifier.passes_of(kept.steps),
        )
        found.append(point)
    # Many compiles leave many points: those that another is better than in every way are of no use.
    amounts = [_measures(point) for point in found]
    return [
        point
        for point, own in zip(found, amounts, strict=True)
        if not any(dominates(other, own) for other in amounts)
    ]


def _measures(point: Point) -> tuple[float, ...]:
    found = point.figures
    energy = float("inf") if found.energy_mj is None else found.energy_mj
    macs = float("inf") if found.macs is None else found.macs
    tail = max(found.latency_ms.values())
    return (found.latency_ms[50], tail, energy, float(found.size_bytes), macs, found.lost, found.error)


def _best_first(asked: Asked, points: Sequence[Point]) -> list[Point]:
    """Points within the accuracy, those that keep the budget first, then by the objective."""
    within = [point for point in points if point.figures.lost <= asked.max_drop]
    return sorted(
        within,
        key=lambda point: (not asked.keeps(point.figures), point.figures.value(asked.objective.weights)),
    )


def _compared(asked: Asked, session: Session, verifier: Verifier, points: list[Point]) -> list[Point]:
    """The ladder, after its plans were timed once more, side by side: the best of many quick times is a lucky one."""
    ladder = _ladder(asked, session, points)
    rivals = [point for point in _best_first(asked, points) if point.name != "original"][:_RIVALS]
    wanted = list({id(point): point for point in (*ladder[1:], *rivals)}.values())
    if len(wanted) < 2:
        return ladder
    items = []
    for point in wanted:
        try:
            items.append((point, verifier.opened(point)))
        except CannotBuildError as error:
            session.warn(f"{point.name} could not be built again: {error}")
            points[:] = [other for other in points if other is not point]
    verifier.compare(items)
    for _, item in items:
        item.engine.close()
    return _ladder(asked, session, points)


def _ladder(asked: Asked, session: Session, points: Sequence[Point]) -> list[Point]:
    """From the safest plan to the preferred one, each better than the one before by more than nothing."""
    keeping = [point for point in points if asked.keeps(point.figures)]
    for point in points:
        if point not in keeping:
            point.place = f"does not keep {missed(asked.of_point(point.figures))}"
    within = []
    for point in keeping:
        if point.figures.lost <= asked.max_drop:
            within.append(point)
        else:
            point.place = f"loses {point.figures.lost:.2%} on the planning split, more than the limit"
    roomy = [point for point in within if _roomy(asked, point)]
    for point in within:
        if roomy and point not in roomy:
            point.place = "keeps the budget with nothing to spare for the noise of the last measurement"
    ladder: list[Point] = []
    for point in sorted(roomy or within, key=lambda item: (item.figures.error, item.origin != "form")):
        value = point.figures.value(asked.objective.weights)
        if not ladder or value < ladder[-1].figures.value(asked.objective.weights) * (1.0 - _WORTH):
            ladder.append(point)
        else:
            point.place = f"not chosen: no better than {ladder[-1].name}"
    for point in ladder[:-1]:
        point.place = f"safer than {ladder[-1].name}, and not as good"
    if ladder:
        ladder[-1].place = "the best of all that were verified"
    return [*ladder[:1], *ladder[1:][-(_LADDER - 1) :]]


def _roomy(asked: Asked, point: Point) -> bool:
    return all(
        verdict.found is not None and verdict.found <= _SPARE * verdict.allowed
        for verdict in asked.of_point(point.figures)
    )


def _open(verifier: Verifier, ladder: Sequence[Point], session: Session) -> list[Point]:
    """The points that can be opened, with their contenders; those of earlier compiles are built again."""
    usable: list[Point] = []
    for point in ladder:
        try:
            item = point.contender if point.name == "original" else verifier.opened(point)
        except CannotBuildError as error:
            session.warn(f"{point.name} could not be built again: {error}")
            continue
        assert item is not None
        item.latency_ms = point.figures.latency_ms[50]
        item.reason = item.reason or point.summary
        item.place = point.place
        if item.form.rank not in (ORIGINAL_RANK, CLEANED_RANK):
            item.form.rank = PLAN_RANK + len(usable)
        point.contender = item
        usable.append(point)
    return usable


def _out_of_reach(asked: Asked, points: Sequence[Point], found: str) -> LimitError:
    """The error with the nearest points: those with the least violation of the worst limit, the accuracy included."""
    verified = [point for point in points if point.figures is not None]

    def violation(point: Point) -> float:
        verdicts = asked.of_point(point.figures)
        return max(
            (
                float("inf") if verdict.found is None else verdict.found / verdict.allowed
                for verdict in verdicts
            ),
            default=0.0,
        )

    def distance(point: Point) -> float:
        return max(violation(point), point.figures.lost / asked.max_drop)

    nearest = sorted(verified, key=distance)[:_NEAREST]
    lines = [_nearest(point, asked) for point in nearest]
    limits = ", ".join(limit.shown for limit in asked.budget)
    message = found or f"no verified plan keeps {limits} within the accuracy limit"
    return LimitError(
        message + "; the nearest points:\n" + "\n".join(lines),
        hint="give more time (--time-budget, --effort full), raise the budget or --max-drop, or lower --rate",
    )


def _nearest(point: Point, asked: Asked) -> str:
    found = point.figures
    energy = "" if found.energy_mj is None else f", {found.energy_mj:.4g} mJ estimated (grade D)"
    loss = "" if found.loss is None else f", loses {found.loss:.2%}"
    loss += f" (more than {asked.max_drop:.2%})" if point.figures.lost > asked.max_drop else ""
    return (
        f"  {point.name}: {found.latency_ms[50]:.4g} ms (p95 {found.latency_ms[95]:.4g}){energy}, "
        f"{found.size_bytes / 1e6:.4g} MB{loss} ({point.summary}): "
        f"{(missed(asked.of_point(found)) and 'misses ' + missed(asked.of_point(found))) or 'keeps the budget'}"
    )
