"""Small Relax modules, compiled once per session."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greencc.core.data import TensorSpec
from greencc.targets._tvm.description import Label
from greencc.targets._tvm.machine import Machine

FLOAT = np.dtype(np.float32)
WIDTH = 16


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = []
    if importlib.util.find_spec("tvm") is None:
        reasons.append("apache-tvm is not installed")
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        reasons.append("no C compiler")
    if platform.machine() not in ("x86_64", "aarch64"):
        reasons.append("modules are compiled for x86-64 or aarch64")
    for item in items:
        if reasons and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=", ".join(reasons)))


@dataclass(frozen=True)
class Case:
    """A Relax module with the names and shapes of its inputs and outputs."""

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: dict[str, Label]


@pytest.fixture(scope="session")
def machine() -> Machine:
    """Code that this machine runs whatever it is."""
    return Machine(f"{platform.machine()}-linux-gnu", "generic", frozenset())


@pytest.fixture(scope="session")
def doubling() -> Callable[[str], Any]:
    """Makes our own kind of kernel: [n, 16] float32 -> twice that, with a parallel loop and scratch memory."""
    return _doubling


@pytest.fixture(scope="session")
def mixed() -> Case:
    """One output of each kind: see `mixed_reference`."""
    return _mixed()


@pytest.fixture(scope="session")
def rows() -> Case:
    """`mixed` without the output that is constant."""
    return _mixed(fixed=False)


@pytest.fixture(scope="session")
def built(mixed: Case, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.json` of `mixed`."""
    return _write(mixed, tmp_path_factory.mktemp("mixed"), machine)


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of `built` that may be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(built.parent, folder)
    return folder / built.name


@pytest.fixture(scope="session")
def write(machine: Machine) -> Callable[[Case, Path], Path]:
    """Compiles a case into a folder."""
    return lambda case, folder: _write(case, folder, machine)


@pytest.fixture(scope="session")
def mixed_reference() -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What `mixed` computes, in NumPy."""

    def compute(x: np.ndarray) -> dict[str, np.ndarray]:
        doubled = x.reshape(-1, WIDTH) * 2
        ramp = np.arange(WIDTH, dtype=np.float32)
        shifted = np.maximum(doubled, 0) + ramp
        powers = np.exp(shifted - shifted.max(1, keepdims=True)) if len(x) else shifted
        return {
            "shifted": shifted,
            "softmax": powers / powers.sum(1, keepdims=True),
            "same": x,
            "constant": ramp,
            "view": shifted.reshape(-1, 4, 4),
        }

    return compute


def _write(case: Case, folder: Path, machine: Machine) -> Path:
    from greencc.targets._tvm.library import write_library

    return write_library(
        case.module,
        folder,
        machine=machine,
        inputs=case.inputs,
        outputs=case.outputs,
        kernels=case.kernels,
    )


def _doubling(name: str) -> Any:
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True, "tirx.is_scheduled": True})
        first, second = T.arg("a", T.handle()), T.arg("o", T.handle())
        rows = T.int64()
        data = T.match_buffer(first, (rows, WIDTH), "float32")
        output = T.match_buffer(second, (rows, WIDTH), "float32")
        with T.parallel(0, rows) as i:
            # Large enough not to lie on the stack.
            scratch = T.alloc_buffer((1024,), "float32", scope="global")
            with T.serial(0, 1024) as j:
                T.buffer_store(scratch, data[i, j % WIDTH] * tirx.const(2.0, "float32"), [j])
            with T.serial(0, WIDTH) as j:
                T.buffer_store(output, scratch[1024 - WIDTH + j], [i, j])
    return builder.get()


def _mixed(*, fixed: bool = True) -> Case:
    """Without `fixed`, every output has rows, as parts of a batch need."""
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    n = tirx.Var("n", "int64")
    rows = relax.TensorType((n, WIDTH), "float32")
    x = relax.Var("x", relax.TensorType((n, 4, 4), "float32"))
    kernel = builder.add_func(_doubling("doubling"), "doubling")
    with builder.function("main", [x]):
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (n, WIDTH)))
            doubled = builder.emit(relax.call_tir(kernel, [flat], rows))
            ramp = relax.const(np.arange(WIDTH, dtype=np.float32))
            shifted = builder.emit(relax.op.add(relax.op.nn.relu(doubled), ramp))
            softmax = builder.emit(relax.op.nn.softmax(shifted))
            view = builder.emit(relax.op.reshape(shifted, (n, 4, 4)))
            result = builder.emit_output(relax.Tuple([shifted, softmax, x, *([ramp] if fixed else []), view]))
        builder.emit_func_output(result)
    return Case(
        builder.get(),
        (TensorSpec("x", FLOAT, ("batch", 4, 4)),),
        tuple(
            TensorSpec(name, FLOAT, shape)
            for name, shape in (
                ("shifted", ("batch", 16)),
                ("softmax", ("batch", 16)),
                ("same", ("batch", 4, 4)),
                ("constant", (16,)),
                ("view", ("batch", 4, 4)),
            )
            if fixed or name != "constant"
        ),
        {"doubling": Label("first", "Mul")},
    )
