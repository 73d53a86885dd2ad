"""Static INT8: find ranges and repairs that keep the accuracy, then leave in float what costs accuracy or time.

1. Variants (`greencc.compiler.variants`) from cheap to thorough, until one loses next to nothing on the planning split.
2. Where the best one still loses too much: the error table and the cost table say which groups to leave in float so
   that the fewest joules are lost (`greencc.compiler.keep_float`).
3. Groups whose integer form was measured slower than their float form go back to float, when the whole is then faster
   and the user did not ask for INT8 by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from greencc.compiler.contender import Contender, contender
from greencc.compiler.costs import GroupCost, group_costs
from greencc.compiler.data import Splits
from greencc.compiler.forms import MIXED_RANK, Form, FormBuilder
from greencc.compiler.groups import Group, quantized_groups
from greencc.compiler.keep_float import Item, search
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import Effort, Precision
from greencc.compiler.sensitivity import ErrorTable, GroupError, Quantizer, facts_key, make_slice
from greencc.compiler.session import Deadline, Session
from greencc.compiler.variants import Variant, refined, variants
from greencc.core.cache import cache_key
from greencc.core.data import Feeds
from greencc.core.model import digest, infer_shapes
from greencc.core.passes import Finding, RewriteLog
from greencc.core.progress import silent
from greencc.core.recipe import options_of
from greencc.core.report import LayerChoice, PassRecord
from greencc.measure.latency import quick_compare
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.verify.metrics import parse_metric

# A drop below this share of the limit leaves nothing worth another calibration.
_GOOD_ENOUGH = 0.25
# Fewer planning samples cannot tell a good variant from a lucky one: then the error of the outputs decides among more.
_CONVINCING = 200
# What is aimed at on the planning split, so that the certification split has room for chance.
_AIMS = (0.5, 1.0)
# What a layer that saves nothing counts for, as a share of the least that any other saves.
_BARELY = 1e-3
SMALL_SLICE, LARGE_SLICE = 16, 128


@dataclass
class StaticResult:
    """The contender to use, those it was preferred to, and what was decided for each group.

    `reasons` says of every node that was left in float on purpose why.
    """

    best: Contender
    others: list[Contender]
    choices: tuple[LayerChoice, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[Contender]:
        return [self.best, *self.others]


def static_int8(
    session: Session, builder: FormBuilder, baseline: MemoEngine, splits: Splits, feeds: Sequence[Feeds]
) -> StaticResult:
    """Build the static INT8 form; see the module."""
    start, variant, others = _best_variant(session, builder, baseline, splits)
    if not start.form.applied:
        return StaticResult(start, others)
    job = _Job(session, builder, baseline, splits, feeds, variant)
    found = StaticResult(start, others)
    if _loses(session, start, _AIMS[0]) and not splits.planning.synthetic:
        found = job.keep_accurate(found)
    return job.never_slower(found)


def _best_variant(
    session: Session, builder: FormBuilder, baseline: MemoEngine, splits: Splits
) -> tuple[Contender, Variant, list[Contender]]:
    """The first variants until one is good enough, then repairs of the best."""
    tried: list[tuple[Contender, Variant]] = []

    def attempt(variant: Variant) -> Contender:
        item = contender(
            session, builder.static(variant.name, variant.prepare, variant.quantize), baseline, splits
        )
        item.reason = variant.reason
        tried.append((item, variant))
        return item

    effort = session.options.effort
    convincing = splits.planning.count >= _CONVINCING or effort is Effort.QUICK
    for variant in variants(effort, builder.context.capabilities, builder.cleaned().model):
        item = attempt(variant)
        if not item.form.applied:
            return item, variant, [other for other, _ in tried if other is not item]
        if variant.enough and convincing and not _loses(session, _ranked(session, tried)[0][0], _GOOD_ENOUGH):
            break
    best, variant = _ranked(session, tried)[0]
    for better in refined(variant, effort):
        attempt(better)
    (best, variant), *rest = _ranked(session, tried)
    for other, _ in rest:
        other.place = "not chosen: another way to quantize does better on the planning split"
    if rest:
        best.note(f"the best of {len(tried)} on the planning split (loses {_percent(best)})")
    return best, variant, [other for other, _ in rest]


def _ranked(session: Session, tried: Sequence[tuple[Contender, Variant]]) -> list[tuple[Contender, Variant]]:
    """The best first: by what is lost on the planning split, then by the error of the outputs, then the cheaper.

    Losses that are good enough count alike, and with few samples all do: some more or less are chance.
    """
    few = (tried[0][0].planning.n if tried and tried[0][0].planning is not None else 0) < _CONVINCING
    chance = _GOOD_ENOUGH * session.options.max_drop

    def key(pair: tuple[Contender, Variant]) -> tuple[float, float]:
        sqnr = pair[0].sqnr
        # No noise at all has no ratio.
        loss = 0.0 if few else max(pair[0].loss or 0.0, chance)
        return loss, -(math.inf if sqnr is None else sqnr)

    return sorted(tried, key=key)


def _loses(session: Session, item: Contender, share: float) -> bool:
    return (item.loss or 0.0) > share * session.options.max_drop


def _percent(item: Contender) -> str:
    return f"{item.loss:.2%}" if item.loss is not None else "unknown"


@dataclass
class _Job:
    session: Session
    builder: FormBuilder
    baseline: MemoEngine
    splits: Splits
    feeds: Sequence[Feeds]
    variant: Variant

    def keep_accurate(self, found: StaticResult) -> StaticResult:
        """Leave the groups in float that cost the accuracy, for the fewest joules."""
        start = found.best
        deadline = Deadline(self.session.options.search_seconds)
        groups = quantized_groups(start.form.qdq)
        costs = self._costs(start.form, groups)
        table = self.errors(groups, deadline)
        if table is None:
            self.session.warn(
                "the search for layers to keep in float did not end within "
                f"{self.session.options.search_seconds:g} s (--search-time)"
            )
            return found
        items = self._items(table, costs)
        if not any(item.saved_mj > 0 for item in items):
            self.session.warn(
                "no layer saves energy as INT8 on this device: --precision auto keeps the float model"
            )

        def reasons(chosen: frozenset[str]) -> dict[str, str]:
            left = [group for group in groups if group.name not in chosen]
            return {name: _why(costs[group.name]) for group in left for name in group.nodes}

        for aim in _AIMS:
            if deadline.over or not _loses(self.session, start, aim):
                break
            best = search(
                items,
                lambda chosen: self._partial(reasons(chosen)),
                lambda item, aim=aim: not _loses(self.session, item, aim),  # type: ignore[misc]
                lambda item: item.engine.close(),
                deadline,
            )
            if best is not None:
                mixed = best.result
                kept = len(groups) - len(best.quantized)
                mixed.reason = (
                    f"{kept} of {len(groups)} layers stay in float, which by estimate costs the fewest joules; loses "
                    f"{_percent(mixed)} on the planning split"
                )
                start.place = f"not chosen: it loses {_percent(start)} on the planning split"
                choices = _choices(table, costs, best.quantized)
                return StaticResult(mixed, [start, *found.others], choices, reasons(best.quantized))
        if deadline.over:
            self.session.warn(
                "the time for finding layers to keep in float was over before a choice held "
                f"({self.session.options.search_seconds:g} s; raise --search-time)"
            )
        return replace(found, choices=_choices(table, costs, frozenset(costs)))

    def _items(self, table: Sequence[GroupError], costs: Mapping[str, GroupCost]) -> list[Item]:
        """What the knapsack weighs. INT8 that was asked for by name is wanted also where it saves nothing."""
        saved = {row.group.name: costs[row.group.name].saved_mj for row in table}
        if self.session.options.precision is Precision.INT8:
            least = min((value for value in saved.values() if value > 0), default=1.0)
            saved = {name: max(value, _BARELY * least) for name, value in saved.items()}
        return [Item(row.group.name, row.error, saved[row.group.name]) for row in table]

    def never_slower(self, found: StaticResult) -> StaticResult:
        """Put groups back into float whose integer form is slower, when that makes the whole faster."""
        start = found.best
        groups = quantized_groups(start.form.qdq)
        costs = self._costs(start.form, groups)
        slower = [group for group in groups if costs[group.name].slower]
        if not slower:
            return found
        if self.session.options.precision is Precision.INT8:
            self.session.warn(
                f"{len(slower)} of {len(groups)} layers were measured slower as INT8 than in float; "
                "--precision mixed or auto leaves such layers in float"
            )
            return found
        if len(slower) == len(groups):
            self.session.warn(
                "every layer was measured slower as INT8 than in float: --precision auto keeps float"
            )
            return found
        reasons = found.reasons | {name: _why(costs[group.name]) for group in slower for name in group.nodes}
        trimmed = self._partial(reasons)
        with self.session.phase("comparing forms"):
            verdict = quick_compare(
                [start.timed, trimmed.timed], self.feeds, confidence=self.session.options.confidence
            )
        if verdict.ratios[0].low <= 1.0 or (trimmed.loss or 0.0) > max(
            start.loss or 0.0, _AIMS[0] * self.session.options.max_drop
        ):
            trimmed.engine.close()
            return found
        trimmed.reason = (
            f"{start.reason}; {len(slower)} layers stay in float, where they were measured faster"
        )
        start.place = "not chosen: slower than with some layers in float"
        known = {choice.name: choice for choice in found.choices}
        extra = tuple(
            LayerChoice(
                group.name,
                group.op_type,
                "float",
                reasons[group.name],
                known[group.name].error if group.name in known else None,
                costs[group.name].saved_us,
                costs[group.name].saved_mj,
            )
            for group in slower
        )
        kept = tuple(choice for choice in found.choices if choice.name not in {row.name for row in extra})
        return StaticResult(trimmed, [start, *found.others], kept + extra, reasons)

    def errors(self, groups: Sequence[Group], deadline: Deadline) -> list[GroupError] | None:
        """The error table of the variant."""
        return error_table(
            self.session, self.builder, self.baseline, self.splits, self.variant, groups, deadline
        )

    def _costs(self, form: Form, groups: Sequence[Group]) -> dict[str, GroupCost]:
        cleaned = self.builder.cleaned()
        with self.session.phase("profiling"):
            return group_costs(
                self.session,
                groups,
                (cleaned.model, cleaned.artifact),
                (form.qdq, form.artifact),
                self.feeds[0],
            )

    def _partial(self, reasons: Mapping[str, str]) -> Contender:
        """The variant without the nodes named, judged."""
        step = replace(self.variant.quantize, exclude=tuple(sorted(reasons)))
        form = self.builder.static("mixed", self.variant.prepare, step, Precision.MIXED, MIXED_RANK)
        form.records = [_explained(record, reasons) for record in form.records]
        return contender(self.session, form, self.baseline, self.splits)


def error_table(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    splits: Splits,
    variant: Variant,
    groups: Sequence[Group],
    deadline: Deadline,
) -> list[GroupError] | None:
    """The error table of a variant, on the planning split; None when time ran out."""
    prepared, _ = builder.prepared(variant.prepare)
    # Rounding and bias are repaired in the form that ships; the table is about what quantizing a group does.
    step = variant.plain
    ctx = replace(builder.context, progress=silent)

    def build(excluded: frozenset[str]) -> ir.Model:
        model = prepared.clone()
        replace(step, exclude=tuple(sorted(excluded))).apply(model, replace(ctx, rewrites=RewriteLog()))
        infer_shapes(model)
        return model

    assert ctx.calibration is not None
    facts = facts_key(ctx.capabilities)
    key = cache_key(digest(prepared), ctx.calibration.digest(), _plain(options_of(step)), facts)
    return measure_table(session, baseline, splits, Quantizer(build, key), groups, deadline)


def measure_table(
    session: Session,
    baseline: MemoEngine,
    splits: Splits,
    quantizer: Quantizer,
    groups: Sequence[Group],
    deadline: Deadline,
) -> list[GroupError] | None:
    """The error table of any quantizer, on the planning split; None when time ran out."""
    metric = parse_metric(session.options.metric)
    table = ErrorTable(session.target, quantizer, metric, session.cache, session.progress)
    with session.phase("sensitivity"):
        small = make_slice(baseline.engine, splits.planning, SMALL_SLICE)
        large = make_slice(baseline.engine, splits.planning, LARGE_SLICE)
        return table.measure(groups, small, large, deadline)


def _plain(options: Mapping[str, object]) -> dict[str, str]:
    return {name: repr(value) for name, value in options.items()}


def _why(cost: GroupCost) -> str:
    """Why a group stays in float."""
    if cost.slower:
        return f"measured slower as INT8 ({cost.int8_us:.3g} us) than in float ({cost.float_us:.3g} us)"
    if cost.saved_mj <= 0:
        return "INT8 saves no energy here"
    return "it costs more accuracy than it saves energy"


def _explained(record: PassRecord, reasons: Mapping[str, str]) -> PassRecord:
    """The record with the reasons of what was left in float, instead of "excluded by the options"."""
    if record.name != QuantizeInt8.name:
        return record
    return replace(
        record,
        findings=tuple(
            Finding(
                "left-in-float", f"{finding.node}: {reasons[str(finding.node)]}", finding.node, finding.rule
            )
            if finding.kind == "left-in-float" and finding.node in reasons
            else finding
            for finding in record.findings
        ),
    )


def _choices(
    table: Sequence[GroupError],
    costs: Mapping[str, GroupCost],
    quantized: frozenset[str],
) -> tuple[LayerChoice, ...]:
    """What was decided for each group, the largest error first."""
    rows = sorted(table, key=lambda row: -row.error)
    return tuple(
        LayerChoice(
            row.group.name,
            row.group.op_type,
            "int8" if row.group.name in quantized else "float",
            "" if row.group.name in quantized else _why(costs[row.group.name]),
            row.error,
            costs[row.group.name].saved_us,
            costs[row.group.name].saved_mj,
        )
        for row in rows
    )
