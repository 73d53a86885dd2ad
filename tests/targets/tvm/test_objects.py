"""The executor is compiled once per compiler, and never taken from where others may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc.targets._tvm import objects
from greencc.targets._tvm.link import Toolchain
from greencc.targets._tvm.objects import KIND, executor_objects

SOURCES = {"a.c": "int a(void) { return 1; }\n", "b.c": "int b(void) { return 2; }\n"}
# Writes what it compiled and its arguments, and keeps count.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "$NAME"; exit 0; fi
for last; do :; done
echo "$@" >> "$COUNT"
cat "$3" > "$last"
"""


@pytest.fixture
def toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    script = tmp_path / "compiler"
    script.write_text(COMPILER)
    script.chmod(0o755)
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("NAME", "first")
    monkeypatch.setenv("GREENCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "_known", {})
    return Toolchain((str(script),), "x86_64")


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "count").read_text().splitlines())


def made(toolchain: Toolchain) -> dict[str, bytes]:
    return dict(executor_objects(toolchain, SOURCES, {"a.h": ""}, ["-x"]))


def test_once_in_a_process_and_once_in_the_cache(
    toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"a.o": SOURCES["a.c"].encode(), "b.o": SOURCES["b.c"].encode()}
    assert made(toolchain) == made(toolchain) == expected
    assert calls(tmp_path) == 2
    monkeypatch.setattr(objects, "_known", {})
    assert made(toolchain) == expected
    assert calls(tmp_path) == 2


def test_another_compiler_or_source_is_another_entry(
    toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(toolchain)
    monkeypatch.setenv("NAME", "second")
    made(toolchain)
    assert calls(tmp_path) == 4
    executor_objects(toolchain, SOURCES | {"b.c": "int c;\n"}, {"a.h": ""}, ["-x"])
    executor_objects(toolchain, SOURCES, {"a.h": "int d;\n"}, ["-x"])
    executor_objects(toolchain, SOURCES, {"a.h": ""}, ["-y"])
    assert calls(tmp_path) == 10


@pytest.mark.parametrize("name", ["CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "GCC_EXEC_PREFIX"])
def test_where_the_compiler_looks_is_part_of_the_key(
    toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    made(toolchain)
    monkeypatch.setenv(name, str(tmp_path))
    made(toolchain)
    assert calls(tmp_path) == 4
    monkeypatch.delenv(name)
    made(toolchain)
    assert calls(tmp_path) == 4


def test_a_cache_that_others_may_write_to_is_not_used(
    toolchain: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(toolchain)
    (tmp_path / "cache" / KIND).chmod(0o777)
    monkeypatch.setattr(objects, "_known", {})
    made(toolchain)
    assert calls(tmp_path) == 4
