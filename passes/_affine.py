"""Nodes that compute `scale * x + shift` with constant scale and shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from greencc.core.graph import attribute_int, constant_of, is_op
from greencc.passes._rewriter import Scope

Float64 = NDArray[np.float64]
FLOAT_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16},
)
AFFINE_OPS = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Affine:
    """`node` computes `scale * x + shift`; both arrays are float64 and broadcast against `x` from the right."""

    node: ir.Node
    x: ir.Value
    scale: Float64
    shift: Float64

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]


def affine_of(node: ir.Node) -> Affine | None:
    """Read Add, Sub, Mul or Div of a floating-point value and a constant.

    Division by zero, and constants that widen the rank of `x`, are not affine maps of `x`: None.
    """
    if not is_op(node, *AFFINE_OPS) or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None:
        return None
    left, right = constant_of(first), constant_of(second)
    if (left is None) == (right is None):
        return None
    x, constant = (second, left) if right is None else (first, right)
    if x.dtype not in FLOAT_TYPES or constant is None or not _keeps_shape(x, constant):
        return None
    c = constant.astype(np.float64)
    one, zero = np.ones_like(c), np.zeros_like(c)
    if node.op_type == "Add":
        return Affine(node, x, one, c)
    if node.op_type == "Mul":
        return Affine(node, x, c, zero)
    if node.op_type == "Sub":
        return Affine(node, x, one, -c) if right is not None else Affine(node, x, -one, c)
    if right is None or not c.all():
        return None
    return Affine(node, x, 1.0 / c, zero)


def batch_norm_of(node: ir.Node, scope: Scope) -> tuple[Affine, int] | str:
    """Read an inference BatchNormalization with constant parameters: (map over channels, channel count).

    The arrays have shape [C]; the channel axis is 1. Returns the reason when it cannot be read:
    scale * (x - mean) / sqrt(var + epsilon) + bias is affine only when all four are constant (Ioffe and
    Szegedy, arXiv:1502.03167, section 3.1).
    """
    if attribute_int(node, "training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        return "normalizes with batch statistics"
    if scope.opset() < 9 and not attribute_int(node, "spatial", 1):
        return "normalizes every position on its own"
    if any(output.is_graph_output() for output in node.outputs[1:]):
        return "has its statistics as outputs"
    parameters = [constant_of(value) for value in node.inputs[1:5]]
    x = node.inputs[0]
    if x is None or len(parameters) != 4 or any(parameter is None for parameter in parameters):
        return "has parameters that are not constant"
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters if p is not None)
    epsilon_attribute = node.attributes.get("epsilon")
    epsilon = 1e-5 if epsilon_attribute is None else epsilon_attribute.as_float()
    denominator = variance + epsilon
    if not np.all(denominator > 0):
        return "has a variance that is not positive"
    scale = gamma / np.sqrt(denominator)
    return Affine(node, x, scale, beta - scale * mean), int(scale.size)


def per_channel(array: Float64, rank: int | None, axis: int, channels: int) -> Float64 | None:
    """Spread a constant that only varies along `axis` of a rank-`rank` value to shape [channels], or None.

    `axis` may be negative; `rank` None means unknown, where only scalars can be placed (and a negative axis).
    """
    if array.ndim == 0 or array.size == 1:
        return np.full(channels, array.reshape(-1)[0])
    if rank is None and axis >= 0:
        return None
    from_right = axis if axis < 0 or rank is None else axis - rank
    if -from_right > array.ndim or array.size != array.shape[from_right] or array.size != channels:
        return None
    return array.reshape(-1)


def _keeps_shape(x: ir.Value, constant: NDArray[Any]) -> bool:
    """Whether broadcasting with the constant leaves the shape of `x` as it is."""
    if constant.ndim == 0:
        return True
    if x.shape is None or constant.ndim > len(x.shape):
        return False
    dims = list(x.shape)[len(x.shape) - constant.ndim :]
    return all(
        size == 1 or (isinstance(dim, int) and dim == size)
        for size, dim in zip(constant.shape, dims, strict=True)
    )
