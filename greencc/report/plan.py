"""Wording of a plan, which every format shares: the budget's verdicts, the points, the choices, the predictions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from greencc.core.meter import Grade
from greencc.core.report import Report
from greencc.core.report_plan import LimitVerdict, PlanChoice, PlanInfo, PlanOption, PlanPoint, Prediction
from greencc.report.figures import (
    MINUS,
    MISSING,
    bytes_text,
    capitalized,
    count_text,
    joules,
    number,
    points,
    printable,
    round_share,
    share,
    time_ms,
    watts,
)

_ENERGIES = ("power", "energy")
_ONLY_THERE = "only a measurement on the device tells"
_FORMS = {"W": watts, "mJ": joules, "ms": time_ms, "bytes": bytes_text}


@dataclass(frozen=True)
class LimitRow:
    """A limit of the budget as text. `kept` is None where it is not known; `sure`: the whole interval keeps it."""

    limit: str
    allowed: str
    found: str
    known: str
    verdict: str
    kept: bool | None
    sure: bool


@dataclass(frozen=True)
class PairRow:
    """A figure of a plan: what was measured, and what the tables said."""

    label: str
    measured: str
    predicted: str


@dataclass(frozen=True)
class Accuracy:
    """How well one quantity was predicted: relative errors over all pairs that have one; None without any."""

    quantity: str
    unit: str
    pairs: tuple[Prediction, ...]
    median: float | None
    worst: float | None


def amount(value: float, unit: str) -> str:
    """A figure with its unit: ``4.1 W``, ``12 mJ``, ``33 ms``, ``2.9 MB``, ``214 M MACs``."""
    if unit in _FORMS:
        return _FORMS[unit](value)
    if unit == "MACs":
        return f"{count_text(value)} MACs"
    return f"{number(value)} {printable(unit)}".rstrip()


def energy_basis(report: Report, grade: str | None = None) -> str:
    """``estimated, grade D, CPU package``: what stands beside every energy and power of the plan."""
    plan = _plan(report)
    grade = grade or plan.energy_grade
    word = "measured" if Grade[grade].measured else "estimated"
    boundary = plan.energy_boundary
    if not boundary and report.artifact.energy_mj is not None:
        boundary = report.artifact.energy_mj.boundary
    return f"{word}, grade {grade}, {printable(boundary) or 'boundary not told'}"


def chosen_point(plan: PlanInfo) -> PlanPoint | None:
    """The plan that was chosen."""
    return next((point for point in plan.points if point.chosen), None)


def verified_points(plan: PlanInfo) -> list[PlanPoint]:
    """Those that were built and judged: the chosen one first, then by latency."""
    known = [point for point in plan.points if point.verified]
    return sorted(known, key=lambda item: (not item.chosen, item.latency_ms is None, item.latency_ms or 0.0))


def limits_met(report: Report) -> bool | None:
    """Whether every limit of the budget is kept; None without a budget, or where only a measurement could tell."""
    if report.plan is None or not report.plan.limits:
        return None
    if any(limit.met is False for limit in report.plan.limits):
        return False
    return None if limits_estimated(report) else True


def limits_estimated(report: Report) -> bool:
    """Whether what is said of a limit rests on an estimate of a device that nothing ran on."""
    return report.plan is not None and any(limit.estimated for limit in report.plan.limits)


def budget_by_estimate(report: Report) -> str:
    """In a sentence, what estimates say of the budget."""
    limits = [limit for limit in _plan(report).limits if limit.estimated]
    said = (
        "the estimates keep the budget" if all(limit.sure for limit in limits) else "the budget may be kept"
    )
    return f"Nothing ran on the device: {said}, and {_ONLY_THERE}."


def point_name(point: PlanPoint) -> str:
    """With its power mode: ``int8 in the 7W mode``."""
    name = printable(point.name)
    return f"{name} in the {printable(point.mode)} mode" if point.mode else name


def power_label(plan: PlanInfo) -> str:
    """What `PlanPoint.watts` is."""
    return f"Power {rate_text(plan)}" if plan.rate is None else f"Power at {rate_text(plan)}"


def limit_rows(report: Report) -> list[LimitRow]:
    """Every limit of the budget, and the accuracy's, which a certificate keeps."""
    rows = [_limit_row(limit, report) for limit in _plan(report).limits]
    found = report.accuracy
    subject = "Drop in accuracy" if found.drop is not None else "Changed decisions"
    value = found.drop if found.agreement is None or found.drop is not None else 1.0 - found.agreement
    text = MISSING if value is None else loss_text(report, value)
    if found.drop is not None and found.low is not None and found.high is not None:
        text += f" [{points(found.low)}, {points(found.high)}]"
    verdict = "certified" if found.certified else ("not certified" if found.n else "not checked")
    known = f"{found.n:,} held-out samples, confidence {round_share(found.confidence)}" if found.n else ""
    kept = True if found.certified else None
    return [
        *rows,
        LimitRow(subject, round_share(found.epsilon), text, known, verdict, kept, found.certified),
    ]


