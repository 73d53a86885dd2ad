"""The `tensorrt-rtx` target: TensorRT for RTX, whose engines can be built ahead of time without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from greencc.targets._tensorrt.gpus import GPUS, Gpu, RtxPreset
from greencc.targets._tensorrt.machine import TensorRtMachine, architecture
from greencc.targets._tensorrt.spec import RTX_LIKE
from greencc.targets._tensorrt.target import EmittedTarget


@dataclass(frozen=True)
class TensorRtRtxTarget(EmittedTarget):
    """TensorRT for RTX on a graphics card that is not at hand.

    Attributes:
        gpu: The graphics card.
    """

    gpu: RtxPreset = RtxPreset.RTX_4090

    name: ClassVar[str] = "tensorrt-rtx"
    summary: ClassVar[str] = (
        "TensorRT for RTX on a GeForce RTX GPU: built ahead of time where greencc[rtx] is"
    )
    leading: ClassVar[str | None] = "gpu"

    @property
    def card(self) -> Gpu:
        """What the preset stands for."""
        return GPUS[self.gpu.value]

    @property
    def machine(self) -> TensorRtMachine:
        """What graphs are emitted for."""
        return TensorRtMachine(
            RTX_LIKE, architecture(self.card.sm), memory_bytes=self.card.memory_bytes, rtx=True
        )

    @property
    def title(self) -> str:
        """The graphics card."""
        return self.card.title

    def estimated_on(self) -> str:
        """The profile of the graphics card."""
        return self.card.profile

    def _facts(self) -> dict[str, str]:
        return {"preset": self.gpu.value}

    def _again(self) -> dict[str, str]:
        return {}
