"""The conditions a measurement is taken under: what is recorded with it, and what a reader must be warned of."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from greencc.core import machine
from greencc.measure.power_mode import Runner, power_mode, run_command
from greencc.measure.thermal import hottest

_BUSY_PROCESS_PERCENT = 20.0
_SAMPLE_SECONDS = 0.3
_HOT_CELSIUS = 85.0
_POWER_SUPPLIES = "sys/class/power_supply"


@dataclass(frozen=True)
class Conditions:
    """Plain facts, and warnings about those that make figures less certain."""

    facts: dict[str, str]
    warnings: tuple[str, ...] = field(default=())


def record_conditions(
    threads: int,
    root: Path = machine.ROOT,
    sample_seconds: float = _SAMPLE_SECONDS,
    *,
    processor: str = "cpu",
    run: Runner = run_command,
) -> Conditions:
    """Look at governor, clocks, power mode, load, temperature, other busy processes, power source and virtualisation.

    Args:
        threads: What the engines will use.
        root: File system root, so that recorded machines can be replayed.
        sample_seconds: How long to watch other processes; 0 does not.
        processor: ``cpu`` or ``gpu``: where the work is done.
        run: Runs the commands that tell a power mode.
    """
    facts: dict[str, str] = {"threads": str(threads)}
    warnings: list[str] = []
    _governor(root, facts, warnings)
    modes, doubts = power_mode(root, run, processor)
    facts.update(modes)
    warnings += doubts
    _load(root, facts, warnings)
    _temperature(root, facts, warnings)
    _power_source(root, facts, warnings)
    cpu = machine.read_cpuinfo(root)
    facts["virtualised"] = {True: "yes", False: "no", None: "unknown"}[cpu.virtualised]
    if cpu.virtualised:
        warnings.append("this is a virtual machine: neighbours on the same host disturb timings unseen")
    granted = machine.cgroup_cpus(root)
    if granted is not None:
        facts["cgroup_cpus"] = f"{granted:g}"
        if granted < threads:
            warnings.append(
                f"the control group grants {granted:g} CPUs for {threads} threads: runs will be throttled"
            )
    if sample_seconds > 0.0:
        busy = busy_processes(sample_seconds)
        facts["busy_processes"] = ", ".join(busy) or "none"
        if busy:
            warnings.append(f"other processes are busy: {', '.join(busy)}")
    return Conditions(facts, tuple(warnings))


def busy_processes(seconds: float) -> list[str]:
    """Names and CPU percent of other processes that use more than a fifth of a processor, the busiest first."""
    own = {os.getpid(), os.getppid()}
    watched: list[psutil.Process] = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            process.cpu_percent()
        except psutil.Error:
            continue
        watched.append(process)
    psutil.cpu_percent(interval=seconds)
    found: list[tuple[float, str]] = []
    for process in watched:
        try:
            percent, name = process.cpu_percent(), process.name()
        except psutil.Error:
            continue
        if percent >= _BUSY_PROCESS_PERCENT:
            found.append((percent, name))
    return [f"{name} {percent:.0f}%" for percent, name in sorted(found, reverse=True)]


def _governor(root: Path, facts: dict[str, str], warnings: list[str]) -> None:
    governor = machine.governor(root)
    facts["governor"] = governor or "unknown"
    if governor is not None and governor != "performance":
        warnings.append(
            f"the frequency governor is {governor!r}, so clocks vary; "
            "for steadier figures: sudo cpupower frequency-set -g performance"
        )
    clocks = [
        int(text)
        for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if (text := machine.read_text(path)) and text.isdigit()
    ]
    if clocks:
        facts["frequency_mhz"] = f"{min(clocks) / 1e3:.0f} to {max(clocks) / 1e3:.0f}"


def _load(root: Path, facts: dict[str, str], warnings: list[str]) -> None:
    words = (machine.read_text(root / "proc/loadavg") or "").split()
    if not words:
        return
    facts["load_average"] = words[0]
    cpus = max(1, machine.read_cpuinfo(root).logical)
    try:
        average = float(words[0])
    except ValueError:
        return
    if average > 0.5 * cpus:
        warnings.append(f"the load average is {average:g} on {cpus} CPUs: other work disturbs the figures")


def _temperature(root: Path, facts: dict[str, str], warnings: list[str]) -> None:
    celsius = hottest(root)
    if celsius is None:
        facts["temperature_c"] = "unknown"
        return
    facts["temperature_c"] = f"{celsius:.0f}"
    if celsius >= _HOT_CELSIUS:
        warnings.append(f"the machine is at {celsius:.0f} degrees Celsius and may throttle")


def _power_source(root: Path, facts: dict[str, str], warnings: list[str]) -> None:
    supplies = sorted((root / _POWER_SUPPLIES).glob("*"))
    kinds = {path.name: machine.read_text(path / "type") for path in supplies}
    batteries = [name for name, kind in kinds.items() if kind == "Battery"]
    if not batteries:
        return
    discharging = any(
        machine.read_text(root / _POWER_SUPPLIES / name / "status") == "Discharging" for name in batteries
    )
    facts["power_source"] = "battery" if discharging else "mains"
    if discharging:
        warnings.append("the machine runs on battery, which often limits its clocks")
