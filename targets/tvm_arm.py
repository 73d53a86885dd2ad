"""The `tvm-arm` target: kernels that greencc generates through TVM for an ARM machine that need not be at hand.

What is built is checked by running it: natively where this computer has the machine's instructions, under QEMU's
user-mode emulation elsewhere. It is never timed: the device is another one, so times and energy are estimates from its
profile (`Target.estimated_on`). On the device itself, `tvm-cpu` builds the same kernels and times them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import BuildOrder, Device, Engine, NodeTime
from greencc.core.errors import GreenccError, UnavailableError, UsageError
from greencc.targets._tvm import versions
from greencc.targets._tvm.emulator import missing_emulator
from greencc.targets._tvm.features import check_cpu, this_cpu
from greencc.targets._tvm.presets import ArmMachine, ArmPreset, arm_machine
from greencc.targets._tvm.runner import missing_compiler, native
from greencc.targets._tvm.target import GeneratedTarget
from greencc.targets.cpu import CpuTarget

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.targets._tvm.machine import Machine

# The same code gives the same integers; the device's floats may be fused in other ways.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class TvmArmTarget(GeneratedTarget):
    """Generated code for ARM. What computes reference values is ONNX Runtime on this computer.

    Attributes:
        threads: That the device computes with; 0: all its cores.
        preset: The machine.
    """

    preset: ArmPreset = ArmPreset.GENERIC

    name: ClassVar[str] = "tvm-arm"
    builder: ClassVar[str] = "tvm"
    summary: ClassVar[str] = "kernels generated through TVM for ARM machines, checked under emulation"

    def __post_init__(self) -> None:
        super().__post_init__()
        cores = self.machine.machine.cores
        if self.threads > cores:
            raise UsageError(
                f"{self.name}:threads is {self.threads}, and {self.preset.value} has {cores} cores",
                hint=f"give 1 to {cores}, or leave it out for all",
            )

    @property
    def machine(self) -> ArmMachine:
        """What the preset stands for."""
        return arm_machine(self.preset)

    def runtime(self) -> CpuTarget:
        """ONNX Runtime."""
        return CpuTarget()

    def missing(self) -> str | None:
        """Why nothing can be compiled and checked here, or None. TVM is not imported."""
        return (
            versions.missing_tvm() or missing_compiler() or self.missing_to_open() or self.runtime().missing()
        )

    def missing_to_open(self) -> str | None:
        """Why libraries for the machine cannot be run here, or None."""
        return None if self._runs_natively() else missing_emulator()

    def estimated_on(self) -> str:
        """The profile of the device."""
        return self.machine.profile

    def capabilities(self) -> Capabilities:
        """What can be generated for the machine."""
        from greencc.targets._ort_facts import runtime_facts
        from greencc.targets._tvm.capabilities import tvm_capabilities

        self._require()
        where = "natively" if self._runs_natively() else f"under QEMU as {self.machine.emulated}"
        notes = [
            versions.note(),
            f"{self.preset.value}: {self.machine.title}; presets: {', '.join(ArmPreset)}",
            f"results are checked {where}; times and energy are estimated ({self.machine.profile}), never measured",
        ]
        return tvm_capabilities(self.machine.machine, runtime_facts(), notes)

    def device(self) -> Device:
        """Facts about the machine of the preset, not about this computer."""
        built = self.machine.machine
        facts = {
            "preset": self.preset.value,
            "architecture": built.triple.partition("-")[0],
            "cpu": built.cpu,
            "features": " ".join(sorted(built.features)),
            "physical_cores": str(built.cores),
            "threads": str(self.used_threads()),
            "device_profile": self.machine.profile,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        where = (
            "natively, on another machine" if self._runs_natively() else f"QEMU as {self.machine.emulated}"
        )
        return Device(self.machine.title, facts | {"checked_by": where}, digest)

    def build(self, model: ir.Model, folder: Path) -> Path:
        """Write ``model.json``, the files it names, and a runner for machines without Python.

        Raises:
            InputError: An operator cannot be compiled.
        """
        from greencc.targets._tvm.arm_engine import check_runtime
        from greencc.targets._tvm.building import build_library

        self._require()
        built = self.machine.machine
        main = build_library(model, folder, built, with_runner=True)
        check_runtime(folder, built.triple.partition("-")[0])
        return main

    def requirements(self, artifact: Path) -> dict[str, str]:
        """The oldest C library that an artifact runs with, on Linux for 64-bit ARM."""
        from greencc.targets._tvm.arm_engine import check_runtime

        architecture = self.machine.machine.triple.partition("-")[0]
        return {"glibc": f"{check_runtime(artifact.parent, architecture)} or newer", "linux": architecture}

    def open(self, artifact: Path) -> Engine:
        """Load a library, or compile an ONNX file (see `greencc.targets._tvm.compiled`) and load that.

        Raises:
            InputError: It is missing or damaged, or an operator cannot be compiled.
            UnavailableError: Its code is for another processor, or cannot be run here.
        """
        from greencc.targets._tvm.arm_engine import open_arm

        return open_arm(self._library(artifact), self.machine, native=self._runs_natively())

    def takes(self, path: Path) -> bool:
        """An ONNX file is compiled first."""
        return path.suffix != ".onnx"

    def order(self, artifact: Path) -> BuildOrder:
        """The library with its weights and the program that runs them: nothing is left to build there."""
        files = tuple(sorted(file for file in artifact.parent.iterdir() if file.is_file()))
        options = {"threads": self.threads} if self.threads else {}
        return BuildOrder("tvm", artifact, files, options, _TOLERANCE)

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Raise `UnavailableError`: nothing that runs here tells how fast the device is."""
        raise UnavailableError(
            f"{self.name} cannot be profiled here: it does not run on its device",
            hint=f"'greencc estimate MODEL --device {self.machine.profile}' estimates layer by layer",
        )

    def memory_command(self, artifact: Path, feeds: Path, runs: int) -> None:
        """None: an emulator's memory is not the device's."""

    def with_threads(self, count: int) -> TvmArmTarget:
        """The target itself: its threads are the device's."""
        return self

    def beside(self) -> TvmArmTarget:
        """The target itself."""
        return self

    def used_threads(self) -> int:
        """The number of threads that `threads` stands for on the device."""
        return self.threads or self.machine.machine.cores

    def _runs_natively(self) -> bool:
        if not native():
            return False
        built = self.machine.machine
        try:
            check_cpu(self.name, built.triple, built.features, this_cpu())
        except GreenccError:
            return False
        return True

    def _library(self, artifact: Path) -> Path:
        """The description of the library that an artifact is, or is compiled to."""
        from greencc.targets._tvm.building import library_of

        return library_of(artifact, self.name, self._wanted, self._built)

    def _wanted(self) -> Machine:
        self._require()
        return self.machine.machine