def _limit_row(limit: LimitVerdict, report: Report) -> LimitRow:
    known = []
    if limit.quantity in _ENERGIES:
        known.append(energy_basis(report, limit.grade))
    if limit.estimated and not known:
        known.append("estimated")
    if limit.note:
        known.append(printable(limit.note))
    if limit.estimated:
        known.append(_ONLY_THERE)
    return LimitRow(
        printable(limit.limit),
        amount(limit.allowed, limit.unit),
        _found(limit),
        "; ".join(known),
        _verdict(limit),
        _kept(limit),
        limit.sure and not limit.estimated,
    )


def _kept(limit: LimitVerdict) -> bool | None:
    return None if limit.found is None else limit.met


def _found(limit: LimitVerdict) -> str:
    if limit.found is None:
        return MISSING
    text = amount(limit.found, limit.unit)
    if limit.low is None or limit.high is None:
        return text
    return f"{text} [{amount(limit.low, limit.unit)}, {amount(limit.high, limit.unit)}]"


def _verdict(limit: LimitVerdict) -> str:
    if limit.found is None:
        return "not known"
    if limit.estimated:
        if limit.met is False:
            return "not kept, by estimate"
        return "kept by estimate" if limit.sure else "may be kept"
    if limit.met:
        return "met" if limit.sure else "met, though not by the whole interval"
    if limit.low is not None and limit.low <= limit.allowed:
        return "not met, though the interval reaches it"
    return "not met"


def plan_sentences(report: Report) -> list[str]:
    """The budget's verdicts, what was chosen out of what, and why it ended; for a terminal and for Markdown."""
    plan = _plan(report)
    chosen = chosen_point(plan)
    out_of = considered_text(plan)
    if chosen is None:
        picked = f"No plan was chosen out of {out_of}"
    else:
        picked = f"{capitalized(point_name(chosen))} was chosen out of {out_of}"
        if chosen.summary:
            picked += f" ({printable(chosen.summary)})"
    texts = [f"{picked}, to minimise {printable(plan.objective)}."]
    if budget := [_limit_text(limit, report) for limit in plan.limits]:
        texts.append(f"Budget: {'; '.join(budget)}.")
    if limits_estimated(report):
        texts.append(f"{capitalized(_ONLY_THERE)} whether the budget is kept.")
    if not plan.estimated_on:
        texts.append(f"The search ended after {rounds_text(plan)}: {printable(plan.ended).rstrip('.')}.")
    texts += [f"{capitalized(printable(note).rstrip('.'))}." for note in plan.notes]
    return texts


def considered_text(plan: PlanInfo) -> str:
    """``12 verified plans``, or of an estimated plan ``5 forms in 4 power modes, by estimate``."""
    verified = verified_points(plan)
    if not plan.estimated_on:
        return f"{len(verified)} verified plan" + ("" if len(verified) == 1 else "s")
    forms, modes = ({point.name for point in verified}, {point.mode for point in verified})
    text = f"{len(forms)} form" + ("" if len(forms) == 1 else "s")
    return f"{text} in {len(modes)} power modes, by estimate" if len(modes) > 1 else f"{text}, by estimate"


def _limit_text(limit: LimitVerdict, report: Report) -> str:
    """In words, as a sentence's part."""
    row = _limit_row(limit, report)
    if not limit.estimated:
        return f"{row.limit}: {row.verdict}, {row.found}" + (f" ({row.known})" if row.known else "")
    what = f"{printable(limit.note)}, " if limit.note else ""
    grade = f", grade {limit.grade}" if limit.grade else ""
    return f"{row.limit} {row.verdict}: {what}estimated {row.found}{grade}"


def rounds_text(plan: PlanInfo) -> str:
    """``3 rounds``: plans that this compile built and verified."""
    return f"{plan.rounds:,} round" + ("" if plan.rounds == 1 else "s")


def rate_text(plan: PlanInfo) -> str:
    """``30 requests/s``, or flat out."""
    return "flat out" if plan.rate is None else f"{plan.rate:g} requests/s"


