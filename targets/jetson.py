"""The `jetson` target: a graph for the TensorRT of a Jetson module, to be built there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from greencc.core.errors import UsageError
from greencc.targets._tensorrt.machine import TensorRtMachine
from greencc.targets._tensorrt.presets import MODULES, JetPack, JetsonModule, JetsonPreset, with_dla
from greencc.targets._tensorrt.target import EmittedTarget

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class JetsonTarget(EmittedTarget):
    """A Jetson module that is not at hand.

    Attributes:
        preset: The module.
        jetpack: Its JetPack release; empty: the module's default one.
        dla: Build for the deep-learning accelerator; what it cannot do runs on the GPU.
    """

    preset: JetsonPreset = JetsonPreset.ORIN_NANO
    jetpack: str = ""
    dla: bool = False

    name: ClassVar[str] = "jetson"
    summary: ClassVar[str] = (
        "TensorRT on a Jetson: the graph is emitted and checked here, the engine built there"
    )
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        preset.value: {"preset": preset.value} for preset in JetsonPreset
    }
    leading: ClassVar[str | None] = "preset"

    def __post_init__(self) -> None:
        release = self.release
        super().__post_init__()
        if self.dla and not self.machine.dla:
            raise UsageError(
                f"{self.name}:dla is asked for, and TensorRT {release.tensorrt} of JetPack {release.release} builds "
                f"for no DLA of the {self.title}",
                hint=f"leave it out, or compile for one of: {with_dla()}",
            )

    @property
    def module(self) -> JetsonModule:
        """What the preset stands for."""
        return MODULES[self.preset]

    @property
    def release(self) -> JetPack:
        """What `jetpack` stands for."""
        return self.module.release(self.jetpack)

    @property
    def machine(self) -> TensorRtMachine:
        """TensorRT of the JetPack release on the module's GPU."""
        return self.module.machine(self.jetpack)

    @property
    def title(self) -> str:
        """The module."""
        return self.module.title

    @property
    def profile_name(self) -> str:
        """That of the module."""
        return self.module.profile

    def lower(self, model: ir.Model) -> ir.Model:
        """The graph as that TensorRT wants it; for the DLA, which runs fixed sizes alone, of the target's batch.

        Raises:
            InputError: It cannot be expressed.
        """
        from greencc.core.shapes import bind_sizes

        return super().lower(bind_sizes(model, {}, batch=self.batch) if self.dla else model)

    def _facts(self) -> dict[str, str]:
        return {
            "preset": self.preset.value,
            "jetpack": self.release.release,
            "dla": "yes" if self.dla else "no",
        }

    def _notes(self) -> tuple[str, ...]:
        return (
            f"presets: {', '.join(preset.value for preset in JetsonPreset)}",
            f"JetPack of this one: {', '.join(each.release for each in self.module.releases)} (the first by default)",
        )

    @property
    def _dla(self) -> bool:
        return self.dla

    def _again(self) -> dict[str, str]:
        preset = self.preset.value
        # The first release of a TensorRT wins.
        others = {
            each.tensorrt.release: f"{self.name}:preset={preset},jetpack={each.release}"
            for each in reversed(self.module.releases)
        }
        return others | {"*": f"tensorrt:version=$1,gpu={preset}"}
