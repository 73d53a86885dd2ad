"""The `tensorrt-rtx` target: TensorRT for RTX, whose engines can be built ahead of time without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core.engine import Shipment
from greencc.core.files import translated_os_errors
from greencc.targets._tensorrt.gpus import GPUS, Gpu, RtxPreset
from greencc.targets._tensorrt.machine import TensorRtMachine, architecture
from greencc.targets._tensorrt.spec import RTX_LIKE
from greencc.targets._tensorrt.target import EmittedTarget

if TYPE_CHECKING:
    from greencc.core.report import BuildCheck, BuildInfo

ENGINE = "engine.plan"
LOG = "engine.log"
AHEAD = "engine built ahead of time"


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

    def ship(self, artifact: Path, shipment: Shipment) -> None:
        """Add scripts and samples, and the engine where it can be built here: ahead of time, without the GPU."""
        from greencc.core.model import load_model
        from greencc.targets._tensorrt.files import write_readme
        from greencc.targets._tensorrt.rtx import BUILDS_FOR, build_rtx, missing_rtx

        super().ship(artifact, shipment)
        if missing_rtx() is None and self.card.sm in BUILDS_FOR:
            settings = self.settings(load_model(artifact))
            answer = build_rtx(artifact, self.card.sm, settings.shapes, artifact.with_name(ENGINE))
            if answer.good:
                write_readme(artifact.parent, settings, shipment, built_by=answer.version)
            else:
                path = artifact.with_name(LOG)
                with translated_os_errors(path):
                    path.write_text(answer.reason + "\n", encoding="utf-8")

    def build_info(self, artifact: Path) -> BuildInfo:
        """Not run on the device; the engine may have been built ahead of time."""
        info = super().build_info(artifact)
        if not artifact.with_name(ENGINE).is_file():
            return info
        check = "then: python3 artifact/check.py, which compares the engine with what was certified here"
        copy = f"copy the bundle's folder 'artifact' to the device; {ENGINE} is the engine"
        return replace(info, status="built ahead of time, never run on the device", steps=(copy, check))

    def _checks(self, artifact: Path) -> tuple[BuildCheck, ...]:
        from greencc.core.report import BuildCheck
        from greencc.targets._tensorrt.rtx import missing_rtx

        engine, log = artifact.with_name(ENGINE), artifact.with_name(LOG)
        if engine.is_file():
            note = f"for compute capability {self.card.sm // 10}.{self.card.sm % 10}, {engine.stat().st_size:,} bytes"
            found = BuildCheck(AHEAD, True, f"{note}; nothing ran it")
        elif log.is_file():
            found = BuildCheck(AHEAD, False, log.read_text(encoding="utf-8").strip())
        else:
            found = BuildCheck(AHEAD, None, f"not built here: {missing_rtx() or 'not for this architecture'}")
        return (*super()._checks(artifact), found)

    def _facts(self) -> dict[str, str]:
        return {"preset": self.gpu.value}

    def _again(self) -> dict[str, str]:
        return {}
