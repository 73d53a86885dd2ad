"""MaxPool and AveragePool of any rank, as ONNX defines them; the reference implementation lacks most forms."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import attribute_int, attribute_ints, label

POOLS = frozenset({"AveragePool", "MaxPool"})


def pool(node: ir.Node, x: Array) -> Array:
    """The first output of a pooling node."""
    kernel = attribute_ints(node, "kernel_shape", ())
    rank = len(kernel)
    strides = attribute_ints(node, "strides", (1,) * rank)
    dilations = attribute_ints(node, "dilations", (1,) * rank)
    sizes = x.shape[2:]
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    pads = _pads(node, sizes, reach, strides)
    # Rounding up adds a last window that hangs over the end, unless it would start in the padding there.
    over: list[int] = []
    for size, wide, step, (begin, end) in zip(sizes, reach, strides, pads, strict=True):
        left = size + begin + end - wide
        if left < 0:
            raise InputError(f"{label(node)}: its window is larger than its input")
        count = left // step + 1
        if attribute_int(node, "ceil_mode", 0) and left % step and count * step < size + begin:
            count += 1
        over.append(max(0, (count - 1) * step + wide - (size + begin + end)))
    axes = tuple(range(-rank, 0))

    def windows(array: Array) -> Array:
        view = sliding_window_view(array, reach, axis=tuple(range(2, 2 + rank)))
        every = [slice(None, None, step) for step in (*strides, *dilations)]
        found: Array = view[(slice(None), slice(None), *every)]
        return found

    def padded(array: Array, fill: float, overhang: float) -> Array:
        inner = np.pad(array, [(0, 0), (0, 0), *pads], constant_values=fill)
        return np.pad(inner, [(0, 0), (0, 0), *((0, extra) for extra in over)], constant_values=overhang)

    values = x.astype(np.float64)
    if node.op_type == "MaxPool":
        largest: Array = windows(padded(values, -math.inf, -math.inf)).max(axis=axes).astype(x.dtype)
        return largest
    counted = 1.0 if attribute_int(node, "count_include_pad", 0) else 0.0
    counts = windows(padded(np.ones((1, 1, *sizes)), counted, 0.0)).sum(axis=axes)
    means: Array = (windows(padded(values, 0.0, 0.0)).sum(axis=axes) / counts).astype(x.dtype)
    return means


def _pads(
    node: ir.Node, sizes: tuple[int, ...], reach: list[int], strides: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Elements added before and after each spatial axis."""
    rank = len(sizes)
    attribute = node.attributes.get("auto_pad")
    auto = "NOTSET" if attribute is None else attribute.as_string()
    if auto == "VALID":
        return [(0, 0)] * rank
    if not auto.startswith("SAME"):
        pads = attribute_ints(node, "pads", (0,) * (2 * rank))
        return list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, wide, step in zip(sizes, reach, strides, strict=True):
        total = max(0, (-(-size // step) - 1) * step + wide - size)
        small = total // 2
        found.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    return found
