"""Sums of products as x86 computes them without VNNI: two products at a time, in 16 bits that saturate.

VPMADDUBSW multiplies unsigned by signed bytes and adds neighbouring products with signed saturation: two products of
255 and 127 are 64770, and come out as 32767. ONNX Runtime (mlas/lib, the U8S8 kernels for AVX2 and AVX512BW) lays the
summed axis out so that neighbours are 2i and 2i + 1 of it: K of a matrix product; of a convolution the input channels
at one kernel position, then the next position (`qlinearconv.cc` stores filters so). Zero points are taken off the
sums afterwards, so what saturates are products of the stored bytes. Signed activations are stored unsigned, 128 higher.

Not affected: products with unsigned weights, and depthwise convolutions, whose kernels multiply in 16 bits and add
in 32; ConvTranspose, which has no integer kernel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, attribute_ints
from greencc.verify._integer_kernels import exact_sums
from greencc.verify._integer_values import Byte, Exact, Quantity

PAIRED = ("Conv", "Gemm", "MatMul")
_LOW, _HIGH = -(2**15), 2**15 - 1
_SIGNED_OFFSET = 128

Bytes = NDArray[np.int32]


def saturating_sums(node: ir.Node, x: Quantity, w: Quantity, opset: int) -> Exact:
    """The sums as they come out: exact ones, and what saturation takes off them."""
    exact = exact_sums(node, x, w, opset)
    if x.byte is None or w.byte is None or not w.byte.signed:
        return exact
    left, right = _unsigned(x.term.integers, x.byte), _stored(w.term.integers, w.byte)
    if node.op_type == "Conv":
        return exact + _convolution(node, left, right, _zero(x.byte), exact.shape)
    if node.op_type == "Gemm":
        left = left.T if attribute_int(node, "transA", 0) else left
        right = right.T if attribute_int(node, "transB", 0) else right
    return exact + _matrices(left, right).reshape(exact.shape)


def _zero(byte: Byte) -> int:
    return int(byte.zero) + (_SIGNED_OFFSET if byte.signed else 0)


def _unsigned(integers: Exact, byte: Byte) -> Bytes:
    return (integers + _zero(byte)).astype(np.int32)


def _stored(integers: Exact, byte: Byte) -> Bytes:
    return (integers + byte.zero).astype(np.int32)


def _matrices(left: Bytes, right: Bytes) -> Exact:
    """What saturation changes in products of matrices [..., M, K] and [..., K, N]."""
    if left.ndim == 1:
        left = left[None]
    if right.ndim == 1:
        right = right[:, None]
    if right.ndim == 2:
        rows = left.reshape(-1, left.shape[-1])
        return lost(rows, right).reshape(*left.shape[:-1], right.shape[-1])
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    lefts = np.broadcast_to(left, (*batch, *left.shape[-2:])).reshape(-1, *left.shape[-2:])
    rights = np.broadcast_to(right, (*batch, *right.shape[-2:])).reshape(-1, *right.shape[-2:])
    parts = [lost(one, other) for one, other in zip(lefts, rights, strict=True)]
    return np.stack(parts).reshape(*batch, left.shape[-2], right.shape[-1])


def lost(rows: Bytes, columns: Bytes) -> Exact:
    """What saturation changes in the sums of a product [R, K] x [K, N]; unsigned bytes by signed ones.

    Only pairs of weights that may saturate with the bytes that are there are looked at.
    """
    found = np.zeros((len(rows), columns.shape[1]))
    most = rows.max(axis=0, initial=0)
    for first in range(0, rows.shape[1], 2):
        pair = slice(first, first + 2)
        reach = columns[pair] * most[pair, None]
        risky = np.flatnonzero(
            (np.maximum(reach, 0).sum(axis=0) > _HIGH) | (np.minimum(reach, 0).sum(axis=0) < _LOW)
        )
        if len(risky):
            sums = rows[:, pair] @ columns[pair, risky]
            found[:, risky] += np.clip(sums, _LOW, _HIGH) - sums
    return found


def _convolution(node: ir.Node, x: Bytes, w: Bytes, zero: int, shape: tuple[int, ...]) -> Exact:
    """What saturation changes in a convolution; x [N, C, ...], w [O, C / groups, ...], zero pads."""
    groups, kernel = attribute_int(node, "group", 1), w.shape[2:]
    if w.shape[1] == 1 and w.shape[0] == groups:
        return np.zeros(shape)
    patches = _patches(node, x, kernel, zero, shape[2:])
    parts = []
    for group, weight in enumerate(np.split(w, groups)):
        width = weight.shape[1]
        taken = patches[..., group * width : (group + 1) * width]
        rows = taken.reshape(-1, taken.shape[-2] * width)
        columns = np.moveaxis(weight.reshape(len(weight), width, -1), 1, 2).reshape(len(weight), -1).T
        parts.append(lost(rows, columns).reshape(shape[0], -1, len(weight)))
    return np.moveaxis(np.concatenate(parts, axis=2), 2, 1).reshape(shape)


def _patches(node: ir.Node, x: Bytes, kernel: tuple[int, ...], zero: int, spatial: tuple[int, ...]) -> Bytes:
    """What each output position reads: [N, positions, kernel positions, channels]."""
    rank = len(kernel)
    strides = attribute_ints(node, "strides", (1,) * rank)
    dilations = attribute_ints(node, "dilations", (1,) * rank)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(node, x.shape[2:], spatial, spans, strides)
    padded = np.pad(x, ((0, 0), (0, 0), *pads), constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, size * step, step) for size, step in zip(spatial, strides, strict=True))
    inner = tuple(slice(None, None, step) for step in dilations)
    chosen = windows[(slice(None), slice(None), *steps, *inner)]
    count = int(np.prod(spatial))
    found = chosen.reshape(x.shape[0], x.shape[1], count, -1)
    return np.ascontiguousarray(np.moveaxis(found, 1, 3))


def _pads(
    node: ir.Node,
    sizes: tuple[int, ...],
    spatial: tuple[int, ...],
    spans: list[int],
    strides: tuple[int, ...],
) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    rank = len(sizes)
    attribute = node.attributes.get("auto_pad")
    mode = "NOTSET" if attribute is None else attribute.as_string()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        found = []
        for size, out, span, stride in zip(sizes, spatial, spans, strides, strict=True):
            total = max((out - 1) * stride + span - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if mode == "SAME_UPPER" else (more, less))
        return found
    given = attribute_ints(node, "pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
    return list(zip(given[:rank], given[rank:], strict=True))
