"""The agent as a file, and the bootstrap that becomes it."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import greencc.devices.bootstrap
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
