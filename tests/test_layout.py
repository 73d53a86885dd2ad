"""The repository's layout, and a wheel built from the sdist in an empty environment (docs/adr/0001-layout.md)."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("passes", "targets", "calibration")


@pytest.mark.parametrize("name", LINKS)
def test_symlinks_are_symlinks(name: str) -> None:
    link = ROOT / "greencc" / name
    assert link.is_symlink(), f"greencc/{name} is not a symlink: check out with git's core.symlinks=true"
    assert str(link.readlink()) == f"../{name}"


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_from_sdist_works_in_an_empty_environment(tmp_path: Path) -> None:
    # `python -m build` makes the sdist first, and the wheel from the sdist.
    _run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for name in LINKS:
        assert f"greencc/{name}/__init__.py" in names
    assert not [
        n for n in names if n.split("/")[0] not in ("greencc", f"{wheel.name.split('-py3')[0]}.dist-info")
    ]
    assert any(n.endswith(".html.j2") for n in names), "the report template is missing from the wheel"
    assert "greencc/targets/_tvm/runtime/executor.c" in names, "TVM's executor is missing from the wheel"
    assert "greencc/meters/devices/jetson-nano.toml" in names, (
        "the device profiles are missing from the wheel"
    )

    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", wheel)
    greencc = tmp_path / "env" / "bin" / "greencc"
    assert "compile" in _run(greencc, "--help", cwd=tmp_path)
    example = ROOT / "examples" / "fashion_mnist"
    _run(
        greencc, "compile", example / "model.onnx", "--calibration", example / "calibration.npz",
        "--precision", "int8", "--effort", "quick", "--samples", "32", "--max-drop", "5%",
        "-o", tmp_path / "out.greencc", cwd=tmp_path,
    )  # fmt: skip
    _run(greencc, "verify", tmp_path / "out.greencc", cwd=tmp_path)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_repository_stays_small() -> None:
    files = [ROOT / name for name in _run("git", "ls-files", "-z", cwd=ROOT).split("\0") if name]
    large = [str(file) for file in files if file.is_file() and file.stat().st_size > 6_000_000]
    assert not large
    stray = [
        file.name
        for file in files
        if file.suffix == ".data" or (file.parent == ROOT and file.suffix == ".onnx")
    ]
    assert not stray
