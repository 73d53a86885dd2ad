"""The verdict: what was saved, at what accuracy, how sure, measured or estimated.

Rules: a saving is claimed only where the whole interval clears 1; otherwise "no saving shown". Energy of grade C
or D is always called estimated. Accuracy is called certified only by its certificate. FP32 kept is explained.
Nothing is claimed of latency and energy that were measured on a busy machine. A gain in size alone is called that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from greencc.core.pass_list import pass_names
from greencc.core.report import Report
from greencc.report import build, plan, run_times
from greencc.report.figures import (
    BUSY,
    NOT_CLAIMED,
    basis,
    capitalized,
    clean,
    energy_change,
    energy_doubt,
    latency_change,
    latency_estimated,
    measured,
    number,
    points,
    printable,
    round_share,
    saving,
    share,
    size_text,
    unchanged,
    worst_grade,
)
from greencc.report.json_out import stored

_ORIGINAL = "original"
_KEPT = frozenset({"fp32", _ORIGINAL})
_NOT_CLAIMED = f"{NOT_CLAIMED}: {BUSY}"


@dataclass(frozen=True)
class Verdict:
    """A headline of one sentence, the sentences that back it, and what must be known to read either."""

    headline: str
    details: tuple[str, ...]
    notice: str | None = None

    @property
    def text(self) -> str:
        return " ".join((self.headline, *filter(None, [self.notice]), *self.details))


def with_verdict(report: Report) -> Report:
    """The report as it is stored (`greencc.report.json_out.stored`), its `verdict` filled in from its figures."""
    report = stored(report, "report")
    return replace(report, verdict=judge(report).text)


def judge(report: Report) -> Verdict:
    """Derive the verdict from a report's figures; `report.verdict` itself is not read."""
    claims = [*_gains(report, better=True)]
    losses = [*_gains(report, better=False)]
    subject = _form(report)
    if _untouched(report):
        headline = f"{subject}: unchanged"
    elif not clean(report):
        # What is left to claim, or to own up to, is the size.
        headline = f"{subject}: {_listed(claims)}; in time and energy " if claims else f"{subject}: "
        headline += _NOT_CLAIMED
        if losses:
            headline += f"; {_listed(losses)}"
    elif claims:
        headline = f"{subject}: {_listed(claims)}"
        if losses:
            headline += f", but {_listed(losses)}"
        elif claims == _gains(report, better=True, exact_only=True):
            headline += " in size only, no speed-up shown"
    elif losses:
        headline = f"{subject}: no saving shown; {_listed(losses)}"
    else:
        headline = f"{subject}: no saving shown"
    headline += f"; {_accuracy_claim(report)}."
    run_time = run_times.sentence(report)
    details = [
        *_kept(report),
        *filter(None, [run_time, build.built_sentence(report)]),
        _latency(report),
        _energy(report),
        f"{capitalized(report.accuracy.reason)}.",
    ]
    if plan.limits_met(report) is False:
        details.append(_missed(report))
    elif plan.limits_estimated(report):
        details.append(plan.budget_by_estimate(report))
    elif report.budget.met is None:
        details.append("Whether it meets what was asked of it has not been shown.")
    elif not report.budget.met:
        details.append("The artifact does not meet what was asked of it.")
    return Verdict(headline, tuple(_sentence(text) for text in details), build.notice(report))


def _missed(report: Report) -> str:
    """The limits of the budget that are not kept."""
    rows = [row for row in plan.limit_rows(report) if row.kept is False]
    if not rows:
        return "Whether it meets the budget has not been shown."
    found = "; ".join(f"{row.limit}: {row.found}" + (f", {row.known}" if row.known else "") for row in rows)
    return f"The artifact does not meet the budget ({found})."


def _by_name(report: Report) -> str | None:
    """What the user asked to be done, where that was a list of passes or a recipe."""
    asked = report.budget.asked
    passes, recipe = asked.get("passes"), asked.get("recipe")
    if isinstance(passes, str):
        return capitalized(" + ".join(printable(name) for name in pass_names(passes)))
    return f"Recipe {printable(recipe)}" if isinstance(recipe, str) else None


def _form(report: Report) -> str:
    found = run_times.winner(report)
    return _precision(report) + ("" if found is None else f" on {printable(found.backend.partition(':')[0])}")


def _precision(report: Report) -> str:
    if (asked := _by_name(report)) is not None:
        return asked
    name = printable(report.precision)
    picked = None if report.plan is None else plan.chosen_point(report.plan)
    if picked is not None and picked.origin != "form":
        return capitalized(printable(picked.name))
    if name == _ORIGINAL:
        return "Original kept"
    return "FP32 kept" if name in _KEPT else name.upper()


