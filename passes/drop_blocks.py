"""Depth: remove the residual blocks that the outputs need least.

A block y = x + f(x) becomes y = x (`_blocks`), which saves all its time where cutting channels saves a part of it. The
least harmful block goes first; then the others are scored again, with it gone (`_blocks_score`). All layers behind
the removed blocks are refitted afterwards to give what they gave before (`_repair_layers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.graph import ensure_names
from greencc.core.model import infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.core.rehearsal import settled
from greencc.passes._blocks import drop, find_blocks
from greencc.passes._blocks_score import BlockScore, BlockScorer
from greencc.passes._blocks_sizes import Sizes, sizes_of
from greencc.passes._exclude import is_excluded, unmatched
from greencc.passes._repair_order import layers_behind

_RULE = "drop-block"
_REFUSED_SHOWN = 3


@dataclass(frozen=True)
class _Choice:
    """A block that is going to be removed."""

    name: str
    score: float | None
    share: float | None


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Remove residual blocks; needs calibration data.

    Attributes:
        ratio: Share of the model's multiply-accumulates to remove at most.
        count: Blocks to remove at most; 0: as many as `ratio` allows.
        score: `output` is the change of the outputs without the block, `similarity` the angle between what enters it
            and what leaves it.
        repair: Refit the layers behind removed blocks to the outputs they had.
        exclude: Names of the Add nodes whose blocks stay.
        samples: Calibration samples that blocks are scored on, at most.
        batch: Samples run at once, where the model's batch is dynamic.
        blocks: Names of the Add nodes of blocks; these and no others go, whatever `ratio`, `count` and what a target
            measures say. Without `repair` that needs no data.
    """

    name: ClassVar[str] = "drop-blocks"
    summary: ClassVar[str] = "Remove the residual blocks that the outputs need least"
    lossy: ClassVar[bool] = True
    primary: ClassVar[str | None] = "ratio"

    ratio: float = 0.1
    count: int = 0
    score: BlockScore = BlockScore.OUTPUT
    repair: bool = True
    exclude: tuple[str, ...] = ()
    samples: int = 128
    batch: int = 16
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise UsageError(f"{self.name}: ratio is {self.ratio:g}", hint="give a value in (0, 1)")
        for option, value, least in (
            ("count", self.count, 0),
            ("samples", self.samples, 1),
            ("batch", self.batch, 1),
        ):
            if value < least:
                raise UsageError(f"{self.name}: {option} is {value}", hint=f"give at least {least}")
        for name, times in Counter(self.blocks).items():
            if times > 1:
                raise UsageError(f"{self.name}: blocks: {name!r} comes twice", hint="name every block once")

    def apply(self, model: ir.Model, ctx: Context) -> Outcome:
        """Remove blocks of the main graph in place.

        Raises:
            InputError: There is no calibration data, or it holds NaN or infinity.
            UsageError: One of `blocks` is no block that can be removed.
        """
        ensure_names(model)
        infer_shapes(model)
        outcome = Outcome(findings=unmatched(model, self.exclude, _RULE))
        if self.blocks:
            sizes = sizes_of(model, ctx, needed=self.repair)
            choices = self._given(model.clone(), sizes)
        else:
            ctx = settled(ctx, model)
            sizes = sizes_of(model, ctx)
            shortened = model.clone()
            choices = self._choose(model, shortened, sizes, ctx, outcome)
            if not choices or not _pays(model, shortened, ctx, outcome):
                return outcome
        original = model.clone()
        gone: list[str] = []
        skips: list[ir.Value] = []
        for choice in choices:
            if not ctx.rewrites.allow(_RULE, choice.name):
                break
            block = next(found for found in find_blocks(model, sizes.shapes)[0] if found.name == choice.name)
            skips.append(block.skip)
            drop(model, block)
            outcome.changed += 1
            gone.append(choice.name)
            outcome.findings.append(Finding("note", self._told(choice), choice.name, _RULE))
        outcome.chosen = {"blocks": tuple(gone)} if gone else {}
        if self.repair and outcome.changed:
            outcome.findings += _repair(original, model, skips, ctx)
        return outcome

    def _told(self, choice: _Choice) -> str:
        share = "" if choice.share is None else f", {100 * choice.share:.1f} % of the MACs"
        score = "" if choice.score is None else f": {self.score.value} score {choice.score:.3g}"
        return f"removed the residual block that ends in {choice.name!r}{share}{score}"

    def _given(self, shortened: ir.Model, sizes: Sizes) -> list[_Choice]:
        """The blocks that are named, in that order; `shortened` loses them.

        Raises:
            UsageError: A name is none of a block, or one that is excluded or went with another.
        """
        first, refused = find_blocks(shortened, sizes.shapes)
        names = {block.name for block in first}
        reasons = {item.name: item.reason for item in refused}
        choices: list[_Choice] = []
        for name in self.blocks:
            here = {block.name: block for block in find_blocks(shortened, sizes.shapes)[0]}
            reason = reasons.get(name)
            if name in here and is_excluded(here[name].add, self.exclude):
                reason = "it is excluded by the options"
            elif name in names and name not in here:
                reason = f"it is none any more once {', '.join(choice.name for choice in choices)} went"
            if reason is not None:
                raise UsageError(
                    f"{self.name}: blocks: {name!r} cannot be removed: {reason}",
                    hint=did_you_mean(name, names),
                )
            if name not in here:
                raise UsageError(
                    f"{self.name}: blocks: no residual block ends in a node named {name!r}",
                    hint=did_you_mean(name, names) if names else "the model has none that can be removed",
                )
            choices.append(_Choice(name, None, sizes.share(here[name])))
            drop(shortened, here[name])
        return choices

    def _choose(
        self, model: ir.Model, shortened: ir.Model, sizes: Sizes, ctx: Context, outcome: Outcome
    ) -> list[_Choice]:
        """The blocks to remove, in order, least harmful first; `shortened` loses them."""
        possible = self._possible(model, sizes, outcome)
        if not possible:
            return []
        chosen: list[_Choice] = []
        with BlockScorer(
            model, possible, sizes.shapes, ctx, score=self.score, samples=self.samples, batch=self.batch
        ) as scorer:
            while not self.count or len(chosen) < self.count:
                left = self.ratio - sum(choice.share or 0.0 for choice in chosen)
                candidates = {}
                for block in find_blocks(shortened, sizes.shapes)[0]:
                    share = sizes.share(block)
                    if block.name in possible and share is not None and share <= left:
                        candidates[block.name] = block, share
                if not candidates:
                    break
                scores = scorer.scores([choice.name for choice in chosen], list(candidates))
                best = min(scores, key=lambda name: scores[name])
                block, share = candidates[best]
                chosen.append(_Choice(best, scores[best], share))
                drop(shortened, block)
        return chosen

    def _possible(self, model: ir.Model, sizes: Sizes, outcome: Outcome) -> list[str]:
        """The blocks that may be removed; the others become findings, one per reason."""
        blocks, refused = find_blocks(model, sizes.shapes)
        left: dict[str, list[str]] = {}
        for item in refused:
            left.setdefault(item.reason, []).append(item.name)
        possible = []
        for block in blocks:
            share = sizes.share(block)
            if is_excluded(block.add, self.exclude):
                reason = "excluded by the options"
            elif share is None:
                reason = "the work it takes is not known"
            elif not share:
                reason = "it multiplies nothing, so removing it would save next to nothing"
            elif share > self.ratio:
                reason = (
                    f"it takes more than {100 * self.ratio:g} % of the MACs, all that ratio allows to remove"
                )
            else:
                possible.append(block.name)
                continue
            left.setdefault(reason, []).append(
                block.name if share is None else f"{block.name} ({100 * share:.1f} %)"
            )
        for reason, names in left.items():
            shown = ", ".join(names[:_REFUSED_SHOWN])
            more = f" and {len(names) - _REFUSED_SHOWN} more" if len(names) > _REFUSED_SHOWN else ""
            outcome.findings.append(
                Finding("refused", f"residual Add {shown}{more} stays: {reason}", rule=_RULE)
            )
        if not blocks and not refused:
            outcome.findings.append(Finding("refused", "the model has no residual blocks", rule=_RULE))
        return possible


