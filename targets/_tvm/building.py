"""From a model to a library for a processor: what the targets that generate code share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from greencc.core.data import TensorSpec
from greencc.core.describe import value_spec
from greencc.core.errors import InputError
from greencc.core.files import translated_os_errors
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.versions import load

if TYPE_CHECKING:
    from greencc.targets._tvm.schedules import Schedules

_TYPES = frozenset(
    ir.DataType[name]
    for name in (
        *("FLOAT", "DOUBLE", "FLOAT16", "BOOL"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
)


def build_library(
    model: ir.Model, folder: Path, machine: Machine, schedules: Schedules | None = None
) -> Path:
    """Write the library of a model; the same model and machine give the same bytes.

    Args:
        model: As `Target.lower` left it.
        folder: Where the files go; made where it does not exist.
        machine: What code is generated for.
        schedules: How each kernel is written; default: without tuning.

    Returns:
        The path of ``model.json``, which names the other files with their hashes.

    Raises:
        UnavailableError: TVM or the compiler that links cannot be used.
        InputError: An operator or a type cannot be compiled, or the folder cannot be written.
    """
    load()
    from greencc.targets._tvm.library import write_library
    from greencc.targets._tvm.lowering import lower_model
    from greencc.targets._tvm.schedules import DefaultSchedules

    inputs, outputs = tensor_specs(model.graph.inputs, "input"), tensor_specs(model.graph.outputs, "output")
    lowered = lower_model(model, machine, schedules or DefaultSchedules())
    with translated_os_errors(folder / "model.json"):
        folder.mkdir(parents=True, exist_ok=True)
        return write_library(
            lowered.module, folder, machine=machine, inputs=inputs, outputs=outputs, kernels=lowered.kernels
        )


def tensor_specs(values: Sequence[ir.Value], role: str) -> tuple[TensorSpec, ...]:
    """Names, types and shapes of the inputs or outputs of a model.

    Args:
        values: Of its graph.
        role: What messages call them.

    Raises:
        InputError: One has no type or rank, or a type that NumPy lacks.
    """
    return tuple(_spec(value, role) for value in values)


def _spec(value: ir.Value, role: str) -> TensorSpec:
    name = value.name or ""
    if value.dtype is None or value.shape is None:
        raise InputError(
            f"{role} {name!r} has no known {'type' if value.dtype is None else 'rank'}, "
            "which the tvm targets need to generate code",
            hint="compile for cpu, or export the model with the shapes of its inputs",
        )
    if value.dtype not in _TYPES:
        raise InputError(
            f"{role} {name!r} has type {value.dtype.name}, which the tvm targets do not take",
            hint="compile for cpu, or export the model with float32 inputs and outputs",
        )
    return value_spec(value)
