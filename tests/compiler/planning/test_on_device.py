"""A budget for a device that is attached: measured there in one power mode, which is set only where that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

import greencc.targets
from greencc.bundle import Bundle
from greencc.compiler import CompileOptions, compile_model, final
from greencc.compiler import compile as compile_module
from greencc.compiler.measurement import Measurement
from greencc.compiler.planning import on_device
from greencc.compiler.reporting import Layers
from greencc.compiler.variant import Variant
from greencc.core.engine import Target
from greencc.core.errors import LimitError, UsageError
from greencc.core.power_modes import OnDevice
from greencc.core.report import Energy, Figures, Interval, Latency, Ratio
from greencc.core.report_plan import PlanInfo
from greencc.report.plan import limit_rows
from greencc.targets.cpu import CpuTarget
from tests.compiler.shared import CONV_SIZE, conv_net

RAIL = "VDD_IN (module)"
MODES = (("15W", 15.0), ("7W", 7.0), ("MAXN", None))


@dataclass(frozen=True)
class FarTarget(CpuTarget):
    """A module that is not here."""

    name: ClassVar[str] = "far"

    def estimated_on(self) -> str:
        return "jetson-orin-nano"


@dataclass
class Board:
    """What the attached module is in, and was in."""

    mode: str = "15W"
    seen: list[str] = field(default_factory=list)


BOARD = Board()


@dataclass(frozen=True)
class AttachedTarget(CpuTarget):
    """The same module, attached."""

    allowed: bool = False

    name: ClassVar[str] = "attached"
    summary: ClassVar[str] = "a module that is attached"

    @property
    def base(self) -> Target:
        return FarTarget()

    @property
    def may_change_mode(self) -> bool:
        return self.allowed

    def power_modes(self) -> tuple[tuple[str, float | None], ...]:
        return MODES

    def power_mode(self) -> str | None:
        return BOARD.mode

    @contextmanager
    def with_power_mode(self, name: str) -> Iterator[None]:
        assert self.allowed
        before, BOARD.mode = BOARD.mode, name
        try:
            yield
        finally:
            BOARD.mode = before


def fake_measurement(watts: dict[str, float]) -> object:
    """Measures by the size of an artifact, at the watts of the mode that the board is in."""

    def measured(
        session: object, device: object, baseline: Variant, artifact: Variant, *_: object, **__: object
    ):
        BOARD.seen.append(BOARD.mode)
        pair = [figures(variant.size_bytes) for variant in (baseline, artifact)]
        one = Interval(1.1, 1.05, 1.2)
        return Measurement(pair[0], pair[1], Ratio(one, one, one), {"clean": True})

    def figures(size: int) -> Figures:
        ms = size / 1e4
        gross = watts[BOARD.mode] * ms
        energy = Energy(
            gross / 2, gross / 2.2, gross / 1.9, "B", RAIL, "measured", gross, 0.95 * gross, 1.05 * gross
        )
        latency = Latency(ms, 1.1 * ms, 1.2 * ms, 500, tuple(np.linspace(0.9 * ms, 1.2 * ms, 500)))
        return Figures(latency, energy, size, None, None, None, 5_000_000)

    return measured


@pytest.fixture(autouse=True)
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(greencc.targets, "TARGETS", (CpuTarget, AttachedTarget))
    fake = fake_measurement({"15W": 6.0, "7W": 4.5})
    monkeypatch.setattr(on_device, "measure_variants", fake)
    monkeypatch.setattr(final, "measure_variants", fake)
    monkeypatch.setattr(compile_module, "layers_of", lambda *_: Layers())
    BOARD.mode, BOARD.seen = "15W", []
    return BOARD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attached")
    rng = np.random.default_rng(0)
    onnx.save(conv_net(), folder / "net.onnx")
    data = rng.standard_normal((48, 3, CONV_SIZE, CONV_SIZE)).astype(np.float32)
    np.savez(folder / "eval.npz", x=data)
    return folder


def compiled(folder: Path, output: Path, allowed: bool, **changes: object) -> Bundle:
    given = {"evaluation": folder / "eval.npz", "cache": False, "workers": 1, "max_drop": 0.2} | changes
    target = f"attached:threads=1,allowed={'true' if allowed else 'false'}"
    return compile_model(folder / "net.onnx", CompileOptions(target=target, **given), output=output)  # type: ignore[arg-type]


def plan_of(bundle: Bundle) -> PlanInfo:
    assert bundle.report.plan is not None
    return bundle.report.plan


def test_the_attached_target_is_known_by_what_it_can_do() -> None:
    assert isinstance(AttachedTarget(), OnDevice)
    assert not isinstance(CpuTarget(), OnDevice)


def test_the_budgets_mode_is_set_and_put_back(folder: Path, tmp_path: Path, board: Board) -> None:
    with compiled(folder, tmp_path / "out.greencc", True, budget="5W", rate=30.0) as bundle:
        plan = plan_of(bundle)
    assert set(board.seen) == {"7W"}
    assert board.mode == "15W"
    assert plan.power_mode == "7W"
    assert {point.mode for point in plan.points} == {"7W"}
    (limit,) = plan.limits
    assert (limit.met, limit.estimated, limit.grade) == (True, False, "B")
    assert "the average of VDD_IN at 30 requests/s in the 7W mode (nvpmodel)" in limit.note
    assert limit_rows(bundle.report)[0].verdict.startswith("met")
    assert plan.energy_grade == "B"
    assert plan.estimated_on == ""


def test_without_leave_the_present_mode_is_measured_and_the_report_says_so(
    folder: Path, tmp_path: Path, board: Board
) -> None:
    with compiled(folder, tmp_path / "out.greencc", False, budget="5W", rate=30.0) as bundle:
        report, plan = bundle.report, plan_of(bundle)
    assert set(board.seen) == {"15W"}
    assert plan.power_mode == "15W"
    assert any(
        "measured in the 15W mode, and 5W is for the 7W mode: --set-power-mode" in warning
        for warning in report.warnings
    )
    assert "in the 15W mode" in plan.limits[0].note


def test_what_no_form_keeps_on_the_device_is_refused_with_what_was_measured(
    folder: Path, tmp_path: Path, board: Board
) -> None:
    with pytest.raises(LimitError, match=r"no form keeps 4\.4W on the device in the 7W mode") as caught:
        compiled(folder, tmp_path / "no.greencc", True, budget="4.4W")
    assert "original: 4.4W (found 4.50 W)" in caught.value.message
    assert board.mode == "15W"
    assert not (tmp_path / "no.greencc").exists()


def test_a_power_mode_of_another_device_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another device"):
        compiled(folder, tmp_path / "no.greencc", True, budget="jetson-nano:5W")
    with pytest.raises(UsageError, match="has no power mode 25W"):
        compiled(folder, tmp_path / "no.greencc", True, budget="jetson-orin-nano:25W")


def test_what_even_the_best_end_of_its_estimate_excludes_is_not_measured(
    folder: Path, tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = on_device._excluded

    def but_the_first(*arguments: object) -> dict[int, str]:
        assert true(*arguments) == {}  # type: ignore[arg-type]
        items = arguments[3]
        return {id(items[0]): "it does not keep 5W"}  # type: ignore[index]

    monkeypatch.setattr(on_device, "_excluded", but_the_first)
    with pytest.raises(LimitError, match="no form keeps 5W"):
        compiled(folder, tmp_path / "no.greencc", True, budget="5W", rate=30.0)
    assert board.seen == []


def test_estimates_that_exclude_everything_exclude_nothing(
    folder: Path, tmp_path: Path, board: Board
) -> None:
    with pytest.raises(LimitError, match=r"original: 1us p50 \(found 7\.\d+ ms\)"):
        compiled(folder, tmp_path / "no.greencc", True, budget="0.001ms p50")
    assert board.seen
