"""What the matrix report says, in words and cells that all its formats share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greencc.core.report import NOTHING_CONVERTED, Accuracy, Candidate
from greencc.core.report_matrix import ArithmeticResult, CrossRow, MatrixReport, TargetResult, TargetRow
from greencc.report import figures as show

TARGET_HEADER = ("Target", "Shipped", "Accuracy", "Latency", "Energy", "Size", "Verdict")
TIME_HEADER = ("Target", "Compile", "Results used again", "Time that saved")
CROSS_HEADER = ("Sums", "Machines that compute so", "Metric", "Change", "Other decisions")
FORMS_NOTE = (
    "Shipped forms (marked): the drop on the certification split. All others: on the planning split, which is smaller "
    "and chose among them. Points of accuracy, or of changed decisions where there are no labels."
)
CROSS_NOTE = (
    "The same file on the same held-out samples, which no compile has used. Change: against the original model, in "
    "points. Other decisions: share of the samples that are decided otherwise than as shipped. Sums other than those "
    "as shipped were computed by exact references here, not run on such machines."
)
# Families of forms in the order of their columns; what a name begins with decides.
_FAMILIES = (
    "original",
    "fp32",
    "fp16",
    "bf16",
    "int8-dynamic",
    "mixed",
    "int8-weights",
    "int4-weights",
    "int8",
)
_OTHERS = "other"
_NOT_BUILT = "nothing to convert"
_MOST_FORMS = 4


def headline(report: MatrixReport) -> str:
    """How many targets have a bundle, and whether a file is worse elsewhere."""
    done = sum(row.result is not None for row in report.rows)
    total = len(report.rows)
    first = (
        f"{done} of {total} targets have a bundle" if done < total else f"all {total} targets have a bundle"
    )
    worse = sum(bool(row.warnings) for row in report.cross)
    checked = sum(bool(row.results) for row in report.cross)
    if worse:
        second = f"{_files(worse)} more than the limit on other machines"
        return show.capitalized(f"{first}; {second}.")
    if checked:
        what = (
            "the one file that was checked keeps"
            if checked == 1
            else f"all {checked} files that were checked keep"
        )
        return show.capitalized(f"{first}; {what} the limit under every arithmetic.")
    return show.capitalized(f"{first}.")


def _files(count: int) -> str:
    return "one file loses" if count == 1 else f"{count} files lose"


def lead(report: MatrixReport) -> list[str]:
    """The verdict of each target, in a sentence."""
    found = []
    for row in report.rows:
        if row.result is not None:
            found.append(f"{row.target}: {row.result.verdict}")
        elif row.failure is not None:
            found.append(f"{row.target}: no bundle. {show.capitalized(row.failure.message)}.")
    return found


@dataclass(frozen=True)
class TargetLine:
    """A row of the table of targets.

    Attributes:
        target: As it was asked for.
        cells: Under `TARGET_HEADER` but for the first: what matters, then details.
        bundle: Its folder, empty where there is none.
        failed: Why there is none, and what to do.
    """

    target: str
    cells: tuple[tuple[str, ...], ...]
    bundle: str
    failed: str


def target_lines(report: MatrixReport) -> list[TargetLine]:
    """A line for each target."""
    return [_target_line(row) for row in report.rows]


def _target_line(row: TargetRow) -> TargetLine:
    if row.result is None:
        failure = row.failure
        assert failure is not None
        why = failure.message + (f" ({failure.hint})" if failure.hint else "")
        return TargetLine(row.target, (("no bundle",), *[(show.MISSING,)] * 4, (why,)), "", why)
    found = row.result
    cells = (
        _shipped(row.target, found),
        _accuracy(found.accuracy),
        _latency(found),
        _energy(found),
        (
            show.bytes_text(found.artifact.size_bytes),
            _times(found.ratio.size.value, "smaller", "larger"),
        ),
        (found.verdict,),
    )
    return TargetLine(row.target, cells, found.bundle, "")


def _shipped(target: str, found: TargetResult) -> tuple[str, ...]:
    parts = [found.precision]
    if found.runs_on.partition(":")[0] != target.partition(":")[0]:
        parts.append(f"on {found.runs_on}")
    if found.build is not None:
        parts.append(found.build.status)
    return tuple(parts)


def _accuracy(found: Accuracy) -> tuple[str, ...]:
    """Of what was shipped, on the certification split."""
    sure = "certified" if found.certified else "not certified"
    sure = f"{sure}, n = {found.n:,}"
    if found.artifact is not None and found.drop is not None:
        drop = f"drop {show.points(found.drop)}"
        if found.low is not None and found.high is not None:
            drop += f" [{show.points(found.low)}, {show.points(found.high)}]"
        return show.percent(found.artifact), drop, sure
    if found.agreement is not None:
        return f"{show.percent(found.agreement)} agree", sure
    return ("not checked",)


def _latency(found: TargetResult) -> tuple[str, ...]:
    """The artifact's, how it is known, and the change."""
    latency = found.artifact.latency_ms
    how = "estimated" if latency.estimated else "measured"
    if found.latency_doubt:
        change = f"{show.NOT_CLAIMED}: {found.latency_doubt}"
    else:
        change = show.latency_change(found.ratio.latency, estimated=latency.estimated)
    return f"{show.time_ms(latency.median)} {how}", change


