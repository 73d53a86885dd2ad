"""Sizes and borders of images, as a graph states them."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import attribute_ints


def window_pads(
    node: ir.Node, size: tuple[int, int], kernel: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right padding of a Conv or pool; None where the attribute is not known."""
    mode = node.attributes.get("auto_pad")
    kind = "NOTSET" if mode is None else mode.as_string()
    if kind == "NOTSET":
        pads = attribute_ints(node, "pads", (0, 0, 0, 0))
        return (pads[0], pads[1], pads[2], pads[3]) if len(pads) == 4 else None
    if kind == "VALID":
        return (0, 0, 0, 0)
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    strides, dilations = attribute_ints(node, "strides", (1, 1)), attribute_ints(node, "dilations", (1, 1))
    before, after = [], []
    for length, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + dilation * (width - 1) + 1 - length, 0)
        small, large = total // 2, total - total // 2
        before.append(small if kind == "SAME_UPPER" else large)
        after.append(large if kind == "SAME_UPPER" else small)
    return before[0], before[1], after[0], after[1]


def image_size(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Channels, rows and columns of an image whose batch may be dynamic."""
    if value is None or value.shape is None or value.shape.rank() != 4:
        return None
    sizes = list(value.shape)[1:]
    if not all(isinstance(size, int) for size in sizes):
        return None
    channels, rows, columns = (int(size) for size in sizes if isinstance(size, int))
    return channels, rows, columns
