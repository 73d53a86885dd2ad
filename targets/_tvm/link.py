"""Compilers and linkers: the executor, the kernels' object file and the plan become one shared library.

The library links to libc, libm and libpthread only, exports the functions of `runtime/greencc_model.h` and no others,
and its bytes follow from its contents: no time stamps, no build id, no paths.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from greencc.core.errors import InputError, UnavailableError
from greencc.targets._tvm.objects import executor_objects
from greencc.targets._tvm.plan import Kernel

RUNTIME = Path(__file__).parent / "runtime"
SOURCES = ("plan.c", "pool.c", "handle.c", "executor.c")
_HEADERS = ("internal.h", "greencc_model.h")

_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-fno-ident", "-g0")
_WARNINGS = ("-Wall", "-Wextra")
_LINK = (
    "-shared",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-z,noexecstack",
    "-Wl,-z,defs",
    "-Wl,--build-id=none",
    "-Wl,--gc-sections",
    "-Wl,--as-needed",
    "-Wl,--version-script=exports.map",
    "-Wl,-s",
    "-static-libgcc",
)
_LIBRARIES = ("-lm", "-lpthread")
_EXPORTS = "{ global: greencc_*; local: *; };\n"

_PACKAGES = {
    "x86_64": "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
    "aarch64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
}
_OWN_PACKAGES = "gcc libc6-dev"
_CROSS = {
    "x86_64": "x86_64-linux-gnu-gcc",
    "aarch64": "aarch64-linux-gnu-gcc",
    "arm": "arm-linux-gnueabihf-gcc",
}


@dataclass(frozen=True)
class Toolchain:
    """A C compiler that also links.

    Attributes:
        command: Program and first arguments.
        architecture: ``x86_64``, ``aarch64`` or ``arm``.
    """

    command: tuple[str, ...]
    architecture: str

    def version(self) -> str:
        """What the compiler says that it is.

        Raises:
            UnavailableError: The compiler cannot be started.
        """
        return self._started(["--version"], Path()).stdout.decode(errors="replace")

    def run(self, arguments: Sequence[str], folder: Path, doing: str) -> None:
        """Run in a folder.

        Raises:
            UnavailableError: The compiler cannot be started, or fails; its first line is told.
        """
        done = self._started(arguments, folder)
        if done.returncode != 0:
            lines = (done.stderr + done.stdout).decode(errors="replace").splitlines()
            told = next((line for line in lines if "error" in line or "undefined" in line), None)
            reason = told or next(iter(lines), f"exit code {done.returncode}")
            raise UnavailableError(
                f"{' '.join(self.command)} failed {doing}: {reason}",
                hint=f"check the compiler, or reinstall it: {install_command(self.architecture)}",
            )

    def _started(self, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
        environment = os.environ | {"LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
        try:
            return subprocess.run(
                [*self.command, *arguments], cwd=folder, env=environment, capture_output=True, check=False
            )
        except OSError as error:
            raise UnavailableError(f"cannot start {self.command[0]}: {error.strerror or error}") from error


def architecture_of(triple: str) -> str:
    """``x86_64``, ``aarch64`` or ``arm``, from an LLVM triple.

    Raises:
        InputError: No code is generated for this architecture.
    """
    first = triple.partition("-")[0]
    if first in ("x86_64", "aarch64"):
        return first
    if first.startswith(("armv7", "armv8")) or first == "arm":
        return "arm"
    raise InputError(
        f"no libraries can be made for {triple}", hint=f"known architectures: {', '.join(_PACKAGES)}"
    )


def install_command(architecture: str) -> str:
    """How Debian's compiler for an architecture (of `architecture_of`) is installed here."""
    packages = _OWN_PACKAGES if architecture == os.uname().machine else _PACKAGES[architecture]
    return f"apt-get install {packages}"


