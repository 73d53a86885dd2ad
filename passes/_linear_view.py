"""Weighted operators as matrices: rows of inputs times a weight matrix give rows of outputs.

For Conv, ConvTranspose, Gemm and MatMul with a constant weight, `columns(x) @ matrix(w).T + bias` is the output,
group by group. A row is one output position of one sample, a column one weight of an output channel. What rounds,
prunes or refits weights from calibration data (AdaRound, GPTQ, bias correction, ridge repair) works on this view and
never sees strides, pads or transposed layouts.

Convolution by unfolding: Chellapilla et al. 2006. A ConvTranspose is the convolution of its input with zeros
inserted between the samples and the kernel mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from greencc.core.data import Array
from greencc.core.graph import attribute_int, attribute_ints, constant_tensor, input_at

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class LinearView:
    """One weighted node; make it with `linear_view`.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight_shape: Of the weight as the node stores it.
        groups: Convolution groups; 1 for the others.
        outputs: Output channels of one group.
        inputs: Weights of one output channel (input channels of a group times the kernel's size).
        kernel: Spatial kernel shape, () for Gemm and MatMul.
    """

    node: ir.Node
    weight_shape: tuple[int, ...]
    groups: int
    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()

    def matrix(self, weight: Array) -> Array:
        """The weight as (groups, outputs, inputs)."""
        kind = self.node.op_type
        if kind == "Conv":
            return weight.reshape(self.groups, self.outputs, self.inputs)
        if kind == "ConvTranspose":
            # (groups * in, out, *kernel) -> (groups, out, in, *kernel mirrored)
            parts = weight.reshape(self.groups, -1, self.outputs, *self.kernel)
            mirrored = np.flip(parts.swapaxes(1, 2), axis=tuple(range(3, 3 + len(self.kernel))))
            return np.ascontiguousarray(mirrored).reshape(self.groups, self.outputs, self.inputs)
        return (weight if self._stored_transposed else weight.T)[np.newaxis]

    def stored(self, matrix: Array) -> Array:
        """The inverse of `matrix`: in the layout of the node's weight."""
        kind = self.node.op_type
        if kind == "Conv":
            return np.ascontiguousarray(matrix).reshape(self.weight_shape)
        if kind == "ConvTranspose":
            parts = matrix.reshape(self.groups, self.outputs, -1, *self.kernel)
            mirrored = np.flip(parts, axis=tuple(range(3, 3 + len(self.kernel)))).swapaxes(1, 2)
            return np.ascontiguousarray(mirrored).reshape(self.weight_shape)
        return np.ascontiguousarray(matrix[0] if self._stored_transposed else matrix[0].T)

    def row_count(self, y: Array) -> int:
        """Rows that an output array has."""
        return y.size // (self.groups * self.outputs)

    def columns(self, x: Array, pick: NDArray[np.int64] | None = None) -> Array:
        """The input of each output position, (groups, rows, inputs).

        Args:
            x: The node's input.
            pick: Which rows, as indices into the flattened (sample, position); default all. Only these are unfolded.
        """
        if not self.kernel:
            flat = x.reshape(-1, x.shape[-1])
            return (flat if pick is None else flat[pick])[np.newaxis]
        windows = self._windows(x)
        spatial = windows.shape[2 : 2 + len(self.kernel)]
        index = np.arange(len(x) * math.prod(spatial)) if pick is None else pick
        where = np.unravel_index(index, (len(x), *spatial))
        # (samples, *positions, channels, *kernel): still a view.
        ordered = np.moveaxis(windows, 1, 1 + len(self.kernel))
        picked = ordered[where]
        parts = picked.reshape(len(index), self.groups, self.inputs)
        return np.ascontiguousarray(parts.swapaxes(0, 1))

    def targets(self, y: Array, pick: NDArray[np.int64] | None = None) -> Array:
        """The rows of an output array, (groups, rows, outputs)."""
        channels = self.groups * self.outputs
        flat = np.moveaxis(y, 1, -1).reshape(-1, channels) if self.kernel else y.reshape(-1, channels)
        flat = flat if pick is None else flat[pick]
        return np.ascontiguousarray(flat.reshape(-1, self.groups, self.outputs).swapaxes(0, 1))

    @property
    def _stored_transposed(self) -> bool:
        """Whether Gemm stores (outputs, inputs)."""
        return self.node.op_type == "Gemm" and bool(attribute_int(self.node, "transB", 0))

    def _windows(self, x: Array) -> Array:
        """(samples, channels, *positions, *kernel), a view of the padded input."""
        rank = len(self.kernel)
        strides = attribute_ints(self.node, "strides", (1,) * rank)
        dilations = attribute_ints(self.node, "dilations", (1,) * rank)
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, self.kernel, strict=True)]
        begins, ends = self._pads(x.shape[2:], strides, reach)
        if self.node.op_type == "ConvTranspose":
            x = _spread(x, strides)
            strides = (1,) * rank
        x = _pad(x, begins, ends)
        windows = sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
        every = tuple(slice(None, None, step) for step in strides)
        return windows[(slice(None), slice(None), *every, *(slice(None, None, d) for d in dilations))]

    def _pads(
        self, size: tuple[int, ...], strides: tuple[int, ...], reach: list[int]
    ) -> tuple[list[int], list[int]]:
        """Zeros before and after each spatial axis of the (spread) input; negative ones cut."""
        rank = len(self.kernel)
        pads = attribute_ints(self.node, "pads", (0,) * (2 * rank))
        begins, ends = list(pads[:rank]), list(pads[rank:])
        attribute = self.node.attributes.get("auto_pad")
        auto = "NOTSET" if attribute is None else attribute.as_string()
        if auto == "VALID":
            begins, ends = [0] * rank, [0] * rank
        transposed = self.node.op_type == "ConvTranspose"
        extra = attribute_ints(self.node, "output_padding", (0,) * rank) if transposed else (0,) * rank
        wanted = attribute_ints(self.node, "output_shape", ()) if transposed else ()
        for axis in range(rank):
            if transposed and (wanted or auto.startswith("SAME")):
                out = wanted[axis] if wanted else size[axis] * strides[axis]
                total = strides[axis] * (size[axis] - 1) + extra[axis] + reach[axis] - out
            elif auto.startswith("SAME"):
                total = max(
                    0, (-(-size[axis] // strides[axis]) - 1) * strides[axis] + reach[axis] - size[axis]
                )
            else:
                continue
            half = total // 2
            small_first = auto == "SAME_UPPER"
            begins[axis], ends[axis] = (half, total - half) if small_first else (total - half, half)
        if transposed:
            begins = [r - 1 - b for r, b in zip(reach, begins, strict=True)]
            ends = [r - 1 - e + o for r, e, o in zip(reach, ends, extra, strict=True)]
        return begins, ends


def linear_view(node: ir.Node) -> LinearView | None:
    """The view of a node, or None when it is no weighted operator or its weight is no known constant."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in LINEAR:
        return None
    tensor = constant_tensor(input_at(node, 1))
    if tensor is None or input_at(node, 0) is None or constant_tensor(input_at(node, 0)) is not None:
        return None
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    if not math.prod(shape):
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        if len(shape) < 3:
            return None
        groups = attribute_int(node, "group", 1)
        outputs = shape[0] // groups if node.op_type == "Conv" else shape[1]
        channels = shape[1] if node.op_type == "Conv" else shape[0] // groups
        return LinearView(node, shape, groups, outputs, channels * math.prod(shape[2:]), shape[2:])
    if len(shape) != 2 or (node.op_type == "Gemm" and attribute_int(node, "transA", 0)):
        return None
    transposed = node.op_type == "Gemm" and bool(attribute_int(node, "transB", 0))
    outputs, inputs = shape if transposed else (shape[1], shape[0])
    return LinearView(node, shape, 1, outputs, inputs)


def _spread(x: Array, strides: tuple[int, ...]) -> Array:
    """Insert strides - 1 zeros between neighbours."""
    if all(step == 1 for step in strides):
        return x
    size = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], strides, strict=True)]
    spread = np.zeros((*x.shape[:2], *size), x.dtype)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in strides))] = x
    return spread


def _pad(x: Array, begins: list[int], ends: list[int]) -> Array:
    cut = [slice(max(0, -b), n - max(0, -e)) for n, b, e in zip(x.shape[2:], begins, ends, strict=True)]
    x = x[(slice(None), slice(None), *cut)]
    widths = [(max(0, b), max(0, e)) for b, e in zip(begins, ends, strict=True)]
    return np.pad(x, [(0, 0), (0, 0), *widths]) if any(map(any, widths)) else x
