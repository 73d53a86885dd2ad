"""The NVIDIA GPUs that models are emitted for without having one here: of PCs and servers, and of the Jetson modules.

Sources: NVIDIA data sheets and architecture papers (see the device profiles in greencc/meters/devices); NVIDIA, "CUDA
GPU Compute Capability".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from greencc.core.errors import UsageError, did_you_mean
from greencc.targets._tensorrt.machine import architecture
from greencc.targets._tensorrt.presets import MODULES

_GIB = 2**30
HERE = "here"
"""Stands for whatever is in this computer."""


@dataclass(frozen=True)
class Gpu:
    """A graphics card, an accelerator, or any GPU of a compute capability.

    Attributes:
        title: For people.
        sm: Compute capability.
        memory_bytes: Its own; on a Jetson, that of the module; None: not known.
        profile: Device profile that estimates come from; empty: there is none.
        driver: What NVIDIA's driver calls it, if it is one product; other cards with its chip have other names.
    """

    title: str
    sm: int
    memory_bytes: int | None = None
    profile: str = ""
    driver: str = ""


GPUS: Mapping[str, Gpu] = {
    "rtx-3090": Gpu("GeForce RTX 3090", 86, 24 * _GIB, "nvidia-rtx-3090", "NVIDIA GeForce RTX 3090"),
    "rtx-4090": Gpu("GeForce RTX 4090", 89, 24 * _GIB, "nvidia-rtx-4090", "NVIDIA GeForce RTX 4090"),
    "rtx-5090": Gpu("GeForce RTX 5090", 120, 32 * _GIB, "nvidia-rtx-5090", "NVIDIA GeForce RTX 5090"),
    "l4": Gpu("NVIDIA L4", 89, 24 * _GIB, "nvidia-l4", "NVIDIA L4"),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 80, 80 * _GIB, "nvidia-a100", "NVIDIA A100-SXM4-80GB"),
    "h200": Gpu("NVIDIA H200 SXM", 90, 141 * 10**9, "nvidia-h200", "NVIDIA H200"),
    "v100": Gpu("NVIDIA V100", 70),
    "t4": Gpu("NVIDIA T4", 75, driver="Tesla T4"),
    "rtx-2080": Gpu("GeForce RTX 2080", 75),
    "a10": Gpu("NVIDIA A10", 86, driver="NVIDIA A10"),
    "l40s": Gpu("NVIDIA L40S", 89, driver="NVIDIA L40S"),
    "h100": Gpu("NVIDIA H100", 90),
    "b200": Gpu("NVIDIA B200", 100, driver="NVIDIA B200"),
}
"""Cards by the name that the command line takes; those without a profile are for devices, and for checks of graphs."""
RTX_CARDS = ("rtx-3090", "rtx-4090", "rtx-5090")
"""Those of the `tensorrt-rtx` target."""


def find_gpu(text: str) -> Gpu:
    """A card (``rtx-4090``), a Jetson module (``jetson-orin-nano``) or a compute capability (``sm87`` or ``8.7``).

    Raises:
        UsageError: It is not known.
    """
    wanted = text.strip().lower()
    match = re.fullmatch(r"(?:sm_?)?(\d+)(?:\.(\d))?", wanted)
    if match is not None:
        found = architecture(int(match[1] + (match[2] or "")))
        return Gpu(f"GPU of compute capability {found.capability} ({found.name})", found.sm)
    modules = {
        preset.value: Gpu(module.title, module.sm, module.memory_bytes, module.profile)
        for preset, module in MODULES.items()
    }
    known = {**GPUS, **modules}
    if wanted not in known:
        raise UsageError(
            f"GPU {text!r} is not known",
            hint=f"write its compute capability, such as sm89, or {did_you_mean(wanted, known)}",
        )
    return known[wanted]


def gpu_named(driver: str, sm: int) -> str:
    """What the command line calls a GPU: the card that its driver names, else its compute capability.

    Cards with the same chip have other memory, clocks and power: none stands for another.

    Args:
        driver: Its name by NVIDIA's driver, such as ``NVIDIA L4``.
        sm: Compute capability, without the point.
    """
    return next((name for name, gpu in GPUS.items() if gpu.driver == driver and gpu.sm == sm), f"sm{sm}")