def _pays(model: ir.Model, shortened: ir.Model, ctx: Context, outcome: Outcome) -> bool:
    """Whether the shortened model is faster on the target, as far as that can be measured."""
    if ctx.time is None or not ctx.samples:
        outcome.findings.append(
            Finding("note", "nothing was measured on a target: MACs alone say what it saves", rule=_RULE)
        )
        return True
    timing = ctx.time([model, shortened], ctx.samples)
    ratio = timing.ratios[0]
    measured = (
        f"measured {timing.median_ms[0]:.3g} ms before and {timing.median_ms[1]:.3g} ms after, "
        f"{ratio.value:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f}) in {ctx.arithmetic.value}"
    )
    faster = ratio.low > 1.0
    message = f"removing blocks pays: {measured}" if faster else f"removing blocks does not pay: {measured}"
    outcome.findings.append(Finding("note" if faster else "refused", message, rule=_RULE))
    return faster


def _repair(original: ir.Model, model: ir.Model, skips: Sequence[ir.Value], ctx: Context) -> list[Finding]:
    """Refit all weighted layers behind removed blocks to what they gave in the original model.

    The blocks' sums are missing on the shortcuts of all later blocks, too, not only in front of the next layer.
    """
    # Only a repair needs it.
    from greencc.passes import _repair_gate as gate
    from greencc.passes import _repair_layers as repair

    layers = layers_behind(model, skips)
    if not layers:
        return []
    return gate.repaired(
        original, model, ctx, lambda trial: repair.refit(original, trial, layers, ctx), _RULE
    )
