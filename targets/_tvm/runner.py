"""Builds the program that runs a model without Python (`runtime/runner.c`), for the machine that the model is for."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.targets._tvm.features import linux_flags
from greencc.targets._tvm.link import RUNTIME, find_toolchain
from greencc.targets._tvm.presets import TRIPLE

_SOURCES = ("runner.c", "greencc_model.h")
# Nothing that would tell where or when it was built: the same sources give the same bytes.
_FLAGS = (
    *("-std=c11", "-O2", "-fPIE", "-pie", "-fno-ident", "-g0", "-Wall", "-Wextra"),
    *("-s", "-Wl,--build-id=none", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,--as-needed"),
)
# The bits of AT_HWCAP and of AT_HWCAP2 on aarch64, from the lowest, by the names that /proc/cpuinfo shows (Linux,
# arch/arm64/include/uapi/asm/hwcap.h).
HWCAPS = tuple(
    text.split()
    for text in (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop "
        "sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm",
        "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 "
        "i8mm bf16",
    )
)


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


def build_runner(path: Path, triple: str, features: Iterable[str]) -> None:
    """Write the runner.

    Args:
        path: Of the file.
        triple: LLVM's name of what it is for.
        features: Instruction sets that it looks for before it loads a model, by LLVM's names.

    Raises:
        UnavailableError: There is no compiler, or it fails.
        InputError: The file cannot be written.
    """
    toolchain = find_toolchain(triple)
    with tempfile.TemporaryDirectory(prefix="greencc-") as name:
        work = Path(name)
        for source in _SOURCES:
            shutil.copyfile(RUNTIME / source, work / source)
        (work / "needs.h").write_text(_needs(triple, features), encoding="ascii")
        toolchain.run([*_FLAGS, _SOURCES[0], "-o", "runner", "-ldl"], work, "building the runner")
        shutil.copyfile(work / "runner", path)


def _needs(triple: str, features: Iterable[str]) -> str:
    """C code: the rows of the runner's table of what the processor must have."""
    rows = []
    for feature, flag in linux_flags(triple, features):
        # Scalars and vectors of half floats have a bit each.
        for name in (flag, "fphp") if flag == "asimdhp" else (flag,):
            word = next((word for word, bits in enumerate(HWCAPS) if name in bits), None)
            if word is not None:
                rows.append(f'{{{word}, 1ul << {HWCAPS[word].index(name)}, "{feature} ({name})"}},\n')
    return "".join(rows)
