"""A target whose engines are built, run, timed and metered on a device of its kind."""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from greencc.core.capabilities import Capabilities
from greencc.core.data import Array, Feeds
from greencc.core.engine import BuildOrder, Device, Engine, NodeTime, Shipment, Target
from greencc.core.errors import InputError, UnavailableError
from greencc.core.model import load_model
from greencc.core.report import BuildCheck, BuildInfo
from greencc.devices.engine import DeviceEngine
from greencc.devices.site import Built, DeviceSite

if TYPE_CHECKING:
    import onnx_ir as ir

_PACKAGES = ("tensorrt", "onnxruntime", "numpy")
_FROM_THE_BASE = ("name", "summary", "processor", "ships_code", "aliases", "leading")


@dataclass
class _Work:
    """What was built so far: models that are no artifacts in a folder of their own, and the answers of the device."""

    folder: Path
    artifacts: dict[Path, Path] = field(default_factory=dict)
    checks: dict[Path, tuple[BuildCheck, ...]] = field(default_factory=dict)
    built: dict[Path, Built] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceTarget(Target):
    """`base`, on a device: graphs are emitted here, engines built there.

    Attributes:
        base: What the device is. Its reference arithmetic computes on this computer.
        site: The device, connected by whoever made this.
        abilities: What the device's kernels can do; None: what the base says.
        may_change_mode: Whether the device's power mode may be changed (and put back).
    """

    base: Target
    site: DeviceSite
    may_change_mode: bool = False
    abilities: Capabilities | None = None
    _work: _Work = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in _FROM_THE_BASE:
            # They are the class's of any other target.
            object.__setattr__(self, name, getattr(self.base, name))
        folder = tempfile.TemporaryDirectory(prefix="greencc-device-")
        object.__setattr__(self, "_work", _Work(Path(folder.name)))
        # Removed with this target.
        weakref.finalize(self, folder.cleanup)

    def missing(self) -> str | None:
        """Why nothing can be built or run there, or None."""
        if (reason := self.base.missing()) is not None:
            return reason
        backend = self.base.builder
        found = self.site.facts.backends.get(backend)
        lacking = f"its agent knows no {backend!r}" if found is None else found.missing
        return f"{self.site.name}: {lacking}" if lacking else None

    def named(self) -> Target:
        """The base."""
        return self.base.named()

    def capabilities(self) -> Capabilities:
        """What its kernels can do."""
        return self.base.capabilities() if self.abilities is None else self.abilities

    def device(self) -> Device:
        """Facts about the very device."""
        facts = self.site.facts
        told = {
            "address": self.site.name,
            "hostname": facts.hostname,
            "machine": facts.machine,
            "cpu": facts.cpu,
            "logical_processors": None if facts.processors is None else str(facts.processors),
            "module": facts.module,
            "l4t": facts.l4t,
            "jetpack": facts.jetpack,
            "tensorrt": facts.tensorrt,
            "gpu": None if facts.gpu is None else facts.gpu.name,
            "power_mode": self.site.power_mode,
            "memory_gib": None if facts.memory_bytes is None else f"{facts.memory_bytes / 2**30:.1f}",
            "threads": str(self._threads()),
        }
        found = {key: value for key, value in told.items() if value is not None}
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        return Device(facts.title, found, digest)

    def versions(self) -> dict[str, str]:
        """What the device runs with, and what emitted for it here."""
        facts = self.site.facts
        here = {name: text for name, text in self.base.versions().items() if name in ("onnx", "tvm")}
        there = {"l4t": facts.l4t, "jetpack": facts.jetpack, "cuda": facts.cuda, "python": facts.python}
        return {
            **here,
            **{name: text for name, text in self._backend_facts().items() if name in _PACKAGES},
            **{name: text for name, text in there.items() if text is not None},
        }

    def fixed_sizes(self, model: ir.Model) -> tuple[str, ...]:
        """The base's."""
        return self.base.fixed_sizes(model)

    def lower(self, model: ir.Model) -> ir.Model:
        """The base's."""
        return self.base.lower(model)

    def build(self, model: ir.Model, folder: Path) -> Path:
        """The artifact, on this computer; the device builds from it when it is opened."""
        return self.base.build(model, folder)

    def findings(self, artifact: Path) -> tuple[str, ...]:
        """The base's."""
        return self.base.findings(artifact)

    def takes(self, path: Path) -> bool:
        """The base's."""
        return self.base.takes(path)

    def order(self, artifact: Path) -> BuildOrder:
        """The base's."""
        return self.base.order(artifact)

    def ship(self, artifact: Path, shipment: Shipment) -> None:
        """Run the samples on the device, and ship them with what this computer computes for them."""
        here = self.base.open(artifact)
        try:
            expected = [here.run(feeds) for feeds in shipment.feeds]
        finally:
            here.close()
        engine = self.open(artifact)
        try:
            given = [engine.run_there(feeds) for feeds in shipment.feeds]
        finally:
            engine.close()
        tolerance = self.order(artifact).tolerance
        check = _compared(given, expected, tolerance, self.site.name)
        if not check.passed and not engine.built.resident:
            raise InputError(
                f"{self.site.name} computes something else than was judged here: {check.note}",
                hint="what was found of the accuracy does not hold there; try --precision fp32, and 'greencc lint'",
            )
        self._work.checks[artifact] = (check,)
        mode = self.site.power_mode if shipment.power_mode is None else shipment.power_mode
        self.base.ship(artifact, replace(shipment, outputs=expected, power_mode=mode))

    def build_info(self, artifact: Path) -> BuildInfo:
        """Built on the device, with what was checked there."""
        built = self._built(artifact)
        checks = self._work.checks.get(artifact, ())
        if not built.resident:
            checks = (
                *checks,
                BuildCheck(
                    "accuracy on the device",
                    None,
                    "a run takes seconds there (trtexec alone is installed), so accuracy was judged by the outputs "
                    "that this computer computes; the samples above were run on the device",
                ),
            )
        seconds = "built by an earlier run" if built.seconds is None else f"{built.seconds:.0f} s"
        return BuildInfo(
            status=f"built on {self.site.name}",
            built=True,
            power_mode=self.site.power_mode,
            checks=checks,
            facts={
                **built.facts,
                **built.versions,
                **self.site.driving.get(built.job, {}),
                "building took": seconds,
                "engine_bytes": str(built.engine_bytes),
            },
        )

    def build_seconds(self, model: ir.Model) -> float:
        """The base's."""
        return self.base.build_seconds(model)

    def open(self, artifact: Path) -> DeviceEngine:
        """Have an artifact built on the device, unless that was done, and open it there.

        A model as given is lowered and built first, as an artifact would be.

        Raises:
            InputError: It is missing or damaged, or the builder refuses it.
            UnavailableError: The device cannot be reached, or lacks what builds.
        """
        return DeviceEngine(self.site, self._built(artifact), lambda: self.base.open(artifact))

    def reference(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """The base's, on this computer."""
        return self.base.reference(model, outputs)

    def calibration_engine(self, model: ir.Model, outputs: Sequence[str] | None = None) -> Engine:
        """The base's, on this computer."""
        return self.base.calibration_engine(model, outputs)

    def requirements(self, artifact: Path) -> dict[str, str]:
        """The base's."""
        return self.base.requirements(artifact)

    def profile(self, artifact: Path, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Times of the engine's layers, measured on the device.

        Raises:
            UnavailableError: What runs there does not tell them.
        """
        return self.site.profile(self._built(artifact), feeds, runs)

    def power_modes(self) -> tuple[tuple[str, float | None], ...]:
        """The device's power modes with their budgets in watts, where these are told; empty: it has none."""
        power = self.site.facts.power
        return () if power is None else tuple((name, power.watts.get(name)) for name in power.modes)

    def power_mode(self) -> str | None:
        """The mode that it is in, or None."""
        return self.site.power_mode

    def with_power_mode(self, name: str) -> AbstractContextManager[None]:
        """The device in another power mode for a while; it is put back, also after a crash of this program.

        Raises:
            UnavailableError: It may not be changed, or cannot be now.
        """
        if not self.may_change_mode:
            raise UnavailableError(
                f"the power mode of {self.site.name} is {self.power_mode()}, and may not be changed to {name}",
                hint="--set-power-mode allows it; the mode is put back afterwards",
            )
        return self.site.in_power_mode(name)

    def _backend_facts(self) -> Mapping[str, str]:
        found = self.site.facts.backends.get(self.base.builder)
        return {} if found is None else found.facts

    def _threads(self) -> int:
        wanted = getattr(self.base, "threads", 0)
        return int(wanted or self.site.facts.processors or 1)

    def _built(self, artifact: Path) -> Built:
        """What the device has made of an artifact, or of a model."""
        known = self._work.built.get(artifact)
        if known is None:
            known = self._work.built[artifact] = self.site.build(
                self.base.order(self._artifact(artifact)), f"an engine for {self.base.name}"
            )
        return known

    def _artifact(self, path: Path) -> Path:
        """What the base builds from a file, where that is a model as given."""
        if self.base.takes(path):
            return path
        if path not in self._work.artifacts:
            folder = self._work.folder / str(len(self._work.artifacts))
            folder.mkdir()
            self._work.artifacts[path] = self.base.build(self.base.lower(load_model(path)), folder)
        return self._work.artifacts[path]


def _compared(
    given: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]], tolerance: float, name: str
) -> BuildCheck:
    """Whether outputs are what was computed here, up to the tolerance."""
    worst, where = 0.0, ""
    for ours, theirs in zip(expected, given, strict=True):
        for key, array in ours.items():
            error = _error(np.asarray(theirs[key]), np.asarray(array))
            if error >= worst:
                worst, where = error, key
    return BuildCheck(
        "outputs on the shipped samples",
        worst <= tolerance,
        f"run on {name}: the largest difference from this computer is {worst:.2g} of the largest value of {where!r} "
        f"({len(given)} samples; up to {tolerance:g} passes)",
    )


def _error(given: Array, expected: Array) -> float:
    """Largest difference, as a share of the largest value; infinite where they have nothing in common."""
    if given.shape != expected.shape or given.size == 0:
        return 0.0 if given.shape == expected.shape else float("inf")
    if given.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(given, expected) else float("inf")
    ours, theirs = expected.astype(np.float64), given.astype(np.float64)
    scale = float(np.abs(ours).max())
    difference = float(np.abs(ours - theirs).max())
    if not np.isfinite(difference):
        return float("inf")
    return difference / scale if scale > 0.0 else float(difference > 0.0)
