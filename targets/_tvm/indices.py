"""Indices that a model computes or is given: they never leave the axes that they stand for.

ONNX Runtime refuses a run in which one does. Generated code has no way to: an index that is not known before is brought
to the nearest end of its axis; one that is known is checked when the model is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.errors import InputError
from greencc.core.graph import attribute_int, label
from greencc.targets._tvm.failures import UNSUPPORTED
from greencc.targets._tvm.proofs import at_most, equal_shapes, fixed

_ELEMENTS = ("GatherElements", "Scatter", "ScatterElements")
_SEVERAL = ("GatherND", "ScatterND")
_UNCHECKED = ("MaxRoiPool", "MaxUnpool")


@dataclass(frozen=True)
class _Indices:
    """Which operand holds indices, and the sizes that they lie below: one, or one per entry of its last axis."""

    operand: int
    extents: tuple[Any, ...]
    several: bool = False


def bounded(node: ir.Node, inputs: Sequence[Any], builder: Any) -> list[Any]:
    """The operands of a node, with indices that stay within their axes.

    Args:
        node: Of any type.
        inputs: Its operands as Relax expressions, None where absent.
        builder: The Relax block builder.

    Raises:
        InputError: A constant index lies outside, or the operands' shapes cannot be shown to fit.
    """
    if node.op_type in _UNCHECKED:
        raise InputError(
            f"{label(node)} reads or writes where its data says, which TVM does not check", hint=UNSUPPORTED
        )
    if node.op_type not in (*_ELEMENTS, *_SEVERAL, "Gather", "RoiAlign"):
        return list(inputs)
    inputs = [_tensor(item, builder) for item in inputs]
    shapes = [_shape(node, item) for item in inputs]
    found = _found(node, shapes)
    constant = _constant(inputs[found.operand])
    indices = shapes[found.operand]
    if any(fixed(extent) == 0 for extent in found.extents) and not any(fixed(size) == 0 for size in indices):
        raise InputError(f"{label(node)} takes elements of an axis that has none")
    known = all(fixed(extent) is not None for extent in found.extents)
    if constant is not None:
        _check(node, constant, found)
    if constant is None or not known:
        inputs[found.operand] = _clamped(inputs[found.operand], found, builder)
    return inputs


def _found(node: ir.Node, shapes: Sequence[list[Any]]) -> _Indices:
    if node.op_type == "RoiAlign":
        return _Indices(2, (shapes[0][0],))
    data, indices = shapes[0], shapes[1]
    if node.op_type in _SEVERAL:
        start = attribute_int(node, "batch_dims", 0) if node.op_type == "GatherND" else 0
        count = fixed(indices[-1]) if indices else None
        if count is None or start + count > len(data):
            raise _misfit(node, shapes)
        if node.op_type == "ScatterND":
            fits = equal_shapes(shapes[2], [*indices[:-1], *data[count:]])
        else:
            fits = equal_shapes(data[:start], indices[:start])
        if not fits:
            raise _misfit(node, shapes)
        return _Indices(1, tuple(data[start : start + count]), several=True)
    axis = attribute_int(node, "axis", 0)
    if not -len(data) <= axis < len(data):
        raise InputError(f"{label(node)} has axis {axis}, its data has {len(data)} axes")
    axis %= len(data)
    if node.op_type in _ELEMENTS:
        fits = len(indices) == len(data) and all(
            other == axis or at_most(size, most)
            for other, (size, most) in enumerate(zip(indices, data, strict=True))
        )
        if not fits or (len(shapes) > 2 and not equal_shapes(shapes[2], indices)):
            raise _misfit(node, shapes)
    return _Indices(1, (data[axis],))


def _misfit(node: ir.Node, shapes: Sequence[list[Any]]) -> InputError:
    texts = " and ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
    return InputError(
        f"{label(node)}: its operands' sizes {texts} cannot be shown to fit",
        hint="give the model's inputs fixed sizes but for the batch, or compile for the target 'cpu'",
    )


def _tensor(item: Any, builder: Any) -> Any:
    from tvm import relax

    return builder.emit(relax.op.shape_to_tensor(item)) if isinstance(item, relax.ShapeExpr) else item


def _shape(node: ir.Node, item: Any) -> list[Any]:
    shape = getattr(getattr(item, "ty", None), "shape", None)
    if shape is None:
        raise InputError(f"{label(node)}: the shape of an operand is not known", hint=UNSUPPORTED)
    return list(shape)


def _constant(item: Any) -> Array | None:
    from tvm.ir import GenericConst

    return np.asarray(item.value.numpy()) if isinstance(item, GenericConst) else None


def _check(node: ir.Node, indices: Array, found: _Indices) -> None:
    columns = np.moveaxis(indices, -1, 0) if found.several else indices[np.newaxis]
    for column, extent in zip(columns, found.extents, strict=True):
        size = fixed(extent)
        outside = [] if size is None else column[(column < -size) | (column >= size)].reshape(-1).tolist()
        if outside:
            raise InputError(f"{label(node)} has index {outside[0]} for an axis of {size}")


def _clamped(indices: Any, found: _Indices, builder: Any) -> Any:
    from tvm import relax

    dtype = str(getattr(indices.ty.dtype, "dtype", indices.ty.dtype))
    shape = [len(found.extents)] if found.several else []
    if all(fixed(extent) is not None for extent in found.extents):
        sizes = np.array([fixed(extent) for extent in found.extents], dtype).reshape(shape)
        extents = relax.const(sizes, dtype)
    else:
        extents = builder.emit(relax.op.shape_to_tensor(relax.ShapeExpr(list(found.extents))))
        extents = builder.emit(relax.op.reshape(extents, relax.ShapeExpr(shape)))
        extents = builder.emit(relax.op.astype(extents, dtype))
    zero, one = relax.const(0, dtype), relax.const(1, dtype)
    counted = relax.op.where(relax.op.less(indices, zero), relax.op.add(indices, extents), indices)
    below = relax.op.minimum(counted, relax.op.subtract(extents, one))
    return builder.emit(relax.op.maximum(below, zero))
