"""A machine with known coefficients: engines that take roofline time and draw known power, on a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import pytest

from greencc.core.capabilities import Capabilities, ElementType, Int8Support
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.engine import Device, Engine, NodeTime, Target
from greencc.core.errors import UnavailableError
from greencc.core.kernels import Work, kernels_of
from greencc.core.meter import Grade, Reading
from greencc.lab.fitted import Setup
from greencc.lab.runner import Bench, RunOptions
from greencc.measure.blocks import Bench as Surroundings
from greencc.measure.clocks import ClockReading
from greencc.measure.thermal import ThermalState
from greencc.meters.device import DeviceProfile, MemoryLevel
from greencc.meters.roofline import demands, dynamic_joules, estimate
from tests.meters.bench_device import exactly, make_device

LEVELS = {"L1": 16 << 10, "L2": 256 << 10}
INT8 = Int8Support(
    activation=ElementType.UINT8,
    symmetric_activations=False,
    weight_bits=8,
    per_channel=True,
    bias=ElementType.INT32,
    ops=frozenset({"Conv", "MatMul"}),
    quantize_outputs=False,
    reason="a test",
)
TRUTH = make_device(
    name="truth",
    rates={
        "float32": {Work.PRODUCT: exactly(2e10), Work.GROUPED: exactly(4e9), Work.FUNCTION: exactly(5e8)},
        "int8": {Work.PRODUCT: exactly(8e10), Work.GROUPED: exactly(6e9)},
    },
    levels=(
        MemoryLevel("L1", LEVELS["L1"], exactly(4e10), exactly(1e-12)),
        MemoryLevel("L2", LEVELS["L2"], exactly(2e10), exactly(5e-12)),
        MemoryLevel("DRAM", None, exactly(4e9), exactly(1e-10)),
    ),
    kernel_seconds=exactly(1e-6),
    run_seconds=exactly(8e-6),
    idle_watts=exactly(2.0),
    busy_watts=exactly(3.0),
    joules_per_operation={"float32": exactly(2e-10), "int8": exactly(4e-11)},
    modes=(),
)  # fmt: skip


@dataclass
class Machine:
    """The clock, the energy counter, and what disturbs."""

    truth: DeviceProfile = TRUTH
    now: float = 0.0
    joules: float = 0.0
    noise: Callable[[int], float] = lambda number: 1.0
    built: dict[Path, ir.Model] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    interrupt_after: int | None = None
    busy: Callable[[float], bool] = lambda now: False
    throttles: Callable[[float], int] = lambda now: 0
    others: float = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        busy = self.busy(self.now)
        self.others += seconds * busy
        self.now += seconds
        self.joules += seconds * self.truth.idle_watts.central * (1 + busy)


@dataclass
class MachineEngine:
    machine: Machine
    seconds: float
    dynamic: float
    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        del feeds, outputs
        seconds = self.seconds * self.machine.noise(len(self.machine.opened))
        self.machine.now += seconds
        self.machine.joules += self.machine.truth.busy_watts.central * seconds + self.dynamic
        return {}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class MachineTarget(Target):
    machine: Machine = field(default_factory=Machine)

    name: ClassVar[str] = "machine"
    summary: ClassVar[str] = "made up"

    def missing(self) -> str | None:
        return None

    def capabilities(self) -> Capabilities:
        return Capabilities(INT8, frozenset(), frozenset(), 21, frozenset(), gemm_gains=False)

    def device(self) -> Device:
        return Device("Made-up CPU", {"cpu": "Made-up CPU", "threads": "1", "physical_cores": "1"}, "ab" * 32)

    def versions(self) -> dict[str, str]:
        return {"runtime": "1"}

    def lower(self, model: ir.Model) -> ir.Model:
        return model

    def build(self, model: ir.Model, folder: Path) -> Path:
        self.machine.built[folder] = model
        return folder

    def open(self, artifact: Path) -> Engine:
        machine = self.machine
        if machine.interrupt_after is not None and len(machine.opened) >= machine.interrupt_after:
            raise KeyboardInterrupt
        kernels = kernels_of(machine.built.pop(artifact))
        machine.opened.append(kernels.items[0].op_type)
        seconds = estimate(kernels, machine.truth, machine.truth.mode(None)).latency_ms.value / 1e3
        asked = demands(kernels, machine.truth)
        return MachineEngine(
            machine, seconds, sum(dynamic_joules(machine.truth, each, lambda r: r.central) for each in asked)
        )

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        raise NotImplementedError

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        raise NotImplementedError


@dataclass
class MachineMeter:
    machine: Machine
    failing: Callable[[int], bool] = lambda number: False
    gain: float = 1.0
    readings: int = 0
    name: str = "fake meter"
    grade: Grade = Grade.B
    boundary: str = "the made-up machine"
    period_s: float = 1e-4
    uncertainty: float | None = None

    def missing(self) -> str | None:
        return None

    def read(self) -> Reading:
        self.readings += 1
        if self.failing(self.readings):
            raise UnavailableError("the sensor hiccuped")
        return Reading(self.machine.now, {"total": self.machine.joules * self.gain})


@dataclass
class MachineLoad:
    """Others use `share` of the machine."""

    machine: Machine
    share: float = 0.0
    cpus: int = 1

    def others_seconds(self) -> float | None:
        return self.machine.now * self.share + self.machine.others


@dataclass
class MachineClocks:
    """Clocks that agree."""

    machine: Machine

    def look(self) -> ClockReading:
        return ClockReading(self.machine.now, self.machine.now, 1.7e9 + self.machine.now)


@dataclass
class MachineThermal:
    """Counts throttling."""

    machine: Machine

    def look(self) -> ThermalState:
        return ThermalState(throttles=self.machine.throttles(self.machine.now))


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make_bench(machine: Machine) -> Callable[..., Bench]:
    def make(meter: MachineMeter | None = None, share: float = 0.0) -> Bench:
        return Bench(
            MachineTarget(machine),
            RunOptions(seconds=0.02, warm_up_seconds=0.001, idle_seconds=1.0),
            meter,
            Surroundings(
                clock=machine.clock,
                sleep=machine.sleep,
                others=MachineLoad(machine, share),
                clocks=MachineClocks(machine),
                thermal=MachineThermal(machine),
            ),
        )

    return make


@pytest.fixture
def setup() -> Setup:
    device = MachineTarget().device()
    return Setup(device, LEVELS, {"greencc": "0", "runtime": "1"}, "2026-11-29T10:00:00+00:00")
