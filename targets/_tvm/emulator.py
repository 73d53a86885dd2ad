"""QEMU's user-mode emulation of aarch64: where it is, and which instructions its processors have."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.targets._tvm.presets import DOTPROD

PROGRAMS = ("qemu-aarch64", "qemu-aarch64-static")
LIBRARIES = Path("/usr/aarch64-linux-gnu")
"""Debian's folder of libraries for aarch64, a root for the emulated program."""
PACKAGES = "apt-get install qemu-user-static libc6-dev-arm64-cross"

_BASE = frozenset({"fp-armv8", "neon", "crc"})
_ARMV8_2 = _BASE | {DOTPROD, "fullfp16", "lse", "rcpc", "rdm"}
# What QEMU's processors have (target/arm/cpu64.c), by LLVM's names.
FEATURES = {
    "cortex-a53": _BASE,
    "cortex-a72": _BASE,
    "cortex-a76": _ARMV8_2,
    "neoverse-n1": _ARMV8_2,
}
_LIST_SECONDS = 30.0


@dataclass(frozen=True)
class Emulator:
    """An emulator that can run programs for aarch64.

    Attributes:
        program: The emulator.
        libraries: Root that holds the libraries of what is emulated.
    """

    program: str
    libraries: Path = LIBRARIES

    @classmethod
    def find(cls) -> Emulator:
        """The one that is installed.

        Raises:
            UnavailableError: None is, or its libraries are not.
        """
        if reason := missing_emulator():
            raise UnavailableError(f"code for aarch64 cannot be run here: {reason}")
        program = next(found for name in PROGRAMS if (found := shutil.which(name)) is not None)
        return cls(program)

    def command(self, cpu: str, program: Path, *arguments: str) -> list[str]:
        """What runs a program on one of QEMU's processors.

        Raises:
            UnavailableError: This QEMU does not have the processor.
        """
        if cpu not in _processors(self.program):
            raise UnavailableError(
                f"{self.program} has no processor {cpu}", hint="install QEMU 7.2 or newer (Debian 12)"
            )
        return [self.program, "-cpu", cpu, "-L", str(self.libraries), str(program), *arguments]


def missing_emulator() -> str | None:
    """Why programs for aarch64 cannot be emulated here, with what to install; None: they can."""
    if not any(shutil.which(name) for name in PROGRAMS):
        return f"{PROGRAMS[0]} is not installed: {PACKAGES}"
    if not (LIBRARIES / "lib" / "ld-linux-aarch64.so.1").exists():
        return f"{LIBRARIES} has no C library for aarch64: {PACKAGES}"
    return None


@cache
def _processors(program: str) -> frozenset[str]:
    """Names of the processors that an emulator knows."""
    try:
        found = subprocess.run(
            [program, "-cpu", "help"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIST_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{program} cannot be run: {error}") from error
    return frozenset(line.strip() for line in found.stdout.splitlines())
