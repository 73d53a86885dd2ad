"""Static INT8: find ranges and repairs that keep the accuracy, then leave in float what costs accuracy or time.

1. Variants (`greencc.compiler.variants`) from cheap to thorough, until one loses next to nothing on the planning split.
2. Where the best one still loses too much: the error table and the cost table say which groups to leave in float so
   that the fewest joules are lost (`greencc.compiler.keep_float`).
3. Groups whose integer form was measured slower than their float form go back to float, when the whole is then faster
   and the user did not ask for INT8 by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from greencc.compiler.contender import Contender, contender, judged_by_the_user
from greencc.compiler.costs import GroupCost, group_costs, layer_choice
from greencc.compiler.data import Splits
from greencc.compiler.forms import MIXED_RANK, Form, FormBuilder
from greencc.compiler.groups import Group, quantized_groups
from greencc.compiler.keep_float import Item, search
from greencc.compiler.memo import MemoEngine
from greencc.compiler.options import Effort, Precision
from greencc.compiler.sensitivity import GroupError
from greencc.compiler.session import Deadline, Session
from greencc.compiler.tables import error_table
from greencc.compiler.variants import Variant, refined, variants
from greencc.core.cache import cache_key
from greencc.core.data import Feeds
from greencc.core.passes import Finding
from greencc.core.report import LayerChoice, PassRecord
from greencc.measure.latency import quick_compare
from greencc.passes.quantize_int8 import QuantizeInt8

_KIND = "way-to-quantize"
# A drop below this share of the limit leaves nothing worth another calibration.
_GOOD_ENOUGH = 0.25
# Fewer planning samples cannot tell a good variant from a lucky one: then the error of the outputs decides among more.
_CONVINCING = 200
# What is aimed at on the planning split, so that the certification split has room for chance.
_AIMS = (0.5, 1.0)
# What a layer that saves nothing counts for, as a share of the least that any other saves.
_BARELY = 1e-3
# By how much the error of the outputs must fall, in dB, when a form failed on samples it had not seen.
_SAFER_DB = (6.0, 12.0, 20.0)


@dataclass
class StaticResult:
    """The contender to use, those it was preferred to, and what was decided for each group.

    `reasons` says of every node that was left in float on purpose why. `safer` builds forms with less error and more in
    float, one whenever it is asked.
    """

    best: Contender
    others: list[Contender]
    choices: tuple[LayerChoice, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    safer: Iterator[StaticResult] = field(default_factory=lambda: iter(()))

    @property
    def all(self) -> list[Contender]:
        return [self.best, *self.others]


def static_int8(
    session: Session, builder: FormBuilder, baseline: MemoEngine, splits: Splits, feeds: Sequence[Feeds]
) -> StaticResult:
    """Build the static INT8 form; see the module."""
    start, variant, others = best_variant(session, builder, baseline, splits)
    if not start.form.applied:
        return StaticResult(start, others)
    job = _Job(session, builder, baseline, splits, feeds, variant, start)
    found = StaticResult(start, others)
    if _loses(session, start, _AIMS[0]) and not splits.planning.synthetic:
        found = job.keep_accurate(found)
    found = job.never_slower(found)
    return replace(found, safer=job.safer(found.best))


def _never() -> bool:
    return False


def recalled_variant(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    splits: Splits,
    context: str,
    over: Callable[[], bool],
) -> tuple[Contender, Variant, list[Contender]]:
    """`best_variant`, or at once the one that an earlier compile found best in the same `context` for the same limit.

    What was found best when the time was `over` is not kept: the next compile may have more. Nor is what a metric of
    the user's said.
    """
    options, effort = session.options, session.options.effort
    key = cache_key(context, options.max_drop, effort.value, options.format.value)
    kept = not judged_by_the_user(options)
    found = session.cache.get(_KIND, key) if kept else None
    name = "" if found is None else str(found.get("name", ""))
    first = list(variants(effort, builder.context.capabilities, builder.cleaned().model)) if name else []
    for variant in (each for base in first for each in (base, *refined(base, effort))):
        if variant.name == name:
            form = builder.static(variant.name, variant.prepare, variant.quantize)
            item = contender(session, form, baseline, splits)
            item.reason = f"{variant.reason}: the best way to quantize, as an earlier compile found"
            return item, variant, []
    cut_short = False

    def over_now() -> bool:
        nonlocal cut_short
        cut_short = cut_short or over()
        return cut_short

    best, variant, others = best_variant(session, builder, baseline, splits, over_now)
    if kept and not cut_short:
        session.cache.put(_KIND, key, {"name": np.array(variant.name)}, label="the best way to quantize")
    return best, variant, others


def best_variant(
    session: Session,
    builder: FormBuilder,
    baseline: MemoEngine,
    splits: Splits,
    over: Callable[[], bool] = _never,
) -> tuple[Contender, Variant, list[Contender]]:
    """The first variants until one is good enough or the time is `over`, then repairs of the best; the others last.

    `over` is asked only before something that would be tried: who asks for it can tell whether anything was left out.
    """
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
        if tried and over():
            break
        item = attempt(variant)
        if not item.form.applied:
            return item, variant, [other for other, _ in tried if other is not item]
        if variant.enough and convincing and not _loses(session, _ranked(session, tried)[0][0], _GOOD_ENOUGH):
            break
    best, variant = _ranked(session, tried)[0]
    for better in refined(variant, effort):
        if over():
            break
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
    full: Contender
    _table: list[GroupError] | None = None

    def keep_accurate(self, found: StaticResult) -> StaticResult:
        """Leave the groups in float that cost the accuracy, for the fewest joules."""
        deadline = self.deadline
        table = self._errors(deadline)
        if table is None:
            self.session.warn(
                "the search for layers to keep in float did not end within "
                f"{self.session.options.search_seconds:g} s (--search-time)"
            )
            return found
        if not any(item.saved_mj > 0 for item in self._items(table)):
            self.session.warn(
                "no layer saves energy as INT8 on this device: --precision auto keeps the float model"
            )
        for aim in _AIMS:
            if deadline.over or not _loses(self.session, self.full, aim):
                break
            mixed = self._search(
                table,
                lambda item, aim=aim: not _loses(self.session, item, aim),  # type: ignore[misc]
                deadline,
            )
            if mixed is not None:
                self.full.place = f"not chosen: it loses {_percent(self.full)} on the planning split"
                return replace(mixed, others=[self.full, *found.others])
        if deadline.over:
            self.session.warn(
                "the time for finding layers to keep in float was over before a choice held "
                f"({self.session.options.search_seconds:g} s; raise --search-time)"
            )
        everything = frozenset(group.name for group in self.groups)
        return replace(found, choices=_choices(table, self.costs, everything))

    def safer(self, best: Contender) -> Iterator[StaticResult]:
        """Ever more groups in float, for when `best` turns out to lose too much on samples it has not seen.

        What it loses on the planning split was within the limit, so the error of the outputs has to fall instead.
        """
        if best.sqnr is None:
            return
        deadline = self.deadline
        table = self._errors(deadline)
        for gain in _SAFER_DB if table is not None else ():
            wanted = best.sqnr + gain
            found = self._search(
                table or [],
                lambda item, wanted=wanted: item.sqnr is None or item.sqnr >= wanted,  # type: ignore[misc]
                deadline,
            )
            if found is not None:
                found.best.note(f"{gain:g} dB less error than the form before it")
                yield found

    def _search(
        self, table: Sequence[GroupError], holds: Callable[[Contender], bool], deadline: Deadline
    ) -> StaticResult | None:
        """The form that holds and leaves the fewest joules' worth of groups in float."""
        found = search(
            self._items(table),
            lambda chosen: self._partial(self._reasons(chosen)),
            holds,
            lambda item: item.engine.close(),
            deadline,
        )
        if found is None:
            return None
        mixed = found.result
        kept = len(self.groups) - len(found.quantized)
        mixed.reason = (
            f"{kept} of {len(self.groups)} layers stay in float, which by estimate costs the fewest joules; loses "
            f"{_percent(mixed)} on the planning split"
        )
        choices = _choices(table, self.costs, found.quantized)
        return StaticResult(mixed, [], choices, self._reasons(found.quantized))

    def _reasons(self, quantized: frozenset[str]) -> dict[str, str]:
        """Why each node of the groups that are not quantized stays in float."""
        left = [group for group in self.groups if group.name not in quantized]
        return {name: _why(self.costs[group.name]) for group in left for name in group.nodes}

    def _items(self, table: Sequence[GroupError]) -> list[Item]:
        """What the knapsack weighs. INT8 that was asked for by name is wanted also where it saves nothing."""
        saved = {row.group.name: self.costs[row.group.name].saved_mj for row in table}
        if self.session.options.precision is Precision.INT8:
            least = min((value for value in saved.values() if value > 0), default=1.0)
            saved = {name: max(value, _BARELY * least) for name, value in saved.items()}
        order = {group.name: place for place, group in enumerate(self.groups)}
        rows = sorted(table, key=lambda row: order[row.group.name])
        return [Item(row.group.name, row.error, saved[row.group.name]) for row in rows]

    def never_slower(self, found: StaticResult) -> StaticResult:
        """Put groups back into float whose integer form is slower, when that makes the whole faster."""
        start = found.best
        groups = quantized_groups(start.form.qdq)
        costs = self.costs if start is self.full else self._costs(start.form, groups)
        slower = [group for group in groups if costs[group.name].slower]
        if not slower:
            return found
        how = "measured" if self.session.estimator is None else "estimated"
        if self.session.options.precision is Precision.INT8:
            self.session.warn(
                f"{len(slower)} of {len(groups)} layers were {how} slower as INT8 than in float; "
                "--precision mixed or auto leaves such layers in float"
            )
            return found
        if len(slower) == len(groups):
            self.session.warn(
                f"every layer was {how} slower as INT8 than in float: --precision auto keeps float"
            )
            return found
        reasons = found.reasons | {name: _why(costs[group.name]) for group in slower for name in group.nodes}
        trimmed = self._partial(reasons)
        if not self._faster(start, trimmed) or (trimmed.loss or 0.0) > max(
            start.loss or 0.0, _AIMS[0] * self.session.options.max_drop
        ):
            trimmed.engine.close()
            return found
        trimmed.reason = f"{start.reason}; {len(slower)} layers stay in float, where they were {how} faster"
        start.place = "not chosen: slower than with some layers in float"
        known = {choice.name: choice for choice in found.choices}
        extra = tuple(
            layer_choice(
                group,
                costs[group.name],
                reasons[group.name],
                known[group.name].error if group.name in known else None,
            )
            for group in slower
        )
        kept = tuple(choice for choice in found.choices if choice.name not in {row.name for row in extra})
        return StaticResult(trimmed, [start, *found.others], kept + extra, reasons)

    def _faster(self, start: Contender, other: Contender) -> bool:
        """Whether the other is faster with its whole interval, or, where nothing is timed, by the central estimate."""
        with self.session.phase("comparing forms"):
            if (estimator := self.session.estimator) is not None:
                models = [item.form.qdq for item in (start, other)]
                return estimator.compare(models, self.feeds[0]).latency[0].value > 1.0
            verdict = quick_compare(
                [start.timed, other.timed], self.feeds, confidence=self.session.options.confidence
            )
        return verdict.ratios[0].low > 1.0

    def _errors(self, deadline: Deadline) -> list[GroupError] | None:
        """The error table of the variant."""
        if self._table is None:
            self._table = error_table(
                self.session, self.builder, self.baseline, self.splits, self.variant, self.groups, deadline
            )
        return self._table

    @cached_property
    def deadline(self) -> Deadline:
        """One for all searches, from when the first begins."""
        return Deadline(self.session.options.search_seconds)

    @cached_property
    def groups(self) -> Sequence[Group]:
        return quantized_groups(self.full.form.qdq)

    @cached_property
    def costs(self) -> dict[str, GroupCost]:
        return self._costs(self.full.form, self.groups)

    def _costs(self, form: Form, groups: Sequence[Group]) -> dict[str, GroupCost]:
        cleaned = self.builder.cleaned()
        with self.session.phase("profiling"):
            if (estimator := self.session.estimator) is not None:
                return estimator.group_costs(groups, cleaned.model, form.qdq, self.feeds[0])
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


def _why(cost: GroupCost) -> str:
    """Why a group stays in float."""
    if cost.slower:
        how = "estimated" if cost.estimated else "measured"
        return f"{how} slower as INT8 ({cost.int8_us:.3g} us) than in float ({cost.float_us:.3g} us)"
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
        layer_choice(
            row.group,
            costs[row.group.name],
            "" if row.group.name in quantized else _why(costs[row.group.name]),
            row.error,
        )
        for row in rows
    )
