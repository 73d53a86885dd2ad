"""The integer kernels: what weighted and arithmetic operators compute on quantized tensors.

Each takes the operands of a node and returns its value as integers and scales, or None where a runtime has no integer
kernel for such operands and computes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import attribute_int, label
from greencc.verify._integer_float import compute
from greencc.verify._integer_values import Exact, Float32, Quantity, Term, along

Operand = Quantity | Array | None
Kernel = Callable[[ir.Node, Sequence[Operand], int], Quantity | None]

# They give out elements of their first input.
MOVEMENT = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
# Largest relative difference of a bias's scale from the product of the other two: both are rounded to float32.
_SAME_SCALE = 1e-6
_ACCUMULATOR = 2.0**31


Sum = Callable[[ir.Node, Quantity, Quantity, int], Exact]


def product(
    node: ir.Node, operands: Sequence[Operand], opset: int, *, sums: Sum | None = None
) -> Quantity | None:
    """Conv, ConvTranspose, Gemm, MatMul: sum of (q_x - z_x)(q_w - z_w) plus the INT32 bias, with scale s_x s_w.

    `sums` computes those sums where they are not exact.
    """
    x, w = operands[0], operands[1]
    if not (isinstance(x, Quantity) and x.stored and isinstance(w, Quantity) and w.stored):
        return None
    if x.term.scale.size != 1 or _factor(node, "alpha") != 1.0 or _factor(node, "beta") != 1.0:
        return None
    scale = _channel_scale(node, w.term)
    if scale is None:
        return None
    accumulators = (sums or exact_sums)(node, x, w, opset)
    scale = (x.term.scale.reshape(()) * scale).astype(np.float32)
    bias = operands[2] if len(operands) > 2 else None
    offset: Float32 | None = None
    # One value per channel: axis 1 of a convolution's output, the last of a matrix.
    axis, rank = (1 if node.op_type.startswith("Conv") else -1), accumulators.ndim
    if isinstance(bias, Quantity) and bias.stored and _is_scale(bias.term, scale):
        accumulators = accumulators + _channels(bias.term.integers, axis, rank)
    elif bias is not None:
        real = bias.real() if isinstance(bias, Quantity) else bias
        offset = _channels(real, axis, rank).astype(np.float32)
    if np.abs(accumulators).max(initial=0.0) >= _ACCUMULATOR:
        raise InputError(
            f"{label(node)}: a sum leaves INT32",
            hint="quantize its weights with larger scales, or leave it in float",
        )
    shaped = _channels(scale, axis, rank).astype(np.float32)
    return Quantity((Term(accumulators, shaped),), x.dtype, offset=offset)


def add(node: ir.Node, operands: Sequence[Operand], opset: int) -> Quantity | None:
    """Add and Sub: both operands on the scale of the result, then one rounding."""
    stored = _all_stored(operands)
    if stored is None:
        return None
    first, second = stored
    if node.op_type == "Sub":
        second = Term(-second.integers, second.scale)
    return Quantity((first, second), _dtype(operands))


def multiply(node: ir.Node, operands: Sequence[Operand], opset: int) -> Quantity | None:
    """Mul: (q_a - z_a)(q_b - z_b) with scale s_a s_b."""
    stored = _all_stored(operands)
    if stored is None:
        return None
    first, second = stored
    scale = (first.scale * second.scale).astype(np.float32)
    return Quantity((Term(first.integers * second.integers, scale),), _dtype(operands))


def average(node: ir.Node, operands: Sequence[Operand], opset: int) -> Quantity | None:
    """AveragePool, GlobalAveragePool: the mean of q - z, its scale kept."""
    stored = _all_stored(operands)
    if stored is None:
        return None
    mean = compute(node, [stored[0].integers], opset)[0]
    return Quantity((Term(mean, stored[0].scale),), _dtype(operands))


def move(node: ir.Node, operands: Sequence[Operand], opset: int) -> list[Quantity] | None:
    """Movements: the same on integers as on what they stand for; 0, which is exact, pads."""
    x = operands[0]
    if not isinstance(x, Quantity) or not x.stored or x.term.scale.size != 1:
        return None
    rest = [value.real() if isinstance(value, Quantity) else value for value in operands[1:]]
    results = compute(node, [x.term.integers, *rest], opset)
    return [Quantity((Term(result, x.term.scale),), x.dtype, stored=True, byte=x.byte) for result in results]


def bound(node: ir.Node, operands: Sequence[Operand], opset: int) -> Quantity | None:
    """Relu and Clip: bounds on what comes before, so that it is still rounded only once."""
    x = operands[0]
    if not isinstance(x, Quantity):
        return None
    if node.op_type == "Relu":
        return x.clipped(0.0, np.inf)
    return x.clipped(_bound(node, operands, 1, "min", -np.inf), _bound(node, operands, 2, "max", np.inf))


KERNELS: dict[str, Kernel] = {
    "Add": add,
    "AveragePool": average,
    "Clip": bound,
    "Conv": product,
    "ConvTranspose": product,
    "Gemm": product,
    "GlobalAveragePool": average,
    "MatMul": product,
    "Mul": multiply,
    "Relu": bound,
    "Sub": add,
}


def _all_stored(operands: Sequence[Operand]) -> list[Term] | None:
    """The terms of the operands when all are quantized with one scale each."""
    terms = [value.term for value in operands if isinstance(value, Quantity) and value.stored]
    if len(terms) < len(operands) or any(term.scale.size != 1 for term in terms):
        return None
    return [Term(term.integers, term.scale.reshape(())) for term in terms]


def _dtype(operands: Sequence[Operand]) -> np.dtype[np.generic]:
    first = operands[0]
    assert isinstance(first, Quantity)
    return first.dtype


def exact_sums(node: ir.Node, x: Quantity, w: Quantity, opset: int) -> Exact:
    """The sums of products in as many bits as they need."""
    return _accumulate(node, x.term.integers, w.term.integers, opset)


def _accumulate(node: ir.Node, x: Exact, w: Exact, opset: int) -> Exact:
    """The sums of products, exact: float64 holds integers up to 2^53."""
    if node.op_type == "ConvTranspose" and (groups := attribute_int(node, "group", 1)) > 1:
        # The ONNX reference takes only one sample with groups.
        parts = zip(np.split(x, groups, axis=1), np.split(w, groups, axis=0), strict=True)
        pieces = [compute(node, list(part), opset, without=("group",))[0] for part in parts]
        return np.concatenate(pieces, axis=1)
    result: Exact = compute(node, [x, w], opset)[0]
    return result


def _channel_scale(node: ir.Node, weight: Term) -> Float32 | None:
    """The scale of a weight as a scalar or one per output channel; None where it varies along the sum."""
    scale, shape = weight.scale, weight.integers.shape
    if scale.size == 1:
        return scale.reshape(())
    if node.op_type == "Conv":
        axis = 0
    elif node.op_type == "ConvTranspose":
        axis = 1
    else:
        axis = len(shape) - (2 if node.op_type == "Gemm" and attribute_int(node, "transB", 0) else 1)
    if scale.ndim != len(shape) or scale.shape[axis] != scale.size:
        return None
    repeats = attribute_int(node, "group", 1) if node.op_type == "ConvTranspose" else 1
    return np.tile(scale.reshape(-1), repeats)


def _channels(values: Array, axis: int, rank: int) -> Array:
    """One value, or one per channel, shaped for the output; anything else as it is."""
    return along(values, axis, rank) if values.size == max(values.shape, default=1) else values


def _is_scale(bias: Term, scale: Float32) -> bool:
    """True when the integers of a bias can be added to the accumulators."""
    return bias.scale.size in (1, scale.size) and np.allclose(
        bias.scale.reshape(-1), scale.reshape(-1), rtol=_SAME_SCALE, atol=0.0
    )


def _factor(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else attribute.as_float()


def _bound(node: ir.Node, operands: Sequence[Operand], index: int, name: str, missing: float) -> float:
    """A bound of a Clip: an attribute before opset 11, an operand since."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return attribute.as_float()
    value = operands[index] if index < len(operands) else None
    if value is None:
        return missing
    array = value.real() if isinstance(value, Quantity) else value
    return float(array.reshape(()))
