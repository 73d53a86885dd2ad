"""Low-rank factorisation of weighted layers, straight on the graph, judged by the data and the target.

Every layer becomes the form that keeps the wanted share of its outputs' energy with the least work
(`_decompose_forms`), in the norm of the calibration data (`_decompose_problem`); or the ranks of all layers are chosen
together for a share of the model's work (`_decompose_allocate`), or given (`_decompose_plan`). It is replaced only
where it has fewer multiply-accumulates and fewer parameters, and, where the target can be measured, only where the
factors run faster than the layer. The last factors are refitted to the original outputs in graph order, which takes
back part of what the layers before have changed (`_repair_layers`); thin layers that meet are merged afterwards
(`_decompose_merge`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from greencc.core.blas import single_threaded
from greencc.core.capabilities import Arithmetic
from greencc.core.engine import Timing
from greencc.core.errors import UsageError, did_you_mean
from greencc.core.graph import Names, ensure_names
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.core.rehearsal import settled
from greencc.passes._decompose_factors import Candidate, emit, replace_layer, stored_weights
from greencc.passes._decompose_family import RankChoice, RankRule
from greencc.passes._decompose_forms import Method, candidates, form_problem
from greencc.passes._decompose_jobs import (
    RULE,
    Choice,
    Job,
    find_jobs,
    problem_of,
    ready_jobs,
    value_shapes,
)
from greencc.passes._decompose_measure import LayerTimer
from greencc.passes._decompose_merge import merge_factors
from greencc.passes._decompose_plan import (
    WHERE,
    Planned,
    candidate_of,
    check_plan,
    format_plan,
    parse_plan,
    planned_of,
)
from greencc.passes._decompose_problem import Problem
from greencc.passes._decompose_ratio import Wanted, plan_for_ratio
from greencc.passes._exclude import unmatched
from greencc.passes._linear_view import LINEAR
from greencc.passes._prune_costs import macs_by_node
from greencc.passes._repair_gate import repaired
from greencc.passes._repair_layers import Refit, RefitOptions, refit

_ALIGN = 8
# Forms timed per layer, the most promising: a measurement takes seconds.
_TIMED = 4
# Share of the output energy that a layer may lose unless work alone is what was asked for.
_MOST_LOST = 0.5
# Less than this share of what was asked for is worth a warning.
_MOST = 0.9


@dataclass(frozen=True)
class Decompose(Pass):
    """Replace weighted layers by low-rank factors.

    Attributes:
        method: The form; `auto`: for every layer the one with the least work, or measured time.
        rank: What decides the ranks: the energy kept, EVBMF (no threshold), or the share of work to save, of the whole
            model or of each layer. Only with the last may a layer lose more than half of its outputs' energy.
        energy: Share of the energy of a layer's outputs that is kept, with `rank = energy`.
        ratio: Share of the multiply-accumulates to save: of the model with `rank = ratio`, of each layer with
            `rank = layer-ratio`.
        ranks: Form and ranks of layers as `NODE=svd:16` or `NODE=tucker:8x12`; these layers and no others become just
            that, whatever `rank` and `measured` say.
        ops: Operators that are factorised.
        exclude: Names of nodes left as they are.
        min_elements: Layers with fewer weights are left as they are.
        whiten: Judge errors by the calibration data; else by the weights alone.
        repair: Refit the last factors to the outputs of the original layers, on the calibration data.
        measured: Keep a factorisation only where the target runs it faster than the layer.
        align: Ranks are multiples of this; 0: 8, or what the integer kernels like where the model is quantized later.
    """

    name: ClassVar[str] = "decompose"
    summary: ClassVar[str] = (
        "Replace layers by low-rank factors where that is faster; better with calibration data"
    )
    lossy: ClassVar[bool] = True
    primary: ClassVar[str] = "method"

    method: Method = Method.AUTO
    rank: RankRule = RankRule.ENERGY
    energy: float = 0.98
    ratio: float = 0.3
    ranks: tuple[str, ...] = ()
    ops: tuple[str, ...] = LINEAR
    exclude: tuple[str, ...] = ()
    min_elements: int = 1024
    whiten: bool = True
    repair: bool = True
    measured: bool = True
    align: int = 0

    def __post_init__(self) -> None:
        for op_type in self.ops:
            if op_type not in LINEAR:
                raise UsageError(
                    f"{self.name}: ops has {op_type!r}, which is no weighted layer",
                    hint=did_you_mean(op_type, LINEAR),
                )
        for option, value in (("energy", self.energy), ("ratio", self.ratio)):
            if not 0 < value < 1:
                raise UsageError(
                    f"{self.name}: {option} is {value}", hint="it is a share: take a number between 0 and 1"
                )
        if self.min_elements < 0 or self.align < 0:
            raise UsageError(f"{self.name}: min_elements and align cannot be negative", hint="take 0 or more")
        parse_plan(self.ranks, WHERE)

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Factorise the layers of the main graph in place."""
        outcome = Outcome()
        ensure_names(model)
        ctx = settled(ctx, model)
        with single_threaded():
            return _Run(self, model, ctx, outcome, parse_plan(self.ranks, WHERE)).run()


