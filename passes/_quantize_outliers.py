"""Weights that one huge value leaves without levels: the scale of a channel follows its largest magnitude."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.passes import Finding
from greencc.passes._quantize_scales import rounded_away, weight_limit

# A channel of which more than this became 0 is reported, if channels have weights enough to tell.
_LOST = 0.9
_FEW_WEIGHTS = 8


def outlier_finding(
    node: ir.Node, weight: Array, integers: NDArray[np.int8], axis: int | None, bits: int
) -> Finding | None:
    """Report the channel that lost most of its weights to rounding, if one lost more than 90 %.

    Args:
        node: Whose weight it is.
        weight: The float weight.
        integers: The same, rounded.
        axis: The axis of the channels; None: the whole tensor is one channel.
        bits: Of the integers.
    """
    share = rounded_away(weight, integers, axis)
    if weight.size < _FEW_WEIGHTS * share.size or share.max() <= _LOST:
        return None
    others = None if axis is None else tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.maximum(
        integers.max(axis=others).astype(np.int16), -integers.min(axis=others).astype(np.int16)
    )
    # A largest weight far below the limit means that a huge bias set the scale: such a channel is a constant.
    share = np.where(2 * largest.reshape(share.shape) > weight_limit(bits), share, 0.0)
    worst = int(np.argmax(share))
    if share[worst] <= _LOST:
        return None
    channel, floats = integers, weight
    if axis is not None:
        channel, floats = np.take(integers, worst, axis), np.take(weight, worst, axis)
    # Without the one that the largest weight takes.
    levels = len(np.unique(channel)) - 1
    more = int(np.count_nonzero(share > _LOST)) - 1
    which = "its weights" if axis is None else f"the weights of its channel {worst}"
    also = f" (and of {more} other channel{'s' if more > 1 else ''})" if more else ""
    return Finding(
        "warning",
        f"{node.op_type} {node.name!r}: {100 * share[worst]:.0f} % of {which}{also} round to zero; the largest, "
        f"{np.max(np.abs(floats)):.3g}, leaves {levels} of {2 * weight_limit(bits)} levels to the rest: exclude the "
        "node, or clip or split the outlier",
        node.name,
        "quantize",
    )
