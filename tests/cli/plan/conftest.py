"""Models to plan for, a machine without noise, and a cache that earlier compiles have filled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from greencc.bundle import load
from greencc.compiler import CompileOptions, Effort, compile_model
from greencc.core.cache import VARIABLE
from greencc.core.report import Report
from greencc.core.report_plan import PlanInfo
from greencc.planner.budget import Objective
from tests.cli.conftest import Outcome

from .blocks import build_blocks
from .steady import install

TARGET = "cpu:threads=1,optimization=all"
COMPILE = (
    "compile", "model.onnx", "-t", TARGET, "-c", "calibration.npz", "--eval", "eval.npz", "--effort", "quick",
    "--max-drop", "3%", "-o", "out.greencc",
)  # fmt: skip


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch.setattr)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on disk."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="session")
def planned_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with the blocks model and data, planned for latency as ``out.greencc``, and with what was cached."""
    folder, cache = tmp_path_factory.mktemp("blocks"), tmp_path_factory.mktemp("planned-cache")
    build_blocks(folder)
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr)
        patch.setenv(VARIABLE, str(cache))
        options = CompileOptions(
            target=TARGET,
            calibration=folder / "calibration.npz",
            evaluation=folder / "eval.npz",
            effort=Effort.QUICK,
            max_drop=0.03,
            minimize=Objective.LATENCY,
        )
        compile_model(folder / "model.onnx", options, output=folder / "out.greencc").close()
    return folder, cache


@pytest.fixture
def blocks(
    planned_files: tuple[Path, Path], tmp_path: Path, steady: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The blocks model and its data in the current folder, on a steady machine."""
    for file in planned_files[0].iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def known(planned_files: tuple[Path, Path], cache: Path) -> Path:
    """The cache that the compile for latency left."""
    shutil.copytree(planned_files[1], cache, dirs_exist_ok=True)
    return cache


@pytest.fixture
def small(digits: Path, steady: None, cache: Path) -> Path:
    """The digits model of two layers in the current folder: quick to plan."""
    return digits


Plan = Callable[..., tuple[Report, PlanInfo]]


@pytest.fixture
def plan(greencc: Callable[..., Outcome]) -> Plan:
    """Compile ``model.onnx`` in the current folder with more arguments; the report and its plan."""

    def call(*arguments: object, base: tuple[str, ...] = COMPILE) -> tuple[Report, PlanInfo]:
        outcome = greencc(*base, "--force", *arguments)
        assert outcome.code == 0, outcome.err
        with load(Path("out.greencc")) as bundle:
            report = bundle.report
        assert report.plan is not None
        return report, report.plan

    return call


def entries(cache: Path, kind: str) -> set[str]:
    """Names of the entries of a kind, or of all kinds that begin so."""
    return {path.name for path in cache.glob(f"{kind}*/[!.]*.cache")}


def environment(cache: Path) -> dict[str, str]:
    """For a process of its own that imports these tests."""
    root = Path(__file__).parents[3]
    return {**os.environ, VARIABLE: str(cache), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