@dataclass
class _Run:
    options: Decompose
    model: ir.Model
    ctx: Context
    outcome: Outcome
    plan: dict[str, Planned]
    made: set[str] = field(default_factory=set)
    refits: list[Refit] = field(default_factory=list)
    done: dict[str, Planned] = field(default_factory=dict)

    def run(self) -> Outcome:
        options, ctx, findings = self.options, self.ctx, self.outcome.findings
        announced = len(ctx.rewrites.applied)
        missing = unmatched(self.model, options.exclude, RULE)
        # Statistics and targets are those of the model as it came.
        original = self.model.clone()
        jobs = find_jobs(original, Choice(options.ops, options.exclude, options.min_elements), findings)
        given = bool(self.plan)
        if given:
            check_plan(self.plan, jobs, original, findings)
        # What is observed beside a planned layer is the same as when the plan was made: the same bytes come out.
        jobs = [job for job in jobs if job.name in self.plan or self._fits(job)]
        if not jobs:
            if not findings:
                findings.append(Finding("refused", f"no {', '.join(options.ops)} to factorise", rule=RULE))
            findings += missing
            return self.outcome
        findings += missing
        data = ctx.calibration is not None
        if options.whiten and not data:
            self._note("there is no calibration data: errors are those of the weights, not of the outputs")
        shapes = value_shapes(original, ctx)
        planned = given or options.rank is RankRule.RATIO
        if planned and not given:
            wanted = Wanted(
                options.method, options.ratio, self._alignment(), _MOST_LOST, whiten=options.whiten
            )
            self.plan, refused = plan_for_ratio(original, jobs, shapes, ctx, wanted)
            for job, reason in refused:
                self._refuse(job, reason)
        timer = None
        if options.measured and not given:
            time = ctx.time_inside or ctx.time
            timer = LayerTimer(time, original, shapes, ctx.spared) if time is not None else None
            if timer is None:
                self._note(
                    "nothing was measured: layers were replaced where that has fewer multiply-accumulates"
                )
        nodes = {str(node.name): node for node in self.model.graph}
        names = Names(self.model)
        before = after = 0
        observed = options.whiten and (bool(self.plan) or not planned)
        statistics = ready_jobs(original, jobs, ctx, findings) if observed else iter(jobs)
        for job in ctx.progress(statistics, label="Factorising", total=len(jobs)):
            if planned and job.name not in self.plan:
                continue
            problem = problem_of(job, original, shapes, whiten=options.whiten)
            if isinstance(problem, str):
                self._refuse(job, problem)
                continue
            before += problem.macs
            after += problem.macs
            best = self._planned(job, problem, timer) if planned else self._best(job, problem, timer)
            if best is None or not ctx.rewrites.allow(f"{RULE}-{best[0].form}", job.name):
                continue
            candidate, measured = best
            self._replace(job, candidate, nodes, names)
            self.done[job.name] = planned_of(candidate)
            after += candidate.macs - problem.macs
            share = candidate.macs / max(problem.macs, 1)
            message = f"{candidate}: {share:.0%} of the work, {candidate.error:.2%} of the output energy lost"
            self._note(message + (f", {measured}" if measured else ""), job.name)
        if self.done:
            self._note(
                f"{len(self.done)} of {len(jobs)} layers looked at are factorised, which leaves "
                f"{after / max(before, 1):.0%} of {'' if planned else 'all '}their multiply-accumulates"
            )
            self._finish(original)
        if options.rank is RankRule.RATIO and not given:
            self._compare_work(original)
        # The repair announces its changes itself.
        self.outcome.changed = len(ctx.rewrites.applied) - announced
        self.outcome.chosen = {"ranks": format_plan(self.done)} if self.done else {}
        return self.outcome

    def _alignment(self) -> int:
        """What ranks are multiples of: they are numbers of channels between the factors, and integer kernels want
        whole blocks of them."""
        floats = self.ctx.arithmetic is Arithmetic.FLOAT
        liked = _ALIGN if floats else max(_ALIGN, self.ctx.capabilities.alignment(self.ctx.arithmetic))
        return self.options.align or liked

    def _compare_work(self, original: ir.Model) -> None:
        """What the model as a whole saves."""
        infer_shapes(self.model)
        before, after = (
            sum(macs_by_node(model, self.ctx.samples).values()) for model in (original, self.model)
        )
        saved = 1.0 - after / before if before else 0.0
        self._note(f"{saved:.1%} fewer multiply-accumulates")
        if saved < _MOST * self.options.ratio:
            message = (
                f"only {saved:.0%} of the multiply-accumulates could be saved instead of {self.options.ratio:.0%}: the "
                "other layers have no factors that pay and keep half of their outputs' energy"
            )
            self.outcome.findings.append(Finding("warning", message, rule=RULE))

    def _fits(self, job: Job) -> bool:
        reason = form_problem(job.view, self.options.method)
        if reason is not None:
            self._refuse(job, reason)
        return reason is None

    def _best(self, job: Job, problem: Problem, timer: LayerTimer | None) -> tuple[Candidate, str] | None:
        """The candidate to take, and what was measured of it."""
        options = self.options
        choice = RankChoice(options.rank, options.energy, options.ratio, self._alignment())
        found = candidates(problem, options.method, choice)
        if not found:
            self._refuse(job, f"would save nothing at {self._wanted()}")
            return None
        if options.rank is not RankRule.LAYER_RATIO:
            found = self._faithful(job, found)
            if not found:
                return None
        if timer is None:
            return found[0], ""
        found = found[:_TIMED]
        timing = timer.compare(problem, found)
        if timing is None:
            self._note("the shape of its input is not known: it was not measured", job.name)
            return found[0], ""
        speeds = timing.ratios
        index = max(range(len(found)), key=lambda i: speeds[i].value)
        if options.rank is RankRule.EVBMF:
            # Errors differ by far: the smallest one that is faster than the layer, not the fastest.
            index = next((i for i, speed in enumerate(speeds) if speed.low > 1.0), index)
        measured = _measured(timing, index)
        if speeds[index].low <= 1.0:
            self._refuse(job, f"{measured} as {found[index]}")
            return None
        return found[index], measured

    def _planned(self, job: Job, problem: Problem, timer: LayerTimer | None) -> tuple[Candidate, str] | None:
        """The candidate of the plan, and what was measured of it."""
        candidate = candidate_of(problem, self.plan[job.name])
        timing = None if timer is None else timer.compare(problem, [candidate])
        if timing is None:
            return candidate, ""
        measured = _measured(timing, 0)
        if timing.ratios[0].low <= 1.0:
            self._refuse(job, f"{measured} as {candidate}")
            return None
        return candidate, measured

    def _faithful(self, job: Job, found: list[Candidate]) -> list[Candidate]:
        """The candidates that keep half of the output energy; the others become one finding."""
        kept = [item for item in found if item.error <= _MOST_LOST]
        lost = ", ".join(f"{item} {item.error:.0%}" for item in found if item.error > _MOST_LOST)
        if lost and kept:
            self._note(f"left out, for more than half of the output energy would be lost: {lost}", job.name)
        elif lost:
            self._refuse(job, f"more than half of the output energy would be lost: {lost}")
        return kept

    def _wanted(self) -> str:
        match self.options.rank:
            case RankRule.ENERGY:
                return f"{self.options.energy:.1%} of the energy"
            case RankRule.RATIO | RankRule.LAYER_RATIO:
                return f"{self.options.ratio:.0%} less work"
            case RankRule.EVBMF:
                return "the rank of EVBMF"

    def _replace(self, job: Job, candidate: Candidate, nodes: dict[str, ir.Node], names: Names) -> None:
        graph = self.model.graph
        layers = [nodes[str(view.node.name)] for view in job.views]
        weights = stored_weights(graph, layers[0], candidate, job.tensor.dtype.numpy(), names)
        for layer in layers:
            source, result = layer.inputs[0], layer.outputs[0].name
            assert source is not None
            factors = emit(layer, candidate, source, weights, names)
            replace_layer(graph, layer, factors)
            self.made.update(str(factor.name) for factor in factors)
            if len(layers) == 1:
                # A shared weight cannot be fitted to two outputs at once.
                self.refits.append(Refit(job.name, str(result)))

    def _finish(self, original: ir.Model) -> None:
        if self.options.repair and self.ctx.calibration is not None and self.refits:
            self.outcome.findings.extend(
                repaired(
                    original,
                    self.model,
                    self.ctx,
                    lambda trial: refit(original, trial, self.refits, self.ctx, RefitOptions()),
                    RULE,
                )
            )
        merge_factors(self.model, self.made, self.ctx.rewrites)

    def _refuse(self, job: Job, reason: str) -> None:
        self.outcome.findings.append(Finding("refused", f"{job.view.node.op_type}: {reason}", job.name, RULE))

    def _note(self, message: str, node: str | None = None) -> None:
        self.outcome.findings.append(Finding("note", message, node, RULE))


def _measured(timing: Timing, index: int) -> str:
    """How much faster than the layer a candidate is."""
    return f"measured {timing.ratios[index].value:.2f}x in {timing.computed_in(index + 1).value}"
