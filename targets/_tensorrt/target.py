"""What the targets share whose artifacts are graphs for TensorRT: emitted and checked here, built on the device.

What computes here is ONNX Runtime on the emitted graph, with its own fusions of Q/DQ pairs off: what lies between a
DequantizeLinear and a QuantizeLinear is computed in float, rounded half to even and clamped to [-128, 127], which is
how TensorRT defines such a graph. It is never timed: times and energy are estimates (`Target.estimated_on`).
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from greencc.core.capabilities import Capabilities
from greencc.core.data import Feeds
from greencc.core.engine import BuildOrder, Device, Engine, NodeTime, Shipment, Target
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.targets._ort_facts import runtime_versions
from greencc.targets._tensorrt.gpus import GPUS
from greencc.targets._tensorrt.machine import TensorRtMachine
from greencc.targets.cpu import CpuTarget

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.core.report import BuildCheck, BuildInfo
    from greencc.targets._tensorrt.faults import Fault
    from greencc.targets._tensorrt.files import Settings

MOST_IN_A_BATCH = 4096
PARSER_CHECK = "TensorRT-RTX parser"
_UNKNOWN_MEMORY = 4 << 30
_MOST_WORKSPACE = 4 << 30


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
    builder: ClassVar[str] = "tensorrt"

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

    @property
    @abstractmethod
    def profile_name(self) -> str:
        """The profile that estimates come from; empty: there is none."""

    def estimated_on(self) -> str:
        """The profile of the device.

        Raises:
            UnavailableError: There is none, so nothing can be said of its times and energy from here.
        """
        if not self.profile_name:
            raise UnavailableError(
                f"there is no device profile of the {self.title}, so times and energy cannot be estimated",
                hint="compile on it, where they are measured: --device ssh://user@host; or name a GPU that has a "
                f"profile: {', '.join(name for name, gpu in GPUS.items() if gpu.profile)}",
            )
        return self.profile_name

    @abstractmethod
    def _facts(self) -> dict[str, str]:
        """What tells the device apart, besides its TensorRT and its GPU."""

    def _figures(self) -> str:
        """Where times and energy come from."""
        return (
            f"{self.title}: results are checked by ONNX Runtime; times and energy are "
            f"{f'estimated ({self.profile_name})' if self.profile_name else 'not known'}, never measured here"
        )

    def emulated(self) -> bool:
        """False: what runs here is ONNX Runtime, at its own speed."""
        return False

    def missing(self) -> str | None:
        """Why nothing can be checked here, or None: TensorRT is not needed."""
        return CpuTarget().missing()

    def capabilities(self) -> Capabilities:
        """What that TensorRT can do on that GPU."""
        from greencc.targets._tensorrt.capabilities import tensorrt_capabilities

        self._require()
        found = tensorrt_capabilities(self.machine, sparse=self.sparse)
        return replace(found, notes=(*found.notes, self._figures(), *self._notes()))

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
            "device_profile": self.profile_name or "none",
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Device(self.title, facts | {"checked_by": "ONNX Runtime, on another machine"}, digest)

    def versions(self) -> dict[str, str]:
        """Versions that the checked results depend on, and the TensorRT that the graph is for."""
        self._require()
        emitted_for = f"{'like TensorRT ' * self.machine.rtx}{self.machine.version}"
        return runtime_versions() | {self._runtime: f"{emitted_for} (emitted for; not run here)"}

    def lower(self, model: ir.Model) -> ir.Model:
        """The graph as that TensorRT wants it.

        Raises:
            InputError: It cannot be expressed.
        """
        from greencc.targets._tensorrt.emit import emit

        self._require()
        return emit(model, self.machine)

    def fixed_sizes(self, model: ir.Model) -> tuple[str, ...]:
        """Inputs with free sizes behind the batch: an engine needs to know their range, and is fast at one of them."""
        from greencc.targets._tensorrt.shapes import free_inner

        return free_inner(model)

    def build(self, model: ir.Model, folder: Path) -> Path:
        """Write ``model.onnx`` (and its data file where weights need one), and ``device.json`` beside it.

        Raises:
            InputError: TensorRT would refuse it or compute something else, its inputs have free sizes, or it is larger
                than the device's memory.
        """
        from greencc.core.files import translated_os_errors
        from greencc.core.model import save_model
        from greencc.targets._tensorrt.files import write_settings
        from greencc.targets._tensorrt.shapes import check_memory

        settings = self.settings(model)
        self._refuse_faults(model)
        check_memory(model, self.max_batch, self.machine.memory_bytes, self.title)
        artifact = folder / "model.onnx"
        with translated_os_errors(artifact):
            folder.mkdir(parents=True, exist_ok=True)
            save_model(model, artifact)
        write_settings(folder, settings, artifact.name)
        return artifact

    def settings(self, model: ir.Model) -> Settings:
        """How an engine of an emitted graph is built.

        Raises:
            InputError: An input has free sizes behind the batch.
        """
        from greencc.targets._tensorrt.files import Settings
        from greencc.targets._tensorrt.flags import flags_for
        from greencc.targets._tensorrt.shapes import shape_profile

        machine = self.machine
        memory = machine.memory_bytes or _UNKNOWN_MEMORY
        flags = flags_for(
            model, machine, profile=shape_profile(model, self.batch, self.max_batch), dla=self._dla
        )
        return Settings(
            title=self.title,
            flags=replace(flags, timing_cache=None if machine.rtx else "timing.cache", skip_inference=True),
            workspace_mib=min(memory // 4, _MOST_WORKSPACE) >> 20,
            facts=self._facts() | {"sm": str(machine.gpu.sm)},
            again=self._again(),
            typing=machine.typing.value,
            rtx=machine.rtx,
        )

    def takes(self, path: Path) -> bool:
        """A graph that was emitted, which its settings beside it tell."""
        from greencc.targets._tensorrt.order import is_emitted

        return is_emitted(path)

    def order(self, artifact: Path) -> BuildOrder:
        """An engine, with the flags of the scripts that are shipped."""
        from greencc.core.model import load_model
        from greencc.targets._tensorrt.order import tensorrt_order

        return tensorrt_order(artifact, self._tolerance(load_model(artifact)))

    def ship(self, artifact: Path, shipment: Shipment) -> None:
        """Add scripts that build the engine and check it, with samples, and what to do with them."""
        from greencc.core.model import load_model
        from greencc.targets._tensorrt.files import write_files
        from greencc.targets._tensorrt.shapes import free_inputs

        model = load_model(artifact)
        write_files(artifact, self.settings(model), shipment, free_inputs(model), self._tolerance(model))

    def build_info(self, artifact: Path) -> BuildInfo:
        """Not built: what was checked here, and what is left to do on the device."""
        from greencc.core.report import BuildInfo

        machine = self.machine
        return BuildInfo(
            status="not built on the device",
            built=False,
            checks=self._checks(artifact),
            steps=(
                "copy the bundle's folder 'artifact' to the device",
                "there: sh artifact/build.sh (or: python3 artifact/build.py)",
                "then: python3 artifact/check.py, which compares the engine with what was certified here",
            ),
            facts={**self._facts(), "tensorrt": str(machine.version), "typing": machine.typing.value},
        )

    def findings(self, artifact: Path) -> tuple[str, ...]:
        """What the linter warns of, by rule, and what the builder cannot be told."""
        from greencc.core.model import load_model
        from greencc.targets._tensorrt.emit import PRECISION

        model = load_model(artifact)
        precision = model.metadata_props.get(PRECISION, "")
        stored = (
            f"the file holds float32, as TensorRT {self.machine.version} wants it where flags allow {precision}: "
            "its size says nothing of the engine's"
        )
        found: dict[str, list[Fault]] = {}
        for fault in self._faults(model):
            found.setdefault(fault.rule.value, []).append(fault)
        return (
            *(_sentence(rule, faults) for rule, faults in found.items()),
            *self.settings(model).flags.notes,
            *((stored,) if precision else ()),
        )

    def _checks(self, artifact: Path) -> tuple[BuildCheck, ...]:
        from greencc.core.model import load_model
        from greencc.core.report import BuildCheck

        warnings = len(self._faults(load_model(artifact)))
        counted = f"{warnings} warning{'s' * (warnings != 1)}" if warnings else "nothing to warn of"
        rules = f"the rules of TensorRT {self.machine.version}"
        note = f"{counted}; the graph was checked against {rules}, which itself did not run"
        return (BuildCheck("greencc lint", True, note), self._parser_check(artifact))

    def _parser_check(self, artifact: Path) -> BuildCheck:
        from greencc.core.report import BuildCheck
        from greencc.targets._tensorrt.rtx import missing_rtx, parse_rtx

        what = "a check of parsing, not of speed"
        if missing := missing_rtx():
            return BuildCheck(PARSER_CHECK, None, f"{what}; not made: {missing}")
        answer = parse_rtx(artifact)
        name = f"{PARSER_CHECK} {answer.version}".rstrip()
        if not self.machine.rtx:
            what += f", by another parser than that of TensorRT {self.machine.version}"
        if answer.good:
            return BuildCheck(name, True, f"it reads the whole graph: {what}")
        return BuildCheck(name, None if answer.problem else False, f"{answer.reason} ({what})")

    def _refuse_faults(self, model: ir.Model) -> None:
        """Raise `InputError` for what TensorRT would refuse or get wrong."""
        from greencc.targets._tensorrt.lint import errors

        if not (found := errors(self._faults(model))):
            return
        first, others = found[0], len(found) - 1
        where = f" at {first.node!r}" if first.node else ""
        more = f"; and {others} more (see 'greencc lint')" if others else ""
        raise InputError(
            f"TensorRT {self.machine.version} on the {self.title} cannot take this model{where}: {first.message} "
            f"({first.rule.value}){more}",
            hint=first.hint,
        )

    def _faults(self, model: ir.Model) -> tuple[Fault, ...]:
        from greencc.targets._tensorrt.faults import Rule
        from greencc.targets._tensorrt.lint import lint

        # The profile of sizes is in the settings.
        faults = lint(model, self.machine, dla=self._dla)
        return tuple(fault for fault in faults if fault.rule is not Rule.DYNAMIC_SHAPE)

    def _notes(self) -> tuple[str, ...]:
        """Facts worth a line in `greencc targets`."""
        return ()

    def _tolerance(self, model: ir.Model) -> float:
        """How far an engine's outputs may be off, as a share of the largest: integers may round the other way."""
        kinds = {node.op_type for node in model.graph}
        return 0.1 if "QuantizeLinear" in kinds else 0.02

    @abstractmethod
    def _again(self) -> Mapping[str, str]:
        """Specs of the same device with other versions, see `Settings.again`."""

    @property
    def _dla(self) -> bool:
        return False

    @property
    def _runtime(self) -> str:
        return "tensorrt-rtx" if self.machine.rtx else "tensorrt"

    def open(self, artifact: Path) -> Engine:
        """Load the emitted graph, or any other ONNX file, in ONNX Runtime.

        Raises:
            InputError: It is missing, or ONNX Runtime cannot load it.
        """
        from greencc.core.model import load_model
        from greencc.targets._ort import Optimization, OrtEngine, SessionConfig
        from greencc.targets._tensorrt.computed import as_computed
        from greencc.targets._tensorrt.files import read_settings
        from greencc.targets._tensorrt.order import is_emitted

        self._require()
        runtime = CpuTarget()
        if artifact.is_file() and is_emitted(artifact):
            computed = as_computed(load_model(artifact), read_settings(artifact.parent))
            if computed is not None:
                return runtime.in_memory(computed, None, Optimization.ALL, qdq_fusions=False)
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
            hint=f"'greencc estimate MODEL --device {self.estimated_on()}' estimates layer by layer"
            if self.profile_name
            else "profile it on the device: --device",
        )

    def _require(self) -> None:
        """Raise `UnavailableError` when nothing can be checked here."""
        reason = self.missing()
        if reason is not None:
            raise UnavailableError(f"the {self.name} target cannot be used here: {reason}")


def _sentence(rule: str, faults: Sequence[Fault]) -> str:
    first = faults[0]
    where = f" at {first.node}" if first.node else ""
    more = f" (and {len(faults) - 1} more like it)" if len(faults) > 1 else ""
    return f"{rule}{where}: {first.message}{more}; {first.hint}"
