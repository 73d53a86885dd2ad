"""Facts about the CPU, read from Linux's `/proc` and `/sys`.

Every reader takes the file system root, so that recorded machines can be replayed. What cannot be read is
None or absent, never guessed.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

# ARM implementer and part numbers of the cores found on common boards (Linux: arch/arm64/include/asm/cputype.h).
_ARM_IMPLEMENTERS = {
    "0x41": "ARM",
    "0x42": "Broadcom",
    "0x46": "Fujitsu",
    "0x4e": "NVIDIA",
    "0x51": "Qualcomm",
}
_ARM_PARTS = {
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

# The instruction-set features that decide which kernels a runtime picks.
_FEATURES_OF_INTEREST = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "fphp",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)


@dataclass(frozen=True)
class CpuInfo:
    """What `/proc/cpuinfo` says.

    Attributes:
        architecture: ``x86_64``, ``aarch64`` or what `platform.machine` calls it.
        model: Marketing name, or the core's name on ARM.
        vendor: Vendor id or implementer.
        features: Instruction-set flags that every core has (a heterogeneous CPU keeps the common ones).
        logical: Processors listed.
        virtualised: The CPU says that a hypervisor is below (x86 only; None where it cannot tell).
    """

    architecture: str
    model: str
    vendor: str
    features: frozenset[str]
    logical: int
    virtualised: bool | None

    def has(self, *features: str) -> bool:
        """True when every feature is there."""
        return self.features.issuperset(features)

    @property
    def x86(self) -> bool:
        return self.architecture in ("x86_64", "amd64", "AMD64", "i686")

    @property
    def arm64(self) -> bool:
        return self.architecture in ("aarch64", "arm64")

    @property
    def vnni(self) -> bool:
        """8-bit dot products that accumulate in 32 bits (x86)."""
        return "avx512_vnni" in self.features or "avx_vnni" in self.features

    @property
    def notable(self) -> tuple[str, ...]:
        """The features that decide which kernels are picked, in a fixed order."""
        return tuple(name for name in _FEATURES_OF_INTEREST if name in self.features)


def parse_cpuinfo(text: str, architecture: str | None = None) -> CpuInfo:
    """Parse the text of `/proc/cpuinfo` of an x86 or ARM machine.

    The architecture is told from the text itself ("flags" on x86, "Features" on ARM) unless it is given.
    """
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", text)]
    cores = [block for block in blocks if "processor" in block]
    flags = [block["flags"] for block in cores if "flags" in block]
    features = [block["Features"] for block in cores if "Features" in block]
    if architecture is None:
        if flags:
            architecture = "x86_64"
        elif features:
            architecture = "aarch64"
        else:
            architecture = platform.machine()
    listed = [frozenset(value.split()) for value in flags or features]
    common = frozenset.intersection(*listed) if listed else frozenset()
    first = cores[0] if cores else {}
    return CpuInfo(
        architecture=architecture,
        model=_model_name(cores, blocks),
        vendor=first.get("vendor_id") or _implementer(first.get("CPU implementer", "")),
        features=common,
        logical=len(cores),
        virtualised=("hypervisor" in common) if flags else None,
    )


def read_cpuinfo(root: Path = ROOT) -> CpuInfo:
    """`parse_cpuinfo` of `<root>/proc/cpuinfo`; without that file a `CpuInfo` that only knows the architecture."""
    text = read_text(root / "proc/cpuinfo")
    if text is None:
        return CpuInfo(platform.machine(), platform.processor() or "unknown", "unknown", frozenset(), 0, None)
    return parse_cpuinfo(text)


def allowed_cpus() -> frozenset[int]:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: Collection[int], root: Path = ROOT) -> int:
    """Number of distinct physical cores among `cpus`; a processor without topology counts as its own core."""
    cores: set[tuple[str, ...]] = set()
    for cpu in sorted(cpus):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        package = read_text(topology / "physical_package_id")
        core = read_text(topology / "core_id")
        siblings = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")
        if siblings is not None:
            cores.add(("siblings", siblings))
        elif package is not None and core is not None:
            cores.add(("core", package, core))
        else:
            cores.add(("cpu", str(cpu)))
    return max(1, len(cores))


def cgroup_cpus(root: Path = ROOT) -> float | None:
    """CPUs' worth of time a control group (version 2, or 1) grants, or None without a limit."""
    quota = read_text(root / "sys/fs/cgroup/cpu.max")
    if quota is not None:
        first, _, period = quota.partition(" ")
        if first.isdigit() and period.isdigit() and int(period) > 0:
            return int(first) / int(period)
        return None
    quota = read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us") or ""
    if quota is not None and quota.isdigit() and period.isdigit() and int(period) > 0:
        return int(quota) / int(period)
    return None


def usable_threads(root: Path = ROOT) -> int:
    """Threads that can make progress at once: physical cores allowed, less where a control group grants less time."""
    cores = physical_cores(allowed_cpus(), root)
    granted = cgroup_cpus(root)
    return cores if granted is None else max(1, min(cores, int(granted + 0.5)))


@dataclass(frozen=True)
class DataCache:
    """A level of data or unified caches: bytes of one instance, and how many the given processors use."""

    level: int
    bytes: int
    instances: int


def data_caches(cpus: Collection[int], root: Path = ROOT) -> tuple[DataCache, ...]:
    """The caches that hold data, from the fastest; empty where the kernel does not tell."""
    found: dict[int, dict[str, int]] = {}
    for cpu in sorted(cpus):
        for folder in sorted((root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*")):
            size = re.fullmatch(r"(\d+)([KM]?)", read_text(folder / "size") or "")
            level = read_text(folder / "level") or ""
            shared = read_text(folder / "shared_cpu_list") or str(cpu)
            if read_text(folder / "type") in ("Data", "Unified") and size and level.isdigit():
                number = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[size[2]]
                found.setdefault(int(level), {})[shared] = number
    return tuple(
        DataCache(level, max(sizes.values()), len(sizes))
        for level, sizes in sorted(found.items())
        if max(sizes.values()) > 0
    )


def memory_total_bytes(root: Path = ROOT) -> int | None:
    """Physical memory, from `/proc/meminfo`."""
    match = re.search(r"^MemTotal:\s*(\d+)\s*kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def governor(root: Path = ROOT) -> str | None:
    """The cpufreq governors in use, e.g. ``performance``; None where the kernel shows none (most virtual machines)."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    names = sorted({text for path in folders if (text := read_text(path))})
    return "+".join(names) or None


def board_model(root: Path = ROOT) -> str | None:
    """The board's name from the device tree (ARM boards) or DMI (PCs)."""
    for name in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = read_text(root / name)
        if text:
            return text.rstrip("\0").strip()
    return None


def read_text(path: Path) -> str | None:
    """Contents of a small text file, stripped; None when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _implementer(code: str) -> str:
    return _ARM_IMPLEMENTERS.get(code, code or "unknown")


def _model_name(cores: list[dict[str, str]], blocks: list[dict[str, str]]) -> str:
    for core in cores:
        if core.get("model name"):
            return core["model name"]
    parts: list[str] = []
    for core in cores:
        key = (core.get("CPU implementer", ""), core.get("CPU part", ""))
        name = _ARM_PARTS.get(key, f"{_implementer(key[0])} part {key[1]}" if key[1] else "")
        if name and name not in parts:
            parts.append(name)
    if parts:
        return " + ".join(parts)
    named = [block["Model"] for block in blocks if block.get("Model")]
    return named[0] if named else "unknown"
