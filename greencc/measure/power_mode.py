"""The power mode of the machine, which decides how fast it may run and what it draws.

Sources: NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance" (`nvpmodel -q`,
`jetson_clocks`, devfreq); Linux, Documentation/ABI/testing/sysfs-platform_profile; `nvidia-smi --help-query-gpu`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from greencc.core.machine import read_text

Runner = Callable[[Sequence[str]], str | None]
"""Runs a command and gives what it prints; None where it is missing, fails or hangs."""

_TIMEOUT = 5.0
_NVPMODEL = ("nvpmodel", "-q")
_MODE = re.compile(r"Power Mode\s*:\s*(\S+)", re.IGNORECASE)
_NUMBER = re.compile(r"^\s*(\d+)\s*$", re.MULTILINE)
_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=persistence_mode,clocks.sm,clocks.max.sm",
    "--format=csv,noheader,nounits",
)
# In the names of a Jetson's devfreq folders; others, such as the video engine, `jetson_clocks` may leave alone.
_GPUS = ("gpu", "gp10b", "gv11b", "ga10b")
_NVIDIA_DRIVER = "proc/driver/nvidia/version"
_PROFILE = "sys/firmware/acpi/platform_profile"
_SLOW_PROFILES = ("low-power", "cool", "quiet")


def run_command(command: Sequence[str]) -> str | None:
    """The `Runner` of this machine."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def power_mode(root: Path, run: Runner, processor: str) -> tuple[dict[str, str], list[str]]:
    """Facts, and warnings where the mode or the clocks are not fixed.

    Args:
        root: File system root.
        run: Runs `nvpmodel` on a Jetson, and `nvidia-smi` where a GPU of a PC does the work.
        processor: ``cpu`` or ``gpu``: where the work is done.
    """
    facts: dict[str, str] = {}
    warnings: list[str] = []
    if _is_jetson(root):
        _jetson(root, run, facts, warnings)
    elif (profile := read_text(root / _PROFILE)) is not None:
        facts["power_mode"] = profile
        if profile in _SLOW_PROFILES:
            warnings.append(f"the power profile is {profile!r}, which limits the clocks")
    if processor == "gpu" and (root / _NVIDIA_DRIVER).exists():
        _nvidia(run, facts, warnings)
    return facts, warnings


def _is_jetson(root: Path) -> bool:
    return "nvidia,tegra" in (read_text(root / "proc/device-tree/compatible") or "")


def _jetson(root: Path, run: Runner, facts: dict[str, str], warnings: list[str]) -> None:
    text = run(_NVPMODEL) or ""
    mode, number = _MODE.search(text), _NUMBER.search(text)
    known = [match.group(1) for match in (mode, number) if match is not None]
    facts["power_mode"] = " ".join(known) or "unknown"
    if not known:
        warnings.append("the power mode is not known: 'nvpmodel -q' does not tell it")
    free = [*_free(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq", "scaling_{}_freq")]
    for gpu in _GPUS:
        free += _free(root, f"sys/class/devfreq/*{gpu}*", "{}_freq")
    if free:
        facts["clocks_fixed"] = "no"
        warnings.append(
            f"the clocks are not fixed ({free[0]}), so speed and power vary; for steadier figures: sudo jetson_clocks"
        )


def _free(root: Path, folders: str, name: str) -> list[str]:
    """Clocks with room between their lower and their upper limit, as text."""
    found = []
    for folder in sorted(root.glob(folders)):
        low, high = (read_text(folder / name.format(end)) for end in ("min", "max"))
        if low and high and low.isdigit() and high.isdigit() and int(low) < int(high):
            label = folder.parent.name if folder.name == "cpufreq" else folder.name
            found.append(f"{label}: {low} to {high}")
    return found


def _nvidia(run: Runner, facts: dict[str, str], warnings: list[str]) -> None:
    lines = [line.split(",") for line in (run(_NVIDIA_SMI) or "").splitlines() if line.strip()]
    rows = [[cell.strip() for cell in line] for line in lines if len(line) == 3]
    if not rows:
        return
    facts["gpu_persistence"] = ", ".join(persistence for persistence, _, _ in rows)
    facts["gpu_clocks_mhz"] = ", ".join(f"{now} of {most}" for _, now, most in rows)
    if any(persistence == "Disabled" for persistence, _, _ in rows):
        warnings.append(
            "the GPU's persistence mode is off, so the driver may put it to sleep in between: sudo nvidia-smi -pm 1"
        )
