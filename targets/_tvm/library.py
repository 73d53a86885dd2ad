"""From a Relax module to files: `model.so`, `weights.bin` and `model.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greencc.core.data import TensorSpec
from greencc.core.errors import InputError
from greencc.core.files import atomic_file, sha256_file
from greencc.targets._tvm.description import (
    FILE_NAME,
    LIBRARY,
    RUNNER,
    WEIGHTS,
    Description,
    FileFacts,
    Label,
    labels_for,
    numpy_dtype,
)
from greencc.targets._tvm.dims import is_constant, is_symbol
from greencc.targets._tvm.features import needed_features
from greencc.targets._tvm.link import find_toolchain, link_library
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.parts import part_of
from greencc.targets._tvm.pipeline import compile_object, llvm_target, lower_to_kernels
from greencc.targets._tvm.plan import Plan
from greencc.targets._tvm.planning import Planned, make_plan
from greencc.targets._tvm.runner import build_runner

if TYPE_CHECKING:
    from tvm.ir import IRModule

_EXECUTABLE = 0o755


def write_library(
    module: IRModule,
    folder: Path,
    *,
    machine: Machine,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    kernels: Mapping[str, Label | Sequence[Label]],
    findings: Sequence[str] = (),
    with_runner: bool = False,
    samplewise: bool = False,
) -> Path:
    """Compile a module and write its files into a folder that exists; return the path of `model.json`.

    Each file is written beside its place and then renamed, the description last. The same module gives the same bytes.

    Args:
        module: Its function ``main`` takes and returns tensors.
        folder: Existing files of these names are replaced.
        machine: What code is generated for.
        inputs: Main's parameters: names and shapes as the model calls them.
        outputs: What main returns, likewise.
        kernels: What our kernels compute, by symbol: one label for all calls, or one per call in their order.
        findings: What the description says of slow parts.
        with_runner: Write the program `RUNNER` as well, which runs the model without Python.
        samplewise: Row i of every output depends on row i of every input alone: large batches may run in parts.

    Raises:
        InputError: TVM cannot compile the module, it cannot be planned, or a file cannot be written.
        UnavailableError: The C compiler is missing or fails.
    """
    import tvm
    from tvm.target import codegen

    toolchain = find_toolchain(machine.triple)
    implied = [str(name) for name in codegen.llvm_get_cpu_features(llvm_target(machine))]
    features = needed_features(machine.triple, machine.features, implied)
    with _tvm_errors():
        lowered = lower_to_kernels(module, machine)
    planned = make_plan(lowered, [spec.name for spec in inputs], [spec.name for spec in outputs])
    plan = planned.plan
    if samplewise:
        plan = replace(plan, part=part_of(plan, machine))
    with _tvm_errors():
        kernels_object = compile_object(lowered, machine)
    encoded = plan.encode()
    with atomic_file(folder / LIBRARY) as path:
        link_library(toolchain, plan.kernels, kernels_object, encoded, path)
        library = FileFacts(path.stat().st_size, sha256_file(path))
    with atomic_file(folder / WEIGHTS) as path:
        weights = _write_weights(planned, path)
    runner = _runner(folder, machine.triple, features) if with_runner else None
    labels = {
        symbol: [given] if isinstance(given, Label) else list(given) for symbol, given in kernels.items()
    }
    description = Description(
        inputs=tuple(_spec(plan, *port, spec) for port, spec in zip(plan.inputs, inputs, strict=True)),
        outputs=tuple(_spec(plan, *port, spec) for port, spec in zip(plan.outputs, outputs, strict=True)),
        triple=machine.triple,
        cpu=machine.cpu,
        features=features,
        tvm=str(tvm.__version__),
        steps=labels_for([plan.symbol(step) for step in plan.steps], labels),
        library=library,
        weights=weights,
        runner=runner,
        findings=tuple(findings),
        part=plan.part,
    )
    main = folder / FILE_NAME
    with atomic_file(main) as path:
        path.write_text(description.dump(), encoding="utf-8")
    return main


@contextmanager
def _tvm_errors() -> Iterator[None]:
    """TVM's checks fail on operators that it takes but has no code for."""
    import tvm

    try:
        yield
    except tvm.error.InternalError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or "no reason given"
        raise InputError(
            f"TVM cannot compile this model: {reason}", hint="compile it for cpu or openvino"
        ) from error


def _runner(folder: Path, triple: str, features: Sequence[str]) -> FileFacts:
    with atomic_file(folder / RUNNER, mode=_EXECUTABLE) as path:
        build_runner(path, triple, features)
        return FileFacts(path.stat().st_size, sha256_file(path))


def _write_weights(planned: Planned, path: Path) -> FileFacts:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as stream:
        for offset, array in planned.constants:
            data = bytes(offset - size) + array.tobytes()
            stream.write(data)
            digest.update(data)
            size += len(data)
        rest = bytes(planned.plan.weights_bytes - size)
        stream.write(rest)
        digest.update(rest)
    return FileFacts(planned.plan.weights_bytes, digest.hexdigest())


def _spec(plan: Plan, name: str, number: int, given: TensorSpec) -> TensorSpec:
    """The library's own type and sizes, with the model's names of the dimensions that are free."""
    tensor = plan.tensors[number]
    names: Sequence[Any] = given.shape if given.shape is not None else [None] * len(tensor.shape)
    if len(names) != len(tensor.shape):
        raise ValueError(f"{name!r} has {len(tensor.shape)} dimensions, {len(names)} were given")
    try:
        dtype = numpy_dtype(tensor.dtype)
    except TypeError as error:
        raise InputError(f"{name!r} has type {tensor.dtype}, which has no arrays") from error
    shape: list[int | str | None] = []
    for dim, known in zip(tensor.shape, names, strict=True):
        own = plan.symbols[dim[1]] if is_symbol(dim) else None
        shape.append(dim[1] if is_constant(dim) else known if isinstance(known, str) else own)
    return TensorSpec(name, dtype, tuple(shape))
