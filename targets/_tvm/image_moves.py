"""Movements of pixels on NHWC values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, constant_of, input_at, is_op

_AXES = {2: 1, 3: 2}
"""Rows and columns, from NCHW to NHWC."""


def moved_image(node: ir.Node, image: Any) -> Any:
    """What a DepthToSpace, or a Slice of rows and columns, makes of an NHWC value; None if it is something else."""
    if is_op(node, "DepthToSpace"):
        return _depth_to_space(node, image)
    if is_op(node, "Slice"):
        return _slice(node, image)
    return None


def _depth_to_space(node: ir.Node, image: Any) -> Any:
    from tvm import relax

    size, mode = attribute_int(node, "blocksize", 1), node.attributes.get("mode")
    batch, rows, columns, channels = image.ty.shape
    depth = channels // (size * size)
    first = mode is not None and mode.as_string() == "CRD"
    inner = [depth, size, size] if first else [size, size, depth]
    split = relax.op.reshape(image, relax.ShapeExpr([batch, rows, columns, *inner]))
    order = (0, 1, 4, 2, 5, 3) if first else (0, 1, 3, 2, 4, 5)
    return relax.op.reshape(
        relax.op.permute_dims(split, order), relax.ShapeExpr([batch, rows * size, columns * size, depth])
    )


def _slice(node: ir.Node, image: Any) -> Any:
    from tvm import relax

    given = [constant_of(input_at(node, index)) for index in range(1, 5)]
    starts, ends, axes, steps = given
    if starts is None or ends is None or axes is None or (steps is not None and np.any(steps != 1)):
        return None
    if len(node.inputs) > 4 and node.inputs[4] is not None and steps is None:
        return None
    numbers = [int(axis) % 4 for axis in axes]
    if any(number not in _AXES for number in numbers):
        return None
    return relax.op.strided_slice(
        image, [_AXES[number] for number in numbers], starts.tolist(), ends.tolist(), assume_inbound=False
    )