def _energy(found: TargetResult) -> tuple[str, ...]:
    """The artifact's energy with its interval and grade, and the change."""
    energy, ratio = found.artifact.energy_mj, found.ratio.energy
    if energy is None:
        return ("not known",)
    word = "measured" if show.measured(energy) else "estimated"
    parts = [
        f"{show.joules(energy.value)} {word}",
        f"[{show.joules(energy.low)}, {show.joules(energy.high)}], grade {energy.grade}",
    ]
    if found.energy_doubt:
        parts.append(f"{show.NOT_CLAIMED}: {found.energy_doubt}")
    elif ratio is not None:
        parts.append(show.energy_change(ratio, word))
    return tuple(parts)


def _times(ratio: float, better: str, worse: str) -> str:
    if abs(ratio - 1.0) < 0.005:
        return "same size"
    return f"{show.number(ratio)}× {better}" if ratio > 1 else f"{show.number(1 / ratio)}× {worse}"


@dataclass(frozen=True)
class FormCell:
    """One form of one target; `kind`: ``shipped``, ``over`` (beyond the limit) or nothing."""

    name: str
    text: str
    kind: str
    reason: str


def family(name: str) -> str:
    """The column of a form."""
    return next((known for known in _FAMILIES if name == known or name.startswith(f"{known}-")), _OTHERS)


def form_columns(report: MatrixReport) -> list[str]:
    """Families that any target has tried, from safe to aggressive."""
    found = {family(form.name) for row in report.rows if row.result is not None for form in row.result.forms}
    return [name for name in (*_FAMILIES, _OTHERS) if name in found]


def form_cells(row: TargetRow, column: str) -> list[FormCell]:
    """The forms of a column that a target tried: the shipped one, then those that lose least."""
    if row.result is None:
        return []
    forms = [form for form in row.result.forms if family(form.name) == column]
    ranked = sorted(forms, key=lambda form: (not form.chosen, form.drop is None, form.drop or 0.0))
    cells = [_form_cell(form, row.result, len(forms) > 1) for form in ranked[:_MOST_FORMS]]
    if more := len(ranked) - len(cells):
        cells.append(FormCell("", f"and {more} more", "", ""))
    return cells


def _form_cell(form: Candidate, result: TargetResult, named: bool) -> FormCell:
    accuracy, parts = result.accuracy, []
    drop = form.drop
    if form.chosen:
        shipped = accuracy.drop
        if shipped is None and accuracy.agreement is not None:
            shipped = 1.0 - accuracy.agreement
        drop = drop if shipped is None else shipped
    if drop is None and form.latency_ms is None and form.reason.startswith(NOTHING_CONVERTED):
        return FormCell(form.name, f"{form.name}: {_NOT_BUILT}" if named else _NOT_BUILT, "", form.reason)
    parts.append(show.MISSING if drop is None else _signed(drop))
    if form.chosen:
        parts.append(_time(result.artifact.latency_ms.median, result))
        parts.append("shipped")
    elif form.latency_ms is not None:
        parts.append(_time(form.latency_ms, result))
    kind = "shipped" if form.chosen else "over" if drop is not None and drop > accuracy.epsilon else ""
    label = f"{form.name}: " if named else ""
    return FormCell(form.name, label + ", ".join(parts), kind, form.reason)


def _time(milliseconds: float, result: TargetResult) -> str:
    word = " estimated" if result.artifact.latency_ms.estimated else ""
    return f"{show.time_ms(milliseconds)}{word}"


def _signed(drop: float) -> str:
    """A drop as the change it is: fewer points come with a minus sign."""
    text = f"{abs(drop) * 100:.2f}"
    if float(text) == 0:
        return "±0"
    return f"{show.MINUS}{text}" if drop > 0 else f"+{text}"


@dataclass(frozen=True)
class CrossLine:
    """One arithmetic; `worse`: it loses more than the limit beyond what was shipped."""

    arithmetic: str
    machines: str
    cells: tuple[str, ...]
    worse: bool


@dataclass(frozen=True)
class CrossTable:
    """One file; without lines `note` says why."""

    title: str
    lines: tuple[CrossLine, ...]
    note: str
    warnings: tuple[str, ...]


def cross_tables(report: MatrixReport) -> list[CrossTable]:
    """The same file under several arithmetics, a table each."""
    return [_cross_table(row, report.max_drop) for row in report.cross]


def _cross_table(row: CrossRow, limit: float) -> CrossTable:
    title = f"The file for {row.target}"
    if not row.results:
        return CrossTable(title, (), row.note, ())
    own = row.results[0]
    lines = tuple(_cross_line(result, own, limit) for result in row.results)
    return CrossTable(f"{title}: {row.metric}, n = {row.n:,}", lines, "", row.warnings)


def _cross_line(result: ArithmeticResult, own: ArithmeticResult, limit: float) -> CrossLine:
    cells = (
        show.MISSING if result.accuracy is None else show.percent(result.accuracy),
        _signed(result.loss),
        show.MISSING if result is own else show.percent(result.changed),
    )
    return CrossLine(result.arithmetic, result.machines, cells, result.loss - own.loss > limit)


def time_lines(report: MatrixReport) -> Sequence[tuple[str, ...]]:
    """The cells under `TIME_HEADER`."""
    return [
        (row.target, f"{row.seconds:.1f} s", f"{row.reused:,}", f"{row.saved_seconds:.1f} s")
        for row in report.rows
    ]


def provenance(report: MatrixReport) -> str:
    """What was compiled, when, and by which version."""
    macs = show.MISSING if report.model.macs is None else show.count_text(report.model.macs)
    return (
        f"{report.model.name}, sha256 {report.model.sha256[:12]}, {show.count_text(report.model.params)} parameters, "
        f"{macs} MACs; limit {show.round_share(report.max_drop)}; greencc {report.greencc}, {report.created}; "
        f"{report.seconds:.0f} s in all. Each bundle has a report of its own."
    )
