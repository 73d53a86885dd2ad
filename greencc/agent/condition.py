"""The device at one moment: temperatures, clocks, how often it was throttled, and who uses its processors.

Sources: Linux, Documentation/ABI/testing/sysfs-class-thermal and sysfs-class-devfreq, Documentation/cpu-freq; NVIDIA
Jetson Linux Developer Guide, "Power and Performance" (over-current event counts); Raspberry Pi documentation,
"vcgencmd get_throttled".
"""

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from greencc.agent import power
from greencc.agent.commands import run
from greencc.agent.nvml import Gpus
from greencc.agent.places import Places, read_text
from greencc.agent.problem import Problem

_GPUS = re.compile(r"(^|[._-])(gpu|gp10b|gv11b|ga10b|gpc\d*)($|[._-])|\.(gpu|gp10b|gv11b|ga10b)$")
_COLDEST, _HOTTEST = -40.0, 200.0
_EXPECTED_FIELDS = 8


def describe(places: Places, processor: str) -> Dict[str, Any]:
    """As `greencc.core.elsewhere.SiteState`.

    Args:
        processor: ``cpu`` or ``gpu``: whose clock is told.
    """
    zones = temperatures(places.root)
    celsius = max(zones.values()) if zones else None
    clock = gpu_mhz(places.root) if processor == "gpu" else cpu_mhz(places.root)
    if processor == "gpu" and clock is None:
        card = _card()
        if card is not None:
            celsius, clock = card.celsius(), card.clock_mhz()
    facts = {"cpu_mhz": cpu_mhz(places.root), "gpu_mhz": gpu_mhz(places.root), "load": load(places.root)}
    told = {name: "%g" % value for name, value in facts.items() if value is not None}
    mode = power.quickly(places)
    if mode is not None:
        told["power_mode"] = mode
    return {
        "celsius": celsius,
        "clock_mhz": clock,
        "throttle_count": throttle_count(places),
        "facts": told,
    }


def temperatures(root: Path) -> Dict[str, float]:
    """Degrees Celsius by the name of the zone. Sensors that are off tell absurd values, and are left out."""
    found: Dict[str, float] = {}
    for zone in _folders(root / "sys/class/thermal", "thermal_zone*"):
        name, text = read_text(zone / "type") or zone.name, read_text(zone / "temp") or ""
        if re.fullmatch(r"-?\d+", text) and _COLDEST < int(text) * 1e-3 < _HOTTEST:
            found[name] = int(text) * 1e-3
    return found


def cpu_mhz(root: Path) -> Optional[float]:
    """Of the fastest processor."""
    return _fastest(_folders(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq"), "scaling_cur_freq", 1e-3)


def gpu_mhz(root: Path) -> Optional[float]:
    """Of a Jetson's GPU; None elsewhere."""
    return _fastest(gpu_folders(root), "cur_freq", 1e-6)


def gpu_folders(root: Path) -> List[Path]:
    """Where a Jetson's GPU shows its clock."""
    return [folder for folder in _folders(root / "sys/class/devfreq", "*") if _GPUS.search(folder.name)]


def free_clocks(root: Path) -> List[str]:
    """Clocks with room between their lower and upper limit, as text: `jetson_clocks` has not fixed them."""
    found = []
    clocks = [
        (folder, "scaling_%s_freq")
        for folder in _folders(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq")
    ]
    clocks += [(folder, "%s_freq") for folder in gpu_folders(root)]
    for folder, name in clocks:
        low, high = (read_text(folder / (name % end)) or "" for end in ("min", "max"))
        if low.isdigit() and high.isdigit() and int(low) < int(high):
            found.append(
                "%s: %s to %s" % (folder.parent.name if folder.name == "cpufreq" else folder.name, low, high)
            )
    return found


def governor(root: Path) -> Optional[str]:
    """The cpufreq governors in use, such as ``schedutil``; None: not told."""
    files = _folders(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor")
    return "+".join(sorted({text for text in map(read_text, files) if text})) or None


def throttle_count(places: Places) -> Optional[int]:
    """Times that the device was slowed down, as far as it counts them; None: it does not."""
    root = places.root
    files = [
        *_folders(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count"),
        *_folders(root / "sys/class/hwmon", "hwmon*/oc*_event_cnt"),
    ]
    counts = [int(text) for text in (read_text(file) or "" for file in files) if text.isdigit()]
    vcgencmd = places.program("vcgencmd", "opt/vc/bin")
    if vcgencmd is not None:
        code, text = run([vcgencmd, "get_throttled"])
        match = re.search(r"throttled=0x([0-9a-fA-F]+)", text)
        if code == 0 and match is not None:
            # Bits for now and for ever since the boot: more of them, and it was slowed down in between.
            counts.append(bin(int(match.group(1), 16)).count("1"))
    return sum(counts) if counts else None


def load(root: Path) -> Optional[float]:
    """Processes that run or want to, averaged over a minute."""
    words = (read_text(root / "proc/loadavg") or "").split()
    return float(words[0]) if words else None


def busy_seconds(root: Path) -> Optional[float]:
    """Time that all processors have worked (and a hypervisor has taken) since the boot; None: not told."""
    first = (read_text(root / "proc/stat") or "").split("\n", 1)[0].split()
    if first[:1] != ["cpu"] or len(first) < _EXPECTED_FIELDS or not all(each.isdigit() for each in first[1:]):
        return None
    user, nice, system, _, _, irq, softirq, *more = (int(each) for each in first[1:])
    return (user + nice + system + irq + softirq + (more[0] if more else 0)) / float(os.sysconf("SC_CLK_TCK"))


def processors(root: Path) -> int:
    """How many there are in what `busy_seconds` tells."""
    lines = (read_text(root / "proc/stat") or "").splitlines()
    return sum(bool(re.match(r"cpu\d+ ", line)) for line in lines) or os.cpu_count() or 1


def _card() -> Optional[Gpus]:
    try:
        return Gpus()
    except Problem:
        return None


def _fastest(folders: List[Path], name: str, scale: float) -> Optional[float]:
    values = [text for text in (read_text(folder / name) or "" for folder in folders) if text.isdigit()]
    return max(int(text) for text in values) * scale if values else None


def _folders(folder: Path, pattern: str) -> List[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []
