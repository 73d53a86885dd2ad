"""What can be done to the structure of a model, each with a predicted error, before anything is built.

Three kinds: cutting the channels of a group, factorising a layer, removing a residual block. Errors are divergences of
the model's outputs in one unit, so that a planner may add them up over what it chooses (`greencc.verify.divergence`
tells why). What is chosen becomes steps of a recipe (`structural_steps`); their shapes can be timed before the data
are looked at (`sketch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import onnx_ir as ir

from greencc.core.capabilities import Arithmetic
from greencc.core.errors import UsageError
from greencc.core.passes import Context, Pass
from greencc.passes._offer import Offer, OfferKind, Over, kept_offers
from greencc.passes._offer_blocks import find_block_offers
from greencc.passes._offer_channels import find_channel_offers
from greencc.passes._offer_ranks import find_rank_offers
from greencc.passes._scores import Score
from greencc.passes.decompose import Decompose
from greencc.passes.drop_blocks import DropBlocks
from greencc.passes.prune import Prune

__all__ = [
    "LEVELS",
    "Offer",
    "OfferKind",
    "block_offers",
    "channel_offers",
    "rank_offers",
    "sketch",
    "structural_steps",
]

LEVELS = (0.875, 0.75, 0.625, 0.5, 0.375)
# Ranks of float kernels are multiples of this.
_ALIGN = 8


def _never() -> bool:
    return False


def channel_offers(
    model: ir.Model,
    ctx: Context,
    *,
    levels: Sequence[float] = LEVELS,
    align: int = 0,
    over: Over = _never,
) -> list[Offer]:
    """Cuts of the groups that `prune` may cut, in the order of the graph, the smallest cut of a group first.

    Args:
        model: With named nodes and inferred shapes; it is left unchanged.
        ctx: Gives the calibration data, the engines and the cache.
        levels: Parts of a group that stay, in (0, 1); rounded to steps that the kernels like.
        align: Such steps, as for `prune`; 0: what the target likes in the arithmetic of the context.
        over: Whether the time is over: then what has been found is all.

    Raises:
        InputError: There is no calibration data, or it holds NaN or infinity.
        UsageError: A level is no such part, or `align` is negative.
    """
    if not all(0.0 < level < 1.0 for level in levels):
        raise UsageError(
            f"levels of channels are {', '.join(map(str, levels))}", hint="give parts between 0 and 1"
        )
    step = _step(align) or ctx.capabilities.alignment(ctx.arithmetic)
    options = {"levels": list(levels), "align": step, "arithmetic": ctx.arithmetic.value}

    def find() -> list[Offer]:
        return find_channel_offers(model, ctx, levels, step, over)

    return kept_offers("channels", model, ctx, options, over, find)


def rank_offers(
    model: ir.Model,
    ctx: Context,
    *,
    most: int = 6,
    align: int = 0,
    over: Over = _never,
) -> list[Offer]:
    """Forms and ranks of the layers that `decompose` may factorise, in the order of the graph, the least saved first.

    Args:
        model: With named nodes and inferred shapes; it is left unchanged.
        ctx: Gives the calibration data, the engines and the cache.
        most: Offers of a layer.
        align: Ranks are multiples of this; 0: 8, or what the integer kernels like where the arithmetic is theirs.
        over: Whether the time is over: then what has been found is all.

    Raises:
        InputError: There is no calibration data, or a layer's input becomes NaN or infinity on it.
        UsageError: A number is out of range.
    """
    if most < 1:
        raise UsageError(f"offers of ranks: most is {most}", hint="give at least 1")
    liked = _ALIGN
    if ctx.arithmetic is not Arithmetic.FLOAT:
        liked = max(_ALIGN, ctx.capabilities.alignment(ctx.arithmetic))
    step = _step(align) or liked
    options = {"most": most, "align": step}

    def find() -> list[Offer]:
        return find_rank_offers(model, ctx, most, step, Decompose.min_elements, over)

    return kept_offers("ranks", model, ctx, options, over, find)


def block_offers(model: ir.Model, ctx: Context, *, samples: int = 64, over: Over = _never) -> list[Offer]:
    """The residual blocks that `drop-blocks` may remove, in the order of the graph.

    Args:
        model: With named nodes and inferred shapes; it is left unchanged.
        ctx: Gives the calibration data, the engines and the cache.
        samples: Looked at, at most.
        over: Whether the time is over: then what has been found is all.

    Raises:
        InputError: There is no calibration data, or it holds NaN or infinity.
        UsageError: `samples` is not positive.
    """
    if samples < 1:
        raise UsageError(f"offers of blocks: samples is {samples}", hint="give at least 1")

    def find() -> list[Offer]:
        return find_block_offers(model, ctx, samples, over)

    return kept_offers("blocks", model, ctx, {"samples": samples}, over, find)


def structural_steps(chosen: Iterable[Offer]) -> tuple[Pass, ...]:
    """The passes that do what was chosen, in the order in which they fit: blocks, channels, ranks.

    Units inside a block that goes are left out: there is nothing to cut or factorise any more. A rank is that of
    the layer as it came: after a cut of its channels it may save nothing, which `decompose` refuses (UsageError).

    Raises:
        UsageError: A unit was chosen twice.
    """
    offers = list(chosen)
    units = [(offer.kind, offer.unit) for offer in offers]
    for kind, unit in units:
        if units.count((kind, unit)) > 1:
            raise UsageError(
                f"two options of {kind.value} were chosen for {unit!r}", hint="choose one of them"
            )
    blocks = [offer for offer in offers if offer.kind is OfferKind.BLOCK]
    gone = {name for offer in blocks for name in offer.nodes}
    inner = {
        offer.unit
        for offer in blocks
        if any(offer.unit in other.nodes for other in blocks if other is not offer)
    }
    left = [offer for offer in offers if offer.unit.split("#")[0] not in gone]
    channels = tuple(f"{offer.unit}={offer.option}" for offer in left if offer.kind is OfferKind.CHANNELS)
    ranks = tuple(f"{offer.unit}={offer.option}" for offer in left if offer.kind is OfferKind.RANK)
    steps: list[Pass] = []
    if blocks:
        steps.append(DropBlocks(blocks=tuple(offer.unit for offer in blocks if offer.unit not in inner)))
    if channels:
        steps.append(Prune(channels=channels, measured=False))
    if ranks:
        # A layer may have become smaller than those that are looked at unasked.
        steps.append(Decompose(ranks=ranks, measured=False, min_elements=0))
    return tuple(steps)


def sketch(steps: Iterable[Pass]) -> tuple[Pass, ...]:
    """The same steps in their quickest form, which needs no data: a model of the same shapes, for timing."""
    return tuple(_sketched(step) for step in steps)


def _sketched(step: Pass) -> Pass:
    match step:
        case DropBlocks():
            return replace(step, repair=False)
        case Prune():
            return replace(step, repair=False, score=Score.MAGNITUDE)
        case Decompose():
            return replace(step, repair=False, whiten=False)
        case _:
            raise UsageError(f"{step.name} has no sketch", hint="sketch the steps of structural_steps")


def _step(align: int) -> int:
    if align < 0:
        raise UsageError(f"align is {align}", hint="give at least 0")
    return align
