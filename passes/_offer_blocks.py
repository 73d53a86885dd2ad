"""What removing each residual block would do to the outputs, with a short repair.

A block is removed from a clone, the weighted layers right behind it are refit to what they gave, and the divergence of
the outputs is measured on samples that the refit has not seen. The first few layers make up for most of what can be
made up for, at a part of the price of refitting all: on ResNet-20 with four layers the divergence was between 0.8 and
1.6 times that of the whole repair; without any it is 4 to 30 times that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir

from greencc.core.model import infer_shapes
from greencc.core.passes import Context, RewriteLog
from greencc.core.progress import silent
from greencc.passes._blocks import Block, drop, find_blocks
from greencc.passes._blocks_sizes import sizes_of
from greencc.passes._capture import require_data
from greencc.passes._offer import Offer, OfferKind, Over, fewer, trial_samples, until
from greencc.passes._prune_costs import macs_by_node
from greencc.passes._repair_gate import divergence
from greencc.passes._repair_layers import refit
from greencc.passes._repair_order import layers_behind
from greencc.passes._repair_split import judges, spread, teaching

# Layers behind a block that are refit.
_REFIT = 4
# Samples that teach and that judge, even where a model is large.
_TEACH, _JUDGE = 32, 16


def find_block_offers(model: ir.Model, ctx: Context, samples: int, over: Over) -> list[Offer]:
    """Offers of all blocks that multiply something, in the order of the graph, as far as the time allows.

    Args:
        model: It is left unchanged.
        ctx: Gives the data and the engines.
        samples: Of the refit, at most.
        over: Whether the time is over.
    """
    sizes = sizes_of(model, ctx)
    blocks = [block for block in find_blocks(model, sizes.shapes)[0] if sizes.share(block)]
    work = macs_by_node(model, ctx.samples)
    few = fewer(model, ctx)
    source = require_data(few)
    # What judges is in nothing that a refit learns from.
    trials = trial_samples(model, ctx, 2 * len(blocks))
    learn = spread(require_data(teaching(few)), min(samples, max(_TEACH, 2 * trials)))
    few = replace(ctx, calibration=learn, rewrites=RewriteLog(), progress=silent, time=None)
    judging = judges(source, max(_JUDGE, trials))

    def offers() -> Iterator[Offer]:
        for block in ctx.progress(blocks, label="Trying blocks", total=len(blocks)):
            trial = model.clone()
            found = next(item for item in find_blocks(trial, sizes.shapes)[0] if item.name == block.name)
            skip = found.skip
            drop(trial, found)
            infer_shapes(trial)
            layers = layers_behind(trial, [skip])[:_REFIT]
            models = [trial]
            if layers:
                models.append(trial.clone())
                refit(model, models[-1], layers, few)
            # A refit that does harm is dropped, as the pass does.
            error = min(divergence(model, models, judging, ctx))
            nodes = _nodes(block)
            saved = sum(work.get(name, 0.0) for name in nodes)
            yield Offer(OfferKind.BLOCK, block.name, "removed", error, nodes, saved)

    return list(until(over, offers()))


def _nodes(block: Block) -> tuple[str, ...]:
    """What goes with a block, its Add included."""
    return (*(str(node.name) for node in block.nodes), block.name)
