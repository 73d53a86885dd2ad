"""Structured pruning: cut whole channels, heads and hidden units, and refit what reads them, without training.

1. Prune groups (`greencc.core.groups`): which channels can go, and every tensor that shrinks with them.
2. Scores (`_scores`): what the outputs of the layers lose with each channel.
3. Allocation (`_prune_allocate`): the least harm for the work that is to be saved, in steps that the kernels like.
4. The cut, kept only where the target measures a gain: fewer operations are not always less time.
5. Repair (`_repair_layers`): the layers that lost inputs are refit by ridge regression to what they gave before, one
   after another (He et al., ICCV 2017, arXiv 1707.06168, section 3). Steps 2 to 5 are repeated `rounds` times, so that
   later choices see the repaired model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import Arithmetic
from greencc.core.describe import describe
from greencc.core.errors import UsageError
from greencc.core.groups import PruneGroup, Structure, analyse, cut
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.core.rehearsal import settled
from greencc.passes._exclude import covered, unmatched
from greencc.passes._prune_allocate import Allocation, allocate
from greencc.passes._prune_costs import macs_by_node, work_model
from greencc.passes._prune_plan import (
    WHERE,
    Chosen,
    Plan,
    after_round,
    check_channels,
    least_needed,
    parse_channels,
    rounds_of,
    why_whole,
)
from greencc.passes._prune_sensitivity import sensitivities
from greencc.passes._repair_gate import repaired
from greencc.passes._repair_layers import refit
from greencc.passes._repair_means import correct_classifier, transfer_batch_norm
from greencc.passes._repair_select import kept_outputs, layers_after_cut, unrepaired
from greencc.passes._repair_split import teaching
from greencc.passes._scores import Score, channel_scores

_RULE = "prune"
# Reasons that are told one by one; the others are counted.
_TOLD = 5
# Less than this share of what was asked for is worth a warning, and so is more than that.
_MOST, _MUCH = 0.9, 1.25
# Steps that follow the ratio more closely than those of wide integer kernels.
_FINE = 8


@dataclass(frozen=True)
class Prune(Pass):
    """Remove channels, heads and hidden units that the outputs need least.

    Attributes:
        ratio: Share of the model's multiply-accumulates to remove.
        score: What decides which channels go.
        repair: Refit the layers that lost inputs; needs calibration data.
        align: Numbers of channels that are left are multiples of this, in float where the layer is wide enough. Before
            a quantization to INT8 groups that have no such number below their own are cut only where the others
            cannot give enough. 0: as the target's kernels like it.
        limit: Largest share of a group that is removed.
        rounds: In how many steps the ratio is reached, each scored and repaired anew.
        exclude: Names of nodes whose output channels stay.
        measured: Keep the cut only where the target measures a gain.
        channels: Groups and the number of their channels that stay, as `GROUP=48`, with a number for each round as
            `GROUP=56:48`; these groups and no others are cut to just that, whatever `ratio`, `align`, `limit`, `rounds`
            and `measured` say.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "Cut channels, heads and hidden units, and refit what reads them"
    lossy: ClassVar[bool] = True
    primary: ClassVar[str | None] = "ratio"

    ratio: float = 0.3
    score: Score = Score.SECOND_ORDER
    repair: bool = True
    align: int = 0
    limit: float = 0.7
    rounds: int = 1
    exclude: tuple[str, ...] = ()
    measured: bool = True
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, value in (("ratio", self.ratio), ("limit", self.limit)):
            if not 0.0 < value < 1.0:
                raise UsageError(
                    f"{self.name}: {option} is {value:g}", hint="expected a number between 0 and 1"
                )
        if self.align < 0 or self.rounds < 1:
            raise UsageError(f"{self.name}: align is at least 0 and rounds at least 1")
        parse_channels(self.channels, WHERE)

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Cut and repair `model` in place."""
        outcome = Outcome(findings=unmatched(model, self.exclude, _RULE))
        plan = parse_channels(self.channels, WHERE)
        if plan:
            return self._follow(model, plan, ctx, outcome)
        ctx = settled(ctx, model)
        original = model.clone()
        before = _work(original, ctx)
        kept: dict[str, tuple[int, ...]] = {}
        history = Chosen()
        done = 0.0
        for number in range(1, self.rounds + 1):
            structure = analyse(model)
            groups = self._groups(
                structure, covered(model, self.exclude), outcome if number == 1 else Outcome()
            )
            if not groups:
                break
            scores = self._scores(model, groups, ctx, outcome)
            weights = self._weights(model, groups, ctx)
            if number == 1 and self.measured:
                whole = self._allocate(model, groups, scores, weights, self.ratio, ctx)
                if whole.removed and not self._pays(original, whole, ctx, outcome):
                    return outcome
            # Each round removes its part of what was there at the start; an earlier one may have done more.
            share = (self.ratio * number / self.rounds - done) / (1.0 - done)
            if share <= 0.0:
                continue
            chosen = self._allocate(model, groups, scores, weights, share, ctx)
            removed = self._cut(original, model, structure, chosen.removed, kept, ctx, outcome)
            if not removed:
                break
            history.add(structure, removed)
            done = 1.0 - _work(model, ctx) / before if before else 0.0
        if outcome.changed:
            outcome.chosen = {"channels": history.items()}
        outcome.findings += (
            self._sum_up(original, model, done, ctx) if outcome.changed else [self._nothing(before)]
        )
        return outcome

    def _follow(self, model: ir.Model, plan: Plan, ctx: Context, outcome: Outcome) -> Outcome:
        """Cut what the plan says and nothing else, round by round."""
        original = model.clone()
        kept: dict[str, tuple[int, ...]] = {}
        history = Chosen()
        for number in range(rounds_of(plan)):
            structure = analyse(model)
            excluded = covered(model, self.exclude)
            if not number:
                check_channels(plan, structure, excluded)
            free = [group for group in structure.groups if why_whole(group, excluded) is None]
            left = after_round(plan, number)
            lost = {group.name: group.size - left.get(group.name, group.size) for group in free}
            wanted = {name: count for name, count in lost.items() if count > 0}
            scores = self._scores(model, free, ctx, outcome, only=wanted)
            chosen = {name: least_needed(scores[name], count) for name, count in wanted.items()}
            removed = self._cut(original, model, structure, chosen, kept, ctx, outcome)
            if not removed:
                break
            history.add(structure, removed)
        if outcome.changed:
            outcome.chosen = {"channels": history.items()}
            before = _work(original, ctx)
            outcome.findings.append(
                _saved(original, model, 1.0 - _work(model, ctx) / before if before else 0.0)
            )
        return outcome

    def _nothing(self, work: float) -> Finding:
        """Why nothing was cut."""
        if not work:
            return Finding(
                "refused", "nothing was cut: the work of the model's nodes is not known", rule=_RULE
            )
        return Finding(
            "refused",
            "nothing was cut: no group that may lose channels can lose a step of them within the limit of "
            f"{self.limit:.0%}",
            rule=_RULE,
        )

    def _scores(
        self,
        model: ir.Model,
        groups: Sequence[PruneGroup],
        ctx: Context,
        outcome: Outcome,
        only: Collection[str] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        findings: list[Finding] = []
        scores = channel_scores(model, groups, self.score, ctx, findings=findings, only=only)
        # Every round says the same.
        outcome.findings += [item for item in findings if item not in outcome.findings]
        return scores

    def _weights(self, model: ir.Model, groups: Sequence[PruneGroup], ctx: Context) -> dict[str, float]:
        """What the model's outputs make of an error in the readers of each group, 1 on average."""
        # Those that are changes of the outputs already need no weights.
        if ctx.calibration is None or self.score.of_outputs:
            return {}
        return sensitivities(model, groups, ctx)

    def _allocate(
        self,
        model: ir.Model,
        groups: Sequence[PruneGroup],
        scores: Mapping[str, NDArray[np.float64]],
        weights: Mapping[str, float],
        ratio: float,
        ctx: Context,
    ) -> Allocation:
        align = self._align(ctx)
        work = work_model(model, groups, ctx.samples)
        # Integer kernels are slower with less than a block of channels, float kernels at worst not faster.
        whole = ctx.arithmetic is not Arithmetic.FLOAT
        return allocate(
            groups, scores, work, weights=weights, ratio=ratio, limit=self.limit, align=align, whole=whole
        )

    def _cut(
        self,
        original: ir.Model,
        model: ir.Model,
        structure: Structure,
        chosen: Mapping[str, list[int]],
        kept: dict[str, tuple[int, ...]],
        ctx: Context,
        outcome: Outcome,
    ) -> dict[str, list[int]]:
        """Cut and repair; what was cut. `kept` says which outputs of the original nodes are left."""
        removed = {
            name: channels
            for name, channels in chosen.items()
            if ctx.rewrites.allow(_RULE, name.split("#")[0])
        }
        if not removed:
            return removed
        for node, stay in kept_outputs(structure, removed).items():
            kept[node] = tuple(kept[node][place] for place in stay) if node in kept else stay
        cut(model, structure, removed)
        infer_shapes(model)
        outcome.changed += len(removed)
        sizes = {group.name: group for group in structure.groups}
        for name, channels in removed.items():
            group = sizes[name]
            message = f"{name}: {group.size - len(channels)} of {group.size} {group.kind} stay"
            outcome.findings.append(Finding("note", message, name, _RULE))
        if not self.repair:
            return removed
        if ctx.calibration is None:
            outcome.findings.append(
                Finding("warning", "nothing was repaired: that needs calibration data", rule=_RULE)
            )
            return removed
        self._repair(original, model, structure, removed, kept, ctx, outcome)
        return removed

    def _repair(
        self,
        original: ir.Model,
        model: ir.Model,
        structure: Structure,
        removed: Mapping[str, Sequence[int]],
        kept: Mapping[str, tuple[int, ...]],
        ctx: Context,
        outcome: Outcome,
    ) -> None:
        """Refit what lost inputs, and carry means over, where the outputs come nearer to the original's."""

        def repair(trial: ir.Model) -> list[Finding]:
            layers = layers_after_cut(original, trial, later=True, keep=kept)
            # Means come from the samples that the layers were refit on: what judges the whole is in neither.
            learn = teaching(ctx)
            return [
                *refit(original, trial, layers, ctx),
                *unrepaired(structure, removed, layers),
                *transfer_batch_norm(original, trial, learn, keep=kept),
                *correct_classifier(original, trial, learn),
            ]

        outcome.findings += repaired(original, model, ctx, repair, _RULE)

    def _groups(self, structure: Structure, excluded: frozenset[str], outcome: Outcome) -> list[PruneGroup]:
        """What may be cut; why other groups stay is told once."""
        chosen, locked = [], []
        for group in structure.groups:
            reason = why_whole(group, excluded)
            if reason is None:
                chosen.append(group)
            else:
                locked.append((group.name, reason))
        for name, reason in locked[:_TOLD]:
            outcome.findings.append(Finding("refused", f"{name}: {reason}", name, _RULE))
        if len(locked) > _TOLD:
            outcome.findings.append(
                Finding("refused", f"{len(locked) - _TOLD} more groups stay for such reasons", rule=_RULE)
            )
        return chosen

    def _pays(self, original: ir.Model, chosen: Allocation, ctx: Context, outcome: Outcome) -> bool:
        """Whether the target runs the cut model faster than the original."""
        if ctx.time is None:
            message = "no target measured whether fewer channels are faster"
            outcome.findings.append(Finding("note", message, rule=_RULE))
            return True
        trial = original.clone()
        cut(trial, analyse(trial), chosen.removed)
        infer_shapes(trial)
        ratio = ctx.time([original, trial], ctx.samples).ratios[0]
        measured = f"{ratio.value:.2f}x as fast [{ratio.low:.2f}, {ratio.high:.2f}] in {ctx.arithmetic.value}"
        less = f"with {chosen.saved:.0%} fewer multiply-accumulates"
        if ratio.low > 1.0:
            outcome.findings.append(Finding("note", f"{less} the target measured {measured}", rule=_RULE))
            return True
        outcome.findings.append(
            Finding(
                "refused", f"declined: {less} the target measured {measured}, which is no gain", rule=_RULE
            )
        )
        return False

    def _sum_up(self, original: ir.Model, model: ir.Model, saved: float, ctx: Context) -> list[Finding]:
        findings = [_saved(original, model, saved)]
        if saved < _MOST * self.ratio:
            findings.append(
                Finding(
                    "warning",
                    f"only {saved:.0%} of the multiply-accumulates could be removed instead of {self.ratio:.0%}: the "
                    f"groups that may be cut have no more to give, at most {self.limit:.0%} of the channels of each",
                    rule=_RULE,
                )
            )
        elif saved > _MUCH * self.ratio:
            align = self._align(ctx)
            way = (
                f"align={min(_FINE, align // 2)} follows the ratio more closely"
                if align > 1
                else "ask for less"
            )
            findings.append(
                Finding(
                    "warning",
                    f"{saved:.0%} of the multiply-accumulates were removed instead of {self.ratio:.0%}: channels go in "
                    f"steps of up to {align}, which are large for this model; {way}",
                    rule=_RULE,
                )
            )
        return findings

    def _align(self, ctx: Context) -> int:
        """What the numbers of channels that are left are multiples of, where a group is wide enough."""
        return self.align or ctx.capabilities.alignment(ctx.arithmetic)


def _saved(original: ir.Model, model: ir.Model, saved: float) -> Finding:
    """What the cut saves, as a share of the work and in parameters."""
    before, after = describe(original).params, describe(model).params
    message = f"{saved:.1%} fewer multiply-accumulates, {after:,} of {before:,} parameters"
    return Finding("note", message, rule=_RULE)


def _work(model: ir.Model, ctx: Context) -> float:
    """Multiply-accumulates of a sample."""
    return sum(macs_by_node(model, ctx.samples).values())
