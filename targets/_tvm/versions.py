"""Whether TVM and a compiler can be used here.

That is told without importing TVM where that is possible: an import takes most of a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from greencc.core.errors import GreenccError, UnavailableError

PACKAGE = "apache-tvm"
MINIMUM_VERSION = (0, 27)
TRIED_VERSION = (0, 27)
"""The newest version that greencc was tried with."""
INSTALL = "pip install 'greencc[tvm]'"

# What kernels are written with, and what came with which version. Paths within the package.
_PARTS = {
    "tvm.tirx": "tirx/__init__.py",
    "tvm.s_tir": "s_tir/__init__.py",
    "tvm.tirx.script.builder": "tirx/script/builder/__init__.py",
    "tvm.relax": "relax/__init__.py",
    "tvm.relax.frontend.onnx": "relax/frontend/onnx/__init__.py",
}
_DIFFERENCES = (
    "it has no tvm.tirx and tvm.s_tir (0.27 split tvm.tir into them) "
    "and no TIRx builder to write kernels with"
)


def tvm_version() -> str | None:
    """Version of the installed package, or None."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_tvm() -> str | None:
    """Why TVM cannot be used here, or None; nothing is imported."""
    version = tvm_version()
    spec = importlib.util.find_spec("tvm")
    if spec is None:
        return f"{PACKAGE} is not installed: {INSTALL}"
    if version is None:
        return f"there is a module tvm that {PACKAGE} did not install: remove it, then {INSTALL}"
    found = _numbers(version)
    needed = ".".join(map(str, MINIMUM_VERSION))
    if found < MINIMUM_VERSION:
        return f"{PACKAGE} {version} is too old: {_DIFFERENCES}; pip install '{PACKAGE}>={needed}'"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    absent = [
        module for module, path in _PARTS.items() if not any((folder / path).is_file() for folder in folders)
    ]
    if absent:
        tried = ".".join(map(str, TRIED_VERSION))
        kind = "newer than what greencc was tried with, and has" if found > TRIED_VERSION else "incomplete:"
        return f"{PACKAGE} {version} is {kind} no {', '.join(absent)}: pip install '{PACKAGE}=={tried}.*'"
    return None


def missing_compiler(triple: str) -> str | None:
    """Why libraries for a triple cannot be linked here, or None."""
    from greencc.targets._tvm.link import find_toolchain

    try:
        find_toolchain(triple)
    except GreenccError as error:
        return str(error)
    return None


def note() -> str:
    """A line on the installed version for `greencc targets`."""
    version = tvm_version()
    if version is None:
        return f"{PACKAGE} is not installed"
    if _numbers(version) > TRIED_VERSION:
        tried = ".".join(map(str, TRIED_VERSION))
        return f"{PACKAGE} {version}, which is newer than what greencc was tried with ({tried})"
    return f"{PACKAGE} {version}"


@cache
def load() -> Any:
    """Import TVM and look for what greencc uses of it.

    Raises:
        UnavailableError: It cannot be used.
    """
    if reason := missing_tvm():
        raise UnavailableError(f"TVM cannot be used here: {reason}")
    try:
        import tvm
        import tvm.relax.frontend.onnx
        import tvm.s_tir
        import tvm.tirx
        from tvm.script.ir_builder import tirx
        from tvm.target import codegen
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(
            f"TVM cannot be imported: {_first_line(error)}", hint=f"pip install --force-reinstall {PACKAGE}"
        ) from error
    probes = {
        "tvm.tirx.PrimFunc": hasattr(tvm.tirx, "PrimFunc"),
        "tvm.script.ir_builder.tirx.prim_func": hasattr(tirx, "prim_func"),
        "tvm.relax.BlockBuilder": hasattr(tvm.relax, "BlockBuilder"),
        "tvm.target.codegen.llvm_version_major": hasattr(codegen, "llvm_version_major"),
    }
    if absent := [name for name, there in probes.items() if not there]:
        tried = ".".join(map(str, TRIED_VERSION))
        raise UnavailableError(
            f"{PACKAGE} {tvm_version()} has no {', '.join(absent)}",
            hint=f"pip install '{PACKAGE}=={tried}.*', which greencc was tried with",
        )
    if not codegen.llvm_version_major():
        raise UnavailableError("this build of TVM has no LLVM, which generates the code", hint=INSTALL)
    return tvm


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
