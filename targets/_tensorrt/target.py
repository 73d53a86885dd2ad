"""What the targets share whose artifacts are graphs for TensorRT: emitted and checked here, built on the device.

What computes here is ONNX Runtime on the emitted graph, with its own fusions of Q/DQ pairs off: what lies between a
DequantizeLinear and a QuantizeLinear is computed in float, rounded half to even and clamped to [-128, 127], which is
how TensorRT defines such a graph. It is never timed: times and energy are estimates (`Target.estimated_on`).
"""

from __future__ import annotations

import hashlib
import json
import platform
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import Device, Engine, NodeTime, Target
from greencc.core.errors import UnavailableError, UsageError
from greencc.targets._tensorrt.machine import TensorRtMachine
from greencc.targets.cpu import CpuTarget

if TYPE_CHECKING:
    import onnx_ir as ir

MOST_IN_A_BATCH = 4096


@dataclass(frozen=True)
class EmittedTarget(Target):
    """A machine with TensorRT that is somewhere else.

    Attributes:
        batch: The batch that engines are made fast for, where the model leaves it open.
        max_batch: The largest that they take.
        sparse: Weights of which two in four are zero may use the GPU's 2:4 kernels.
    """

    batch: int = 1
    max_batch: int = 8
    sparse: bool = False

    processor: ClassVar[str] = "gpu"

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.max_batch <= MOST_IN_A_BATCH:
            raise UsageError(
                f"{self.name}: batch is {self.batch} and max_batch {self.max_batch}",
                hint=f"give 1 <= batch <= max_batch <= {MOST_IN_A_BATCH}",
            )
        if self.sparse and not (gpu := self.machine.gpu).sparsity:
            raise UsageError(
                f"{self.name}:sparse is asked for, and the {self.title} ({gpu.name}) has no sparse kernels",
                hint="2:4 sparsity came with Ampere; leave it out",
            )

    @property
    @abstractmethod
    def machine(self) -> TensorRtMachine:
        """The TensorRT and the GPU that graphs are emitted for."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The device, for people."""

    @abstractmethod
    def estimated_on(self) -> str:
        """The profile of the device."""

    @abstractmethod
    def _facts(self) -> Mapping[str, str]:
        """What tells the device apart, besides its TensorRT and its GPU."""

    def emulated(self) -> bool:
        """False: what runs here is ONNX Runtime, at its own speed."""
        return False

    def missing(self) -> str | None:
        """Why nothing can be checked here, or None: TensorRT is not needed."""
        return CpuTarget().missing()

    def capabilities(self) -> Capabilities:
        """What that TensorRT can do on that GPU."""
        from greencc.targets._tensorrt._stub import tensorrt_capabilities

        self._require()
        return tensorrt_capabilities(self.machine)

    def device(self) -> Device:
        """Facts about the device, not about this computer."""
        machine = self.machine
        facts = {
            **self._facts(),
            "tensorrt": str(machine.version),
            "gpu": machine.gpu.name,
            "compute_capability": f"{machine.gpu.sm // 10}.{machine.gpu.sm % 10}",
            "memory_gib": "unknown"
            if machine.memory_bytes is None
            else f"{machine.memory_bytes / 2**30:.0f}",
            "device_profile": self.estimated_on(),
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Device(self.title, facts | {"checked_by": "ONNX Runtime, on another machine"}, digest)

    def versions(self) -> dict[str, str]:
        """Versions that the checked results depend on, and the TensorRT that the graph is for."""
        self._require()
        import numpy
        import onnx
        import onnxruntime

        return {
            "onnx": str(onnx.__version__),
            "onnxruntime": str(onnxruntime.__version__),
            "numpy": str(numpy.__version__),
            "python": platform.python_version(),
            "tensorrt": f"{self.machine.version} (emitted for; not run here)",
        }

    def lower(self, model: ir.Model) -> ir.Model:
        """The graph as that TensorRT wants it.

        Raises:
            InputError: It cannot be expressed.
        """
        from greencc.targets._tensorrt._stub import emit

        self._require()
        return emit(model, self.machine)

    def build(self, model: ir.Model, folder: Path) -> Path:
        """Write ``model.onnx`` (and its data file where weights need one)."""
        from greencc.core.files import translated_os_errors
        from greencc.core.model import save_model

        artifact = folder / "model.onnx"
        with translated_os_errors(artifact):
            folder.mkdir(parents=True, exist_ok=True)
            save_model(model, artifact)
        return artifact

    def open(self, artifact: Path) -> Engine:
        """Load the emitted graph, or any other ONNX file, in ONNX Runtime.

        Raises:
            InputError: It is missing, or ONNX Runtime cannot load it.
        """
        from greencc.targets._ort import Optimization, OrtEngine, SessionConfig

        self._require()
        runtime = CpuTarget()
        config = SessionConfig(runtime.used_threads(), Optimization.ALL, qdq_fusions=False)
        return OrtEngine(runtime.file(artifact), config, name=artifact.name)

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Run a model node by node as written, on ONNX Runtime."""
        return CpuTarget().reference(model, outputs)

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Like `reference`, with ONNX Runtime's optimisations: faster, and equal up to float rounding."""
        return CpuTarget().calibration_engine(model, outputs)

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Raise `UnavailableError`: nothing that runs here tells how fast the device is."""
        raise UnavailableError(
            f"{self.name} cannot be profiled here: it does not run on its device",
            hint=f"'greencc estimate MODEL --device {self.estimated_on()}' estimates layer by layer",
        )

    def _require(self) -> None:
        """Raise `UnavailableError` when nothing can be checked here."""
        reason = self.missing()
        if reason is not None:
            raise UnavailableError(f"the {self.name} target cannot be used here: {reason}")