def find_toolchain(triple: str, *, environment: Mapping[str, str] = os.environ) -> Toolchain:
    """The compiler for a triple: $CC, cc, gcc or clang for this machine's own, else Debian's cross compiler.

    Raises:
        UnavailableError: It is not installed, and the message names the Debian package; or $CC is no command.
    """
    architecture = architecture_of(triple)
    path = environment.get("PATH")
    if architecture == os.uname().machine:
        wanted = _words(environment.get("CC", ""))
        if wanted:
            program = _program(wanted[0], path)
            if program is None:
                raise UnavailableError(
                    f"CC is {wanted[0]!r}, which is not installed", hint="unset CC, or name a C compiler"
                )
            return Toolchain((program, *wanted[1:]), architecture)
        candidates: tuple[str, ...] = ("cc", "gcc", "clang")
    else:
        candidates = (_CROSS[architecture],)
    for name in candidates:
        if (program := _program(name, path)) is not None:
            return Toolchain((program,), architecture)
    raise UnavailableError(
        f"no C compiler for {architecture} ({', '.join(candidates)})",
        hint=install_command(architecture),
    )


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UnavailableError(
            f"CC is {text!r}, which is no command: {error}", hint="unset CC, or name a C compiler"
        ) from error


def _program(name: str, path: str | None) -> str | None:
    """The absolute path of a program, which is run in other folders than this one."""
    found = shutil.which(name, path=path)
    return None if found is None else str(Path(found).absolute())


def link_library(
    toolchain: Toolchain, kernels: Sequence[Kernel], kernels_object: bytes, plan: bytes, target: Path
) -> None:
    """Write the shared library.

    Args:
        toolchain: For the architecture of the object.
        kernels: Functions of the object, in the plan's order.
        kernels_object: From `pipeline.compile_object`.
        plan: From `Plan.encode`.
        target: The file to write.

    Raises:
        UnavailableError: The compiler is missing or fails.
    """
    flags = (*_FLAGS, *_WARNINGS)
    sources, headers = (
        {name: (RUNTIME / name).read_text(encoding="utf-8") for name in names}
        for names in (SOURCES, _HEADERS)
    )
    with tempfile.TemporaryDirectory(prefix="greencc-") as name:
        folder = Path(name)
        for header, text in headers.items():
            (folder / header).write_text(text, encoding="utf-8")
        for made, content in executor_objects(toolchain, sources, headers, flags).items():
            (folder / made).write_bytes(content)
        (folder / "model.c").write_text(model_source(kernels, plan), encoding="ascii")
        (folder / "kernels.o").write_bytes(kernels_object)
        (folder / "exports.map").write_text(_EXPORTS, encoding="ascii")
        toolchain.run([*flags, "-c", "model.c", "-o", "model.o"], folder, "compiling model.c")
        objects = [source.replace(".c", ".o") for source in (*SOURCES, "model.c")]
        arguments = [*_LINK, *objects, "kernels.o", "-o", "model.so", *_LIBRARIES]
        toolchain.run(arguments, folder, "linking the model")
        shutil.copyfile(folder / "model.so", target)


def model_source(kernels: Sequence[Kernel], plan: bytes) -> str:
    """C code with the table of the kernels and the plan's bytes."""
    lines = ['#include "internal.h"', ""]
    lines += [
        f"int __tvm_ffi_{kernel.symbol}(void *, const ffi_any *, int32_t, ffi_any *);" for kernel in kernels
    ]
    lines += ["", "const kernel_entry greencc_kernels[] = {"]
    lines += [
        f'    {{__tvm_ffi_{kernel.symbol}, {len(kernel.pattern)}, "{kernel.pattern}", {kernel.alone}}},'
        for kernel in kernels
    ]
    lines += ['    {0, 0, "", 0},', "};", f"const uint32_t greencc_kernel_count = {len(kernels)};"]
    lines += [f"const size_t greencc_plan_size = {len(plan)};", "const unsigned char greencc_plan[] = {"]
    lines += [",".join(map(str, plan[start : start + 32])) + "," for start in range(0, len(plan), 32)]
    return "\n".join([*lines, "};", ""])
