"""From a model to a library for a processor: what the targets that generate code share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from greencc.core.data import TensorSpec
from greencc.core.describe import value_spec
from greencc.core.errors import InputError
from greencc.core.files import translated_os_errors
from greencc.core.loading import load_model
from greencc.core.model import digest
from greencc.core.version import __version__
from greencc.targets._tvm.capabilities import MAX_OPSET
from greencc.targets._tvm.compiled import compiled
from greencc.targets._tvm.host import machine_text
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.versions import PACKAGE, load, tvm_version

if TYPE_CHECKING:
    from greencc.targets._tvm.schedules import Schedules

_MODEL = ".onnx"
_TYPES = frozenset(
    ir.DataType[name]
    for name in (
        *("FLOAT", "DOUBLE", "FLOAT16", "BOOL"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
)

# The slope and the start of what models of 9 to 460 nodes took (1 to 5 s of one core), rounded up.
_START_SECONDS, _NODE_SECONDS = 2.0, 0.02


def build_seconds(model: ir.Model) -> float:
    """About how long `build_library` takes on an idle core."""
    return _START_SECONDS + _NODE_SECONDS * len(model.graph)


def build_library(
    model: ir.Model,
    folder: Path,
    machine: Machine,
    schedules: Schedules | None = None,
    *,
    with_runner: bool = False,
) -> Path:
    """Write the library of a model; the same model and machine give the same bytes.

    Args:
        model: As `Target.lower` left it.
        folder: Where the files go; made where it does not exist.
        machine: What code is generated for.
        schedules: How each kernel is written; default: without tuning.
        with_runner: Write a program that runs the model without Python as well.

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
            lowered.module,
            folder,
            machine=machine,
            inputs=inputs,
            outputs=outputs,
            kernels=lowered.kernels,
            findings=lowered.findings,
            with_runner=with_runner,
            samplewise=lowered.samplewise,
        )


def library_of(
    artifact: Path,
    kind: str,
    machine: Callable[[], Machine],
    build: Callable[[ir.Model, Path], Path],
    schedules: Callable[[Machine], str] = lambda machine: "",
) -> Path:
    """The description of the library that an artifact is, or that an ONNX file is compiled to, once.

    Args:
        artifact: ``model.json`` or an ONNX file.
        kind: Name of the target.
        machine: What code is generated for; only asked for an ONNX file, and raises where none can be generated.
        build: Writes the library of a model into a folder.
        schedules: A digest of how kernels are written for it.

    Raises:
        InputError: It is missing, or an operator cannot be compiled.
    """
    if not artifact.is_file():
        raise InputError(f"{artifact} is not a file", hint="pass the path of an ONNX model or a model.json")
    if artifact.suffix != _MODEL:
        return artifact
    built = machine()
    model = load_model(artifact)
    code = (machine_text(built), schedules(built), tvm_version() or "", __version__)

    def write(folder: Path) -> Path:
        try:
            return build(model, folder)
        except InputError as error:
            raise InputError(f"loading {artifact.name}: {error.message}", hint=error.hint) from error

    return compiled((kind, digest(model), *code), write, label=f"code of {artifact.name}")


def within_importer(model: ir.Model) -> ir.Model:
    """Bring the opset and the IR version within what both ONNX Runtime and TVM's importer know.

    Raises:
        InputError: The model's opset is newer and cannot be converted.
    """
    from greencc.targets._lower import within_versions
    from greencc.targets._ort_facts import runtime_facts

    facts = runtime_facts()
    newest = "onnxruntime" if facts.max_opset < MAX_OPSET else PACKAGE
    return within_versions(model, min(facts.max_opset, MAX_OPSET), facts.max_ir_version, newest)


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
