"""Engines (what was built, able to run) and targets (what can build them)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from greencc.core.capabilities import Arithmetic, Capabilities
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from greencc.core.report import BuildInfo, Interval


@dataclass(frozen=True)
class NodeTime:
    """Time one node of the built graph takes: `microseconds` is the median over the profiled runs."""

    name: str
    op_type: str
    microseconds: float


@dataclass(frozen=True)
class Timing:
    """Latencies of several models, measured side by side on the target.

    Attributes:
        median_ms: One per model.
        ratios: Latency of the first model divided by that of each of the others.
        arithmetic: What each model computed in; empty: all in float.
    """

    median_ms: tuple[float, ...]
    ratios: tuple[Interval, ...]
    arithmetic: tuple[Arithmetic, ...] = ()

    def computed_in(self, index: int) -> Arithmetic:
        """What one of the models computed in."""
        return self.arithmetic[index] if self.arithmetic else Arithmetic.FLOAT


class Engine(Protocol):
    """A built model. `run` takes and returns arrays keyed by the model's input and output names."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` names the outputs wanted (default: all).

        Raises:
            InputError: An input is missing, unknown, or has the wrong dtype, rank or shape.
        """

    def close(self) -> None: ...


@dataclass(frozen=True)
class Device:
    """Facts about the machine an engine runs on; `fingerprint` is a digest of them."""

    name: str
    facts: Mapping[str, str]
    fingerprint: str


@dataclass(frozen=True)
class Shipment:
    """What goes out with an artifact that is built, or built to the end, on its device.

    Attributes:
        name: Of the model.
        feeds: A few real inputs, one inference each.
        outputs: What the artifact gives for them here.
        power_mode: The mode of the device that it was planned for, by name; None: whatever it is in.
    """

    name: str
    feeds: Sequence[Feeds]
    outputs: Sequence[Mapping[str, Array]]
    power_mode: str | None = None


@dataclass(frozen=True)
class BuildOrder:
    """What an agent on a device builds an engine from (`greencc.agent`).

    Attributes:
        backend: What builds and runs there: ``tensorrt``, ``ort`` or ``tvm``.
        main: The artifact's main file.
        files: All files that are needed, in the main one's folder.
        options: Of the backend.
        tolerance: Largest difference of an output from what this computer computes, as a share of its largest value.
    """

    backend: str
    main: Path
    files: tuple[Path, ...]
    options: Mapping[str, object]
    tolerance: float


@dataclass(frozen=True)
class Target(ABC):
    """Something models are compiled for. A subclass's fields are its options."""

    name: ClassVar[str]
    summary: ClassVar[str]
    processor: ClassVar[str] = "cpu"
    """Where the work is done, ``cpu`` or ``gpu``: a meter must see it."""
    ships_code: ClassVar[bool] = False
    """Artifacts are machine code, not ONNX files: opening one runs what is in it, only of a bundle that is trusted."""
    builder: ClassVar[str] = ""
    """What builds and runs its artifacts on a device (`BuildOrder.backend`); empty: it runs on this computer alone."""
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Further names of the target in a spec, each with the options that it stands for."""
    leading: ClassVar[str | None] = None
    """The option that a first value without a name is for: ``jetson:jetson-nano``."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why this target cannot run here and how to get it, or None when it can."""

    def missing_to_open(self) -> str | None:
        """Why what was built for this target cannot be opened here, or None. Default: the same as `missing`.

        Compiled artifacts need less than what compiles them.
        """
        return self.missing()

    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the target's kernels can do, read from the machine."""

    @abstractmethod
    def device(self) -> Device: ...

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the runtime packages an artifact depends on."""

    def fixed_sizes(self, model: ir.Model) -> tuple[str, ...]:
        """Inputs whose sizes behind the batch must be known before code can be generated well; default: none.

        Args:
            model: As loaded.
        """
        return ()

    @abstractmethod
    def lower(self, model: ir.Model) -> ir.Model:
        """Return the model in the form the target's builder wants (a clone, or the model itself)."""

    @abstractmethod
    def build(self, model: ir.Model, folder: Path) -> Path:
        """Write the artifact files of `model` into `folder` and return the main one."""

    def findings(self, artifact: Path) -> tuple[str, ...]:
        """What in an artifact written by `build` runs slower than it could, and why: one sentence each; default: none.

        Raises:
            InputError: It is missing or damaged.
        """
        return ()

    def ship(self, artifact: Path, shipment: Shipment) -> None:
        """Add to an artifact's folder what its device needs to build and check it. Default: nothing.

        Args:
            artifact: Written by `build`; its folder holds nothing else.
            shipment: What goes out with it.
        """
        return

    def build_info(self, artifact: Path) -> BuildInfo | None:
        """Where an artifact was built to the end, and what was checked of it; None: here, as any other."""
        return None

    def takes(self, path: Path) -> bool:
        """Whether a file is an artifact of this target, rather than a model that has to be built first.

        Default: targets run any ONNX file.
        """
        return True

    def order(self, artifact: Path) -> BuildOrder:
        """What a device has to build from an artifact written by `build`. Default: it can build nothing from it.

        Raises:
            UsageError: The target is for this computer alone.
            InputError: The artifact is missing or damaged.
        """
        raise UsageError(
            f"{self.name} runs on this computer, and not on a device",
            hint="leave --target out: greencc takes what fits the device",
        )

    def named(self) -> Target:
        """What a spec names: the target itself, without the device that it is used on."""
        return self

    def build_seconds(self, model: ir.Model) -> float:
        """About how long `build` takes on an idle core. Default: 0, because it only writes the model to a file."""
        return 0.0

    @abstractmethod
    def open(self, artifact: Path) -> Engine:
        """Load an artifact written by `build`, as a deployment would run it."""

    @abstractmethod
    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Return an engine that runs `model` node by node as written, without the runtime's own rewrites.

        `outputs` names the values wanted; inner values may be named as well. Default: the model's outputs.
        """

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """Like `reference`, but free to optimise: equal up to float rounding, for passes that run many samples."""
        return self.reference(model, outputs)

    def with_threads(self, count: int) -> Target:
        """This target computing with at most `count` threads: one of several that share the machine.

        Default: the target itself, whose work is not done by this machine's threads.
        """
        return self

    def beside(self) -> Target:
        """This target in a process that shares the machine with others, or on another one: the same to the last bit.

        How work is split among threads may decide how sums are rounded, so there are as many as here. Default: the
        target itself.
        """
        return self

    def memory_command(self, artifact: Path, feeds: Path, runs: int) -> Sequence[str] | None:
        """Command that loads and runs an artifact in a fresh process and prints its memory, or None.

        Args:
            artifact: Written by `build`.
            feeds: A ``.npz`` file with the inputs of one run.
            runs: How often to run.

        The command prints one line of JSON: ``{"baseline_bytes": ..., "peak_bytes": ...}``, the resident memory
        of the process before the artifact was loaded and the highest since.
        """
        return None

    def emulated(self) -> bool:
        """Whether engines run under emulation, and so on few samples only. Default: where nothing is timed."""
        return self.estimated_on() is not None

    def requirements(self, artifact: Path) -> dict[str, str]:
        """What a machine must have to run an artifact, besides this package; by default nothing to speak of."""
        return {}

    def estimated_on(self) -> str | None:
        """The device profile that times and energy are estimated from, where engines do not run on the target's device.

        Such engines run under emulation, or on another processor: what they compute counts, how long they take says
        nothing. They are never timed, profiled, or measured in any other way. None: they run on the target's device.
        """
        return None

    @abstractmethod
    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Per-node times of an artifact.

        Raises:
            UnavailableError: The target's times are estimated (`estimated_on`).
        """


class EngineBuilder(Protocol):
    """The signature of `Target.reference`: what passes get to see activations with."""

    def __call__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine: ...


class Timer(Protocol):
    """Measures models side by side on the target: what passes get to see whether a change pays with."""

    def __call__(self, models: Sequence[ir.Model], feeds: Sequence[Feeds]) -> Timing:
        """Build the models, and run them in turns on `feeds` (one inference each)."""
