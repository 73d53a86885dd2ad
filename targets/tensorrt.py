"""The `tensorrt` target: TensorRT on the NVIDIA GPU of this computer, or a graph for that of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from greencc.core.errors import UnavailableError, UsageError
from greencc.targets._tensorrt.gpus import GPUS, HERE, Gpu, find_gpu, gpu_named
from greencc.targets._tensorrt.local import gpu_here, machine_here, missing_here
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture
from greencc.targets._tensorrt.target import EmittedTarget


@dataclass(frozen=True)
class TensorRtTarget(EmittedTarget):
    """TensorRT of a PC or a server.

    Attributes:
        version: Of TensorRT; empty: that of this computer, or for another GPU the newest that builds for it.
        gpu: The GPU (see `find_gpu`); ``here`` or empty: that of this computer.
    """

    version: str = ""
    gpu: str = ""

    name: ClassVar[str] = "tensorrt"
    summary: ClassVar[str] = "TensorRT on an NVIDIA GPU: emitted and checked here, built where the GPU is"
    leading: ClassVar[str | None] = "version"

    def __post_init__(self) -> None:
        if self.version:
            TensorRtVersion.parse(self.version)
        if not self.here:
            # Refused before anything is made of it.
            self._check(find_gpu(self.gpu))
        super().__post_init__()

    @property
    def here(self) -> bool:
        """It is the GPU of this computer."""
        return self.gpu in ("", HERE)

    @property
    def card(self) -> Gpu:
        """What `gpu` stands for.

        Raises:
            UnavailableError: That of this computer, which has none.
        """
        if not self.here:
            return find_gpu(self.gpu)
        if (missing := self._no_gpu()) is not None:
            raise UnavailableError(f"the {self.name} target cannot be used here: {missing}")
        here = gpu_here()
        known = GPUS.get(gpu_named(here.name, here.sm))
        return Gpu(here.name, here.sm, here.memory_bytes, "" if known is None else known.profile)

    @property
    def machine(self) -> TensorRtMachine:
        """The TensorRT and the GPU that graphs are emitted for.

        Raises:
            UnavailableError: They are those of this computer, which has none.
            UsageError: That version does not build for the GPU of this computer.
        """
        card = self.card
        generation = architecture(card.sm)
        if self.version:
            self._check(card)
            version = TensorRtVersion.parse(self.version)
        else:
            version = machine_here().version if self.here else generation.newest
        return TensorRtMachine(version, generation, memory_bytes=card.memory_bytes)

    @property
    def title(self) -> str:
        """The GPU."""
        return self.card.title

    def missing(self) -> str | None:
        """Why nothing can be compiled here, or None."""
        return self._no_gpu() if self.here else super().missing()

    @property
    def profile_name(self) -> str:
        """That of the GPU."""
        return self.card.profile

    def _check(self, card: Gpu) -> None:
        """Refuse a TensorRT that does not build for a GPU."""
        generation = architecture(card.sm)
        reason = generation.refusal(TensorRtVersion.parse(self.version)) if self.version else None
        if reason is not None:
            where = "" if self.here else f",gpu={self.gpu}"
            raise UsageError(
                f"{reason}: {card.title}",
                hint=f"{generation.span}: {self.name}:version={generation.newest.release}{where}",
            )

    def _no_gpu(self) -> str | None:
        """Why the GPU of this computer cannot be used, and what can be done instead; None: it can."""
        if (missing := missing_here()) is None:
            return None
        others = ", ".join(name for name, gpu in GPUS.items() if gpu.profile)
        return (
            f"{missing}: name one to emit for another machine ({self.name}:gpu=NAME, with one of "
            f"{others}), or build on it with --device"
        )

    def _figures(self) -> str:
        if not self.here:
            return super()._figures()
        return f"{self.title}: engines are built, run and timed on it by greencc's agent on this computer"

    def _facts(self) -> dict[str, str]:
        return {"preset": self.gpu or HERE}

    def _again(self) -> dict[str, str]:
        return {"*": f"{self.name}:version=$1" + ("" if self.here else f",gpu={self.gpu}")}


@dataclass(frozen=True)
class FoundTensorRtTarget(TensorRtTarget):
    """TensorRT on a GPU that was found, here or on a device: it needs no profile, for nothing has to be estimated.

    Attributes:
        found: The GPU. `gpu` is its name or its compute capability, which bundles have, to be checked anywhere.
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

    def _figures(self) -> str:
        return f"{self.title}: engines are built, run and timed on it by greencc's agent there"

    def named(self) -> TensorRtTarget:
        """The target that a spec can name."""
        return TensorRtTarget(self.batch, self.max_batch, self.sparse, self.version, self.gpu)
