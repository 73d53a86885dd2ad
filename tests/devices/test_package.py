"""The agent as a file, and the bootstrap that becomes it."""

from __future__ import annotations

import ast
import errno
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import greencc.devices.bootstrap
from greencc.agent import unpacking
from greencc.devices.package import AgentPackage, agent_package, pack


def test_the_agent_is_packed_alone() -> None:
    names = zipfile.ZipFile(io.BytesIO(agent_package().content)).namelist()
    assert {
        "__main__.py",
        "greencc/__init__.py",
        "greencc/agent/__init__.py",
        "greencc/agent/__main__.py",
    } <= set(names)
    assert all(
        name.startswith("greencc/agent/") for name in names if "/" in name and name != "greencc/__init__.py"
    )
    assert not [name for name in names if not name.endswith(".py")]
    assert zipfile.ZipFile(io.BytesIO(agent_package().content)).read("greencc/__init__.py") == b""


def test_the_same_sources_give_the_same_bytes() -> None:
    files = {"b.py": b"2", "a.py": b"1"}
    assert pack(files) == pack(dict(sorted(files.items())))
    assert pack(files).name == f"agent-{pack(files).sha256[:12]}.pyz"
    assert pack({"a.py": b"2"}).name != pack({"a.py": b"1"}).name
    agent_package.cache_clear()
    first = agent_package()
    agent_package.cache_clear()
    assert agent_package() == first


def test_it_runs_without_anything_else(tmp_path: Path) -> None:
    file = tmp_path / agent_package().name
    file.write_bytes(agent_package().content)
    environment = {"PATH": os.defpath, "GREENCC_AGENT_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(file), "serve"],
        input=b'{"id":1,"op":"has","args":{"sha256":"' + b"0" * 64 + b'"},"bytes":0}\n',
        capture_output=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    greeting, reply = done.stdout.splitlines()
    assert b'"greencc-agent":1' in greeting
    assert b'"complete":false' in reply


def test_the_bootstrap_parses_on_old_pythons() -> None:
    source = Path(greencc.devices.bootstrap.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 4))
    assert 'f"' not in source
    assert "f'" not in source


def test_what_came_damaged_is_not_stored(tmp_path: Path) -> None:
    package = AgentPackage(b"the agent")
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, greencc.devices.bootstrap.__file__, "", package.sha256, "9"],
        input=b"the virus",
        capture_output=True,
        check=False,
        env={**os.environ, "GREENCC_AGENT_HOME": str(home)},
    )
    assert b'"send"' in done.stdout
    assert b'"damaged"' in done.stdout
    assert not list(home.iterdir())


def _old(path: Path) -> Path:
    for each in (*path.rglob("*"), path):
        os.utime(each, (1e9, 1e9))
    return path


def test_agents_of_other_versions_go_with_their_folders(tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        (tmp_path / name / "greencc").mkdir(parents=True)
        (tmp_path / name / "greencc/a.py").write_text("")
        return tmp_path / name

    for name in ("agent-1.pyz", "agent-2.pyz", "agent-9.pyz.7.part"):
        (tmp_path / name).write_bytes(b"old")
    _old(tmp_path / "agent-1.pyz")
    _old(tmp_path / "agent-9.pyz.7.part")
    for name in ("agent-1.pyz.d", "agent-2.pyz.d", "agent-3.pyz.d", ".agent-4.pyz.d.77", "store"):
        _old(folder(name))
    (tmp_path / "journal.json").write_text("{}")
    _old(tmp_path / "journal.json")
    greencc.devices.bootstrap.forget_old(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "agent-2.pyz",
        "agent-2.pyz.d",
        "journal.json",
        "store",
    ]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed program of two files, of which this process has seen nothing."""
    monkeypatch.setattr(unpacking, "_checked", set())
    path = tmp_path / "agent-1.pyz"
    path.write_bytes(pack({"__main__.py": b"import b", "lib/b.py": b"print(1)"}).content)
    return path


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


_WHOLE = {"__main__.py": b"import b", "lib/b.py": b"print(1)"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "lib/b.py").write_bytes(b""),
        lambda folder: (folder / "lib/b.py").write_bytes(b"print(2)"),
        lambda folder: (folder / "lib/b.py").unlink(),
        lambda folder: (folder / ".whole").unlink(),
        lambda folder: (folder / ".whole").write_bytes(b""),
        shutil.rmtree,
    ],
    ids=["empty", "changed", "missing", "unfinished", "no-digest", "gone"],
)
def test_the_unpacked_agent_is_compared_with_its_file_and_mended(
    file: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object]
) -> None:
    folder = unpacking.unpacked(file)
    assert _files(folder) == _WHOLE
    damage(folder)
    monkeypatch.setattr(unpacking, "_checked", set())
    assert unpacking.unpacked(file) == folder
    assert _files(folder) == _WHOLE
    assert sorted(path.name for path in file.parent.iterdir()) == ["agent-1.pyz", "agent-1.pyz.d"]


def test_a_folder_that_is_whole_is_left_as_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = unpacking.unpacked(file).stat().st_ino
    monkeypatch.setattr(unpacking, "_checked", set())
    assert unpacking.unpacked(file).stat().st_ino == before


def test_where_nothing_can_be_written_the_file_itself_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacking.unpacked(file)
    (folder / "lib/b.py").write_bytes(b"")
    monkeypatch.setattr(unpacking, "_checked", set())

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpacking, "_flush", full)
    assert unpacking.unpacked(file) == file
    assert not [path for path in file.parent.iterdir() if path.name.startswith(".")]
