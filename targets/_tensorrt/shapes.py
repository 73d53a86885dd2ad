"""Sizes of a graph's inputs, as an engine has to be told them, and whether it fits into the device's memory."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.errors import InputError
from greencc.core.kernels import kernels_of
from greencc.core.shapes import bind_sizes
from greencc.targets._tensorrt.flags import ShapeProfile, ShapeRange


def free_inner(model: ir.Model) -> tuple[str, ...]:
    """Inputs with free sizes behind the first axis."""
    return tuple(
        value.name or ""
        for value in _inputs(model)
        if value.shape is not None and any(not isinstance(dim, int) for dim in value.shape.dims[1:])
    )


def free_inputs(model: ir.Model) -> frozenset[str]:
    """Inputs with free sizes."""
    return frozenset(
        value.name or ""
        for value in _inputs(model)
        if value.shape is not None and any(not isinstance(dim, int) for dim in value.shape)
    )


def shape_profile(model: ir.Model, batch: int, most: int) -> ShapeProfile:
    """What an engine is built for, of the inputs whose batch is free.

    Args:
        model: As emitted.
        batch: The batch to be fast at.
        most: The largest.

    Raises:
        InputError: Other sizes are free, or nothing is known of an input's shape.
    """
    found: dict[str, ShapeRange] = {}
    free = free_inner(model)
    for value in _inputs(model):
        if value.shape is None:
            raise InputError(
                f"input {value.name!r} has no shape, and TensorRT needs one", hint="export it with a shape"
            )
        if value.name in free:
            raise InputError(
                f"input {value.name!r} of shape {value.shape} has free sizes behind the batch, and TensorRT needs "
                "their range",
                hint="export the model with these sizes fixed, or give data to take them from (--calibration, --eval)",
            )
        if not value.shape.dims or isinstance(value.shape[0], int):
            continue
        inner = tuple(dim for dim in value.shape.dims[1:] if isinstance(dim, int))
        found[value.name or ""] = ShapeRange((1, *inner), (batch, *inner), (most, *inner))
    return ShapeProfile(found)


def check_memory(model: ir.Model, most: int, available: int | None, title: str) -> None:
    """Refuse a graph that a device cannot hold: its weights, and what its most demanding kernel reads and writes.

    An engine needs more than that, so what passes may still be too large.

    Raises:
        InputError: It is larger than the device's memory.
    """
    if available is None:
        return
    kernels = kernels_of(bind_sizes(model, {}, batch=most))
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    needed = weights + kernels.activation_bytes
    if needed > available:
        raise InputError(
            f"the model needs at least {needed / 1e9:.1f} GB (weights {weights / 1e9:.1f} GB, estimated before "
            f"anything is copied), and the {title} has {available / 1e9:.1f} GB",
            hint="compile for a device with more memory, or give a smaller max_batch",
        )


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if not value.is_initializer()]
