"""What a device says of itself, validated; names and figures that it does not know are None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from greencc.devices.values import Told


@dataclass(frozen=True)
class PowerFacts:
    """Power modes (nvpmodel), by name.

    Attributes:
        modes: That the device has.
        mode: In force.
        default: After flashing.
        before: That is to be put back, where one was changed.
        problem: Why that failed.
        watts: Budgets of the modes that have one.
    """

    modes: tuple[str, ...] = ()
    mode: str | None = None
    default: str | None = None
    before: str | None = None
    problem: str | None = None
    watts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClockFacts:
    """Clocks; `free`: those that are not fixed, with their range, as text."""

    cpu_mhz: float | None = None
    gpu_mhz: float | None = None
    free: tuple[str, ...] = ()
    governor: str | None = None


@dataclass(frozen=True)
class BackendFacts:
    """A way to build and run engines; `missing`: why it cannot be used, or None."""

    missing: str | None
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Rail:
    """A rail of a Jetson, and what it draws just now."""

    label: str
    watts: float | None


@dataclass(frozen=True)
class MeterFacts:
    """A meter that works over there, as `greencc.core.elsewhere.SiteMeter`.

    Attributes:
        name: Such as ``jetson``.
        grade: Letter of `greencc.core.meter.Grade`.
        boundary: What its figures cover, rails by name.
        period_s: How often it updates.
        uncertainty: Of its figures, as a share; None: not known.
        counts: It counts joules rather than sampling watts.
        sees: Where work is done that it sees: ``cpu``, ``gpu``.
    """

    name: str
    grade: str
    boundary: str
    period_s: float | None
    uncertainty: float | None
    counts: bool
    sees: tuple[str, ...]


@dataclass(frozen=True)
class GpuFacts:
    """The first NVIDIA GPU; `sm` is its compute capability without the point, such as 87."""

    name: str
    sm: int | None
    memory_bytes: int | None
    driver: str | None


@dataclass(frozen=True)
class DeviceFacts:
    """A machine.

    Attributes:
        hostname: Its own name.
        user: Who the agent runs as.
        machine: ``aarch64`` and the like.
        kernel: Release of Linux.
        board: What the firmware calls it.
        compatible: The device tree's words, the most special first.
        python: Of the agent.
        cpu: Model.
        processors: How many.
        features: Instruction sets that all of them have.
        module: Of a Jetson, such as ``Orin NX or Orin Nano``.
        chip: Of a Jetson, such as ``tegra234``.
        l4t: Release of Linux for Tegra.
        jetpack: Release of JetPack.
        cuda: Version.
        tensorrt: Version.
        trtexec: Where TensorRT's own program is.
        gpu: Its GPU.
        memory_bytes: Of the machine.
        memory_free_bytes: That a program can have now.
        disk_free_bytes: That the agent's folder can still hold.
        disk_used_bytes: That it holds.
        boot_id: Another one after each start.
        uptime_s: Since the last one.
        load: Averages over 1, 5 and 15 minutes.
        power: Its power modes; None: it has none.
        clocks: Now.
        clocks_fixed: None where that is not known.
        celsius: Of the hottest sensor.
        temperatures: Degrees Celsius, by sensor.
        throttle_count: Times that it was slowed down for heat or current; None: it does not count them.
        busy: Who times something on it just now.
        rails: Of a Jetson.
        meters: That gave a reading.
        missing_meters: Why others did not, by name.
        backends: By name.
        told: All of it, as JSON.
    """

    hostname: str | None = None
    user: str | None = None
    machine: str | None = None
    kernel: str | None = None
    board: str | None = None
    compatible: tuple[str, ...] = ()
    python: str | None = None
    cpu: str | None = None
    processors: int | None = None
    features: tuple[str, ...] = ()
    module: str | None = None
    chip: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    trtexec: str | None = None
    gpu: GpuFacts | None = None
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_used_bytes: int | None = None
    boot_id: str | None = None
    uptime_s: float | None = None
    load: tuple[float, ...] = ()
    power: PowerFacts | None = None
    clocks: ClockFacts = field(default_factory=ClockFacts)
    clocks_fixed: bool | None = None
    celsius: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    throttle_count: int | None = None
    busy: str | None = None
    rails: tuple[Rail, ...] = ()
    meters: tuple[MeterFacts, ...] = ()
    missing_meters: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, BackendFacts] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """For people: the board, else the module, else the processor."""
        return self.board or self.module or self.cpu or self.machine or "an unknown machine"

    @property
    def is_jetson(self) -> bool:
        return self.chip is not None

    @classmethod
    def parse(cls, told: Mapping[str, Any], name: str) -> DeviceFacts:
        """From a probe's reply.

        Args:
            told: Untrusted.
            name: The device's, for messages.

        Raises:
            ProtocolError: A value is not what it should be; the message names it.
        """
        where = f"the probe of {name}"
        facts = Told(told, where)
        cpu, tensorrt, clocks = (facts.inner(key) or Told({}, where) for key in ("cpu", "tensorrt", "clocks"))
        return cls(
            hostname=facts.text("hostname"),
            user=facts.text("user"),
            machine=facts.text("machine"),
            kernel=facts.text("kernel"),
            board=facts.text("board"),
            compatible=facts.texts("compatible"),
            python=facts.text("python"),
            cpu=cpu.text("model"),
            processors=cpu.count("processors"),
            features=cpu.texts("features"),
            module=facts.text("module"),
            chip=facts.text("chip"),
            l4t=facts.text("l4t"),
            jetpack=facts.text("jetpack"),
            cuda=facts.text("cuda"),
            tensorrt=tensorrt.text("version"),
            trtexec=tensorrt.text("trtexec"),
            gpu=_gpu(facts.inner("gpu")),
            memory_bytes=facts.count("memory_bytes"),
            memory_free_bytes=facts.count("memory_free_bytes"),
            disk_free_bytes=facts.count("disk_free_bytes"),
            disk_used_bytes=facts.count("disk_used_bytes"),
            boot_id=facts.text("boot_id"),
            uptime_s=facts.number("uptime_s"),
            load=facts.numbers("load"),
            power=_power(facts.inner("power")),
            clocks=ClockFacts(
                clocks.number("cpu_mhz"),
                clocks.number("gpu_mhz"),
                clocks.texts("free"),
                clocks.text("governor"),
            ),
            clocks_fixed=facts.flag("clocks_fixed"),
            celsius=facts.number("celsius"),
            temperatures=facts.figures("temperatures"),
            throttle_count=facts.count("throttle_count"),
            busy=facts.text("busy"),
            rails=tuple(
                Rail(rail.text("label") or "?", rail.number("watts")) for rail in facts.inners("rails")
            ),
            meters=tuple(_meter(meter) for meter in facts.inners("meters")),
            missing_meters=facts.mapping("missing_meters"),
            backends=_backends(facts.mapping("backends"), facts.named("backend_facts")),
            told=dict(told),
        )


def _gpu(told: Told | None) -> GpuFacts | None:
    if told is None:
        return None
    return GpuFacts(
        told.text("name") or "a GPU", told.count("sm"), told.count("memory_bytes"), told.text("driver")
    )


def _meter(told: Told) -> MeterFacts:
    return MeterFacts(
        told.text("name") or "?",
        told.text("grade") or "?",
        told.text("boundary") or "?",
        told.number("period_s"),
        told.number("uncertainty"),
        told.flag("counts") or False,
        told.texts("sees"),
    )


def _power(told: Told | None) -> PowerFacts | None:
    if told is None:
        return None
    modes = told.inners("modes")
    return PowerFacts(
        tuple(mode.text("name") or "?" for mode in modes),
        told.text("mode"),
        told.text("default"),
        told.text("before"),
        told.text("problem"),
        {mode.text("name") or "?": watts for mode in modes if (watts := mode.number("watts")) is not None},
    )


def _backends(missing: Mapping[str, str], facts: Mapping[str, Told]) -> dict[str, BackendFacts]:
    return {
        name: BackendFacts(reason or None, facts[name].texts_by_name() if name in facts else {})
        for name, reason in missing.items()
    }
