"""The section "The plan" of a report's page, and the one script that the page has.

The script is a file of this package, never text from a report, and the page's content security policy names its hash:
nothing else can run. Without it the plots are the same, but for the cards that follow the pointer.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from greencc.core.report import Report
from greencc.core.report_plan import PlanChoice, PlanPoint
from greencc.report import plan as words
from greencc.report.figures import MISSING, bytes_text, count_text, joules, number, share, time_ms, watts
from greencc.report.front_plot import View, front_views
from greencc.report.prediction_plot import prediction_plot

_FIRST_POINTS = 16
_FIRST_UNITS = 12
_MOST_OPTIONS = 3000


@dataclass(frozen=True)
class Card:
    """What the pointer brings up for a plan: `index` is that of its marks."""

    index: int
    point: PlanPoint
    name: str
    rows: tuple[words.PairRow, ...]


@dataclass(frozen=True)
class PointLine:
    """A row of the table of verified plans."""

    point: PlanPoint
    name: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class UnitLine:
    """A unit with its options; `options` are empty where the page would grow too long."""

    choice: PlanChoice
    changed: bool
    options: tuple[tuple[str, bool, tuple[str, ...]], ...]
    left_out: int


@dataclass(frozen=True)
class UnitGroup:
    """The units of a kind, the rarest decisions first."""

    kind: str
    first: tuple[UnitLine, ...]
    rest: tuple[UnitLine, ...]
    changed: int


@dataclass(frozen=True)
class PredictionCard:
    """How good a table was for one quantity."""

    label: str
    basis: str
    text: str
    svg: Markup


@dataclass(frozen=True)
class PlanPage:
    """What the template shows."""

    sentences: tuple[str, ...]
    limits: tuple[words.LimitRow, ...]
    views: tuple[View, ...]
    cards: tuple[Card, ...]
    chosen: int | None
    basis: str
    loss: str
    first_points: tuple[PointLine, ...]
    more_points: tuple[PointLine, ...]
    groups: tuple[UnitGroup, ...]
    predictions: tuple[PredictionCard, ...]
    facts: tuple[tuple[str, str], ...]
    recipe: str
    hollow: bool
    several_backends: bool


@cache
def plan_script() -> Markup:
    """The script, as the page has it."""
    text = files("greencc.report").joinpath("templates/plan.js").read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704


@cache
def script_source() -> str:
    """The content security policy's source for the script: its hash."""
    digest = hashlib.sha256(plan_script().encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def plan_page(report: Report) -> PlanPage | None:
    """The section, or None for a report without a plan."""
    plan = report.plan
    if plan is None:
        return None
    lines = [_point_line(report, point) for point in words.verified_points(plan)]
    # Rows that a front or the choice is about come first, whatever their number.
    ahead = [line for line in lines if line.point.chosen or line.point.front][:_FIRST_POINTS]
    if len(lines) <= _FIRST_POINTS:
        ahead = lines
    picked = words.chosen_point(plan)
    views = tuple(front_views(report))
    drawn = frozenset[int]().union(*(view.drawn for view in views))
    cards = [
        Card(index, point, words.point_name(point), tuple(words.point_rows(report, point)))
        for index, point in enumerate(plan.points)
        if index in drawn
    ]
    return PlanPage(
        sentences=tuple(words.plan_sentences(report)),
        limits=tuple(words.limit_rows(report)),
        views=views,
        cards=tuple(cards),
        chosen=next((card.index for card in cards if card.point.chosen), None),
        basis=words.energy_basis(report),
        loss=words.loss_label(report),
        first_points=tuple(ahead),
        more_points=tuple(line for line in lines if line not in ahead),
        groups=tuple(_groups(plan.choices)),
        predictions=tuple(_predictions(report)),
        facts=tuple(_facts(report)),
        recipe="" if picked is None else picked.recipe,
        hollow=any(not card.point.verified for card in cards),
        several_backends=len({point.backend for point in plan.points}) > 1,
    )


def _point_line(report: Report, point: PlanPoint) -> PointLine:
    def cell(value: float | None, form: object) -> str:
        assert callable(form)
        return MISSING if value is None else str(form(value))

    plan = report.plan
    assert plan is not None
    energy = ("Energy", cell(point.energy_mj, joules))
    if plan.estimated_on:
        power = (words.power_label(plan), cell(point.watts, watts))
        taken = [("Latency, estimated", cell(point.latency_ms, time_ms)), energy, power]
    else:
        median = ("Median", cell(point.latency_ms, time_ms))
        taken = [median, ("p95", cell(point.latency_p95_ms, time_ms)), energy]
    return PointLine(
        point,
        words.point_name(point),
        (
            *taken,
            ("Size", cell(point.size_bytes, bytes_text)),
            ("MACs", cell(point.macs, count_text)),
            (words.loss_label(report), cell(point.drop, lambda value: words.loss_number(report, value))),
            ("Output error", cell(point.error, lambda value: number(value, 2))),
        ),
    )


def _groups(choices: Sequence[PlanChoice]) -> list[UnitGroup]:
    groups = []
    room = _MOST_OPTIONS
    for kind in dict.fromkeys(choice.kind for choice in choices):
        units = words.rarest_first([choice for choice in choices if choice.kind == kind])
        lines = []
        for choice in units:
            fits = len(choice.options) <= room
            room -= len(choice.options) if fits else 0
            lines.append(_unit_line(choice, fits))
        cut = _FIRST_UNITS if len(lines) > _FIRST_UNITS + 2 else len(lines)
        number_changed = sum(line.changed for line in lines)
        groups.append(UnitGroup(kind, tuple(lines[:cut]), tuple(lines[cut:]), number_changed))
    return groups


def _unit_line(choice: PlanChoice, fits: bool) -> UnitLine:
    options = tuple(
        (option.name, option.name == choice.option, words.option_cells(option)) for option in choice.options
    )
    return UnitLine(
        choice, words.changed(choice), options if fits else (), 0 if fits else len(choice.options)
    )


def _predictions(report: Report) -> list[PredictionCard]:
    assert report.plan is not None
    cards = []
    for found in words.prediction_accuracy(report.plan.predictions):
        plans = len({item.point for item in found.pairs})
        text = f"{plans} plan" + ("" if plans == 1 else "s")
        if found.median is not None and found.worst is not None:
            text = f"median error {share(found.median, 2)}, worst {share(found.worst, 2)}, {text}"
        joule = found.unit in ("mJ", "J", "W", "mW")
        cards.append(
            PredictionCard(
                words.quantity_label(found.quantity),
                words.energy_basis(report) if joule else "",
                text,
                prediction_plot(found),
            )
        )
    return cards


def _facts(report: Report) -> list[tuple[str, str]]:
    plan = report.plan
    assert plan is not None
    verified = words.verified_points(plan)
    cached = sum(point.origin == "cache" for point in verified)
    facts = [
        ("Minimised", plan.objective),
        ("Rate", words.rate_text(plan)),
    ]
    if plan.estimated_on:
        facts.append(("Considered", words.considered_text(plan)))
        facts.append(("Estimated on", plan.estimated_on))
        if plan.power_mode:
            facts.append(("Power mode", plan.power_mode))
        return facts
    facts += [
        (
            "Verified",
            f"{len(verified):,} plans" + (f", {cached:,} of them by earlier compiles" * bool(cached)),
        ),
        ("Rounds", f"{plan.rounds:,}"),
        ("Ended", plan.ended),
    ]
    if text := words.solver_text(plan):
        facts.append(("Solver", text))
    return facts
