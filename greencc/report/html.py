"""The report as one self-contained HTML file: no network, no fonts, and no script but that of a plan's plot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from greencc.core.pass_list import ALIASES, pass_names
from greencc.core.report import LayerTime, Report
from greencc.report import build, energy, run_times
from greencc.report import figures as show
from greencc.report.flame import flame_map
from greencc.report.page import page_environment
from greencc.report.plan_page import plan_page, plan_script, script_source
from greencc.report.svg import bars, latency_plot, sqnr_plot
from greencc.report.tuning import tuning_text
from greencc.report.verdict import judge

_TOP_LAYERS = 12
_WORST_LAYERS = 8
_FEW_FINDINGS = 12
_DIGEST = re.compile(r"[0-9a-f]{40,}")


@dataclass(frozen=True)
class Tile:
    """One of the large figures at the top. `tone` is "good", "bad" or "plain"; `badge` says how it is known."""

    label: str
    value: str
    unit: str
    detail: str
    badge: str
    tone: str
    sure: bool


@dataclass(frozen=True)
class Bar:
    """One line of a bar list."""

    name: str
    kind: str
    value: str
    svg: Markup


def render_html(report: Report) -> str:
    """Return the page. Every text from the report is escaped, in HTML as in SVG."""
    environment = page_environment()
    environment.filters.update(
        percent=show.percent,
        points=show.points,
        time_ms=show.time_ms,
        bytes=show.bytes_text,
        count=show.count_text,
        number=show.number,
        share=show.share,
        limit=show.round_share,
        digest=_digest,
        value=_value,
        capitalized=show.capitalized,
        unbroken=show.unbroken,
        lines=_lines,
    )
    verdict = judge(report)
    layers, others = _layer_bars(report.layers)
    return environment.get_template("report.html.j2").render(
        report=report,
        verdict=verdict,
        tiles=_tiles(report),
        checks=build.check_rows(report),
        steps=build.steps(report),
        rows=show.figure_rows(report),
        estimated=show.latency_estimated(report.baseline, report.artifact),
        latency=latency_plot(report.baseline.latency_ms, report.artifact.latency_ms),
        layers=layers,
        others=others,
        total=_total(report.layers),
        flame=None if report.layer_energy is None else flame_map(report.layer_energy),
        energies=() if report.layer_energy is None else energy.layer_rows(report.layer_energy, _TOP_LAYERS),
        carbon=None if report.carbon is None else energy.carbon_row(report.carbon),
        compile_energy=energy.compile_energy(report.compile),
        break_even=energy.break_even(report.compile),
        tuning=[tuning_text(each) for each in report.compile.tuning],
        grade_text=energy.grade_text,
        sqnr=sqnr_plot(report.layer_errors),
        worst=sorted(report.layer_errors, key=lambda item: item.sqnr_db)[:_WORST_LAYERS],
        kept=[item for item in report.layer_choices if item.precision == "float"],
        candidates=_candidate_bars(report),
        run_times=run_times.rows(report),
        unfolded=_unfolded(report),
        missing=show.MISSING,
        plan=plan_page(report),
        script=plan_script(),
        script_source=script_source(),
    )


def _unfolded(report: Report) -> frozenset[str]:
    """Passes whose findings are open from the start: those that were asked for by name, unless there are many."""
    asked = report.budget.asked.get("passes")
    names = {ALIASES.get(name, name) for name in pass_names(asked)} if isinstance(asked, str) else set()
    return frozenset(
        record.name
        for record in report.passes
        if record.name in names and 0 < len(record.findings) <= _FEW_FINDINGS
    )


def _tiles(report: Report) -> list[Tile]:
    return [_latency_tile(report), *_energy_tile(report), _size_tile(report), _accuracy_tile(report)]


def _latency_tile(report: Report) -> Tile:
    ratio = report.ratio.latency
    old, new = report.baseline.latency_ms.median, report.artifact.latency_ms.median
    detail = f"median {show.time_ms(old)} → {show.time_ms(new)}, interval {show.interval_text(ratio)}"
    guessed = show.latency_estimated(report.baseline, report.artifact)
    if guessed:
        detail = f"{show.time_ms(old)} → {show.time_ms(new)}, plausible {show.interval_text(ratio)}"
    if show.unchanged(ratio):
        value, unit, tone = "1.00×", "unchanged", "plain"
    elif not show.clean(report):
        detail = f"median {show.time_ms(old)} → {show.time_ms(new)}"
        return _doubted_tile("Latency", detail, "measured", show.BUSY)
    elif ratio.low > 1.0:
        value, unit, tone = f"{show.number(ratio.value)}×", "faster", "good"
    elif ratio.high < 1.0:
        value, unit, tone = f"{show.number(1 / ratio.value)}×", "slower", "bad"
    else:
        value, unit, tone = show.MISSING, show.NO_SPEED_UP, "plain"
        detail = f"{'' if guessed else 'median '}{show.time_ms(old)} → {show.time_ms(new)}, {show.ratio_text(ratio)}"
    badge = "estimated, not measured" if guessed else "measured"
    return Tile("Latency", value, unit, detail, badge, tone, sure=not guessed)


def _energy_tile(report: Report) -> list[Tile]:
    old, new, ratio = report.baseline.energy_mj, report.artifact.energy_mj, report.ratio.energy
    if old is None or new is None or ratio is None:
        return []
    sure = show.measured(old, new)
    saved = show.saving(ratio)
    word = "measured" if sure else "estimated"
    interval = f"[{show.number(saved.low * 100, 2)}, {show.number(saved.high * 100, 2)}] %"
    badge = f"{word}, grade {show.worst_grade(old, new)}"
    if sure:
        badge += f", {show.basis(old, new)}"
    change = f"{show.joules(old.value)} → {show.joules(new.value)} per inference"
    if show.unchanged(ratio):
        value, unit, tone = "0 %", "unchanged", "plain"
    elif doubt := show.energy_doubt(report):
        return [_doubted_tile("Energy", f"{change}; {old.boundary}", badge, doubt)]
    elif ratio.low > 1.0:
        value, unit, tone = f"{show.number(saved.value * 100, 2)} %", "less energy", "good"
    elif ratio.high < 1.0:
        value, unit, tone = f"{show.number((1 / ratio.value - 1) * 100, 2)} %", "more energy", "bad"
    else:
        # A large figure would be read as a claim.
        value, unit, tone = show.MISSING, show.NO_SAVING, "plain"
        interval = f"{show.number(saved.value * 100, 2)} {interval}"
    detail = f"{change}, saving {interval}; {old.boundary}"
    return [Tile("Energy", value, unit, detail, badge, tone, sure=sure)]


def _doubted_tile(label: str, detail: str, badge: str, doubt: str) -> Tile:
    """A figure that was taken on a busy machine, or is partial: it is shown, and nothing is claimed."""
    return Tile(label, show.MISSING, show.NOT_CLAIMED, f"{detail}; {doubt}", badge, "plain", sure=False)


def _size_tile(report: Report) -> Tile:
    old, new, ratio = report.baseline.size_bytes, report.artifact.size_bytes, report.ratio.size.value
    detail = f"{show.bytes_text(old)} → {show.bytes_text(new)} on disk"
    if abs(ratio - 1.0) < 0.005:
        return Tile("Size", "1.00×", "same size", detail, "exact", "plain", sure=True)
    value, unit, tone = (
        (f"{show.number(ratio)}×", "smaller", "good")
        if ratio > 1
        else (f"{show.number(1 / ratio)}×", "larger", "bad")
    )
    return Tile("Size", value, unit, detail, "exact", tone, sure=True)


def _accuracy_tile(report: Report) -> Tile:
    found = report.accuracy
    badge = (
        f"certified, {show.round_share(found.confidence)}"
        if found.certified
        else ("not certified" if found.n else "not checked")
    )
    tone = "good" if found.certified else "plain"
    if found.drop is not None and found.baseline is not None and found.artifact is not None:
        value = f"{show.MINUS if found.drop > 0 else '+'}{abs(found.drop) * 100:.2f}"
        if float(f"{abs(found.drop) * 100:.2f}") == 0:
            value = "±0"
        detail = f"{show.percent(found.baseline)} → {show.percent(found.artifact)}"
        if found.low is not None and found.high is not None:
            detail += f", drop [{show.points(found.low)}, {show.points(found.high)}]"
        detail += f", n = {found.n:,}"
        return Tile("Accuracy", value, "points", detail, badge, tone, found.certified)
    if found.agreement is not None:
        detail = f"{found.metric}, n = {found.n:,}"
        return Tile("Agreement", show.percent(found.agreement), "", detail, badge, tone, found.certified)
    return Tile("Accuracy", show.MISSING, "", "no samples to compare on", badge, "plain", sure=False)


def _layer_bars(layers: Sequence[LayerTime]) -> tuple[list[Bar], Bar | None]:
    """The slowest layers in either model, and the rest summed up (without bars: they would set the scale)."""
    ranked = sorted(layers, key=lambda item: -max(item.baseline_us or 0.0, item.artifact_us or 0.0))
    top, rest = ranked[:_TOP_LAYERS], ranked[_TOP_LAYERS:]
    end = max((max(item.baseline_us or 0.0, item.artifact_us or 0.0) for item in top), default=0.0)
    lines = [
        Bar(
            item.name,
            item.op_type,
            f"{_micro(item.baseline_us)} → {_micro(item.artifact_us)}",
            bars(((item.baseline_us, "b"), (item.artifact_us, "a")), end),
        )
        for item in top
    ]
    if not rest:
        return lines, None
    label = f"{len(rest)} other layer" + ("s" if len(rest) > 1 else "")
    return lines, Bar(label, "", _total(rest), Markup(""))


def _total(layers: Sequence[LayerTime]) -> str:
    before = sum(item.baseline_us or 0.0 for item in layers)
    after = sum(item.artifact_us or 0.0 for item in layers)
    return f"{_micro(before)} → {_micro(after)}"


def _candidate_bars(report: Report) -> list[dict[str, Any]]:
    end = max((item.latency_ms or 0.0 for item in report.candidates), default=0.0)
    return [
        {"item": item, "svg": bars(((item.latency_ms, "a" if item.chosen else "b"),), end)}
        for item in report.candidates
    ]


def _micro(value: float | None) -> str:
    return "none" if value is None else show.time_ms(value / 1000.0)


def _digest(text: str) -> str:
    """The first 12 digits of a digest: enough to compare by eye; the whole one is in report.json."""
    return text[:12]


def _lines(text: str) -> Markup:
    """A text of several lines: the page's own cleaning would join them."""
    return Markup("\n").join(show.printable(line) for line in text.splitlines())


def _value(value: object) -> str:
    """An option or fact as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{key} {_value(item)}" for key, item in value.items())
    text = show.printable(value)
    return f"{_digest(text)}…" if _DIGEST.fullmatch(text) else text
