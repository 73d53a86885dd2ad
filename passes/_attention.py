"""Reads scaled dot-product attention out of the operators around a Softmax; changes nothing.

Axes are followed as letters: b (batch), s (sequence), n (heads), h (size of a head), p (which of query, key and
value, where one projection holds all three). A value reached through Reshape, Transpose and Gather is known
by the letters of its axes, whichever way the exporter went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from greencc.core.graph import attribute_int, attribute_ints, constant_of, input_at, is_op, sole_consumer
from greencc.passes._rewriter import Scope, float_scalar, local_producer
from greencc.passes._symbolic import dimension

_MAX_DEPTH = 8
_ABSORBING = -1e30
"""Scores vanish beside a fill value below this: float32 has 24 bits."""


@dataclass(frozen=True)
class Heads:
    """Query, key or value, as the source an attention operator takes.

    Attributes:
        source: Shape (batch, sequence, part * heads * size).
        part: Which third of the last axis of `source`; None: all of it.
        count: Number of heads.
        size: Size of a head.
        factor: A scalar the value is multiplied by on its way from the source.
    """

    source: ir.Value
    part: int | None
    count: int
    size: int
    factor: float


@dataclass(frozen=True)
class Mask:
    """What is added to the scores.

    Attributes:
        value: The additive mask, or the condition of a Where.
        fill: The score where the condition says so; None for an additive mask.
        keep: The side of the condition where scores are kept.
    """

    value: ir.Value
    fill: float | None = None
    keep: bool = True


@dataclass(frozen=True)
class Attention:
    """softmax(scale * Q K^T + mask) V.

    Attributes:
        query, key, value: The operands.
        scale: All scalar factors before the softmax, as one.
        mask: None without a mask.
        heads: The result, axes (b, n, s, h), or (b, s, h) where there are no heads.
    """

    query: Heads
    key: Heads
    value: Heads
    scale: float
    mask: Mask | None
    heads: ir.Value


def read_attention(softmax: ir.Node, scope: Scope) -> Attention | str | None:
    """Attention around a Softmax, the reason why it cannot be expressed by one operator, or None: no attention."""
    scores, weighted = softmax.inputs[0], _product_with_value(softmax, scope)
    if scores is None or weighted is None:
        return None
    scores, mask = _step_over_mask(scores, scope)
    scores, scale = _step_over_factors(scores, scope)
    product = local_producer(scores, scope, "MatMul")
    if product is None or any(constant_of(value) is not None for value in product.inputs):
        return None
    reason = _read_elsewhere(softmax, product)
    if reason is not None:
        return reason
    if scores.dtype is not ir.DataType.FLOAT or scores.shape is None:
        return "is not float32 of known rank"
    rank = len(scores.shape)
    if attribute_int(softmax, "axis", -1) not in (-1, rank - 1) or scope.opset() < 13:
        return "does not normalize over the last axis"
    letters = ("bnsh", "bnhs") if rank == 4 else ("bsh", "bhs")
    operands: list[Heads] = []
    for role, operand, wanted in (
        ("query", product.inputs[0], letters[0]),
        ("key", product.inputs[1], letters[1]),
        ("value", weighted.inputs[1], letters[0]),
    ):
        found = _heads(operand, wanted, scope)
        if isinstance(found, str):
            return f"has a {role} that {found}"
        operands.append(found)
    query, key, value = operands
    if not np.isclose(value.factor, 1.0, rtol=0, atol=0):
        return "has a value that is scaled on its way"
    if mask is not None and scores.shape is not None:
        reason = _mask_problem(mask, scores)
        if reason is not None:
            return f"has a mask that {reason}"
    return _agreement(query, key, value) or Attention(
        query, key, value, scale * query.factor * key.factor, mask, weighted.outputs[0]
    )


def _product_with_value(softmax: ir.Node, scope: Scope) -> ir.Node | None:
    """The MatMul that weighs the value; the weights may be read elsewhere too, which is refused later."""
    for use in softmax.outputs[0].uses():
        if use.idx == 0 and is_op(use.node, "MatMul") and use.node.graph is scope.graph:
            return use.node if constant_of(use.node.inputs[1]) is None else None
    return None


def _read_elsewhere(softmax: ir.Node, product: ir.Node) -> str | None:
    """Why the scores or the weights cannot vanish inside one operator, or None."""
    if sole_consumer(softmax.outputs[0]) is None:
        return "gives weights that are read elsewhere"
    node = product
    while node is not softmax:
        following = sole_consumer(node.outputs[0])
        if following is None:
            return "normalizes scores that are read elsewhere"
        node = following
    return None


def _step_over_mask(scores: ir.Value, scope: Scope) -> tuple[ir.Value, Mask | None]:
    """Step back over Add(scores, mask) or Where(condition, scores, fill)."""
    node = local_producer(scores, scope, "Add", "Where")
    if node is None:
        return scores, None
    if is_op(node, "Where"):
        condition, chosen, other = node.inputs
        for kept, fill, keep in ((chosen, other, True), (other, chosen, False)):
            number = float_scalar(fill)
            if condition is not None and kept is not None and number is not None:
                return kept, Mask(condition, number, keep)
        return scores, None
    for index in (0, 1):
        inner, mask = node.inputs[index], node.inputs[1 - index]
        if inner is None or mask is None:
            continue
        before, _ = _step_over_factors(inner, scope)
        if local_producer(before, scope, "MatMul") is not None:
            return inner, Mask(mask)
    return scores, None


def _step_over_factors(value: ir.Value, scope: Scope) -> tuple[ir.Value, float]:
    """Step back over products with and quotients by scalar constants: (the value before, the factor)."""
    factor = 1.0
    while (found := _factor(value, scope)) is not None:
        value, factor = found[0], factor * found[1]
    return value, factor


def _factor(value: ir.Value, scope: Scope) -> tuple[ir.Value, float] | None:
    node = local_producer(value, scope, "Mul", "Div")
    if node is None:
        return None
    for index in (0, 1) if is_op(node, "Mul") else (0,):
        inner, other = node.inputs[index], node.inputs[1 - index]
        number, array = float_scalar(other), constant_of(other)
        if inner is None or inner.shape is None or number is None or array is None:
            continue
        if array.ndim <= len(inner.shape) and np.isfinite(number) and number != 0:
            return inner, number if is_op(node, "Mul") else 1.0 / number
    return None


def _heads(value: ir.Value | None, wanted: str, scope: Scope) -> Heads | str:
    """Follow an operand back to its source; a string says why that cannot be done."""
    # Position in the axes of the value reached so far, for each axis of the operand.
    order = list(range(len(wanted)))
    factor = 1.0
    for _ in range(_MAX_DEPTH):
        if value is None or value.shape is None:
            break
        if "".join("bsh"[axis] for axis in order if axis < 3) == wanted and len(value.shape) == 3:
            # Without heads the first value with the right axes is as good a source as any before it.
            return _source(value, order, wanted, factor, scope)
        scaled = _factor(value, scope)
        if scaled is not None:
            value, factor = scaled[0], factor * scaled[1]
            continue
        transpose = local_producer(value, scope, "Transpose")
        if transpose is not None:
            perm = attribute_ints(transpose, "perm", range(len(order) - 1, -1, -1))
            order = [perm[axis] for axis in order]
            value = transpose.inputs[0]
            continue
        return _source(value, order, wanted, factor, scope)
    return "cannot be followed to its source"


def _source(
    value: ir.Value, order: list[int], wanted: str, factor: float, scope: Scope
) -> Heads | Literal["is not (batch, sequence, heads * size) split into heads"]:
    problem: Literal["is not (batch, sequence, heads * size) split into heads"] = (
        "is not (batch, sequence, heads * size) split into heads"
    )
    if wanted in ("bsh", "bhs"):
        letters, part, source = "bsh", None, value
    else:
        gather = local_producer(value, scope, "Gather")
        if gather is None:
            letters, part, split = "bsnh", None, value
        else:
            packed = _part(gather, scope)
            if packed is None:
                return problem
            letters, part, split = packed
        reshape = local_producer(split, scope, "Reshape")
        if reshape is None or reshape.inputs[0] is None or not _splits(reshape):
            return problem
        source = reshape.inputs[0]
        count, size = (dimension(split, axis) for axis in (-2, -1))
    if "".join(letters[axis] for axis in order) != wanted or source.shape is None or len(source.shape) != 3:
        return problem
    if wanted in ("bsh", "bhs"):
        count, size = 1, dimension(source, 2)
    if not isinstance(count, int) or not isinstance(size, int):
        return problem
    return Heads(source, part, count, size, factor)


def _part(gather: ir.Node, scope: Scope) -> tuple[str, int, ir.Value] | None:
    """One of three stacked operands: (letters of its axes, which one, the split projection (b, s, p, n, h))."""
    index = constant_of(input_at(gather, 1))
    if index is None or index.ndim or not -3 <= int(index) < 3:
        return None
    value = gather.inputs[0]
    if value is None or value.shape is None or len(value.shape) != 5:
        return None
    letters = "bspnh"
    transpose = local_producer(value, scope, "Transpose")
    if transpose is not None:
        perm = attribute_ints(transpose, "perm", range(4, -1, -1))
        letters = "".join(letters[axis] for axis in perm)
        value = transpose.inputs[0]
    axis = attribute_int(gather, "axis", 0) % 5
    if value is None or letters[axis] != "p" or dimension(value, 2) != 3:
        return None
    return letters.replace("p", ""), int(index) % 3, value


def _splits(reshape: ir.Node) -> bool:
    """Whether a Reshape only splits the last axis of a (b, s, d) value."""
    source, result = reshape.inputs[0], reshape.outputs[0]
    if source is None or source.shape is None or result.shape is None or len(source.shape) != 3:
        return False
    inner = [dimension(result, axis) for axis in range(2, len(result.shape))]
    if any(not isinstance(size, int) or size < 1 for size in inner):
        return False
    return dimension(source, 2) == int(np.prod([int(str(size)) for size in inner])) and keeps_rows(reshape)


def keeps_rows(reshape: ir.Node) -> bool:
    """Whether a Reshape with as many elements per row before and after keeps the first two axes as they are.

    As b * s stays the same, one of the two is enough.
    """
    source, result = reshape.inputs[0], reshape.outputs[0]
    target = constant_of(input_at(reshape, 1))
    if source is None:
        return False
    copies = target is not None and not attribute_int(reshape, "allowzero", 0)
    return any(
        (copies and target is not None and target[axis] == 0)
        or same_size(dimension(source, axis), dimension(result, axis))
        for axis in (0, 1)
    )


def same_size(first: object, second: object) -> bool:
    """Whether two dimensions are known to be equal."""
    return first is not None and first == second


def _agreement(query: Heads, key: Heads, value: Heads) -> str | None:
    """Why one operator cannot take these operands together, or None."""
    if not query.count == key.count == value.count:
        return "has different numbers of heads in query, key and value"
    if query.size != key.size:
        return "has query and key of different sizes"
    for axis, role, others in ((0, "batches", (query, key)), (1, "lengths", (key,))):
        if any(not same_size(dimension(o.source, axis), dimension(value.source, axis)) for o in others):
            return f"has operands whose {role} are not known to be equal"
    return None


def _mask_problem(mask: Mask, scores: ir.Value) -> str | None:
    """Why a mask cannot be broadcast to the scores (b, n, s, t), or None."""
    shape = mask.value.shape
    if shape is None or len(shape) > 4 or scores.shape is None:
        return "has an unknown shape"
    if len(shape) > len(scores.shape):
        return "has more axes than the scores"
    if len(scores.shape) == 3 and len(shape) == 3 and dimension(mask.value, 0) != 1:
        return "differs between samples of an attention without heads"
    if mask.fill is None and mask.value.dtype is not ir.DataType.FLOAT:
        return "is not float32"
    if mask.fill is not None and not mask.fill <= _ABSORBING:
        return f"replaces scores by {mask.fill:g}, which is not the same as adding it"
    # The last axis needs no proof: the product with the value could not be formed otherwise.
    for axis in range(2, min(len(shape), len(scores.shape)) + 1):
        size = dimension(mask.value, -axis)
        if size != 1 and not same_size(size, dimension(scores, -axis)):
            return f"is not known to fit the scores ({shape} beside {scores.shape})"
    return None
