"""Builds the program that runs a model without Python (`runtime/runner.c`), for the machine that the model is for."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.files import atomic_file, translated_os_errors
from greencc.targets._tvm.link import RUNTIME, find_toolchain
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.presets import DOTPROD, TRIPLE

RUNNER = "runner"
_SOURCES = ("runner.c", "greencc_model.h")
# Nothing that would tell where or when it was built: the same sources give the same bytes.
_FLAGS = (
    *("-std=c11", "-O2", "-fPIE", "-pie", "-fno-ident", "-g0", "-Wall", "-Wextra"),
    *("-s", "-Wl,--build-id=none", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,--as-needed"),
)
_EXECUTABLE = 0o755


def native() -> bool:
    """Whether this computer runs code for 64-bit ARM itself."""
    return os.name == "posix" and platform.system() == "Linux" and platform.machine() == "aarch64"


def missing_compiler() -> str | None:
    """Why nothing can be built for aarch64 here, with what to install; None: it can."""
    try:
        find_toolchain(TRIPLE)
    except UnavailableError as error:
        return f"{error.message}: {error.hint}"
    return None


def build_runner(folder: Path, machine: Machine) -> Path:
    """Write the runner into the folder of a model.

    Raises:
        UnavailableError: There is no compiler, or it fails.
        InputError: The folder cannot be written.
    """
    toolchain = find_toolchain(machine.triple)
    definition = f"-DGREENCC_DOTPROD={int(DOTPROD in machine.features)}"
    with tempfile.TemporaryDirectory(prefix="greencc-") as name:
        work = Path(name)
        for source in _SOURCES:
            shutil.copyfile(RUNTIME / source, work / source)
        toolchain.run([*_FLAGS, definition, _SOURCES[0], "-o", RUNNER, "-ldl"], work, "building the runner")
        with atomic_file(folder / RUNNER) as path:
            shutil.copyfile(work / RUNNER, path)
        with translated_os_errors(folder / RUNNER):
            (folder / RUNNER).chmod(_EXECUTABLE)
    return folder / RUNNER
