"""Conditions of recorded machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc.measure.conditions import busy_processes, record_conditions
from greencc.measure.load import SystemLoad, others_share


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
