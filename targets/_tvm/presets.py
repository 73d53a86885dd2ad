"""ARM machines by name: what code may be generated for, which of QEMU's processors has the same instructions, and the
device profile that times are estimated from.

Cores, caches and instruction sets are Arm's technical reference manuals' (Cortex-A53 100095, A72 100095-0003, A76
100798, A78AE 101779), clocks and cache sizes of the boards their makers' data sheets' (Raspberry Pi Ltd: BCM2711,
BCM2712; NVIDIA: Jetson Orin). A core by name (``cortex-a76``) is taken with the smallest level-2 cache that it is
sold with, and four cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from greencc.core.errors import UsageError
from greencc.targets._tvm.machine import Machine

TRIPLE = "aarch64-linux-gnu"
DOTPROD = "dotprod"
"""LLVM's name of the 8-bit dot products (`sdot`) that Armv8.2 cores may have; Linux calls it ``asimddp``."""

_KIB = 1 << 10
_32_BITS = ("armv7", "armv7l", "armhf")


class ArmPreset(StrEnum):
    """Names of machines, as on the command line."""

    RPI4 = "rpi4"
    RPI5 = "rpi5"
    CORTEX_A53 = "cortex-a53"
    CORTEX_A72 = "cortex-a72"
    CORTEX_A76 = "cortex-a76"
    CORTEX_A78AE = "cortex-a78ae"
    JETSON_CPU = "jetson-cpu"
    GENERIC = "generic-aarch64"

    @classmethod
    def _missing_(cls, value: object) -> ArmPreset | None:
        """Of machines that people will ask for, and that are none of these, it is said why."""
        if value in _32_BITS:
            raise UsageError(
                f"{value}: 32-bit ARM is not supported",
                hint="the kernels are written for AArch64; a Raspberry Pi 3 or later runs a 64-bit system, for which "
                "preset=cortex-a53 or preset=generic-aarch64 fits",
            )
        return None


@dataclass(frozen=True)
class ArmMachine:
    """An ARM machine.

    Attributes:
        title: For people.
        machine: What code is generated for.
        profile: Name of the device profile (`greencc.meters.device_store`) that times are estimated from.
        emulated: QEMU's name of a processor that has the features and no others that code could use.
    """

    title: str
    machine: Machine
    profile: str
    emulated: str


def _machine(cpu: str, *features: str, cores: int = 4, l1: int = 32, l2: int = 512) -> Machine:
    """`l1` of a core and `l2` that a core can count on, in KiB."""
    return Machine(TRIPLE, cpu, frozenset({"neon", *features}), cores, l1 * _KIB, l2 * _KIB)


MACHINES = {
    ArmPreset.RPI4: ArmMachine(
        "Raspberry Pi 4 (4 x Cortex-A72 at 1.5 GHz)",
        # One level-2 cache of 1 MiB for all four.
        _machine("cortex-a72", l2=1024),
        "raspberry-pi-4",
        "cortex-a72",
    ),
    ArmPreset.RPI5: ArmMachine(
        "Raspberry Pi 5 (4 x Cortex-A76 at 2.4 GHz)",
        _machine("cortex-a76", DOTPROD, l1=64),
        "raspberry-pi-5",
        "cortex-a76",
    ),
    ArmPreset.CORTEX_A53: ArmMachine(
        "4 x Cortex-A53 at 1.2 GHz", _machine("cortex-a53"), "cortex-a53", "cortex-a53"
    ),
    ArmPreset.CORTEX_A72: ArmMachine(
        "4 x Cortex-A72 at 1.5 GHz", _machine("cortex-a72", l2=1024), "cortex-a72", "cortex-a72"
    ),
    ArmPreset.CORTEX_A76: ArmMachine(
        "4 x Cortex-A76 at 2 GHz", _machine("cortex-a76", DOTPROD, l1=64, l2=256), "cortex-a76", "cortex-a76"
    ),
    ArmPreset.CORTEX_A78AE: ArmMachine(
        "4 x Cortex-A78AE at 2 GHz",
        _machine("cortex-a78ae", DOTPROD, l1=64, l2=256),
        "cortex-a78ae",
        # QEMU has no Cortex-A78AE of its own; this is Armv8.2 with the same dot products and half floats.
        "neoverse-n1",
    ),
    ArmPreset.JETSON_CPU: ArmMachine(
        "CPU of NVIDIA Jetson Orin (6 x Cortex-A78AE at 1.5 GHz: Orin Nano)",
        _machine("cortex-a78ae", DOTPROD, cores=6, l1=64, l2=256),
        "jetson-orin-nano-cpu",
        "neoverse-n1",
    ),
    ArmPreset.GENERIC: ArmMachine(
        "any 64-bit ARM processor (NEON, no dot products)",
        _machine("generic"),
        "generic-aarch64",
        "cortex-a53",
    ),
}


def arm_machine(preset: ArmPreset) -> ArmMachine:
    """The machine of a preset."""
    return MACHINES[preset]
