"""What a device says of itself, validated; names and figures that it does not know are None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from greencc.devices.values import Told


@dataclass(frozen=True)
class PowerModeFacts:
    """A power mode (nvpmodel).

    Attributes:
        name: As `--set-power-mode` takes it.
        watts: Its budget, where the name or the file tells it.
    """

    name: str
    watts: float | None = None


@dataclass(frozen=True)
class MeterFacts:
    """A meter that works over there, as `greencc.core.elsewhere.SiteMeter`.

    Attributes:
        name: Such as ``jetson``.
        grade: Letter of `greencc.core.meter.Grade`.
        boundary: What its figures cover, rails by name.
        period_s: How often it updates.
        sees: Where work is done that it sees: ``cpu``, ``gpu``.
    """

    name: str
    grade: str
    boundary: str
    period_s: float | None
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
        power_mode: That it is in.
        power_modes: That it has.
        meters: That work.
        missing_meters: Why others do not, by name.
        backends: Why each backend cannot be used, by name; empty: it can.
        versions: Of what the backends run with.
        celsius: Of the hottest sensor.
        clocks_fixed: None where that is not known.
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
    power_mode: str | None = None
    power_modes: tuple[PowerModeFacts, ...] = ()
    meters: tuple[MeterFacts, ...] = ()
    missing_meters: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    celsius: float | None = None
    clocks_fixed: bool | None = None
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
        cpu, tensorrt, power = (facts.inner(key) or Told({}, where) for key in ("cpu", "tensorrt", "power"))
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
            power_mode=power.text("mode"),
            power_modes=tuple(_mode(item) for item in power.inners("modes")),
            meters=tuple(_meter(item) for item in facts.inners("meters")),
            missing_meters=facts.mapping("meters_missing"),
            backends=_backends(facts.inner("backends")),
            versions=_versions(facts.inner("backends")),
            celsius=max(facts.figures("temperatures").values(), default=None),
            clocks_fixed=_fixed(facts.inner("clocks")),
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
        told.texts("sees"),
    )


def _mode(told: Told) -> PowerModeFacts:
    return PowerModeFacts(told.text("name") or "?", told.number("watts"))


_BACKENDS = ("tensorrt", "ort", "tvm")
_PACKAGES = ("tensorrt", "onnxruntime", "numpy")


def _backends(told: Told | None) -> dict[str, str]:
    if told is None:
        return {}
    each = {name: told.inner(name) for name in _BACKENDS}
    return {name: found.text("missing") or "" for name, found in each.items() if found is not None}


def _versions(told: Told | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _BACKENDS:
        backend = None if told is None else told.inner(name)
        facts = {} if backend is None else backend.mapping("facts")
        found |= {package: facts[package] for package in _PACKAGES if package in facts}
    return found


def _fixed(told: Told | None) -> bool | None:
    """Whether no clock can move; not known where none is told."""
    if told is None or told.number("cpu_mhz") is None:
        return None
    return not told.texts("free")
