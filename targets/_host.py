"""What targets share that run ONNX files in this process, on this machine's CPU."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from greencc.core import machine
from greencc.core.engine import Device, Target
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.targets._spec import format_spec

if TYPE_CHECKING:
    import onnx_ir as ir

_MAX_THREADS = 1024


@dataclass(frozen=True)
class HostTarget(Target):
    """A run time on this machine's CPU whose artifacts are ONNX files.

    Attributes:
        threads: Threads within an operator; 0 takes all physical cores this process may use.
    """

    threads: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= _MAX_THREADS:
            raise UsageError(
                f"{self.name}:threads is {self.threads}", hint=f"expected 0 (all cores) to {_MAX_THREADS}"
            )

    def device(self) -> Device:
        """Facts about this machine; the fingerprint covers those that decide how fast it runs."""
        return describe_device(threads=self.used_threads())

    def lower(self, model: ir.Model) -> ir.Model:
        """Bring the opset and the IR version within what the installed ONNX Runtime accepts.

        It is the reference of every target on this machine, and what an artifact can always be run with.

        Raises:
            InputError: The model's opset is newer and cannot be converted.
        """
        from greencc.targets._lower import within_versions
        from greencc.targets._ort_facts import runtime_facts

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

    def memory_command(self, artifact: Path, feeds: Path, runs: int) -> Sequence[str] | None:
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

    def with_threads(self, count: int) -> Self:
        """This target with at most `count` threads."""
        return replace(self, threads=min(self.used_threads(), count))

    def beside(self) -> HostTarget:
        """This target with the threads it has here."""
        return replace(self, threads=self.used_threads())

    def used_threads(self) -> int:
        """The number of threads that `threads` stands for on this machine."""
        return self.threads or machine.usable_threads()

    def _require(self) -> None:
        """Raise `UnavailableError` when the runtime cannot be used here."""
        reason = self.missing()
        if reason is not None:
            raise UnavailableError(f"the {self.name} target cannot run here: {reason}")

    def file(self, path: Path) -> Path:
        """The path of an artifact that can be opened now."""
        self._require()
        if not path.is_file():
            raise InputError(f"{path} is not a file", hint="pass the path of an ONNX model")
        return path


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
