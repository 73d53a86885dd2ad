"""Shapes made known before kernels are chosen: names for free sizes, and constants in the place of computed ones.

ONNX's shape inference follows few of the operators that exporters compute sizes with. Where a Reshape's sizes are known
but for one, they are written down, and inference goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from greencc.core.data import Array
from greencc.core.graph import Names, add_initializer, attribute_int, constant_of, is_op
from greencc.core.shapes import infer_shapes
from greencc.targets._tvm.failures import named
from greencc.targets._tvm.sizes import Sizes

# Each round knows the shapes behind the Reshapes of the one before.
_ROUNDS = 16


@dataclass(frozen=True)
class Free:
    """A size that is not known: equal names are equal sizes, and nothing is known of what is computed."""

    name: str | None

    def _computed(self, other: object) -> Free:
        return Free(None)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _computed


def resolve_shapes(model: ir.Model) -> None:
    """Infer the shapes of a model, and write the sizes of Reshapes down as far as they are known.

    Args:
        model: Changed in place.

    Raises:
        InputError: The shapes are inconsistent.
    """
    _name_inputs(model)
    infer_shapes(model)
    names = Names(model)
    for _ in range(_ROUNDS):
        if not _write_down(model, names):
            return
        infer_shapes(model)


def free_images(model: ir.Model) -> tuple[str, ...]:
    """Inputs with free sizes behind the batch, in a model whose convolutions or pools slide over such sizes.

    Args:
        model: Not changed.

    Raises:
        InputError: The shapes are inconsistent.
    """
    names = tuple(
        str(value.name)
        for value in model.graph.inputs
        if value.shape is not None and not all(isinstance(size, int) for size in list(value.shape)[1:])
    )
    if not names:
        return ()
    clone = model.clone()
    resolve_shapes(clone)
    slides = any(is_op(node, *_SLIDING) and not _has_fixed_size(node.inputs[0]) for node in clone.graph)
    return names if slides else ()


_SLIDING = ("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")


def _has_fixed_size(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.shape is not None
        and all(isinstance(size, int) for size in list(value.shape)[2:])
    )


def _name_inputs(model: ir.Model) -> None:
    """Names for nameless sizes: the first axes are the batch."""
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and size.value is None:
                value.shape[axis] = ir.SymbolicDim("batch" if axis == 0 else f"{value.name}_axis_{axis}")


def _write_down(model: ir.Model, names: Names) -> bool:
    # What is computed of free sizes is not known here, whatever its sign.
    sizes, changed = Sizes(lambda size: True), False
    for node in list(model.graph):
        value = node.inputs[0] if node.inputs else None
        shape = None if value is None or value.shape is None else [_size(size) for size in value.shape]
        with named(node):
            followed = sizes.follow(node, shape)
        if followed or not is_op(node, "Reshape") or len(node.inputs) < 2:
            continue
        if constant_of(node.inputs[1]) is not None or attribute_int(node, "allowzero", 0):
            continue
        wanted = sizes.of(node.inputs[1])
        written = None if wanted is None or wanted.entries.ndim != 1 else _constant(wanted.entries, shape)
        if written is not None:
            name = names.value(f"{node.outputs[0].name}_sizes")
            node.replace_input_with(1, add_initializer(model.graph, name, written))
            changed = True
    return changed


def _constant(wanted: Array, shape: list[int | Free] | None) -> Array | None:
    """Sizes of a Reshape with 0 where an axis stays and -1 where a size follows from the others."""
    result = [
        0
        if isinstance(size, Free)
        and size.name
        and shape is not None
        and axis < len(shape)
        and shape[axis] == size
        else size
        for axis, size in enumerate(wanted)
    ]
    free = [axis for axis, size in enumerate(result) if isinstance(size, Free)]
    if len(free) > 1 or (free and -1 in result):
        return None
    return np.array([-1 if isinstance(size, Free) else size for size in result], np.int64)


def _size(size: int | ir.SymbolicDim) -> int | Free:
    return size if isinstance(size, int) else Free(size.value)
