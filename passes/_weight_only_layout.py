"""Where a stored weight has its rows and blocks, and which form each of its readers can take.

Four forms. *Packed product*: ``com.microsoft::MatMulNBits``, whose kernels read the blocks as they are. *Packed
table*: ``com.microsoft::GatherBlockQuantized``. *Rows*: a Gather of integer rows, which alone are dequantized.
*Dequantized*: the weight goes through a DequantizeLinear, standard ONNX (blocks and 4 bits since opset 21); how often
that is computed is the runtime's affair. ONNX Runtime turns it into MatMulNBits before a MatMul and computes it
again in every run before a Conv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.capabilities import Capabilities
from greencc.core.data import Array
from greencc.core.graph import attribute_int, input_at, is_op, label, opset_of, static_shape
from greencc.passes._block_quantize import Grid

MICROSOFT = "com.microsoft"
_BLOCK_OPSET = 21


class WeightForm(Enum):
    """What a product with integer weights becomes."""

    AUTO = "auto"
    MATMUL_NBITS = "matmul-nbits"
    DEQUANTIZE = "dequantize"


class Use(Enum):
    """The form one reader of a weight takes."""

    PRODUCT = "packed product"
    TABLE = "packed table"
    ROWS = "rows"
    DEQUANTIZED = "dequantized"


@dataclass(frozen=True)
class Layout:
    """Where a stored weight has its rows: `axis` is that of the scales, or that of the blocks."""

    blocked: bool
    axis: int

    def matrix(self, weight: Array) -> Array:
        """(rows, columns) with a row per output channel, or per row of a table; a view where it can be."""
        if self.blocked:
            return weight if self.axis == 1 else weight.T
        moved = np.moveaxis(weight, self.axis, 0)
        return moved if moved.ndim == 2 else moved.reshape(moved.shape[0], -1)

    def stored(self, matrix: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
        """The inverse of `matrix`."""
        if self.blocked:
            return np.ascontiguousarray(matrix if self.axis == 1 else matrix.T)
        moved = [shape[self.axis], *(size for index, size in enumerate(shape) if index != self.axis)]
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, self.axis))

    def parameters(self, values: Array) -> Array:
        """Scales or zero points (rows, blocks) as DequantizeLinear takes them."""
        if not self.blocked:
            return values.reshape(-1)
        return np.ascontiguousarray(values if self.axis == 1 else values.T)


def layout_of(node: ir.Node, index: int, rank: int, *, blocked: bool) -> Layout | None:
    """The layout of the weight that `node` reads as input `index`, or None where it is no weight that can be rounded.

    Args:
        node: The reader.
        index: Of the input.
        rank: Of the weight.
        blocked: Products and tables have blocks along the inputs; otherwise, and convolutions always, there is
            one scale per output channel, and per column of a table.
    """
    if rank < 2:
        return None
    if is_op(node, "Gather") and index == 0:
        if attribute_int(node, "axis", 0) or (blocked and rank != 2):
            return None
        return Layout(blocked, 1 if blocked else rank - 1)
    if index != 1:
        return None
    if is_op(node, "Conv"):
        return Layout(False, 0)
    if is_op(node, "ConvTranspose"):
        return Layout(False, 1)
    if is_op(node, "Gemm"):
        inputs = 1 if attribute_int(node, "transB", 0) else 0
        return Layout(blocked, inputs if blocked else 1 - inputs)
    if is_op(node, "MatMul"):
        if blocked:
            return Layout(True, 0) if rank == 2 else None
        return Layout(False, rank - 1)
    return None


def use_of(
    node: ir.Node, layout: Layout, grid: Grid, form: WeightForm, model: ir.Model, facts: Capabilities
) -> Use | str:
    """The form a reader takes, or why it cannot have this weight."""
    suffix = "" if grid.bits == 4 else f":{grid.bits}"
    packs = layout.blocked and form is not WeightForm.DEQUANTIZE
    if node.op_type == "Gather":
        if grid.bits == 4 and not layout.blocked:
            return "the 4-bit rows of a table need a block size"
        columns = input_at(node, 0)
        even = columns is not None and (static_shape(columns) or (1,))[-1] * grid.bits % 8 == 0
        if packs and even and facts.runs(MICROSOFT, f"GatherBlockQuantized{suffix}"):
            return Use.TABLE
        return _with_opset(Use.ROWS if grid.bits == 8 else Use.DEQUANTIZED, layout, grid, model, facts)
    if node.op_type in ("Gemm", "MatMul"):
        problem = _not_packable(node)
        if packs and problem is None:
            if facts.runs(MICROSOFT, f"MatMulNBits{suffix}"):
                return Use.PRODUCT
            problem = f"the target has no MatMulNBits for {grid.bits} bits"
        if form is WeightForm.MATMUL_NBITS:
            return f"{label(node)}: {problem or 'MatMulNBits needs a block size'}"
    return _with_opset(Use.DEQUANTIZED, layout, grid, model, facts)


def _not_packable(node: ir.Node) -> str | None:
    """Why a product is no MatMulNBits, or None."""
    source = input_at(node, 0)
    if source is None or source.shape is None or source.shape.rank() < 2:
        return "its input is a vector, or of unknown rank"
    if node.op_type == "Gemm":
        if attribute_int(node, "transA", 0):
            return "it transposes its activations"
        if any(_factor(node, name) != 1.0 for name in ("alpha", "beta")):
            return "its alpha or beta is not 1"
    return None


def _factor(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def _with_opset(use: Use, layout: Layout, grid: Grid, model: ir.Model, facts: Capabilities) -> Use | str:
    """The use, or why the model's opset or the target has no DequantizeLinear for it."""
    if (layout.blocked or grid.bits == 4) and opset_of(model) < _BLOCK_OPSET:
        return (
            f"DequantizeLinear has blocks and 4-bit weights since opset {_BLOCK_OPSET}, the model has "
            f"{opset_of(model)}; run upgrade-opset with target = {_BLOCK_OPSET} and below = {_BLOCK_OPSET} before"
        )
    if grid.bits == 4 and not facts.runs("", "DequantizeLinear:int4"):
        return "the target has no DequantizeLinear for 4-bit weights"
    return use
