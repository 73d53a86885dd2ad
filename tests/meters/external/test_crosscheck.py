"""The cross-check with Zeus, on an object that answers as its `ZeusMonitor` does (zeus 0.16)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Reading
from greencc.meters.crosscheck import CrossCheck, Part, cross_check_zeus


@dataclass
class Meter:
    """Counts 5 W of a package and 1 W of DRAM, in a world whose clock `work` moves."""

    clock: Any
    epoch: int = 0
    name, grade, boundary, period_s, uncertainty = "rapl", Grade.B, "package-0 + dram", 0.001, None

    def missing(self) -> str | None:
        return None

    def read(self) -> Reading:
        now = self.clock()
        return Reading(now, {"package-0": 5.0 * now, "package-0/dram": 1.0 * now}, self.epoch)


@dataclass
class ZeusMonitor:
    """Windows must be begun once and ended, as Zeus demands."""

    energies: Callable[[], dict[str, Any]]
    windows: list[str] = field(default_factory=list)

    def begin_window(self, key: str, sync_execution: bool = True, restart: bool = False) -> None:
        if key in self.windows:
            raise ValueError(f"Measurement window '{key}' already exists")
        assert not sync_execution
        self.windows.append(key)

    def end_window(self, key: str, sync_execution: bool = True, cancel: bool = False) -> Any:
        self.windows.remove(key)
        seen = {"gpu_energy": {}, "cpu_energy": None, "dram_energy": None, "soc_energy": None}
        return SimpleNamespace(time=1.0, **{**seen, **self.energies()})


def test_both_see_the_same(clock: Any) -> None:
    monitor = ZeusMonitor(lambda: {"cpu_energy": {0: 10.1}, "dram_energy": {0: 2.0}})
    check = cross_check_zeus(Meter(clock), lambda: clock.sleep(2.0), Part.CPU_DRAM, monitor)
    assert (check.ours, check.theirs, check.seconds) == pytest.approx((12.0, 12.1, 2.0))
    assert check.difference == pytest.approx(0.1 / 12)
    assert check.boundary == "package-0 + dram"
    assert check.counted == {"cpu_energy[0]": 10.1, "dram_energy[0]": 2.0}


def test_what_was_counted_explains_a_difference(clock: Any) -> None:
    # psys as one more CPU.
    monitor = ZeusMonitor(lambda: {"cpu_energy": {0: 12.0, 1: 20.0}})
    check = cross_check_zeus(Meter(clock), lambda: clock.sleep(2.0), Part.CPU, monitor)
    assert check.difference == pytest.approx(20 / 12)
    assert list(check.counted) == ["cpu_energy[0]", "cpu_energy[1]"]


@pytest.mark.parametrize(
    ("energies", "part", "message"),
    [
        ({}, Part.GPU, "Zeus reads no GPU energy here"),
        ({}, Part.CPU, "Zeus reads no CPU energy here"),
        ({"cpu_energy": {0: 1.0}}, Part.CPU_DRAM, "Zeus reads no DRAM energy here"),
        ({"cpu_energy": {0: -262144.0}}, Part.CPU, r"Zeus gave -262144.0 J for cpu_energy\[0\]"),
        ({"gpu_energy": {0: math.nan}}, Part.GPU, "Zeus gave nan J"),
    ],
)
def test_no_energy_is_not_zero(clock: Any, energies: dict[str, Any], part: Part, message: str) -> None:
    monitor = ZeusMonitor(lambda: energies)
    with pytest.raises(UnavailableError, match=message):
        cross_check_zeus(Meter(clock), lambda: clock.sleep(1.0), part, monitor)


def test_failures_leave_no_window_open_and_epochs_are_not_subtracted(clock: Any) -> None:
    monitor, meter = ZeusMonitor(lambda: {"cpu_energy": {0: 1.0}}), Meter(clock)

    def fail() -> None:
        raise KeyError("work")

    with pytest.raises(KeyError, match="work"):
        cross_check_zeus(meter, fail, Part.CPU, monitor)
    assert monitor.windows == []

    def reset() -> None:
        clock.sleep(1.0)
        meter.epoch += 1

    with pytest.raises(UnavailableError, match="the meter has a gap"):
        cross_check_zeus(meter, reset, Part.CPU, monitor)


def test_differences_from_nothing() -> None:
    assert CrossCheck(0.0, 0.0, 1.0, "b", {}).difference == 0.0
    assert CrossCheck(0.0, 1.0, 1.0, "b", {}).difference == math.inf


@pytest.mark.skipif(importlib.util.find_spec("zeus") is not None, reason="Zeus is installed")
def test_without_zeus_the_extra_is_named(clock: Any) -> None:
    with pytest.raises(UnavailableError, match=r"needs Zeus.*pip install 'greencc\[zeus\]'"):
        cross_check_zeus(Meter(clock), lambda: None, Part.CPU)
