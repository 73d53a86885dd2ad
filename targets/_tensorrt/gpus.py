"""The NVIDIA GPUs of PCs and servers that models are emitted for without having one here.

Sources: NVIDIA data sheets and architecture papers (see the device profiles in greencc/meters/devices).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

_GIB = 2**30


class GpuPreset(Enum):
    """GPUs of the `tensorrt` target; the value is what the command line takes."""

    HERE = "here"
    """Whatever is in this computer."""
    RTX_3090 = "rtx-3090"
    RTX_4090 = "rtx-4090"
    RTX_5090 = "rtx-5090"
    L4 = "l4"
    A100 = "a100"
    H200 = "h200"


class RtxPreset(Enum):
    """GPUs of the `tensorrt-rtx` target."""

    RTX_3090 = "rtx-3090"
    RTX_4090 = "rtx-4090"
    RTX_5090 = "rtx-5090"


@dataclass(frozen=True)
class Gpu:
    """A graphics card or accelerator.

    Attributes:
        title: For people.
        sm: Compute capability.
        memory_bytes: Of its own; None: not known.
        profile: Device profile that estimates come from; empty: there is none.
    """

    title: str
    sm: int
    memory_bytes: int | None
    profile: str


GPUS: Mapping[str, Gpu] = {
    "rtx-3090": Gpu("GeForce RTX 3090", 86, 24 * _GIB, "nvidia-rtx-3090"),
    "rtx-4090": Gpu("GeForce RTX 4090", 89, 24 * _GIB, "nvidia-rtx-4090"),
    "rtx-5090": Gpu("GeForce RTX 5090", 120, 32 * _GIB, "nvidia-rtx-5090"),
    "l4": Gpu("NVIDIA L4", 89, 24 * _GIB, "nvidia-l4"),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 80, 80 * _GIB, "nvidia-a100"),
    "h200": Gpu("NVIDIA H200 SXM", 90, 141 * 10**9, "nvidia-h200"),
}
