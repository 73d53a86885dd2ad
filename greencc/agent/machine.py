"""What the device is: module, processor, memory, operating system.

Names of modules and chips are those of `greencc.meters.jetson`, and of ARM cores those of `greencc.core.machine`; a
test compares them.
"""

import os
import platform
import pwd
import re
import socket
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from greencc.agent.places import read_text

MODULES = {
    "p2180": "TX1",
    "p3448": "Nano",
    "p3310": "TX2",
    "p3489": "TX2i",
    "p3636": "TX2 NX",
    "p3668": "Xavier NX",
    "p2888": "AGX Xavier",
    "p3767": "Orin NX or Orin Nano",
    "p3701": "AGX Orin",
    "p3834": "Thor",
}
"""Part numbers of Jetson modules, as they stand in the device tree's `compatible`."""
GENERATIONS = {
    "tegra210": "Nano or TX1",
    "tegra186": "TX2",
    "tegra194": "Xavier",
    "tegra234": "Orin",
    "tegra264": "Thor",
}
COMPUTE = {"tegra210": 53, "tegra186": 62, "tegra194": 72, "tegra234": 87, "tegra264": 110}
"""Compute capability of each chip's GPU."""
_IMPLEMENTERS = {
    "0x41": "ARM",
    "0x42": "Broadcom",
    "0x46": "Fujitsu",
    "0x4e": "NVIDIA",
    "0x51": "Qualcomm",
}
_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x4e", "0x004"): "Carmel",
}

Module = NamedTuple("Module", [("chip", str), ("name", str)])
"""A Jetson module: its chip (``tegra234``) and what it is called."""


def compatible(root: Path) -> List[str]:
    """What the device tree says the machine is compatible with, the most special first."""
    for name in ("proc/device-tree/compatible", "sys/firmware/devicetree/base/compatible"):
        text = read_text(root / name)
        if text:
            return [part for part in text.split("\0") if part]
    return []


def find_module(root: Path) -> Optional[Module]:
    """The Jetson module of this machine; None elsewhere."""
    text = " ".join(compatible(root))
    chip = next((chip for chip in GENERATIONS if "nvidia,%s" % chip in text), None)
    if chip is None:
        return None
    # "p3768-0000+p3767-0005" names the carrier board first, and then the module.
    names = [name for part, name in MODULES.items() if part in text]
    return Module(chip, names[0] if names else GENERATIONS[chip])


def describe(root: Path) -> Dict[str, Any]:
    """Facts; what cannot be read is None."""
    uptime = (read_text(root / "proc/uptime") or "").split()
    load = (read_text(root / "proc/loadavg") or "").split()[:3]
    board = read_text(root / "proc/device-tree/model") or read_text(
        root / "sys/firmware/devicetree/base/model"
    )
    return {
        "hostname": socket.gethostname(),
        "user": user(),
        "machine": platform.machine(),
        "kernel": read_text(root / "proc/sys/kernel/osrelease") or platform.release(),
        "board": board or read_text(root / "sys/class/dmi/id/product_name"),
        "compatible": compatible(root),
        "python": platform.python_version(),
        "glibc": _glibc(),
        "cpu": cpu(root),
        "uptime_s": float(uptime[0]) if uptime else None,
        "load": [float(each) for each in load] if len(load) == 3 else None,
    }


def user() -> str:
    """Who the agent runs as."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def cpu(root: Path) -> Dict[str, Any]:
    """Model, number of processors, and the features that all of them have."""
    text = read_text(root / "proc/cpuinfo") or ""
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", text)]
    cores = [block for block in blocks if "processor" in block]
    listed = [set((core.get("flags") or core.get("Features") or "").split()) for core in cores]
    features = set.intersection(*listed) if listed else set()
    names: List[str] = []
    for core in cores:
        name = core.get("model name") or _core_name(core)
        if name and name not in names:
            names.append(name)
    return {
        "model": " + ".join(names) or platform.processor() or "unknown",
        "processors": len(cores) or os.cpu_count() or 1,
        "features": sorted(features),
    }


def _core_name(core: Dict[str, str]) -> str:
    maker, part = core.get("CPU implementer", ""), core.get("CPU part", "")
    if not part:
        return ""
    return _PARTS.get((maker, part), "%s part %s" % (_IMPLEMENTERS.get(maker, maker or "unknown"), part))


def _fields(block: str) -> Dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _glibc() -> Optional[str]:
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        # Another C library.
        return None
    return told.split()[-1] if told else None
