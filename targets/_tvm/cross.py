"""What builds programs for aarch64, and the runner that ARM artifacts bring along."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from greencc.core.errors import InputError, UnavailableError
from greencc.core.files import translated_os_errors
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.presets import DOTPROD

RUNNER = "runner"
PACKAGES = "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
_SOURCES = Path(__file__).parent / "runtime"
_CROSS = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++")
_NATIVE = ("gcc", "cc", "clang")
_SECONDS = 300.0
# Everything that would tell where or when it was built is left out: the same sources give the same bytes.
_FLAGS = ("-std=c11", "-O2", "-fPIE", "-pie", "-s", "-Wl,--build-id=none", "-Wl,-z,relro,-z,now", "-Wl,--as-needed")


def native() -> bool:
    """Whether this computer runs code for aarch64 itself."""
    return platform.machine() == "aarch64" and os.name == "posix"


def missing_compiler() -> str | None:
    """Why nothing can be built for aarch64 here, with what to install; None: it can."""
    if _compiler() is not None:
        return None
    if native():
        return "there is no C compiler: apt-get install gcc libc6-dev"
    return f"{_CROSS[0]} is not installed: {PACKAGES}"


def build_runner(folder: Path, machine: Machine) -> Path:
    """Build the program that runs a model without Python, into the folder of the model.

    Raises:
        UnavailableError: There is no compiler.
        InputError: It fails, for instance because headers are missing, or the folder cannot be written.
    """
    compiler = _compiler()
    if compiler is None:
        raise UnavailableError(f"the runner cannot be built here: {missing_compiler()}")
    runner, part = folder / RUNNER, folder / f".{RUNNER}.part"
    definition = f"-DGREENCC_DOTPROD={int(DOTPROD in machine.features)}"
    command = [compiler, *_FLAGS, definition, str(_SOURCES / "runner.c"), "-o", str(part), "-ldl"]
    with translated_os_errors(runner):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
            )
            if done.returncode:
                said = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
                raise InputError(f"{compiler} could not build the runner: {said}", hint=PACKAGES)
            part.chmod(0o755)
            part.replace(runner)
        except subprocess.TimeoutExpired:
            raise InputError(f"{compiler} did not build the runner within {_SECONDS:g} s") from None
        finally:
            part.unlink(missing_ok=True)
    return runner


def _compiler() -> str | None:
    names = _NATIVE if native() else _CROSS
    return next((found for name in names if (found := shutil.which(name)) is not None), None)
