"""Depth: remove the residual blocks that the outputs need least.

A block y = x + f(x) becomes y = x (`_blocks`), which saves all its time where cutting channels saves a part of it. The
least harmful block goes first; then the others are scored again, with it gone (`_blocks_score`). All layers behind
the removed blocks are refitted afterwards to give what they gave before (`_repair_layers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from greencc.core.data import Feeds
from greencc.core.describe import nodes_cost
from greencc.core.errors import GreenccError, UsageError, did_you_mean
from greencc.core.graph import ensure_names, static_shape
from greencc.core.model import bind_dims, infer_shapes
from greencc.core.passes import Context, Finding, Outcome, Pass
from greencc.core.rehearsal import settled
from greencc.core.shapes import bind_sizes
from greencc.passes._blocks import Block, Shape, drop, find_blocks
from greencc.passes._blocks_score import BlockScore, BlockScorer
from greencc.passes._capture import graph_values, require_data
from greencc.passes._exclude import is_excluded, unmatched
from greencc.passes._linear_view import linear_view

_RULE = "drop-block"
_REFUSED_SHOWN = 3
# Of com.microsoft, made by the clean-up.
_ELEMENTWISE = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")


@dataclass(frozen=True)
class _Sizes:
    """What is known for one sample: shapes of values, work of nodes by name."""

    shapes: Mapping[str, Shape]
    macs: Mapping[str, int | None]

    @property
    def total(self) -> int:
        return sum(count or 0 for count in self.macs.values())

    def share(self, block: Block) -> float | None:
        """The block's part of the model's MACs, or None when it is not known."""
        counts = [self.macs.get(str(node.name)) for node in block.nodes]
        known = [count for count in counts if count is not None]
        return sum(known) / self.total if len(known) == len(counts) and self.total else None


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
            sizes = _sizes(model, ctx, needed=self.repair)
            choices = self._given(model.clone(), sizes)
        else:
            ctx = settled(ctx, model)
            sizes = _sizes(model, ctx)
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

    def _given(self, shortened: ir.Model, sizes: _Sizes) -> list[_Choice]:
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
        self, model: ir.Model, shortened: ir.Model, sizes: _Sizes, ctx: Context, outcome: Outcome
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

    def _possible(self, model: ir.Model, sizes: _Sizes, outcome: Outcome) -> list[str]:
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


def _sizes(model: ir.Model, ctx: Context, *, needed: bool = True) -> _Sizes:
    """Shapes and work for the sizes of a calibration sample; where none is needed and there is none, for another one.

    Raises:
        InputError: There is no calibration data, and it is needed.
    """
    if needed or ctx.calibration is not None:
        first = next(iter(require_data(ctx).batches(1)), None)
        feeds: Feeds | None = None if first is None else first.feeds
    else:
        feeds = next(iter(ctx.samples), None)
    if feeds is not None:
        sized = _bound(model, feeds)
    else:
        sized = model if needed else bind_sizes(model, {}, batch=2)
    while _through_custom_operators(sized.graph):
        infer_shapes(sized)
    shapes = {
        str(value.name): tuple(int(dim) for dim in value.shape.numpy())
        for value in graph_values(sized.graph)
        if value.shape is not None and value.shape.is_static()
    }
    return _Sizes(shapes, {cost.name: cost.macs for cost in nodes_cost(sized)})


def _bound(model: ir.Model, feeds: Feeds) -> ir.Model:
    """The model for two such samples, so that a dimension of 1 is one that broadcasts; else for one."""
    inputs = {value.name: value for value in model.graph.inputs}
    shapes = {
        name: (_dynamic_batch(inputs.get(name), array.shape[0]), *array.shape[1:])
        for name, array in feeds.items()
    }
    try:
        return bind_dims(model, shapes)
    except GreenccError:
        # Exporters write a batch of 1 into reshapes of graphs that declare a dynamic batch.
        return bind_dims(model, {name: array.shape for name, array in feeds.items()})


def _through_custom_operators(graph: ir.Graph) -> bool:
    """Give results of fused activations the shape of what they read, as inference does not; whether any was new."""
    found = False
    for node in graph:
        if node.domain == "com.microsoft" and node.op_type in _ELEMENTWISE:
            shape = static_shape(node.inputs[0])
            if shape is not None and static_shape(node.outputs[0]) is None:
                node.outputs[0].shape = ir.Shape(shape)
                found = True
    return found


def _dynamic_batch(value: ir.Value | None, size: int) -> int:
    if value is None or value.shape is None or not len(value.shape):
        return size
    first = value.shape[0]
    return first if isinstance(first, int) else 2


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

    reached: set[ir.Value | None] = set(skips)
    layers = []
    for node in model.graph:
        if any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            if linear_view(node) is not None:
                layers.append(repair.Refit(str(node.name), str(node.outputs[0].name)))
    if not layers:
        return []
    return gate.repaired(
        original, model, ctx, lambda trial: repair.refit(original, trial, layers, ctx), _RULE
    )
