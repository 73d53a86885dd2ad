"""The `cpu` target: ONNX Runtime's CPU execution provider, the embedded default (no server, no GPU)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core import machine
from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import Device, Engine, NodeTime, Target
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.targets._ort import Optimization, OrtEngine, SessionConfig, session_options
from greencc.targets._ort_facts import MINIMUM_VERSION, runtime_facts
from greencc.targets._spec import format_spec

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_THREADS = 1024
_WARM_UP_RUNS = 3
# Reference engines of larger models run on the weights where they are, without a rearranged copy.
_PREPACK_UP_TO_BYTES = 512 << 20
# More than this in memory (weights that passes have replaced) goes to a reference engine through a file.
_SPILL_FROM_BYTES = 512 << 20


@dataclass(frozen=True)
class CpuTarget(Target):
    """ONNX Runtime on the CPU.

    Attributes:
        threads: Threads within an operator; 0 takes all physical cores this process may use.
        optimization: How far ONNX Runtime rewrites the deployed graph. `reference` ignores it.
    """

    threads: int = 0
    optimization: Optimization = Optimization.ALL

    name: ClassVar[str] = "cpu"
    summary: ClassVar[str] = "ONNX Runtime on this machine's CPU (x86-64, ARM)"

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= _MAX_THREADS:
            raise UsageError(
                f"cpu:threads is {self.threads}", hint=f"expected 0 (all cores) to {_MAX_THREADS}"
            )

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

    def capabilities(self) -> Capabilities:
        """What this CPU and the installed runtime can do."""
        from greencc.targets._cpu_capabilities import cpu_capabilities

        self._require()
        return cpu_capabilities(machine.read_cpuinfo(), runtime_facts())

    def device(self) -> Device:
        """Facts about this machine; the fingerprint covers those that decide how fast it runs."""
        return describe_device(threads=self._threads())

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

    def lower(self, model: ir.Model) -> ir.Model:
        """Bring the opset and the IR version within what the installed runtime accepts.

        Raises:
            InputError: The model's opset is newer and cannot be converted.
        """
        from greencc.targets._lower import within_versions

        self._require()
        facts = runtime_facts()
        return within_versions(model, facts.max_opset, facts.max_ir_version)

    def build(self, model: ir.Model, folder: Path) -> Path:
        """Write ``model.onnx`` (and its data file where weights need one); the same model gives the same bytes."""
        from greencc.core.files import translated_os_errors
        from greencc.core.model import save_model

        artifact = folder / "model.onnx"
        with translated_os_errors(artifact):
            folder.mkdir(parents=True, exist_ok=True)
            save_model(model, artifact)
        return artifact

    def open(self, artifact: Path) -> Engine:
        """Load an artifact as a deployment would.

        Raises:
            InputError: It is missing, or ONNX Runtime cannot load it.
        """
        return self._load(artifact, SessionConfig(self._threads(), self.optimization))

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Run a model node by node as written (no graph optimisation at all)."""
        return self._in_memory(model, outputs, Optimization.NONE)

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Like `reference`, with the runtime's optimisations: faster, and equal up to float rounding."""
        return self._in_memory(model, outputs, Optimization.ALL)

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
                artifact, SessionConfig(self._threads(), self.optimization, profile_prefix=folder / "ort")
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

    def with_threads(self, count: int) -> CpuTarget:
        """This target with at most `count` threads."""
        return replace(self, threads=min(self._threads(), count))

    def memory_command(self, artifact: Path, feeds: Path, runs: int) -> Sequence[str]:
        """Command whose only output line is the JSON of `greencc.targets._child`."""
        return [
            sys.executable,
            "-m",
            "greencc.targets._child",
            format_spec(self),
            str(artifact),
            str(feeds),
            str(runs),
        ]

    def _threads(self) -> int:
        return self.threads or machine.usable_threads()

    def _require(self) -> None:
        reason = self.missing()
        if reason is not None:
            raise UnavailableError(f"the cpu target cannot run here: {reason}")

    def _load(self, artifact: Path, config: SessionConfig) -> OrtEngine:
        self._require()
        if not artifact.is_file():
            raise InputError(f"{artifact} is not a file", hint="pass the path of an ONNX model")
        return OrtEngine(artifact, config, name=artifact.name)

    def _in_memory(
        self, model: ir.Model, outputs: Sequence[str] | None, optimization: Optimization
    ) -> OrtEngine:
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
            return self._from_file(model, optimization, inner)
        shared = share(model)
        # Batches and models of many shapes come by: the runtime need not remember how to lay out each of them.
        prepack = shared.nbytes <= _PREPACK_UP_TO_BYTES
        config = SessionConfig(self._threads(), optimization, prepack=prepack, pattern=False)
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

    def _from_file(self, model: ir.Model, optimization: Optimization, inner: frozenset[str]) -> OrtEngine:
        """Run a model from a temporary file, which the runtime maps: handing the weights over would copy them."""
        from greencc.core.files import translated_os_errors
        from greencc.core.model import save_model

        config = SessionConfig(self._threads(), optimization, prepack=False, arena=False, pattern=False)
        folder = Path(tempfile.mkdtemp(prefix="greencc-reference-"))
        try:
            path = folder / "model.onnx"
            with translated_os_errors(path):
                save_model(model, path, external_threshold=0)
            # The mapping outlives the file.
            return OrtEngine(path, config, name=model.graph.name or "the model", inner=inner)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def describe_device(threads: int, root: Path = machine.ROOT) -> Device:
    """The `Device` of this machine, or of a recorded file tree.

    The fingerprint is a SHA-256 over the CPU's model, instruction sets, core counts, the threads used, the memory size
    and whether it is a virtual machine. Frequency, governor, load and kernel version are facts, not identity.
    """
    cpu = machine.read_cpuinfo(root)
    allowed = machine.allowed_cpus()
    memory = machine.memory_total_bytes(root)
    granted = machine.cgroup_cpus(root)
    identity = {
        "architecture": cpu.architecture,
        "cpu": cpu.model,
        "features": " ".join(cpu.notable),
        "logical_cpus": str(cpu.logical),
        "physical_cores": str(machine.physical_cores(range(cpu.logical), root)),
        "threads": str(threads),
        "memory_gib": str(round(memory / 2**30)) if memory else "unknown",
        "virtualised": {True: "yes", False: "no", None: "unknown"}[cpu.virtualised],
    }
    facts = dict(identity)
    facts["allowed_cpus"] = str(len(allowed))
    facts["kernel"] = f"{platform.system()} {platform.release()}"
    facts["governor"] = machine.governor(root) or "unknown"
    if granted is not None:
        facts["cgroup_cpus"] = f"{granted:g}"
    board = machine.board_model(root)
    if board:
        facts["board"] = board
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Device(cpu.model, facts, digest)
