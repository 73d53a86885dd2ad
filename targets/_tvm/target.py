"""What the targets share whose artifacts are code that greencc generates through TVM."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core.engine import Engine
from greencc.targets._host import HostTarget
from greencc.targets._ort_facts import runtime_versions
from greencc.targets._tvm import versions
from greencc.targets.cpu import CpuTarget

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class GeneratedTarget(HostTarget):
    """Generated code. What computes reference values is ONNX Runtime on this computer."""

    ships_code: ClassVar[bool] = True

    @abstractmethod
    def runtime(self) -> CpuTarget:
        """What computes reference values."""

    def versions(self) -> dict[str, str]:
        """Versions an artifact's behaviour depends on."""
        self._require()
        return runtime_versions() | {versions.PACKAGE: versions.tvm_version() or "unknown"}

    def fixed_sizes(self, model: ir.Model) -> tuple[str, ...]:
        """Inputs whose free sizes are those of images."""
        from greencc.targets._tvm.resolving import free_images

        return free_images(model)

    def lower(self, model: ir.Model) -> ir.Model:
        """Bring the opset and the IR version within what both ONNX Runtime and TVM's importer know.

        Raises:
            InputError: The model's opset is newer and cannot be converted.
        """
        from greencc.targets._tvm.building import within_importer

        self._require()
        return within_importer(model)

    def build_seconds(self, model: ir.Model) -> float:
        """It grows with the number of nodes."""
        from greencc.targets._tvm.building import build_seconds

        return build_seconds(model)

    def findings(self, artifact: Path) -> tuple[str, ...]:
        """Operators without a kernel of ours."""
        from greencc.targets._tvm.description import read_description

        return read_description(artifact).findings

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Run a model node by node as written, on ONNX Runtime."""
        return self.runtime().reference(model, outputs)

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Like `reference`, with ONNX Runtime's optimisations: faster, and equal up to float rounding."""
        return self.runtime().calibration_engine(model, outputs)

    def _built(self, model: ir.Model, folder: Path) -> Path:
        return self.build(self.lower(model), folder)