def _untouched(report: Report) -> bool:
    """The artifact is the original itself, and so compares with it."""
    ratio = report.ratio
    return (
        report.precision == _ORIGINAL
        and unchanged(ratio.latency)
        and unchanged(ratio.size)
        and (ratio.energy is None or unchanged(ratio.energy))
    )


def _gains(report: Report, *, better: bool, exact_only: bool = False) -> list[str]:
    """Claims whose whole interval is on the better (or the worse) side of 1; `exact_only`: the size alone."""
    texts: list[str] = []
    latency, energy, size = report.ratio.latency, report.ratio.energy, report.ratio.size
    sure = clean(report) and not exact_only
    guessed = " (estimated)" if latency_estimated(report.baseline, report.artifact) else ""
    if sure and better and latency.low > 1.0:
        texts.append(f"{number(latency.value)}× faster{guessed}")
    if sure and not better and latency.high < 1.0:
        texts.append(f"{number(1 / latency.value)}× slower{guessed}")
    old, new = report.baseline.energy_mj, report.artifact.energy_mj
    if sure and not energy_doubt(report) and energy is not None and old is not None and new is not None:
        suffix = "" if basis(old, new) == "net" else " (gross)"
        if not measured(old, new):
            suffix = " (estimated)"
        if better and energy.low > 1.0:
            texts.append(f"{number(saving(energy).value * 100, 2)} % less energy{suffix}")
        if not better and energy.high < 1.0:
            texts.append(f"{number((1 / energy.value - 1) * 100, 2)} % more energy{suffix}")
    if better and size.value >= 1.005:
        texts.append(size_text(size))
    if not better and size.value <= 0.995:
        texts.append(size_text(size))
    return texts


def _accuracy_claim(report: Report) -> str:
    found = report.accuracy
    if found.certified:
        return f"{accuracy_subject(report)} certified to {round_share(found.confidence)}"
    if found.drop is not None:
        drop = f"{points(found.drop)} points"
        if found.low is not None and found.high is not None:
            drop += f" [{points(found.low)}, {points(found.high)}]"
        if found.drop <= 0:
            return f"no drop in accuracy seen on {found.n:,} samples: {drop}, not certified"
        return f"accuracy drops by {drop}, not certified"
    if found.agreement is not None:
        return f"{share(found.agreement, 4)} agreement on {found.n:,} samples, not certified"
    return "accuracy was not checked"


def accuracy_subject(report: Report) -> str:
    """What the certificate bounds, in short."""
    found = report.accuracy
    limit = round_share(found.epsilon)
    if found.drop is not None or found.metric.startswith("top-1"):
        return f"accuracy drop of at most {limit}"
    return f"at most {limit} of samples changed"


def _kept(report: Report) -> list[str]:
    """Why FP32 was kept, where another form was considered."""
    precision = printable(report.precision)
    if precision not in _KEPT or _by_name(report) is not None:
        return []
    # To keep the original is to pass by its FP32 form as well, but not the other way round.
    subject, own = ("The original", {_ORIGINAL}) if precision == _ORIGINAL else ("FP32", _KEPT)
    if report.budget.asked.get("precision") == "fp32":
        return ["FP32 was asked for."]
    others = [item for item in report.candidates if not item.chosen and item.reason and item.name not in own]
    if not others:
        return [f"{subject} was kept: no other form was possible."]
    reasons = "; ".join(f"{printable(item.name)}: {printable(item.reason).rstrip('.')}" for item in others)
    return [f"{subject} was kept ({reasons})."]


def _latency(report: Report) -> str:
    if not clean(report) and not unchanged(report.ratio.latency):
        return f"Measured latency: {_NOT_CLAIMED}"
    if latency_estimated(report.baseline, report.artifact):
        text = latency_change(report.ratio.latency, estimated=True).removesuffix(", estimated")
        return f"Estimated latency ({printable(report.conditions.get('estimated_on', 'a model'))}): {text}"
    return f"Measured latency: {latency_change(report.ratio.latency, estimated=False)}"


def _energy(report: Report) -> str:
    old, new, ratio = report.baseline.energy_mj, report.artifact.energy_mj, report.ratio.energy
    if old is None or new is None or ratio is None:
        return "Energy was not measured."
    sure = measured(old, new)
    word = "measured" if sure else "estimated"
    text = energy_change(ratio, "measured")  # the sentence says the word itself
    if (doubt := energy_doubt(report)) and not unchanged(ratio):
        text = f"{NOT_CLAIMED}: {doubt}"
    known = f"grade {worst_grade(old, new)}, {printable(old.boundary)}"
    if sure:
        known += f", {basis(old, new)}"
    return f"{capitalized(word)} energy ({known}): {text}"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
