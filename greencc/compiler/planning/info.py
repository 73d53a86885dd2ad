"""What the report tells of a plan."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from greencc.compiler.contender import Contender
from greencc.compiler.measurement import Measurement
from greencc.compiler.planning.assembly import Corrections, Tables, make_problem
from greencc.compiler.planning.points import Point, dominates
from greencc.compiler.planning.prepare import Prepared
from greencc.compiler.planning.search import Search
from greencc.compiler.planning.space import WHOLE, Kind, Number, PlanUnit, Space
from greencc.core.meter import Grade
from greencc.core.recipe import dump_recipe
from greencc.core.report_plan import PlanChoice as UnitChoice
from greencc.core.report_plan import PlanInfo, PlanOption, PlanPoint, SolverInfo
from greencc.meters.model import MODEL_BOUNDARY
from greencc.planner.budget import Objective
from greencc.planner.problem import Assignment, Option, Quantity
from greencc.report.figures import bytes_text, joules, time_ms
from greencc.targets import format_spec

if TYPE_CHECKING:
    from greencc.compiler.planning.choose import PlanChoice

_NOTHING = 1e-12
_EARLIER = "an earlier compile chose and verified it; this one, for another budget, did not consider it"


def plan_info(choice: PlanChoice, shipped: Contender, measured: Measurement) -> PlanInfo:
    """The plan part of a report.

    Args:
        choice: Everything that was verified.
        shipped: What is in the bundle.
        measured: Its figures in the end.
    """
    final = choice.point_of(shipped)
    front = _front(choice.points)
    search, prepared = choice.search, choice.prepared
    chosen = final.chosen
    if chosen is None and prepared is not None:
        chosen = prepared.space.untouched()
    form = ""
    if final.origin == "form":
        form = f"{final.name}, a form of the whole model, was shipped: this was not decided on its own"
    notes = [f"shipped is {final.name}, whose own figures were measured again at the end"]
    return PlanInfo(
        objective=choice.asked.objective.value,
        rate=choice.asked.rate,
        limits=choice.verdicts(measured),
        points=(
            *(_point(point, point is final, id(point) in front) for point in choice.points),
            *(() if search is None else _expected(search, choice.points)),
        ),
        choices=()
        if prepared is None or chosen is None
        else _choices(prepared, search, chosen, choice.asked.objective, form),
        predictions=() if search is None else tuple(search.log.predictions),
        solver=None if search is None or prepared is None else _solver(search, prepared.space),
        rounds=0 if search is None else sum(point.origin == "plan" for point in search.points),
        ended="the time budget was over before the first plan" if search is None else search.log.ended,
        energy_grade=Grade.D.name,
        energy_boundary=MODEL_BOUNDARY,
        notes=tuple(notes),
    )


def _solver(search: Search, space: Space) -> SolverInfo:
    log = search.log
    return SolverInfo(
        units=len(space.units),
        options=sum(len(unit.options) for unit in space.units),
        pairs=log.pairs,
        solutions=log.solutions,
        seconds=log.seconds,
        gap=log.gap,
    )


def _point(point: Point, chosen: bool, front: bool) -> PlanPoint:
    found, said = point.figures, point.predicted
    return PlanPoint(
        name=point.name,
        summary=point.summary,
        backend=format_spec(point.backend),
        latency_ms=found.latency_ms[50],
        latency_p95_ms=found.latency_ms[95],
        energy_mj=found.energy_mj,
        size_bytes=found.size_bytes,
        macs=found.macs,
        drop=found.loss,
        error=found.error,
        verified=True,
        chosen=chosen,
        front=front,
        origin=point.origin,
        place=point.place,
        recipe=point.recipe,
        predicted_latency_ms=said.get(Quantity.LATENCY),
        predicted_energy_mj=said.get(Quantity.ENERGY),
        predicted_size_bytes=said.get(Quantity.SIZE),
        predicted_error=said.get(Quantity.ERROR),
    )


def _expected(search: Search, points: Sequence[Point]) -> Iterator[PlanPoint]:
    """The front of the tables: nothing of it was built.

    What such plans would lose follows the verified ones: decisions change with the root of the divergence.
    """
    known = [
        point.figures.lost / math.sqrt(point.figures.error) for point in points if point.figures.error > 0.0
    ]
    rate = max(statistics.median(known), 0.0) if known else None
    for number, solution in enumerate(search.expected, start=1):
        said = solution.totals
        error = max(said[Quantity.ERROR], 0.0)
        yield PlanPoint(
            name=f"expected {number}",
            summary=search.space.summary(solution.chosen),
            backend=format_spec(search.verifier.session.target),
            latency_ms=None,
            latency_p95_ms=None,
            energy_mj=None,
            size_bytes=None,
            macs=None,
            drop=None,
            error=None,
            verified=False,
            chosen=False,
            front=False,
            origin="plan",
            place="on the front of the tables; it was not built",
            recipe=dump_recipe(search.verifier.passes_of(search.space.steps(solution.chosen))),
            predicted_latency_ms=said[Quantity.LATENCY],
            predicted_energy_mj=said[Quantity.ENERGY],
            predicted_size_bytes=said[Quantity.SIZE],
            predicted_error=error,
            predicted_drop=None if rate is None else rate * math.sqrt(error),
        )


def _front(points: Sequence[Point]) -> set[int]:
    """Those that no other point is at least as good as in latency, energy, size and loss, and better in one."""

    def key(point: Point) -> tuple[float, ...]:
        found = point.figures
        return (
            found.latency_ms[50],
            float("inf") if found.energy_mj is None else found.energy_mj,
            float(found.size_bytes),
            found.lost,
        )

    keys = {id(point): key(point) for point in points}
    return {mine for mine, own in keys.items() if not any(dominates(other, own) for other in keys.values())}


def _choices(
    prepared: Prepared, search: Search | None, chosen: Assignment, objective: Objective, form: str
) -> tuple[UnitChoice, ...]:
    """What was decided for every unit, and why; `form` is why nothing was decided unit by unit, or empty."""
    space, tables = prepared.space, prepared.tables
    corrections = Corrections() if search is None else search.corrections
    problem = make_problem(space, tables, corrections)
    amounts = {unit.name: unit.options for unit in problem.units}
    found = []
    for unit in space.units:
        options = amounts[unit.name]
        option = chosen.get(unit.name, unit.options[0])
        rows = tuple(_option(unit, item, tables) for item in options)
        if option not in unit.options:
            found.append(UnitChoice(unit.subject, unit.kind.value, unit.nodes, option, _EARLIER, rows))
            continue
        reason = form or _reason(unit, option, options, objective)
        found.append(UnitChoice(unit.subject, unit.kind.value, unit.nodes, option, reason, rows))
    for name in sorted(chosen.keys() - amounts.keys()):
        kind, subject = name.split(":", 1)
        option = chosen[name]
        if option not in (Number.FLOAT.value, WHOLE):
            nodes = (subject,) if kind == Kind.ARITHMETIC.value else ()
            found.append(UnitChoice(subject, kind, nodes, option, _EARLIER, ()))
    return tuple(found)


def _option(unit: PlanUnit, option: Option, tables: Tables) -> PlanOption:
    own, pair = option.amounts, (unit.name, option.name)
    as_it_is = option.name == unit.options[0]
    known = as_it_is or pair in tables.measured
    note = "" if as_it_is or unit.kind is Kind.ARITHMETIC else tables.times.sources.get(pair, "")
    unknown = pair in tables.unknown
    return PlanOption(
        name=option.name,
        error=None if unknown else own.get(Quantity.ERROR, 0.0),
        saved_us=-1e3 * own.get(Quantity.LATENCY, 0.0),
        saved_mj=-own.get(Quantity.ENERGY, 0.0),
        saved_bytes=-own.get(Quantity.SIZE, 0.0),
        source="not measured in time" if unknown else "measured" if known else "predicted",
        note=f"time {note}" if note else "",
    )


def _reason(unit: PlanUnit, chosen: str, options: Sequence[Option], objective: Objective) -> str:
    """A sentence."""
    quantity = next(iter(objective.weights))
    named = {option.name: option for option in options}
    own = named[chosen]
    if chosen != unit.options[0]:
        return f"{_saves(own)}, for an error of {own.amounts.get(Quantity.ERROR, 0.0):.3g}"
    if len(options) == 1:
        return "there is no other option"
    counted = Quantity.LATENCY if quantity is Quantity.ERROR else quantity
    best = min(options[1:], key=lambda option: option.amounts.get(counted, 0.0))
    if best.amounts.get(counted, 0.0) >= -_NOTHING:
        return f"no option saves anything: {best.name} was measured at {_saves(best)}"
    return (
        f"{best.name} alone {_saves(best)}, but adds an error of "
        f"{best.amounts.get(Quantity.ERROR, 0.0):.3g}: other units save more for the error that the limit leaves"
    )


def _saves(option: Option) -> str:
    own = option.amounts
    ms, mj = -own.get(Quantity.LATENCY, 0.0), -own.get(Quantity.ENERGY, 0.0)
    size = -own.get(Quantity.SIZE, 0.0)
    parts = [
        f"{'saves' if ms >= 0 else 'costs'} {time_ms(abs(ms))}",
        f"{'saves' if mj >= 0 else 'costs'} {joules(abs(mj))} (estimated, grade D)",
    ]
    if size:
        parts.append(f"{'saves' if size >= 0 else 'costs'} {bytes_text(abs(size))}")
    return ", ".join(parts)
