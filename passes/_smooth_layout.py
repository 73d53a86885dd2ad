"""Channel numbers moved back through a node that only rearranges elements.

An array of channel numbers broadcasts against a value; each function takes that of a node's output and returns that of
its first input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op, label

Channels = NDArray[np.int64]
KEPT = -1
"""The number of an element that belongs to no channel."""


class BlockedError(Exception):
    """The channels cannot be followed further; the message says why. Tracing ends with it, the pass does not."""


def before_reshape(node: ir.Node, channels: Channels) -> Channels:
    """The channels before a Reshape: trailing dimensions of equal product on both sides."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        raise BlockedError(f"the shapes of {label(node)} are unknown")
    scaled = [axis for axis, size in enumerate(channels.shape) if size != 1]
    needed = channels.ndim - scaled[0] if scaled else 0
    old, new = tuple(before.shape), tuple(after.shape)
    for taken in range(needed, len(new) + 1):
        wanted = _product(new[len(new) - taken :])
        if wanted is None:
            break
        for count in range(len(old) + 1):
            if _product(old[len(old) - count :]) == wanted:
                tail = tuple(int(dim) for dim in new[len(new) - taken :])  # type: ignore[arg-type]
                spread = np.broadcast_to(channels[(0,) * (len(new) - taken)], tail)
                sizes = tuple(int(dim) for dim in old[len(old) - count :])  # type: ignore[arg-type]
                return spread.reshape((1,) * (len(old) - count) + sizes)
    raise BlockedError(f"{label(node)} mixes channels with dimensions that are not fixed")


def before_squeeze(node: ir.Node, channels: Channels) -> Channels:
    """The channels before a Squeeze or Unsqueeze."""
    axes = attribute_ints(node, "axes", ())
    given = input_at(node, 1)
    if given is not None:
        constant = constant_of(given)
        if constant is None:
            raise BlockedError(f"the axes of {label(node)} are not constant")
        axes = tuple(constant.reshape(-1).tolist())
    if is_op(node, "Unsqueeze"):
        return np.squeeze(channels, axis=tuple(axis % channels.ndim for axis in axes))
    before = node.inputs[0]
    if before is None or before.shape is None:
        raise BlockedError(f"the shape of {label(node)} is unknown")
    if not axes:
        axes = tuple(axis for axis, dim in enumerate(before.shape) if dim == 1)
    if len(before.shape) != channels.ndim + len(axes):
        raise BlockedError(f"the axes of {label(node)} are unknown")
    return np.expand_dims(channels, tuple(axis % len(before.shape) for axis in axes))


def _product(dims: Sequence[object]) -> int | None:
    return math.prod(dims) if all(isinstance(dim, int) for dim in dims) else None  # type: ignore[arg-type]


def before_gather(node: ir.Node, channels: Channels) -> Channels:
    """The channels before a Gather of one constant index: its slice, among others that keep their size."""
    index = constant_of(input_at(node, 1))
    data = input_at(node, 0)
    if index is None or index.size != 1 or index.ndim > 1 or data is None or data.shape is None:
        raise BlockedError(f"{label(node)} does not take one fixed slice")
    rank = len(data.shape)
    axis = attribute_int(node, "axis", 0) % rank
    size = data.shape[axis]
    if not isinstance(size, int):
        raise BlockedError(f"{label(node)} slices a dimension that is not fixed")
    part = np.expand_dims(channels, axis) if index.ndim == 0 else channels
    shape = [size if position == axis else dim for position, dim in enumerate(part.shape)]
    whole = np.full(shape, KEPT, np.int64)
    at = int(index.reshape(()))
    whole[(slice(None),) * axis + (slice(at % size, at % size + 1),)] = part
    return whole


def before_split(node: ir.Node, value: ir.Value, channels: Channels) -> Channels:
    data = input_at(node, 0)
    if data is None or data.shape is None:
        raise BlockedError(f"the shape of {label(node)} is unknown")
    axis = attribute_int(node, "axis", 0) % len(data.shape)
    parts = []
    for output in node.outputs:
        size = output.shape[axis] if output.shape is not None else None
        if not isinstance(size, int):
            raise BlockedError(f"{label(node)} splits a dimension that is not fixed")
        shape = [size if position == axis else dim for position, dim in enumerate(channels.shape)]
        parts.append(np.broadcast_to(channels, shape) if output is value else np.full(shape, KEPT, np.int64))
    return np.concatenate(parts, axis=axis)
