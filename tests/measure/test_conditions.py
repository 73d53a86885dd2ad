"""Conditions of recorded machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from greencc.measure.conditions import Conditions, busy_processes, record_conditions
from greencc.measure.load import SystemLoad, others_share
from greencc.measure.power_mode import run_command


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


QUIET = {
    "proc/cpuinfo": "processor : 0\nmodel name : CPU\nflags : avx2\n\nprocessor : 1\nmodel name : CPU\nflags : avx2\n",
    "proc/loadavg": "0.10 0.2 0.3 1/100 4242\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2000000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3100000\n",
    "sys/class/thermal/thermal_zone0/temp": "45000\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/status": "Charging\n",
}


def test_a_quiet_machine_has_no_warnings(tmp_path: Path) -> None:
    conditions = record_conditions(2, put(tmp_path, QUIET), sample_seconds=0.0)
    assert conditions.warnings == ()
    assert conditions.facts == {
        "threads": "2",
        "governor": "performance",
        "frequency_mhz": "2000 to 3100",
        "load_average": "0.10",
        "temperature_c": "45",
        "power_source": "mains",
        "virtualised": "no",
    }


@pytest.mark.parametrize(
    ("files", "warning"),
    [
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"}, "governor is 'powersave'"),
        ({"proc/loadavg": "1.50 0.2 0.3 1/100 4242\n"}, "load average is 1.5 on 2 CPUs"),
        ({"sys/class/thermal/thermal_zone1/temp": "92000\n"}, "92 degrees"),
        ({"sys/class/power_supply/BAT0/status": "Discharging\n"}, "on battery"),
        ({"proc/cpuinfo": "processor : 0\nmodel name : CPU\nflags : hypervisor\n"}, "virtual machine"),
        ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, "grants 1 CPUs for 2 threads"),
    ],
)
def test_what_disturbs_is_a_warning(tmp_path: Path, files: dict[str, str], warning: str) -> None:
    conditions = record_conditions(2, put(tmp_path, {**QUIET, **files}), sample_seconds=0.0)
    assert len(conditions.warnings) == 1
    assert warning in conditions.warnings[0]


JETSON = {
    **QUIET,
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0003\0nvidia,tegra234\0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1510400\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "624750000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/devfreq/15340000.vic/min_freq": "115200000\n",
    "sys/class/devfreq/15340000.vic/max_freq": "601600000\n",
}


def recorded(root: Path, answers: dict[str, str], processor: str = "cpu") -> Conditions:
    """With commands that give these answers, the others being missing."""
    return record_conditions(
        2, root, sample_seconds=0.0, processor=processor, run=lambda command: answers.get(command[0])
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: 15W\n0\n", "15W 0"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_10W_2CORE\n3\n", "MODE_10W_2CORE 3"),
        ("NV Fan Mode:quiet\nNV Power Mode: MAXN_SUPER\n", "MAXN_SUPER"),
        ("2\n", "2"),
    ],
)
def test_a_jetson_has_a_power_mode(tmp_path: Path, text: str, mode: str) -> None:
    found = recorded(put(tmp_path, JETSON), {"nvpmodel": text})
    assert found.facts["power_mode"] == mode
    assert found.warnings == ()


@pytest.mark.parametrize("answers", [{}, {"nvpmodel": ""}, {"nvpmodel": "NVPM ERROR: no\n"}])
def test_a_power_mode_that_is_not_told_is_unknown(tmp_path: Path, answers: dict[str, str]) -> None:
    found = recorded(put(tmp_path, JETSON), answers)
    assert found.facts["power_mode"] == "unknown"
    assert ["power mode is not known" in warning for warning in found.warnings] == [True]


@pytest.mark.parametrize(
    ("file", "clock"),
    [
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "cpu0: 306000 to 1510400"),
        ("sys/class/devfreq/17000000.gpu/min_freq", "17000000.gpu: 306000 to 624750000"),
    ],
)
def test_clocks_that_are_not_fixed_are_named(tmp_path: Path, file: str, clock: str) -> None:
    found = recorded(put(tmp_path, {**JETSON, file: "306000\n"}), {"nvpmodel": "NV Power Mode: 15W\n0\n"})
    (warning,) = found.warnings
    assert f"the clocks are not fixed ({clock})" in warning
    assert "sudo jetson_clocks" in warning


def test_elsewhere_nvpmodel_is_not_asked(tmp_path: Path) -> None:
    assert "power_mode" not in recorded(put(tmp_path, QUIET), {"nvpmodel": "NV Power Mode: 15W\n0\n"}).facts


@pytest.mark.parametrize(("profile", "count"), [("balanced", 0), ("performance", 0), ("low-power", 1)])
def test_the_power_profile_of_a_laptop(tmp_path: Path, profile: str, count: int) -> None:
    found = recorded(put(tmp_path, {**QUIET, "sys/firmware/acpi/platform_profile": f"{profile}\n"}), {})
    assert found.facts["power_mode"] == profile
    assert len(found.warnings) == count


def test_a_gpu_that_does_the_work_has_clocks_and_persistence(tmp_path: Path) -> None:
    root = put(tmp_path, {**QUIET, "proc/driver/nvidia/version": "NVRM\n"})
    answers = {"nvidia-smi": "Enabled, 345, 1980\nDisabled, 1410, 1980\n"}
    found = recorded(root, answers, "gpu")
    assert found.facts["gpu_persistence"] == "Enabled, Disabled"
    assert found.facts["gpu_clocks_mhz"] == "345 of 1980, 1410 of 1980"
    assert "nvidia-smi -pm 1" in found.warnings[0]
    assert "gpu_clocks_mhz" not in recorded(root, answers).facts
    assert "gpu_clocks_mhz" not in recorded(root, {"nvidia-smi": "No devices were found"}, "gpu").facts


def test_commands_that_are_missing_or_fail_tell_nothing() -> None:
    assert run_command((sys.executable, "-c", "print('15W')")) == "15W\n"
    assert run_command((sys.executable, "-c", "print('15W'); raise SystemExit(1)")) is None
    assert run_command(("/nowhere/nvpmodel", "-q")) is None


def test_nothing_readable_is_unknown_not_zero(tmp_path: Path) -> None:
    facts = record_conditions(1, tmp_path, sample_seconds=0.0).facts
    assert (facts["governor"], facts["temperature_c"], facts["virtualised"]) == (
        "unknown",
        "unknown",
        "unknown",
    )
    assert "load_average" not in facts
    assert "power_source" not in facts


def test_busy_processes_are_named_without_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import psutil

    class Fake:
        def __init__(self, pid: int, name: str, percent: float) -> None:
            self.pid, self._name, self._percent = pid, name, percent

        def cpu_percent(self) -> float:
            if self._percent < 0:
                raise psutil.NoSuchProcess(self.pid)
            return self._percent

        def name(self) -> str:
            return self._name

    processes = [
        Fake(os.getpid(), "this", 300.0),
        Fake(1_000_001, "idle", 0.5),
        Fake(1_000_002, "train", 95.0),
        Fake(1_000_003, "gone", -1.0),
        Fake(1_000_004, "browser", 40.0),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(processes))
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)
    assert busy_processes(0.1) == ["train 95%", "browser 40%"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.0, 1.0, 0.25), (None, 1.0, None), (1.0, None, None), (1.0, 0.5, 0.0), (0.0, 99.0, 1.0)],
)
def test_share_of_others(before: float | None, after: float | None, expected: float | None) -> None:
    assert others_share(before, after, wall_seconds=2.0, cpus=2) == expected
    assert others_share(0.0, 1.0, wall_seconds=0.0, cpus=2) is None


def test_the_load_of_this_machine_leaves_this_process_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    from types import SimpleNamespace

    import psutil

    times = SimpleNamespace(
        user=10.0, nice=1.0, system=3.0, irq=0.5, softirq=0.5, steal=2.0, idle=99.0, iowait=7.0
    )
    own = os.times_result((4.0, 1.0, 50.0, 50.0, 100.0))
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    monkeypatch.setattr(os, "times", lambda: own)
    assert SystemLoad().others_seconds() == 12.0


def test_the_load_is_unknown_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse() -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert SystemLoad().others_seconds() is None