def solver_text(plan: PlanInfo) -> str:
    """What was solved, how often, how long and how exactly; an empty text where nothing was."""
    solver = plan.solver
    if solver is None:
        return ""
    sizes = f"{solver.units:,} units with {solver.options:,} options and {solver.pairs:,} pairs"
    if not solver.solutions:
        return f"{sizes}; nothing was solved"
    gap = "proved optimal" if solver.gap <= 1e-6 else f"largest gap to the optimum {share(solver.gap, 2)}"
    times = "once" if solver.solutions == 1 else f"{solver.solutions:,} times"
    return f"{sizes}, solved {times} in {number(solver.seconds)} s together, {gap}"


def loss_label(report: Report) -> str:
    """What `PlanPoint.drop` counts."""
    return "Accuracy lost, points" if report.accuracy.baseline is not None else "Decisions changed, %"


def loss_number(report: Report, value: float) -> str:
    """A `PlanPoint.drop` as `loss_label` counts it."""
    return points(value) if report.accuracy.baseline is not None else number(100.0 * value, 2)


def loss_text(report: Report, value: float) -> str:
    """A `PlanPoint.drop` with its unit."""
    return f"{loss_number(report, value)} {'points' if report.accuracy.baseline is not None else '%'}"


def point_rows(report: Report, point: PlanPoint) -> list[PairRow]:
    """The figures of a plan, as measured and as predicted; those that neither has are left out."""
    basis = energy_basis(report)
    plan = _plan(report)
    latency = "Latency, estimated" if plan.estimated_on else "Latency, median"
    found = (
        (latency, point.latency_ms, point.predicted_latency_ms, time_ms),
        ("Latency, p95", point.latency_p95_ms, None, time_ms),
        (f"Energy ({basis})", point.energy_mj, point.predicted_energy_mj, joules),
        (f"{power_label(plan)} (estimated)", point.watts, None, watts),
        ("Size", point.size_bytes, point.predicted_size_bytes, bytes_text),
        ("MACs", point.macs, None, count_text),
        (loss_label(report).split(",")[0], point.drop, point.predicted_drop, lambda v: loss_text(report, v)),
        ("Output error", point.error, point.predicted_error, number),
    )
    return [
        PairRow(
            label,
            MISSING if measured is None else form(measured),
            MISSING if predicted is None else form(predicted),
        )
        for label, measured, predicted, form in found
        if measured is not None or predicted is not None
    ]


def changed(choice: PlanChoice) -> bool:
    """Whether something is done to the unit: its first option leaves it as it is."""
    return not choice.options or choice.option != choice.options[0].name


def rarest_first(choices: Sequence[PlanChoice]) -> list[PlanChoice]:
    """Units whose decision few others of their kind share come first: the rest is the rule, they are the exceptions."""
    counts = Counter((item.kind, item.option) for item in choices)
    return sorted(choices, key=lambda item: counts[item.kind, item.option])


def option_cells(option: PlanOption) -> tuple[str, str, str, str, str]:
    """Error, saved time, energy and bytes of an option, and where they come from."""
    source = printable(option.source) + (f"; {printable(option.note)}" if option.note else "")
    return (
        MISSING if option.error is None else number(option.error),
        MISSING if option.saved_us is None else _signed(time_ms, option.saved_us / 1000.0),
        MISSING if option.saved_mj is None else _signed(joules, option.saved_mj),
        MISSING if option.saved_bytes is None else _signed(bytes_text, option.saved_bytes),
        source,
    )


def _signed(form: object, value: float) -> str:
    assert callable(form)
    if value == 0:
        return "0"
    text = form(abs(value))
    return f"{MINUS}{text}" if value < 0 else str(text)


def prediction_accuracy(predictions: Sequence[Prediction]) -> list[Accuracy]:
    """By quantity, in the order in which they come: relative errors |measured - predicted| / |measured|."""
    found: dict[tuple[str, str], list[Prediction]] = {}
    for item in predictions:
        found.setdefault((item.quantity, item.unit), []).append(item)
    rows = []
    for (quantity, unit), pairs in found.items():
        errors = [
            abs(item.measured - item.predicted) / abs(item.measured) for item in pairs if item.measured != 0
        ]
        rows.append(
            Accuracy(
                quantity,
                unit,
                tuple(pairs),
                statistics.median(errors) if errors else None,
                max(errors) if errors else None,
            )
        )
    return rows


def quantity_label(quantity: str) -> str:
    """``latency_ms`` as people say it."""
    return capitalized(printable(quantity).removesuffix("_ms").removesuffix("_mj").removesuffix("_bytes"))


def _plan(report: Report) -> PlanInfo:
    assert report.plan is not None
    return report.plan
