"""The `openvino` target: Intel's OpenVINO on the CPU (x86-64 and ARM), a second run time beside ONNX Runtime.

Artifacts are plain ONNX files, as the `cpu` target's. OpenVINO could also write its own IR, which would say the same
without the names of nodes, and blobs, which hold compiled code: neither is shipped.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core import machine
from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import Engine, NodeTime
from greencc.core.errors import UsageError
from greencc.targets._host import HostTarget
from greencc.targets._openvino import DEVICE, OpenVinoEngine, core, properties
from greencc.targets._ort_facts import runtime_versions
from greencc.targets.cpu import CpuTarget

if TYPE_CHECKING:
    import onnx_ir as ir

_MINIMUM_VERSION = (2024, 6)
_INSTALL = "pip install 'greencc[openvino]'"


@dataclass(frozen=True)
class OpenVinoTarget(HostTarget):
    """OpenVINO's CPU plugin. What computes reference values is ONNX Runtime, as for the `cpu` target."""

    name: ClassVar[str] = "openvino"
    summary: ClassVar[str] = "OpenVINO on this machine's CPU (x86-64, ARM)"

    def missing(self) -> str | None:
        """Why OpenVINO cannot be used here, or None."""
        if importlib.util.find_spec("openvino") is None:
            return f"openvino is not installed: {_INSTALL}"
        try:
            import openvino
            import openvino.frontend
        except ImportError as error:
            return f"openvino cannot be imported ({error}): pip install --force-reinstall openvino"
        found = re.match(r"(\d+)\.(\d+)", str(openvino.__version__))
        if found is None or (int(found[1]), int(found[2])) < _MINIMUM_VERSION:
            needed = ".".join(map(str, _MINIMUM_VERSION))
            return f"openvino {openvino.__version__} is too old: pip install 'openvino>={needed}'"
        try:
            core().get_property(DEVICE, "FULL_DEVICE_NAME")
        except RuntimeError as error:
            return f"openvino's CPU plugin does not load ({_first_line(error)}): {_INSTALL}"
        return CpuTarget(threads=self.threads).missing()

    def capabilities(self) -> Capabilities:
        """What this CPU and the installed runtime can do."""
        from greencc.targets._openvino_capabilities import openvino_capabilities
        from greencc.targets._openvino_facts import plugin_facts
        from greencc.targets._ort_facts import runtime_facts

        self._require()
        return openvino_capabilities(machine.read_cpuinfo(), plugin_facts(), runtime_facts())

    def versions(self) -> dict[str, str]:
        """Versions an artifact's behaviour depends on."""
        self._require()
        import openvino

        return runtime_versions() | {"openvino": str(openvino.__version__).partition("-")[0]}

    def open(self, artifact: Path) -> Engine:
        """Load an artifact as a deployment would.

        Raises:
            InputError: It is missing, or OpenVINO cannot load it.
        """
        return OpenVinoEngine(self.file(artifact), properties(self.used_threads()))

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Run a model node by node as written, on ONNX Runtime: OpenVINO always rewrites."""
        return CpuTarget(threads=self.threads).reference(model, outputs)

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Like `reference`, with ONNX Runtime's optimisations: faster, and equal up to float rounding."""
        return CpuTarget(threads=self.threads).calibration_engine(model, outputs)

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Microseconds per node over at least `runs` runs (see `greencc.targets._openvino_profile`).

        For a model with a fixed batch only the first batch of the feeds is run.
        """
        from greencc.targets._openvino_profile import profile

        if runs < 1:
            raise UsageError(f"profiling takes at least 1 run, not {runs}")
        return profile(self.file(artifact), self.used_threads(), feeds, runs)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
    return lines[0] if lines else type(error).__name__
