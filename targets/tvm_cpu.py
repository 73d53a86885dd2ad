"""The `tvm-cpu` target: kernels that greencc generates through TVM for this machine's CPU.

An artifact is a library of machine code (``model.so``), weights and a description (``model.json``): neither TVM nor a
compiler is needed where it runs. What is opened as an ONNX file, as baselines are, is compiled then, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core import machine
from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import Engine, NodeTime
from greencc.core.errors import UsageError
from greencc.core.progress import Progress
from greencc.core.tuning import TuningReport
from greencc.targets._tvm import versions
from greencc.targets._tvm.host import host_machine, machine_of
from greencc.targets._tvm.target import GeneratedTarget
from greencc.targets.cpu import CpuTarget

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.targets._tvm.engine import TvmEngine
    from greencc.targets._tvm.machine import Machine
    from greencc.targets._tvm.schedules import TunedSchedules


MAX_THREADS = 256
"""Of a library (`_tvm/runtime/internal.h`)."""


@dataclass(frozen=True)
class TvmCpuTarget(GeneratedTarget):
    """Generated code. What computes reference values is ONNX Runtime, as for the `cpu` target."""

    name: ClassVar[str] = "tvm-cpu"
    summary: ClassVar[str] = "kernels generated through TVM for this machine's CPU (x86-64, ARM)"

    def runtime(self) -> CpuTarget:
        """ONNX Runtime, with as many threads."""
        return CpuTarget(threads=self.threads)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads > MAX_THREADS:
            raise UsageError(
                f"{self.name}:threads is {self.threads}", hint=f"expected 0 (all cores) to {MAX_THREADS}"
            )

    def used_threads(self) -> int:
        """All cores where no number is given, but no more than a library takes."""
        return min(super().used_threads(), MAX_THREADS)

    def missing(self) -> str | None:
        """Why nothing can be compiled here, or None. TVM is not imported."""
        return (
            versions.missing_tvm()
            or versions.missing_compiler(machine_of(machine.read_cpuinfo(), 1).triple)
            or self.runtime().missing()
        )

    def missing_to_open(self) -> str | None:
        """Nothing is missing: libraries bring what they need, and are checked for this CPU when they are loaded."""
        return None

    def capabilities(self) -> Capabilities:
        """What can be generated for this CPU."""
        from greencc.targets._ort_facts import runtime_facts
        from greencc.targets._tvm.capabilities import tvm_capabilities

        self._require()
        cpu = machine.read_cpuinfo()
        notes = [versions.note()]
        if cpu.notable:
            notes.append(f"{cpu.model}: {' '.join(cpu.notable)}")
        return tvm_capabilities(machine_of(cpu, self.used_threads()), runtime_facts(), notes)

    def build(self, model: ir.Model, folder: Path) -> Path:
        """Write ``model.json`` and the files it names; the same model and tuned schedules give the same bytes.

        Raises:
            InputError: An operator cannot be compiled.
        """
        from greencc.targets._tvm.building import build_library

        self._require()
        return build_library(model, folder, host_machine(self.used_threads()), self._schedules())

    def cannot_tune(self) -> str | None:
        """What can be compiled here can be tuned here."""
        return self.missing()

    def tune(self, model: ir.Model, seconds: float, progress: Progress) -> TuningReport:
        """Measure schedules of the kernels of a model; see `greencc.targets._tvm.tuning`."""
        from greencc.targets._tvm.lowering import lower_model
        from greencc.targets._tvm.tuning import tune_model

        self._require()
        lowered, threads = self.lower(model), self.used_threads()
        host = host_machine(threads)
        return tune_model(
            lambda schedules: lower_model(lowered, host, schedules), host, threads, seconds, progress
        )

    def check_schedules(self) -> tuple[str, ...]:
        """Open the database of tuned schedules."""
        warnings: list[str] = []
        self._schedules(warnings.append)
        return tuple(warnings)

    def open(self, artifact: Path) -> Engine:
        """Load a library, or compile an ONNX file (see `greencc.targets._tvm.compiled`) and load that.

        Raises:
            InputError: It is missing or damaged, or an operator cannot be compiled.
            UnavailableError: Its code is for another processor.
        """
        return self._load(artifact)

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Median microseconds per kernel over `runs` runs.

        For a model with a fixed batch only the first batch of the feeds is run. A kernel is called after its
        convolution, product or pool, and has ``:int8`` behind its type where it computes on integers.
        """
        if runs < 1:
            raise UsageError(f"profiling takes at least 1 run, not {runs}")
        engine = self._load(artifact)
        try:
            sizes = {spec.name: spec.batch for spec in engine.inputs}
            first = {name: array[: sizes.get(name)] for name, array in feeds.items()}
            return engine.profile(first, runs)
        finally:
            engine.close()

    def memory_command(self, artifact: Path, feeds: Path, runs: int) -> Sequence[str] | None:
        """As for other targets on this machine; what has to be compiled is, before and in this process."""
        return super().memory_command(self._library(artifact), feeds, runs)

    def _load(self, artifact: Path) -> TvmEngine:
        from greencc.targets._tvm.engine import TvmEngine

        return TvmEngine(self._library(artifact), self.used_threads())

    def _library(self, artifact: Path) -> Path:
        """The description of the library that an artifact is, or is compiled to."""
        from greencc.targets._tvm.building import library_of

        return library_of(
            artifact, self.name, self._host, self._built, lambda host: self._schedules().digest(host)
        )

    def _host(self) -> Machine:
        self._require()
        return host_machine(self.used_threads())

    def _schedules(self, warn: Callable[[str], None] = lambda message: None) -> TunedSchedules:
        """What was tuned; a damaged database has been warned of by `check_schedules`, or costs speed alone."""
        from greencc.targets._tvm.schedules import tuned_schedules

        return tuned_schedules(self.used_threads(), warn)
