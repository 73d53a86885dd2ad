"""What the report, and the refusal of a budget, tell of a plan by estimate."""

from __future__ import annotations

from collections.abc import Sequence

from greencc.compiler.planning.mode_points import Ask, ModePoint
from greencc.compiler.planning.points import dominates
from greencc.compiler.untimed import BY_ESTIMATE, Estimator
from greencc.core.errors import LimitError
from greencc.core.recipe import dump_recipe
from greencc.core.report_plan import LimitVerdict, PlanInfo, PlanPoint
from greencc.planner.limits import Floor, unreachable

_NEAREST = 5


def estimated_info(
    ask: Ask,
    estimator: Estimator,
    points: Sequence[ModePoint],
    chosen: ModePoint,
    verdicts: tuple[LimitVerdict, ...],
    backend: str,
) -> PlanInfo:
    """The plan part of a report."""
    keys = {id(point): _key(point) for point in points}
    front = {mine for mine, own in keys.items() if not any(dominates(other, own) for other in keys.values())}
    forms = len({id(point.contender) for point in points})
    several = len(ask.modes.all)
    counted = f"{forms} form{'s' * (forms > 1)} of the whole model"
    if several > 1:
        counted += f" in {several} power modes"
    notes = [f"nothing ran on the device: times, energies and watts are estimates ({estimator.title})"]
    if ask.modes.exceeds and ask.modes.budget is not None and ask.modes.limit is not None:
        notes.append(
            f"even the smallest mode, {ask.modes.budget.name}, allows more than {ask.modes.limit.shown}: "
            "only a measurement on the device tells whether it is kept"
        )
    if chosen.mode.name:
        notes.append(
            f"all figures of baseline and artifact are for the {chosen.mode.name} mode: set it on the device"
        )
    return PlanInfo(
        objective=ask.objective.value,
        rate=ask.rate,
        limits=verdicts,
        points=tuple(_point(point, backend, point is chosen, id(point) in front) for point in points),
        choices=(),
        predictions=(),
        solver=None,
        rounds=0,
        ended=f"{counted} were compared {BY_ESTIMATE}",
        energy_grade=estimator.profile.grade.name,
        energy_boundary=estimator.profile.boundary,
        notes=tuple(notes),
        power_mode=chosen.mode.name,
        estimated_on=estimator.title,
    )


def _key(point: ModePoint) -> tuple[float, ...]:
    found = point.estimate
    return found.latency_ms.value, found.energy.value, float(point.size_bytes), point.lost


def _point(point: ModePoint, backend: str, chosen: bool, front: bool) -> PlanPoint:
    item, found = point.contender, point.estimate
    return PlanPoint(
        name=item.form.name,
        summary=item.reason,
        backend=backend,
        latency_ms=found.latency_ms.value,
        latency_p95_ms=None,
        energy_mj=found.energy.value,
        size_bytes=point.size_bytes,
        macs=point.macs,
        drop=item.loss,
        error=point.error,
        verified=True,
        chosen=chosen,
        front=front,
        origin="form",
        place=point.place,
        recipe=dump_recipe(item.form.passes),
        mode=point.mode.name,
        watts=point.watts,
    )


def out_of_reach(ask: Ask, points: Sequence[ModePoint], found: str = "") -> LimitError:
    """The error for a budget that no form keeps even at the best end of its estimates, with the nearest points."""
    allowed = [point for point in points if not ask.modes.closed(point.mode)]
    nearest = sorted(allowed, key=lambda point: _distance(ask, point))[:_NEAREST]
    limits = ", ".join(limit.shown for limit in ask.budget)
    message = (
        found or f"no form keeps {limits} within the accuracy limit, not even at the best end of its estimate"
    )
    least = _least(ask, allowed)
    lines = "\n".join(_line(ask, point) for point in nearest)
    return LimitError(
        f"{message}{least}; the nearest points:\n{lines}",
        hint="raise the budget or --max-drop, lower --rate, or take another device; estimates are rough, so measure on "
        "the device where that matters",
    )


def _distance(ask: Ask, point: ModePoint) -> float:
    worst = point.lost / ask.max_drop
    for verdict in ask.verdicts(point):
        best = verdict.found if verdict.low is None else verdict.low
        worst = max(worst, float("inf") if best is None else best / verdict.allowed)
    return worst


def _least(ask: Ask, points: Sequence[ModePoint]) -> str:
    """For each limit that every form breaks: the least that any may take."""
    floors = []
    for index, limit in enumerate(ask.budget):
        found = [ask.verdicts(point)[index] for point in points]
        ends = [verdict.found if verdict.low is None else verdict.low for verdict in found]
        known = [end for end in ends if end is not None]
        if known:
            floors.append(Floor(limit.kind, min(known), "any form takes at least", limit.percentile))
    told = unreachable(ask.budget, floors, None)
    return f" ({'; '.join(told)})" if told else ""


def _line(ask: Ask, point: ModePoint) -> str:
    found = point.estimate
    if point.watts is None:
        power = f"{found.watts.value:.3g} W flat out, which does not keep up with {ask.rate:g}/s"
    else:
        power = f"{point.watts:.3g} W " + ("flat out" if ask.rate is None else f"at {ask.rate:g}/s")
    loss = "" if point.contender.loss is None else f", loses {point.contender.loss:.2%}"
    loss += f" (more than {ask.max_drop:.2%})" if point.lost > ask.max_drop else ""
    missed = ask.missed(point)
    return (
        f"  {ask.named(point)}: {found.latency_ms.value:.3g} ms, {found.energy.value:.3g} mJ, {power}, "
        f"all estimated (grade {found.energy.grade}), {point.size_bytes / 1e6:.4g} MB{loss}: "
        f"{f'misses {missed}' if missed else 'may keep the budget'}"
    )
