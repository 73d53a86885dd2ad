"""NVIDIA Jetson: the power monitors on the module (INA3221; on Thor also an INA238), through Linux's sysfs.

The total is what the module draws: one input rail where there is one, otherwise the sum of the disjoint rails that its
power monitors see. The rails differ by module (all read with the label the device tree gives them):

    Nano, TX1              POM_5V_IN / VDD_IN     JetPack 4: iio, `rail_name_N` and `in_powerN_input` in mW
    TX2, Xavier NX         VDD_IN                 JetPack 4: iio; Xavier NX on JetPack 5: hwmon
    AGX Xavier             GPU + CPU + SOC + CV + VDDRQ + SYS5V
    Orin Nano, Orin NX     VDD_IN                 JetPack 5 and later: hwmon, `inN_label`, mV and mA
    AGX Orin               VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0: it has no total rail
    Thor                   VIN (INA238, the input of module *and* carrier), else VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0

NVIDIA publishes no accuracy for these monitors, so none is reported.

Source: NVIDIA Jetson Linux Developer Guide, "Power and Performance", per module; the modules' device trees in Linux
(arch/arm64/boot/dts/nvidia); for Thor's VIN: NVIDIA's answer in the developer forum, topic 366461.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from greencc.core.errors import UnavailableError
from greencc.core.machine import read_text
from greencc.core.meter import Grade, PowerSample
from greencc.meters._hwmon import DEFAULT_PERIOD, Channel, find_channels
from greencc.meters._reading import SYSFS

_DEVICE_TREE = "firmware/devicetree/base"
_IIO = "bus/i2c/drivers/ina3221x"
_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
_SUMS = {
    "tegra194": ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    "tegra234": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    "tegra264": ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
}
# Module part numbers, as they stand in the device tree's `compatible`.
_MODULES = {
    "p2180": "TX1",
    "p3448": "Nano",
    "p3310": "TX2",
    "p3489": "TX2i",
    "p3636": "TX2 NX",
    "p3668": "Xavier NX",
    "p2888": "AGX Xavier",
    "p3767": "Orin NX or Orin Nano",
    "p3701": "AGX Orin",
    "p3834": "Thor",
}
_GENERATIONS = {
    "tegra210": "Nano or TX1",
    "tegra186": "TX2",
    "tegra194": "Xavier",
    "tegra234": "Orin",
    "tegra264": "Thor",
}


@dataclass(frozen=True)
class Module:
    """A Jetson module: its chip (``tegra234``) and what it is called."""

    chip: str
    name: str


@dataclass(frozen=True)
class _Rails:
    module: Module
    channels: tuple[Channel, ...]


@dataclass
class JetsonMeter:
    """Power of the module; implements `greencc.core.meter.PowerMeter`.

    Args:
        root: The sysfs root.
        clock: Monotonic seconds.
    """

    root: Path = SYSFS
    clock: Callable[[], float] = time.monotonic
    _rails: _Rails | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        return "jetson"

    @property
    def grade(self) -> Grade:
        return Grade.B

    @property
    def uncertainty(self) -> float | None:
        """NVIDIA publishes none."""
        return None

    @property
    def period_s(self) -> float:
        """`update_interval` of the slowest monitor, which holds its averaging too, at least 0.05 s; 0.1 s where it
        tells none."""
        if self._rails is None:
            return DEFAULT_PERIOD
        return max(channel.period_s for channel in self._rails.channels)

    @property
    def boundary(self) -> str:
        """E.g. ``VDD_IN (Orin NX or Orin Nano module; the carrier board is outside)``."""
        if self._rails is None:
            return "Jetson module"
        labels = [channel.label for channel in self._rails.channels]
        where = (
            f"{self._rails.module.name} module and carrier board"
            if labels == ["VIN"]
            else f"{self._rails.module.name} module; the carrier board is outside"
        )
        return f"{' + '.join(labels)} ({where})"

    def missing(self) -> str | None:
        try:
            self.sample()
        except UnavailableError as error:
            return str(error)
        return None

    def sample(self) -> PowerSample:
        """Watts of each rail that belongs to the total.

        Raises:
            UnavailableError: This is no Jetson, or a rail cannot be read.
        """
        if self._rails is None:
            self._rails = find_rails(self.root)
        watts = {channel.label: channel.value() for channel in self._rails.channels}
        return PowerSample(self.clock(), watts)


def find_module(root: Path) -> Module | None:
    """The Jetson module of this machine, by its device tree; None elsewhere."""
    compatible = (read_text(root / _DEVICE_TREE / "compatible") or "").replace("\0", " ")
    chip = next((chip for chip in _GENERATIONS if f"nvidia,{chip}" in compatible), None)
    if chip is None:
        return None
    # "p3971-0080+p3834-0008" and "p3768-0000+p3767-0005" name the carrier board first, and then the module.
    names = [name for part, name in _MODULES.items() if part in compatible]
    return Module(chip, names[0] if names else _GENERATIONS[chip])


def find_rails(root: Path) -> _Rails:
    """The rails that make up the module's total.

    Raises:
        UnavailableError: This is no Jetson, or its rails are not all there.
    """
    module = find_module(root)
    if module is None:
        raise UnavailableError("not a Jetson")
    found = {channel.label: channel for channel in (*_hwmon(root, module), *_iio(root))}
    if not found:
        raise UnavailableError(
            f"no power monitor of the {module.name} module under {root}",
            hint="a container must see the host's /sys; custom carriers must keep the INA3221 in the device tree",
        )
    for total in _TOTALS:
        if total in found:
            return _Rails(module, (found[total],))
    wanted = _SUMS.get(module.chip, ())
    lacking = [label for label in wanted if label not in found]
    if lacking or not wanted:
        raise UnavailableError(
            f"the {module.name} module shows no total rail and "
            f"{'not ' + ', '.join(lacking) if lacking else 'no known set of rails'}; it shows {', '.join(found)}",
            hint="part of the module's power would be missing; check the device tree's power monitors",
        )
    return _Rails(module, tuple(found[label] for label in wanted))


def _hwmon(root: Path, module: Module) -> list[Channel]:
    """JetPack 5 and later."""
    channels = [channel for channel in find_channels(root) if channel.chip.startswith("ina")]
    named = [channel for channel in channels if not channel.label.startswith("power")]
    # Thor's one INA238 is the input's monitor, also where the device tree gives it no label.
    bare = [channel for channel in channels if channel.chip == "ina238" and channel not in named]
    if module.chip == "tegra264" and len(bare) == 1 and all(channel.label != "VIN" for channel in named):
        only = bare[0]
        named.append(Channel(only.chip, "VIN", False, only.files, only.scale, only.period_s))
    return named


def _iio(root: Path) -> list[Channel]:
    """JetPack 4; its driver tells no interval."""
    found = []
    for label in sorted((root / _IIO).glob("*/iio[:_]device*/rail_name_*")):
        number, text = label.name.removeprefix("rail_name_"), read_text(label) or ""
        if number.isdigit() and text not in ("", "NC"):
            file = label.parent / f"in_power{number}_input"
            found.append(Channel("ina3221x", text, False, (file,), 1e-3, DEFAULT_PERIOD))
    return found
