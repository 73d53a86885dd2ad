"""Models compiled when they are opened: once, kept, and never taken from where others may write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from greencc.core.cache import Cache
from greencc.core.errors import InputError
from greencc.targets._tvm import compiled as module
from greencc.targets._tvm.compiled import KIND, compiled, forget

FILES = {"model.json": b"{}", "model.so": bytes(range(256)) * 40, "weights.bin": b""}


class Builder:
    """Writes the files, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> Path:
        assert list(folder.iterdir()) == []
        self.calls += 1
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        return folder / "model.json"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    forget()
    yield
    forget()


def contents(main: Path) -> dict[str, bytes]:
    assert main.name == "model.json"
    return {path.name: path.read_bytes() for path in main.parent.iterdir()}


def test_a_process_builds_once(tmp_path: Path) -> None:
    build = Builder()
    first, second = (compiled(("a",), build, label="", folder=tmp_path) for _ in range(2))
    assert first == second
    assert build.calls == 1
    assert contents(first) == FILES
    assert compiled(("b",), build, label="", folder=tmp_path) != first
    assert build.calls == 2


def test_a_later_process_finds_it(tmp_path: Path) -> None:
    build = Builder()
    first = compiled(("a",), build, label="code of m.onnx", folder=tmp_path / "cache")
    forget()
    assert not first.exists()
    second = compiled(("a",), build, label="", folder=tmp_path / "cache")
    assert build.calls == 1
    assert contents(second) == FILES
    assert second.parent.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / KIND).stat().st_mode & 0o777 == 0o700


def test_nothing_is_kept_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCC_CACHE", "")
    build = Builder()
    for _ in range(2):
        assert contents(compiled(("a",), build, label="")) == FILES
        forget()
    assert build.calls == 2


def test_damaged_code_is_built_again(tmp_path: Path) -> None:
    build = Builder()
    compiled(("a",), build, label="", folder=tmp_path)
    (entry,) = (tmp_path / KIND).iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    forget()
    assert contents(compiled(("a",), build, label="", folder=tmp_path)) == FILES
    assert build.calls == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"file:model.json": b"{}"},
        {"main:": b"model.json"},
        {"main:": b"../model.json", "file:model.json": b"{}"},
        {"main:": b"\xff", "file:model.json": b"{}"},
    ],
)
def test_an_entry_without_a_main_file_is_none(tmp_path: Path, entry: dict[str, bytes]) -> None:
    compiled(("a",), Builder(), label="", folder=tmp_path)
    cache = Cache(tmp_path)
    (key,) = cache.keys(KIND)
    cache.put(KIND, key, {name: np.frombuffer(data, np.uint8) for name, data in entry.items()}, label="")
    forget()
    build = Builder()
    assert contents(compiled(("a",), build, label="", folder=tmp_path)) == FILES
    assert build.calls == 1


@pytest.fixture
def shared_umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("shared_umask")
@pytest.mark.parametrize("first", [True, False])
def test_a_umask_for_groups_does_not_turn_the_cache_off(tmp_path: Path, first: bool) -> None:
    folder = tmp_path / "cache" / "greencc"
    if not first:
        Cache(folder).put("numbers", "0" * 64, {"a": np.zeros(1)}, label="")
    build = Builder()
    for _ in range(2):
        compiled(("a",), build, label="", folder=folder)
        forget()
    assert build.calls == 1


def test_a_cache_below_a_folder_of_others_is_not_used(tmp_path: Path) -> None:
    build = Builder()
    (tmp_path / "shared").mkdir()
    folder = tmp_path / "shared" / "mine" / "cache"
    for mode, calls in ((0o755, 1), (0o777, 2), (0o1777, 2)):
        (tmp_path / "shared").chmod(mode)
        compiled(("a",), build, label="", folder=folder)
        forget()
        assert build.calls == calls


@pytest.mark.parametrize("which", [".", KIND])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path, which: str) -> None:
    build = Builder()
    compiled(("a",), build, label="", folder=tmp_path)
    (tmp_path / which).chmod(0o777)
    forget()
    compiled(("a",), build, label="", folder=tmp_path)
    assert build.calls == 2


def test_a_cache_behind_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / KIND).symlink_to(tmp_path / "elsewhere")
    compiled(("a",), Builder(), label="", folder=tmp_path / "cache")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_cache_that_cannot_be_made_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert contents(compiled(("a",), Builder(), label="", folder=tmp_path / "file")) == FILES


def test_large_libraries_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1000)
    compiled(("a",), Builder(), label="", folder=tmp_path)
    assert Cache(tmp_path).keys(KIND) == []


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def fail(folder: Path) -> Path:
        (folder / "model.so").write_bytes(b"half")
        raise InputError("no such operator")

    with pytest.raises(InputError, match="no such operator"):
        compiled(("a",), fail, label="", folder=tmp_path / "cache")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert Cache(tmp_path / "cache").keys(KIND) == []
    assert contents(compiled(("a",), Builder(), label="", folder=tmp_path / "cache")) == FILES


def test_a_temporary_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"cannot write .*nowhere"):
        compiled(("a",), Builder(), label="", folder=tmp_path)
