"""The Jetson modules that models are compiled for: their GPU, memory, JetPack and device profile.

Sources: NVIDIA Jetson module data sheets; JetPack release notes (TensorRT by JetPack; 7.2: NVIDIA/TensorRT issue 4832,
10.16.2 on Orin and on Thor). DLA: up to TensorRT 10.7, and again with 11.4.1 on AGX Orin under JetPack 7.2.2; Thor has
none (TensorRT documentation, "Working with DLA"; 11.4.1 on AGX Orin and Thor: "Migrating TensorRT from 10.x to 11.x on
Jetson/JetPack").

A release stands for later ones that only fix it: 4.6.1, the first with TensorRT 8.2, for all up to 4.6.6. JetPack 4.6
itself has TensorRT 8.0, older than is compiled for (NVIDIA, JetPack release notes; NVIDIA/TensorRT issue 1825).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from greencc.core.errors import UsageError, did_you_mean
from greencc.devices.fitting import known_release
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture

_GIB = 2**30


class JetsonPreset(Enum):
    """Modules; the value is what the command line takes."""

    NANO = "jetson-nano"
    XAVIER_NX = "jetson-xavier-nx"
    ORIN_NANO = "jetson-orin-nano"
    ORIN_NX = "jetson-orin-nx"
    AGX_ORIN = "jetson-agx-orin"
    AGX_ORIN_32 = "jetson-agx-orin-32"
    THOR = "jetson-thor"


@dataclass(frozen=True)
class JetPack:
    """A JetPack release and its TensorRT; `dla`: that TensorRT still builds for the DLA."""

    release: str
    tensorrt: TensorRtVersion
    dla: bool = False


@dataclass(frozen=True)
class JetsonModule:
    """A module.

    Attributes:
        title: For people.
        sm: Compute capability of its GPU.
        memory_bytes: Shared by CPU and GPU.
        dla: Deep-learning accelerators on the chip.
        releases: JetPack releases that run on it, the default one first.
        profile: Device profile that estimates come from.
    """

    title: str
    sm: int
    memory_bytes: int
    dla: int
    releases: tuple[JetPack, ...]
    profile: str

    def release(self, name: str) -> JetPack:
        """A JetPack release, the default one for an empty name.

        One that only fixes another stands for that (``6.2.1`` for 6.2), and one without its last number for the only
        one that begins with it (``4.6`` for 4.6.1).

        Raises:
            UsageError: It is not known for this module.
        """
        if not name:
            return self.releases[0]
        by_name = {each.release: each for each in self.releases}
        begun = [each for each in by_name if each.startswith(f"{name}.") and "." in name]
        found = known_release(name, list(by_name)) or (begun[0] if len(begun) == 1 else None)
        if found is None:
            raise UsageError(
                f"JetPack {name} is not known for the {self.title}", hint=did_you_mean(name, by_name)
            )
        return by_name[found]

    def machine(self, jetpack: str = "") -> TensorRtMachine:
        """What a release on this module can do.

        Raises:
            UsageError: As `release`.
        """
        release = self.release(jetpack)
        dla = self.dla if release.dla else 0
        return TensorRtMachine(release.tensorrt, architecture(self.sm), dla, self.memory_bytes)


def _jetpack(release: str, tensorrt: str, *, dla: bool = False) -> JetPack:
    return JetPack(release, TensorRtVersion.parse(tensorrt), dla)


_ORIN = (
    _jetpack("6.2", "10.3.0", dla=True),
    _jetpack("6.1", "10.3.0", dla=True),
    _jetpack("6.0", "8.6.2", dla=True),
    _jetpack("5.1", "8.5.2", dla=True),
    _jetpack("7.2", "10.16.2"),
)
_AGX_ORIN = (*_ORIN, _jetpack("7.2.2", "11.4.1", dla=True))
MODULES: Mapping[JetsonPreset, JetsonModule] = {
    JetsonPreset.NANO: JetsonModule(
        "Jetson Nano", 53, 4 * _GIB, 0, (_jetpack("4.6.1", "8.2.1"),), "jetson-nano"
    ),
    JetsonPreset.XAVIER_NX: JetsonModule(
        "Jetson Xavier NX",
        72,
        8 * _GIB,
        2,
        (_jetpack("5.1", "8.5.2", dla=True), _jetpack("4.6.1", "8.2.1", dla=True)),
        "jetson-xavier-nx",
    ),
    JetsonPreset.ORIN_NANO: JetsonModule("Jetson Orin Nano", 87, 8 * _GIB, 0, _ORIN, "jetson-orin-nano"),
    JetsonPreset.ORIN_NX: JetsonModule("Jetson Orin NX", 87, 16 * _GIB, 2, _ORIN, "jetson-orin-nx"),
    JetsonPreset.AGX_ORIN: JetsonModule("Jetson AGX Orin", 87, 64 * _GIB, 2, _AGX_ORIN, "jetson-agx-orin-64"),
    JetsonPreset.AGX_ORIN_32: JetsonModule(
        "Jetson AGX Orin 32 GB", 87, 32 * _GIB, 2, _AGX_ORIN, "jetson-agx-orin-32"
    ),
    JetsonPreset.THOR: JetsonModule(
        "Jetson AGX Thor",
        110,
        128 * _GIB,
        0,
        (
            _jetpack("7.1", "10.13.3"),
            _jetpack("7.0", "10.13.3"),
            _jetpack("7.2", "10.16.2"),
            _jetpack("7.2.2", "11.4.1"),
        ),
        "jetson-thor-t5000",
    ),
}


def releases_by_preset() -> dict[str, dict[str, str]]:
    """TensorRT (``10.3``) by JetPack release, the default one first, by the name of the preset."""
    return {
        preset.value: {each.release: each.tensorrt.release for each in module.releases}
        for preset, module in MODULES.items()
    }


def with_dla() -> str:
    """Targets that build for a DLA, for messages: of each module the default release, and the newest that does."""
    found = []
    for preset, module in MODULES.items():
        able = [each for each in module.releases if each.dla] if module.dla else []
        if not able:
            continue
        newest = max(able, key=lambda each: each.tensorrt)
        for each in dict.fromkeys((able[0], newest)):
            release = "" if each is module.releases[0] else f"jetpack={each.release},"
            found.append(f"{preset.value}:{release}dla=true")
    return ", ".join(found)
