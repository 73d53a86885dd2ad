"""TVM that is missing, too old, too new or broken: one line each, and no import until there is need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from greencc.core.errors import UnavailableError
from greencc.targets import TvmCpuTarget
from greencc.targets._tvm import versions
from greencc.targets._tvm.versions import load, missing_tvm, note

INSTALL = "pip install 'greencc[tvm]'"
PARTS = ("tirx", "s_tir", "tirx/script/builder", "relax", "relax/frontend/onnx")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    load.cache_clear()
    yield
    load.cache_clear()


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, version: str | None, parts: tuple[str, ...]
) -> None:
    """Make the package look as if `version` with `parts` were installed in `folder`."""
    for part in parts:
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "__init__.py").touch()
    spec = ModuleSpec("tvm", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    def found(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_tvm() == f"apache-tvm is not installed: {INSTALL}"
    assert TvmCpuTarget().missing() == missing_tvm()
    for use in (TvmCpuTarget().versions, TvmCpuTarget().capabilities):
        with pytest.raises(
            UnavailableError, match=r"the tvm-cpu target cannot run here: apache-tvm is not installed: pip"
        ):
            use()
    with pytest.raises(UnavailableError, match=r"^TVM cannot be used here: apache-tvm is not installed"):
        load()


def test_something_else_called_tvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, None, ())
    assert (
        missing_tvm() == f"there is a module tvm that apache-tvm did not install: remove it, then {INSTALL}"
    )
    assert note() == "apache-tvm is not installed"


@pytest.mark.parametrize("version", ["0.14.dev273", "0.26.1", "nonsense"])
def test_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    install(monkeypatch, tmp_path, version, PARTS)
    assert missing_tvm() == (
        f"apache-tvm {version} is too old: it has no tvm.tirx and tvm.s_tir (0.27 split tvm.tir into them) and no TIRx "
        "builder to write kernels with; pip install 'apache-tvm>=0.27'"
    )


@pytest.mark.parametrize("version", ["0.27.0.post1", "0.27.9"])
def test_tried_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    install(monkeypatch, tmp_path, version, PARTS)
    assert missing_tvm() is None
    assert note() == f"apache-tvm {version}"


@pytest.mark.parametrize("version", ["0.28.0", "1.0"])
def test_newer_versions_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    install(monkeypatch, tmp_path, version, PARTS)
    assert missing_tvm() is None
    assert note() == f"apache-tvm {version}, which is newer than what greencc was tried with (0.27)"


def test_a_newer_version_without_what_kernels_are_written_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "0.29.0", PARTS[:2])
    assert missing_tvm() == (
        "apache-tvm 0.29.0 is newer than what greencc was tried with, and has no tvm.tirx.script.builder, tvm.relax, "
        "tvm.relax.frontend.onnx: pip install 'apache-tvm==0.27.*'"
    )


def test_an_incomplete_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "0.27.0", PARTS[1:])
    missing = missing_tvm()
    assert missing is not None
    assert missing.startswith("apache-tvm 0.27.0 is incomplete: no ")


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "missing_tvm", lambda: None)
    # What an import finds for a module that it must not load.
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(
        UnavailableError,
        match=r"^TVM cannot be imported: .*tvm.*\(pip install --force-reinstall apache-tvm\)$",
    ):
        load()


@pytest.mark.parametrize(
    ("llvm", "message"),
    [
        (
            None,
            r"^apache-tvm \S+ has no tvm.target.codegen.llvm_version_major \(pip install 'apache-tvm==0.27",
        ),
        (0, "^this build of TVM has no LLVM, which generates the code"),
    ],
)
def test_an_interface_that_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llvm: int | None, message: str
) -> None:
    install(monkeypatch, tmp_path, "0.28.0", PARTS)
    modules = {
        name: types.ModuleType(name)
        for name in (
            "tvm",
            "tvm.relax",
            "tvm.relax.frontend",
            "tvm.relax.frontend.onnx",
            "tvm.s_tir",
            "tvm.tirx",
            "tvm.script",
            "tvm.script.ir_builder",
            "tvm.script.ir_builder.tirx",
            "tvm.target",
            "tvm.target.codegen",
        )
    }
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
        monkeypatch.setitem(sys.modules, name, module)
    for name, attribute in (
        ("tvm.tirx", "PrimFunc"),
        ("tvm.script.ir_builder.tirx", "prim_func"),
        ("tvm.relax", "BlockBuilder"),
    ):
        setattr(modules[name], attribute, object)
    if llvm is not None:
        modules["tvm.target.codegen"].llvm_version_major = lambda: llvm  # type: ignore[attr-defined]
    with pytest.raises(UnavailableError, match=message):
        load()


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(versions, "missing_tvm", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert re.fullmatch(
        r"no C compiler for \w+ \(cc, gcc, clang\) \(apt-get install gcc.*\)", TvmCpuTarget().missing() or ""
    )
    monkeypatch.setenv("CC", "no-such-cc -m64")
    assert TvmCpuTarget().missing() == (
        "CC is 'no-such-cc', which is not installed (unset CC, or name a C compiler)"
    )


@pytest.mark.skipif(missing_tvm() is not None, reason=str(missing_tvm()))
def test_the_installed_version_has_all_that_is_used() -> None:
    assert load().__name__ == "tvm"
    assert versions.tvm_version() in note()


@pytest.mark.skipif(TvmCpuTarget().missing() is not None, reason=str(TvmCpuTarget().missing()))
def test_listing_the_target_does_not_import_tvm() -> None:
    program = (
        "import sys\n"
        "from greencc.targets import TvmCpuTarget\n"
        "target = TvmCpuTarget()\n"
        "assert target.missing() is None\n"
        "target.capabilities(), target.versions(), target.device()\n"
        "assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
