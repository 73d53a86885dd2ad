"""What is written: the same bytes every time, a clean library, one clear message where it cannot be made."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.core.errors import InputError, UnavailableError
from greencc.targets._tvm import link
from greencc.targets._tvm.features import needed_features
from greencc.targets._tvm.library import write_library
from greencc.targets._tvm.link import Toolchain, find_toolchain
from greencc.targets._tvm.machine import Machine

from .conftest import Case

Write = Callable[[Case, Path], Path]
FILES = ("model.so", "weights.bin", "model.json")
ROOT = Path(__file__).resolve().parents[3]


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_same_bytes_again(mixed: Case, built: Path, write: Write, tmp_path: Path) -> None:
    write(mixed, tmp_path)
    assert _contents(tmp_path) == _contents(built.parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_the_same_bytes_in_another_process(built: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import importlib.util as u\n"
        "spec = u.spec_from_file_location('cases', sys.argv[2]); cases = u.module_from_spec(spec)\n"
        "sys.modules['cases'] = cases; spec.loader.exec_module(cases)\n"
        "import platform\n"
        "machine = cases.Machine(f'{platform.machine()}-linux-gnu', 'generic', frozenset())\n"
        "cases._write(cases._mixed(), Path(sys.argv[3]), machine)\n"
    )
    conftest = Path(__file__).parent / "conftest.py"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TMPDIR": str(tmp_path)}
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(conftest), str(target)],
        check=True,
        env=environment,
        cwd=ROOT,
        timeout=300,
    )
    assert _contents(target) == _contents(built.parent)


def test_no_path_in_the_library(built: Path) -> None:
    code = (built.parent / "model.so").read_bytes()
    for text in (b"/tmp", b"greencc-", b"/home", str(ROOT).encode()):
        assert text not in code, text


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (apt-get install binutils)")
def test_the_library_is_clean(built: Path) -> None:
    library = built.parent / "model.so"

    def read(option: str) -> str:
        return subprocess.run(
            ["readelf", "-W", option, str(library)], check=True, capture_output=True, text=True
        ).stdout

    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", read("-d"))
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}
    assert re.search(r"\(FLAGS\)\s+BIND_NOW", read("-d"))
    segments = read("-l")
    assert "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK.* RW ", segments)
    assert not re.search(r"LOAD.* RWE ", segments)
    sections = read("-S")
    assert ".symtab" not in sections
    assert ".debug" not in sections
    assert ".note.gnu.build-id" not in sections
    defined = {
        fields[-1]
        for line in read("--dyn-syms").splitlines()
        if (fields := line.split()) and len(fields) == 8 and fields[6].isdigit()
    }
    header = (link.RUNTIME / "greencc_model.h").read_text()
    assert defined == set(re.findall(r"\b(greencc_\w+)\(", header))
    assert "greencc_run" in defined


def test_the_description(built: Path, mixed: Case) -> None:
    data = json.loads(built.read_text())
    assert data["schema"] == "greencc.tvm/1"
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 4, 4]}]
    assert [row["name"] for row in data["outputs"]] == [spec.name for spec in mixed.outputs]
    assert data["kernels"][0] == {"node": "first", "op_type": "Mul", "arithmetic": "float"}


def test_a_missing_compiler_names_its_package(tmp_path: Path) -> None:
    empty = {"PATH": str(tmp_path)}
    here = f"{os.uname().machine}-linux-gnu"
    with pytest.raises(
        UnavailableError, match=r"no C compiler for .*cc, gcc, clang.*apt-get install gcc libc6-dev"
    ):
        find_toolchain(here, environment=empty)
    if os.uname().machine == "x86_64":
        with pytest.raises(UnavailableError, match="apt-get install gcc-aarch64-linux-gnu"):
            find_toolchain("aarch64-linux-gnu", environment=empty)
    with pytest.raises(UnavailableError, match="apt-get install gcc-arm-linux-gnueabihf"):
        find_toolchain("armv7-linux-gnueabihf", environment=empty)
    with pytest.raises(UnavailableError, match="CC is 'mycc', which is not installed"):
        find_toolchain(here, environment=empty | {"CC": "mycc -m64"})
    with pytest.raises(UnavailableError, match=r"CC is 'gcc \"', which is no command: No closing quotation"):
        find_toolchain(here, environment=empty | {"CC": 'gcc "'})
    with pytest.raises(InputError, match="no libraries can be made for riscv64"):
        find_toolchain("riscv64-linux-gnu", environment=empty)


def test_the_compiler_of_the_environment(tmp_path: Path) -> None:
    _program(tmp_path / "mycc", "exit 0")
    here = f"{os.uname().machine}-linux-gnu"
    environment = {"PATH": str(tmp_path), "CC": "mycc -pipe"}
    assert find_toolchain(here, environment=environment).command == (str(tmp_path / "mycc"), "-pipe")
    with pytest.raises(UnavailableError, match="CC is 'mycc \"', which is no command: No closing quotation"):
        find_toolchain(here, environment=environment | {"CC": 'mycc "'})


def test_a_relative_compiler_is_found_from_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    _program(tmp_path / "here" / "mycc", "exit 0")
    monkeypatch.chdir(tmp_path / "here")
    triple = f"{os.uname().machine}-linux-gnu"
    for environment in ({"CC": "./mycc"}, {"CC": "mycc", "PATH": "."}):
        find_toolchain(triple, environment=environment).run(["-v"], tmp_path / "there", "trying")


def test_a_compiler_that_fails(
    mixed: Case, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "badcc", "echo 'plan.c: note'; echo 'plan.c:3: error: no way' >&2; exit 1")
    monkeypatch.setenv("CC", str(tmp_path / "badcc"))
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(UnavailableError, match=r"failed compiling plan\.c: plan\.c:3: error: no way"):
        _write(mixed, folder, machine)
    assert list(folder.iterdir()) == []


def test_a_compiler_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot start /nowhere/cc"):
        Toolchain(("/nowhere/cc",), "x86_64").run(["-v"], tmp_path, "trying")


def test_a_folder_that_is_not_there(mixed: Case, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        _write(mixed, tmp_path / "file" / "model", machine)


def test_features_that_cannot_be_checked(mixed: Case, machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'avx4096' cannot be checked for"):
        _write(mixed, tmp_path, replace(machine, features=frozenset({"avx4096"})))
    assert list(tmp_path.iterdir()) == []


def test_features_of_a_named_processor_are_needed() -> None:
    needed = needed_features("x86_64-linux-gnu", ["avx512vnni"], ["avx2", "fast-bextr", "64bit"])
    assert needed == ("avx2", "avx512vnni")


@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"])
def test_the_runtime_compiles_without_warnings(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for source in link.SOURCES:
        subprocess.run(
            [
                *(compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-c"),
                *(str(link.RUNTIME / source), "-o", str(tmp_path / "object.o")),
            ],
            check=True,
        )


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None, reason="needs apt-get install gcc-aarch64-linux-gnu"
)
def test_for_aarch64(mixed: Case, tmp_path: Path) -> None:
    main = _write(mixed, tmp_path, Machine("aarch64-linux-gnu", "cortex-a76", frozenset({"dotprod"})))
    assert (tmp_path / "model.so").read_bytes()[18:20] == b"\xb7\x00"
    assert {"neon", "dotprod", "lse"} <= set(json.loads(main.read_text())["features"])


def _write(case: Case, folder: Path, machine: Machine) -> Path:
    return write_library(
        case.module,
        folder,
        machine=machine,
        inputs=case.inputs,
        outputs=case.outputs,
        kernels=case.kernels,
    )


def _program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
