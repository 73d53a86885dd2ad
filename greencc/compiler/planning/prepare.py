"""Everything that is measured before the first plan: the space of a model and its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from greencc.compiler.contender import Contender, contender
from greencc.compiler.costs import GroupCost, group_costs, profiled
from greencc.compiler.data import Splits
from greencc.compiler.forms import FormBuilder
from greencc.compiler.groups import Group, quantized_groups
from greencc.compiler.kernel_times import KernelTimes
from greencc.compiler.memo import MemoEngine
from greencc.compiler.micro import working_set
from greencc.compiler.planning.assembly import Tables
from greencc.compiler.planning.budget import Asked
from greencc.compiler.planning.facts import (
    ChannelWork,
    Profiles,
    edges_of,
    layer_facts,
    unmapped_share,
    work_shares,
)
from greencc.compiler.planning.kernels import LayerTimes, measure_layers
from greencc.compiler.planning.points import Point
from greencc.compiler.planning.space import Kind, Number, Space, make_space
from greencc.compiler.planning.verifier import Verifier, macs_of
from greencc.compiler.select import dynamic_may_pay
from greencc.compiler.session import Deadline, Session
from greencc.compiler.signatures import signatures
from greencc.compiler.static import recalled_variant
from greencc.compiler.tables import error_table
from greencc.compiler.variants import Variant
from greencc.core.capabilities import Arithmetic
from greencc.core.data import Feeds
from greencc.core.engine import NodeTime
from greencc.core.passes import Pass
from greencc.passes.offers import Offer, block_offers, channel_offers, rank_offers
from greencc.passes.quantize_int8 import QuantizeInt8
from greencc.planner.budget import Kind as LimitKind
from greencc.planner.budget import Objective
from greencc.planner.problem import Assignment, Quantity
from greencc.targets import format_spec

# Shares of the time that planning may take which each part has: what it does not know by then is left out.
_VARIANT_SHARE, _OFFER_SHARE, _TABLE_SHARE = 0.15, 0.2, 0.2
# More of a profile than this must map back to the model's nodes.
_MAPPED = 0.5
_WEIGHT_BYTES = {
    Number.FLOAT.value: 4.0,
    Number.INT8.value: 1.0,
    Number.DYNAMIC.value: 1.0,
    Number.WEIGHTS8.value: 1.0 + 4.0 / 32,
    Number.WEIGHTS4.value: 0.5 + 4.0 / 32,
}


@dataclass(frozen=True)
class Prepared:
    """What the search starts from.

    Attributes:
        space: What may be decided.
        tables: What it costs.
        forms: Whole-model forms that were judged on the way.
        full: The point with all layers in integers, or None.
    """

    space: Space
    tables: Tables
    forms: list[Contender]
    full: Point | None


@dataclass
class Preparation:
    """Measures; see the module."""

    session: Session
    builder: FormBuilder
    baseline: MemoEngine
    splits: Splits
    feeds: Sequence[Feeds]
    verifier: Verifier
    asked: Asked
    deadline: Deadline

    def run(self, cleaned_ms: float) -> Prepared:
        """Measure; `cleaned_ms` is the latency of the cleaned-up model."""
        session, builder = self.session, self.builder
        cleaned = builder.cleaned()
        forms, variant, integer = self._integers()
        groups: tuple[Group, ...] = () if integer is None else quantized_groups(integer.form.qdq)
        dynamic = self._dynamic(forms)
        offers = self._offers(integers=integer is not None)
        space = make_space(
            cleaned.model,
            groups=groups,
            variant=variant,
            offers=offers,
            dynamic=dynamic,
            small_weights=self._small_weights(),
            gptq=builder.context.calibration is not None,
        )
        with session.phase("profiling"):
            floats = profiled(session, cleaned.artifact, self.feeds[0])
        share = unmapped_share(cleaned.model, floats)
        if share > 1.0 - _MAPPED:
            session.warn(
                f"{share:.0%} of the profiled time belongs to nodes that the runtime named itself: what the plan "
                "expects of single layers is rough"
            )
        costs = {}
        integers = None
        if integer is not None:
            form = integer.form
            costs = self._costs(groups, integer)
            with session.phase("profiling"):
                integers = form.qdq, profiled(session, form.artifact, self.feeds[0])
        full = self._full(space, integer) if integer is not None and groups else None
        found = Profiles(
            cleaned.model,
            floats,
            costs,
            integers,
            self._dynamic_profile(forms, dynamic),
            cleaned_ms * 1e3,
            None if full is None else full.figures.latency_ms[50] * 1e3,
        )
        tables = self._tables(space, found, cleaned_ms, full)
        self._errors(space, tables, variant, groups, full)
        return Prepared(space, tables, forms, full)

    def _full(self, space: Space, integer: Contender) -> Point:
        """The point with all layers in integers."""
        chosen = {**space.untouched(), **_all_as(space, Number.INT8)}
        steps, summary = space.steps(chosen), "INT8 in all layers"
        spec = format_spec(self.session.target)
        figures = self.verifier.store.get(steps, spec, self.verifier.reference_ms[50])
        if figures is None:
            figures = self.verifier.figures(integer)
            self.verifier.store.put(steps, spec, summary, figures, chosen)
        return Point("int8", summary, figures, self.session.target, steps, chosen, integer, origin="form")

    def _integers(self) -> tuple[list[Contender], Variant | None, Contender | None]:
        """The best way to quantize statically, where there are data and kernels for it."""
        session = self.session
        if session.target.capabilities().int8 is None:
            return [], None, None
        if self.splits.calibration is None:
            session.warn("INT8 was not considered: it needs calibration data (--calibration)")
            return [], None, None
        if self.splits.planning.synthetic:
            session.warn("INT8 was not considered: nothing can be verified on synthetic data")
            return [], None, None
        best, variant, others = recalled_variant(
            session,
            self.builder,
            self.baseline,
            self.splits,
            self.verifier.store.context,
            self._over_after(_VARIANT_SHARE),
        )
        if not best.form.applied:
            return others, None, None
        best.reason = best.reason or "INT8 in all layers"
        return [best, *others], variant, best

    def _dynamic(self, forms: list[Contender]) -> list[str]:
        """The layers that the dynamic form has in integers; the form is judged on the way."""
        session, cleaned = self.session, self.builder.cleaned()
        if (
            session.target.capabilities().int8 is None
            or self.splits.planning.synthetic
            or not dynamic_may_pay(cleaned.model)
        ):
            return []
        form = self.builder.dynamic()
        if not form.applied:
            return []
        item = contender(session, form, self.baseline, self.splits)
        item.reason = "activations are quantized at run time"
        forms.append(item)
        left = {str(node.name) for node in form.model.graph if node.op_type in ("MatMul", "Gemm")}
        return [
            str(node.name)
            for node in cleaned.model.graph
            if node.op_type in ("MatMul", "Gemm") and str(node.name) not in left
        ]

    def _dynamic_profile(self, forms: Sequence[Contender], dynamic: Sequence[str]) -> list[NodeTime] | None:
        if not dynamic:
            return None
        form = forms[-1].form
        with self.session.phase("profiling"):
            return list(profiled(self.session, form.artifact, self.feeds[0]))

    def _small_weights(self) -> bool:
        """Whether fewer bits for weights can be of use: where bytes count."""
        return self.asked.objective is Objective.SIZE or any(
            limit.kind is LimitKind.SIZE for limit in self.asked.budget
        )

    def _offers(self, *, integers: bool) -> list[Offer]:
        """Structural options, as far as the time reaches."""
        ctx = self.builder.context
        if ctx.calibration is None or self.splits.planning.synthetic:
            return []
        over = self._over_after(_OFFER_SHARE)
        model = self.builder.cleaned().model
        # Sizes that integer kernels like suit float kernels as well.
        ctx = replace(ctx, arithmetic=Arithmetic.INT8) if integers else ctx
        found: list[Offer] = []
        with self.session.phase("looking at structures"):
            found += channel_offers(model, ctx, over=over)
            found += rank_offers(model, ctx, over=over)
            found += block_offers(model, ctx, over=over)
        return found

    def _over_after(self, share: float) -> Callable[[], bool]:
        """Whether a part that begins now has had its share of the time."""
        end = self.deadline.elapsed + share * self.deadline.seconds
        return lambda: self.deadline.elapsed >= end

    def _costs(self, groups: Sequence[Group], integer: Contender) -> dict[str, GroupCost]:
        cleaned = self.builder.cleaned()
        with self.session.phase("profiling"):
            return group_costs(
                self.session,
                groups,
                (cleaned.model, cleaned.artifact),
                (integer.form.qdq, integer.form.artifact),
                self.feeds[0],
            )

    def _tables(self, space: Space, found: Profiles, cleaned_ms: float, full: Point | None) -> Tables:
        """Times, energies and sizes."""
        session, ctx, cleaned = self.session, self.builder.context, self.builder.cleaned()
        energy = self.verifier.energy(cleaned, cleaned_ms) or 0.0
        watts = energy / cleaned_ms
        layers = layer_facts(space, found, self.feeds[0], watts)
        channels = ChannelWork.of(space, cleaned.model, ctx.samples)
        arithmetics: dict[str, tuple[Pass, ...]] = {Number.FLOAT.value: ()}
        if space.variant is not None:
            quick = QuantizeInt8().rehearsal(ctx.capabilities)
            if quick is not None:
                arithmetics[Number.INT8.value] = (quick,)
        times = LayerTimes({}, {}, {}, ())
        if any(unit.kind is not Kind.ARITHMETIC for unit in space.units):
            with session.phase("measuring kernels"):
                times = measure_layers(
                    space,
                    cleaned.model,
                    ctx,
                    self.feeds[0],
                    KernelTimes(
                        session.target,
                        session.cache,
                        working_set(signatures(cleaned.model, self.feeds[0]).values()),
                        session.progress,
                    ),
                    arithmetics,
                    channels.left,
                )
        for finding in times.findings:
            session.warn(finding)
        base = {
            Quantity.LATENCY: cleaned_ms,
            Quantity.ENERGY: energy,
            Quantity.SIZE: float(self.verifier.size(cleaned)),
            Quantity.MACS: macs_of(cleaned) or 0.0,
        }
        shares = work_shares(space, channels, lambda layer: layers[layer].macs if layer in layers else 0.0)
        edges = edges_of(space, found, self.feeds[0], watts)
        overhead = 0.0
        if full is not None:
            weights = [layers[name].weights for name in space.groups]
            expected = base[Quantity.SIZE] + sum(weights) * (_WEIGHT_BYTES["int8"] - _WEIGHT_BYTES["float"])
            overhead = (full.figures.size_bytes - expected) / len(weights)
        return Tables(layers, times, {}, shares, edges, base, _WEIGHT_BYTES, overhead)

    def _errors(
        self,
        space: Space,
        tables: Tables,
        variant: Variant | None,
        groups: Sequence[Group],
        full: Point | None,
    ) -> None:
        """Fill in the errors: measured for arithmetic, predicted for structure."""
        for (name, option), offer in space.offers.items():
            tables.errors[name, option] = offer.error
        remaining = max(self.deadline.seconds - self.deadline.elapsed, 0.0)
        limit = Deadline(min(_TABLE_SHARE * self.deadline.seconds, remaining))
        if variant is not None and groups:
            rows = error_table(
                self.session,
                self.builder,
                self.baseline,
                self.splits,
                variant,
                groups,
                limit,
            )
            if rows is None:
                self.session.warn(
                    "the error table did not end in time: every layer counts alike (raise --time-budget)"
                )
            alike = 0.0 if full is None else full.figures.error / len(groups)
            found = {row.group.name: row.error for row in rows or ()}
            for group in groups:
                pair = f"{Kind.ARITHMETIC.value}:{group.name}", Number.INT8.value
                tables.errors[pair] = found.get(group.name, alike)
                if group.name in found:
                    tables.measured.add(pair)
        left = [
            (unit.name, option)
            for unit in space.units
            if unit.kind is Kind.ARITHMETIC
            for option in unit.options[1:]
            if option != Number.INT8.value
        ]
        plans = [space.steps(space.alone(space.unit(name), option)) for name, option in left]
        with self.session.phase("sensitivity"):
            errors = self.verifier.errors_of(plans, limit)
        for pair, error in zip(left, errors, strict=True):
            if error is None:
                tables.unknown.add(pair)
            else:
                tables.errors[pair] = error
                tables.measured.add(pair)

    def measure_errors(self, space: Space, plans: Sequence[Assignment]) -> list[float | None]:
        """Errors of assignments, built and run; None of those that cannot be built."""
        with self.session.phase("sensitivity"):
            return self.verifier.errors_of([space.steps(chosen) for chosen in plans], self.deadline)


def _all_as(space: Space, number: Number) -> dict[str, str]:
    return {
        unit.name: number.value
        for unit in space.units
        if unit.kind is Kind.ARITHMETIC and number.value in unit.options
    }
