"""Folding a per-channel `scale * x + shift` node into the linear operator before or after it."""

from __future__ import annotations

import numpy as np

from greencc.core.graph import is_op, label, sole_consumer
from greencc.passes._affine import Affine, Float64, per_channel
from greencc.passes._linear import Linear, linear_before, linear_of
from greencc.passes._rewriter import (
    Edit,
    Refusal,
    Scope,
    node_name,
    refuse,
    remove,
    route_around,
    take_over,
)


def fold_after(affine: Affine, scope: Scope, bn_channels: int | None = None) -> Edit | Refusal | None:
    """Fold a node into the linear operator that computes its input.

    `bn_channels` is the channel count when the arrays run along axis 1 (BatchNormalization); None when they
    broadcast from the right. Without a bias input (MatMul) the shift stays behind as an Add.
    """
    linear = linear_before(affine.x, scope)
    if linear is None:
        return None
    if isinstance(linear, str):
        return refuse(affine.node, linear)
    mapped = _channels(affine, linear, linear.out_channels, bn_channels)
    if mapped is None:
        return refuse(affine.node, f"is not per output channel of {label(linear.node)}")
    scale, shift = mapped
    if linear.node.op_type == "MatMul" and linear.bias_node is None and shift.any():
        return _leave_shift(affine, linear, scale, shift, scope)
    weight, bias = linear.scaled_after(scale, shift)
    if not linear.fits(weight, bias):
        return refuse(affine.node, f"is not folded into {label(linear.node)}: the weights would overflow")

    def apply() -> None:
        linear.install(weight, bias, scope)
        take_over(affine.x, affine.output)
        remove(affine.node)

    return Edit(node_name(affine.node), apply)


def fold_before(affine: Affine, scope: Scope, bn_channels: int | None = None) -> Edit | Refusal | None:
    """Fold a node into the linear operator that reads its output; see `fold_after`."""
    consumer = sole_consumer(affine.output)
    if consumer is None or consumer.graph is not scope.graph or consumer.inputs[0] is not affine.output:
        return None
    linear = linear_of(consumer)
    if linear is None:
        return None
    if isinstance(linear, str):
        return refuse(affine.node, f"is not folded into {label(consumer)}, which {linear}")
    if is_op(consumer, "Gemm") and "transA" in consumer.attributes and consumer.attributes["transA"].as_int():
        return refuse(affine.node, f"is not folded into {label(consumer)}, which transposes its input")
    mapped = _channels(affine, linear, linear.in_channels, bn_channels)
    if mapped is None:
        return refuse(affine.node, f"is not per input channel of {label(consumer)}")
    scale, shift = mapped
    if shift.any() and linear.pads:
        reason = f"is not folded into {label(consumer)}: padding would no longer be zero"
        return refuse(affine.node, reason)
    if shift.any() and consumer.op_type == "MatMul" and linear.bias_node is None:
        return refuse(
            affine.node, f"is not folded into {label(consumer)}, which has no bias to take the shift"
        )
    weight, bias = linear.scaled_before(scale, shift)
    if not linear.fits(weight, bias):
        return refuse(affine.node, f"is not folded into {label(consumer)}: the weights would overflow")

    def apply() -> None:
        linear.install(weight, bias, scope)
        route_around(affine.output, affine.x)
        remove(affine.node)

    return Edit(node_name(affine.node), apply)


def _leave_shift(
    affine: Affine, linear: Linear, scale: Float64, shift: Float64, scope: Scope
) -> Edit | Refusal | None:
    """MatMul without bias: fold the scale, keep the shift as the Add that such a layer has anyway."""
    if is_op(affine.node, "Add", "Sub") and np.all(scale == 1.0):
        return None
    weight, _ = linear.scaled_after(scale, np.zeros_like(shift))
    if not linear.fits(weight, shift):
        return refuse(affine.node, f"is not folded into {label(linear.node)}: the weights would overflow")

    def apply() -> None:
        linear.install(weight, None, scope)
        constant = scope.constant(
            shift.astype(linear.weight.dtype), f"{node_name(affine.node)}/bias", affine.node
        )
        total = scope.node(
            "Add",
            [affine.x, constant],
            like=affine.output,
            name=f"{node_name(linear.node)}/bias",
            before=affine.node,
        )
        take_over(total, affine.output)
        remove(affine.node)

    return Edit(node_name(affine.node), apply)


def _channels(
    affine: Affine, linear: Linear, channels: int, bn_channels: int | None
) -> tuple[Float64, Float64] | None:
    """Scale and shift as [channels] vectors along the operator's channel axis, or None."""
    if bn_channels is not None:
        # Axis 1 is the channel axis of a matrix product only when the rank is 2.
        if bn_channels != channels or (linear.channel_axis < 0 and linear.rank != 2):
            return None
        return affine.scale, affine.shift
    scale = per_channel(affine.scale, linear.rank, linear.channel_axis, channels)
    shift = per_channel(affine.shift, linear.rank, linear.channel_axis, channels)
    return None if scale is None or shift is None else (scale, shift)
