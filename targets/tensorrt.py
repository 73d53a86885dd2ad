"""The `tensorrt` target: TensorRT on the NVIDIA GPU of this computer, or a graph for that of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from greencc.core.errors import UnavailableError
from greencc.targets._tensorrt.gpus import GPUS, Gpu, GpuPreset
from greencc.targets._tensorrt.local import gpu_here, machine_here, missing_here
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture
from greencc.targets._tensorrt.spec import NEWEST
from greencc.targets._tensorrt.target import EmittedTarget


@dataclass(frozen=True)
class TensorRtTarget(EmittedTarget):
    """TensorRT of a PC or a server.

    Attributes:
        version: Of TensorRT; empty: that of this computer, or for another GPU the newest that is known.
        gpu: The graphics card.
    """

    version: str = ""
    gpu: GpuPreset = GpuPreset.HERE

    name: ClassVar[str] = "tensorrt"
    summary: ClassVar[str] = "TensorRT on an NVIDIA GPU: emitted and checked here, built where the GPU is"
    leading: ClassVar[str | None] = "version"

    def __post_init__(self) -> None:
        if self.version:
            TensorRtVersion.parse(self.version)
        super().__post_init__()

    @property
    def card(self) -> Gpu:
        """What the preset stands for.

        Raises:
            UnavailableError: That of this computer, which has none.
        """
        if self.gpu is not GpuPreset.HERE:
            return GPUS[self.gpu.value]
        if (missing := self._no_gpu()) is not None:
            raise UnavailableError(f"the {self.name} target cannot be used here: {missing}")
        here = gpu_here()
        profile = next((gpu.profile for gpu in GPUS.values() if gpu.sm == here.sm), "")
        return Gpu(here.name, here.sm, here.memory_bytes, profile)

    @property
    def machine(self) -> TensorRtMachine:
        """The TensorRT and the GPU that graphs are emitted for."""
        if self.version:
            version = TensorRtVersion.parse(self.version)
        else:
            version = machine_here().version if self.gpu is GpuPreset.HERE else NEWEST
        return TensorRtMachine(version, architecture(self.card.sm), memory_bytes=self.card.memory_bytes)

    @property
    def title(self) -> str:
        """The GPU."""
        return self.card.title

    def missing(self) -> str | None:
        """Why nothing can be compiled here, or None."""
        return self._no_gpu() if self.gpu is GpuPreset.HERE else super().missing()

    def estimated_on(self) -> str:
        """The profile of the GPU."""
        return self.card.profile

    def _no_gpu(self) -> str | None:
        """Why the GPU of this computer cannot be used, and what can be done instead; None: it can."""
        if (missing := missing_here()) is None:
            return None
        others = ", ".join(preset.value for preset in GpuPreset if preset is not GpuPreset.HERE)
        return (
            f"{missing}: name one to emit for another machine ({self.name}:gpu=NAME, with one of "
            f"{others}), or build on it with --device"
        )

    def _figures(self) -> str:
        if self.gpu is not GpuPreset.HERE:
            return super()._figures()
        return f"{self.title}: engines are built, run and timed on it by greencc's agent on this computer"

    def _facts(self) -> dict[str, str]:
        return {"preset": self.gpu.value}

    def _again(self) -> dict[str, str]:
        return {"*": f"{self.name}:version=$1,gpu={self.gpu.value}"}


@dataclass(frozen=True)
class FoundTensorRtTarget(TensorRtTarget):
    """TensorRT on a GPU that was found, here or on a device: it needs no preset, for nothing has to be estimated.

    Attributes:
        found: The GPU. The preset is one of the same kind, which bundles name so that they can be checked anywhere;
            ``here`` where there is none.
    """

    found: Gpu | None = None

    @property
    def card(self) -> Gpu:
        """The GPU that was found."""
        if self.found is None:
            return super().card
        return self.found

    def missing(self) -> str | None:
        """Why nothing can be emitted here, or None: the GPU is there, whose own agent tells what it lacks."""
        return EmittedTarget.missing(self)

    def named(self) -> TensorRtTarget:
        """The target that a spec can name."""
        return TensorRtTarget(self.batch, self.max_batch, self.sparse, self.version, self.gpu)
