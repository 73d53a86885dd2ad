"""Single kernels as libraries for ARM, run under emulation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.data import Array, TensorSpec
from greencc.core.engine import Engine
from greencc.targets._tvm.arm_engine import open_arm
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.numbers import number_arguments
from greencc.targets._tvm.presets import ArmMachine
from greencc.targets._tvm.workload import Workload, form_of


def library(
    workload: Workload,
    arm: ArmMachine,
    folder: Path,
    data: tuple[tuple[int, ...], str],
    weights: Array | None,
    arguments: Sequence[Array],
    shape: tuple[int, ...],
    batch: int | None = None,
) -> Path:
    """A library of one kernel.

    Args:
        workload: What it computes.
        arm: The machine.
        folder: Where to write.
        data: Shape without the batch, and type.
        weights: As the template's `pack` takes them; None: the kernel has none.
        arguments: Of the epilogue.
        shape: Of the output, without the batch.
        batch: A fixed one.
    """
    import tvm
    from tvm import relax
    from tvm.tirx import Var

    from greencc.targets._tvm.library import write_library

    template, machine = template_of(workload), arm.machine
    schedule = template.default(workload, machine)
    packed = () if weights is None else template.pack(workload, schedule, machine, weights)
    builder = relax.BlockBuilder()
    samples = Var("n", "int64") if batch is None else batch
    x = relax.Var("x", relax.TensorType([samples, *data[0]], data[1]))
    output = relax.TensorType([samples, *shape], workload.epilogue.dtype)
    with builder.function("main", [x]):
        with builder.dataflow():
            kernel = builder.add_func(
                template.build(form_of(workload), schedule, machine, "kernel"), "kernel"
            )
            given = (*packed, *arguments, *number_arguments(workload))
            constants = [relax.const(np.ascontiguousarray(array)) for array in given]
            result = builder.emit_output(relax.call_tir(kernel, [x, *constants], out_ty=output))
        builder.emit_func_output(result)
    module: Any = builder.get()
    assert isinstance(module, tvm.IRModule)
    specs = (
        [TensorSpec("x", np.dtype(data[1]), (batch or "n", *data[0]))],
        [TensorSpec("y", np.dtype(workload.epilogue.dtype), (batch or "n", *shape))],
    )
    return write_library(
        module, folder, machine=machine, inputs=specs[0], outputs=specs[1], kernels={}, with_runner=True
    )


def emulated(main: Path, arm: ArmMachine) -> Engine:
    return open_arm(main, arm, native=False)
