"""Scores of channels: how much the outputs of a model need each channel of its prune groups.

One interface for all of them; what each computes is in its own module. Scores of different groups may be compared:
they are shares of what the readers of the channels see (of their output energy, or of the weights), summed over the
readers, so that a channel of sixteen counts for more than one of a thousand, and a channel with many readers
for more than one with a single reader. FPGM is a share of the group's distances, correlation a share of
the channel's own variance, loss the change of the model's outputs itself, Taylor and Fisher estimates of it from
gradients.

Second-order scores are those at each channel's turn when the channels of a group go one by one, so the lowest k of them
add up to the error of removing these k. All others say what removing a channel costs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum

import onnx_ir as ir

from greencc.core.groups import PruneGroup
from greencc.core.passes import Context, Finding
from greencc.passes._score_activation import activation
from greencc.passes._score_correlation import correlation
from greencc.passes._score_fisher import fisher
from greencc.passes._score_fpgm import fpgm
from greencc.passes._score_loss import loss
from greencc.passes._score_magnitude import magnitude
from greencc.passes._score_options import Float64, ScoreOptions
from greencc.passes._score_second_order import second_order
from greencc.passes._score_taylor import taylor

__all__ = ["Score", "ScoreOptions", "channel_scores"]


class Score(Enum):
    """How channels are ranked."""

    MAGNITUDE = "magnitude"  # Weights that make a channel times weights that read it.
    ACTIVATION = "activation"  # Variance of the channel times the weights that read it.
    SECOND_ORDER = "second-order"  # Error that the other channels cannot make up for.
    FPGM = "fpgm"  # Distance to the geometric median of the filters.
    CORRELATION = "correlation"  # Variance of the channel that the others do not explain.
    LOSS = "loss"  # Change of the model's outputs when the channel is masked.
    TAYLOR = "taylor"  # Squared slope of the loss as the channel fades, over mini-batches.
    FISHER = "fisher"  # Curvature of the divergence from the own outputs as the channel fades.

    @property
    def needs_data(self) -> bool:
        """Whether calibration data is needed."""
        return self not in (Score.MAGNITUDE, Score.FPGM)

    @property
    def of_outputs(self) -> bool:
        """Whether it is a change of the model's outputs, not one of the layers that read the channel."""
        return self in (Score.LOSS, Score.TAYLOR, Score.FISHER)


_Method = Callable[[ir.Model, Sequence[PruneGroup], Context, ScoreOptions], dict[str, Float64]]
_METHODS: dict[Score, _Method] = {
    Score.MAGNITUDE: magnitude,
    Score.ACTIVATION: activation,
    Score.SECOND_ORDER: second_order,
    Score.FPGM: fpgm,
    Score.CORRELATION: correlation,
    Score.LOSS: loss,
    Score.FISHER: fisher,
}


def channel_scores(
    model: ir.Model,
    groups: Sequence[PruneGroup],
    score: Score,
    ctx: Context,
    options: ScoreOptions | None = None,
    findings: list[Finding] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Float64]:
    """Score the channels of prune groups: the larger, the more the outputs need them; finite and at least 0.

    Args:
        model: It is left unchanged.
        groups: From `analyse` on this model or on one with the same names.
        score: How.
        ctx: Gives the calibration data and the engine, to the scores that need them.
        options: Of the scores.
        findings: Gets a note where another score had to stand in: Fisher for Taylor without usable labels.
        only: Names of groups whose scores are wanted; None: all. What they are is bit for bit what they are among
            the scores of all groups, so that some may be scored all the same.

    Returns:
        (size,) for each group, by its name; of those wanted at least.

    Raises:
        InputError: A weight is not finite, or calibration data is needed and missing or leads to such values.
        UnavailableError: The score needs gradients, and nothing here computes them.
    """
    if not groups or (only is not None and not only):
        return {}
    options = options or ScoreOptions()
    if only is not None and score is Score.SECOND_ORDER:
        return second_order(model, groups, ctx, options, only)
    if only is not None and not score.needs_data:
        # Scored by weights alone, a group knows of no other.
        groups = [group for group in groups if group.name in only]
    if score is Score.TAYLOR:
        found = taylor(model, groups, ctx, options)
        if not isinstance(found, str):
            return found
        score = Score.FISHER
        if findings is not None:
            findings.append(Finding("note", f"scored by {score.value} because {found}", rule="prune"))
    return _METHODS[score](model, groups, ctx, options)
