"""The `cpu` target: ONNX Runtime's CPU execution provider, the embedded default (no server, no GPU)."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core import machine
from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import BuildOrder, Engine, NodeTime
from greencc.core.errors import UsageError
from greencc.targets._host import HostTarget, describe_device
from greencc.targets._ort import Optimization, OrtEngine, SessionConfig, session_options
from greencc.targets._ort_facts import MINIMUM_VERSION, runtime_facts

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CpuTarget", "describe_device"]

_WARM_UP_RUNS = 3
# How far another processor's outputs may be off, as a share of the largest value: integers may round the other way.
_CLOSE, _LOOSE = 0.02, 0.1
_QUANTIZED_OPS = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulNBits")
# Reference engines of larger models run on the weights where they are, without a rearranged copy.
_PREPACK_UP_TO_BYTES = 512 << 20
# More than this in memory (weights that passes have replaced) goes to a reference engine through a file.
_SPILL_FROM_BYTES = 512 << 20


class Backend(Enum):
    """Which run times a compile for the CPU considers."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True)
class CpuTarget(HostTarget):
    """ONNX Runtime on the CPU.

    Attributes:
        optimization: How far ONNX Runtime rewrites the deployed graph. `reference` ignores it.
        backend: Whether a compile also tries the other run times that are installed
            (`greencc.targets.backends.backends`). What this target itself runs with is ONNX Runtime.
    """

    optimization: Optimization = Optimization.ALL
    backend: Backend = Backend.AUTO

    name: ClassVar[str] = "cpu"
    builder: ClassVar[str] = "ort"
    summary: ClassVar[str] = (
        "ONNX Runtime on this machine's CPU (x86-64, ARM), or a faster run time installed here"
    )
    spins: ClassVar[bool] = True
    """Whether threads without work wait actively within a run."""

    def missing(self) -> str | None:
        """Why ONNX Runtime cannot be used here, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install onnxruntime"
        try:
            import onnxruntime as ort
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}): pip install --force-reinstall onnxruntime"
        version = tuple(int(part) for part in ort.__version__.split(".")[:2])
        if version < MINIMUM_VERSION:
            needed = ".".join(map(str, MINIMUM_VERSION))
            return f"onnxruntime {ort.__version__} is too old: pip install 'onnxruntime>={needed}'"
        if "CPUExecutionProvider" not in ort.get_available_providers():
            return "this build of onnxruntime has no CPU execution provider: pip install onnxruntime"
        return None

    def beside(self) -> CpuTarget:
        """This target with the threads it has here, which leave the processors to others when they wait."""
        return SharingCpuTarget(self.used_threads(), self.optimization, self.backend)

    def capabilities(self) -> Capabilities:
        """What this CPU and the installed runtime can do."""
        from greencc.targets._cpu_capabilities import cpu_capabilities

        self._require()
        return cpu_capabilities(machine.read_cpuinfo(), runtime_facts())

    def versions(self) -> dict[str, str]:
        """Versions an artifact's behaviour depends on."""
        self._require()
        import numpy
        import onnx
        import onnxruntime

        return {
            "onnx": str(onnx.__version__),
            "onnxruntime": str(onnxruntime.__version__),
            "numpy": str(numpy.__version__),
            "python": platform.python_version(),
        }

    def open(self, artifact: Path) -> Engine:
        """Load an artifact as a deployment would.

        Raises:
            InputError: It is missing, or ONNX Runtime cannot load it.
        """
        return self._load(artifact, SessionConfig(self.used_threads(), self.optimization, spin=self.spins))

    def order(self, artifact: Path) -> BuildOrder:
        """ONNX Runtime on the device, which has its own rewrites: the model goes over as it is."""
        from greencc.core.graph import external_files
        from greencc.core.model import load_model

        model = load_model(artifact)
        files = (artifact, *(artifact.parent / name for name in external_files(model)))
        options: dict[str, object] = {"fusions": self.optimization is Optimization.ALL}
        if self.threads:
            options["threads"] = self.threads
        quantized = any(node.op_type in _QUANTIZED_OPS for node in model.graph)
        return BuildOrder("ort", artifact, files, options, _LOOSE if quantized else _CLOSE)

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Run a model node by node as written (no graph optimisation at all)."""
        return self.in_memory(model, outputs, Optimization.NONE)

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Like `reference`, with the runtime's optimisations: faster, and equal up to float rounding."""
        return self.in_memory(model, outputs, Optimization.ALL)

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Median microseconds per node of ONNX Runtime's own graph, over `runs` runs after a short warm-up.

        For a model with a fixed batch only the first batch of the feeds is run.
        """
        from greencc.targets._ort_profile import read_profile

        if runs < 1:
            raise UsageError(f"profiling takes at least 1 run, not {runs}")
        folder = Path(tempfile.mkdtemp(prefix="greencc-profile-"))
        try:
            engine = self._load(
                artifact, SessionConfig(self.used_threads(), self.optimization, profile_prefix=folder / "ort")
            )
            try:
                sizes = {spec.name: spec.batch for spec in engine.inputs}
                first = {name: array[: sizes.get(name)] for name, array in feeds.items()}
                for _ in range(_WARM_UP_RUNS + runs):
                    engine.run(first)
                written = engine.end_profiling()
            finally:
                engine.close()
            return read_profile(written, skip_runs=_WARM_UP_RUNS)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _load(self, artifact: Path, config: SessionConfig) -> OrtEngine:
        return OrtEngine(self.file(artifact), config, name=artifact.name)

    def in_memory(
        self,
        model: ir.Model,
        outputs: Sequence[str] | None,
        optimization: Optimization,
        *,
        qdq_fusions: bool = True,
    ) -> OrtEngine:
        """An engine of a model that need not be in a file.

        Args:
            model: The model.
            outputs: Values wanted; None: the model's outputs.
            optimization: How far the runtime rewrites it.
            qdq_fusions: See `SessionConfig`.

        Raises:
            InputError: ONNX Runtime cannot load it.
        """
        import onnx_ir as ir

        from greencc.targets._ort_model import expose, share

        self._require()
        inner: frozenset[str] = frozenset()
        if outputs is not None:
            model, inner = expose(model, outputs)
        private = sum(
            value.const_value.nbytes
            for value in model.graph.initializers.values()
            if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor)
        )
        if private > _SPILL_FROM_BYTES:
            return self._from_file(model, optimization, inner, qdq_fusions)
        shared = share(model)
        # Batches and models of many shapes come by: the runtime need not remember how to lay out each of them.
        prepack = shared.nbytes <= _PREPACK_UP_TO_BYTES
        config = SessionConfig(
            self.used_threads(),
            optimization,
            prepack=prepack,
            pattern=False,
            spin=self.spins,
            qdq_fusions=qdq_fusions,
        )
        options = session_options(config)
        shared.register(options)
        return OrtEngine(
            shared.proto,
            config,
            name=model.graph.name or "the model",
            options=options,
            keep=(shared.keep, shared.values),
            inner=inner,
        )

    def _from_file(
        self, model: ir.Model, optimization: Optimization, inner: frozenset[str], qdq_fusions: bool
    ) -> OrtEngine:
        """Run a model from a temporary file, which the runtime maps: handing the weights over would copy them."""
        from greencc.core.files import translated_os_errors
        from greencc.core.model import save_model

        config = SessionConfig(
            self.used_threads(),
            optimization,
            prepack=False,
            arena=False,
            pattern=False,
            spin=self.spins,
            qdq_fusions=qdq_fusions,
        )
        folder = Path(tempfile.mkdtemp(prefix="greencc-reference-"))
        try:
            path = folder / "model.onnx"
            with translated_os_errors(path):
                save_model(model, path, external_threshold=0)
            # The mapping outlives the file.
            return OrtEngine(path, config, name=model.graph.name or "the model", inner=inner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class SharingCpuTarget(CpuTarget):
    """The target of worker processes: each has all threads, so that sums are rounded alike, and all of them wait."""

    spins: ClassVar[bool] = False
