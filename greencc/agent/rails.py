"""The power monitors of a Jetson module (INA3221; on Thor also an INA238), through Linux's sysfs.

The rules are those of `greencc.meters.jetson`, which explains them and names their sources; a test holds both against
the same recorded machines. The total is one input rail where there is one, otherwise the sum of disjoint rails.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from greencc.agent.machine import Module, find_module
from greencc.agent.meter import Meter, numbered, read_integer
from greencc.agent.places import read_text
from greencc.agent.problem import Problem

_DENIED = "the attribute is not readable by this user; try as root, or give the group read permission by a udev rule"
_DEFAULT_PERIOD = 0.1
_SHORTEST_PERIOD = 0.05
_IIO = "bus/i2c/drivers/ina3221x"
_UNUSED = ("", "NC", "sum of shunt voltages")
_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
_SUMS: Dict[str, Tuple[str, ...]] = {
    "tegra194": ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    "tegra234": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    "tegra264": ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
}
_MICRO = 1e-6

Rail = NamedTuple(
    "Rail", [("label", str), ("files", Tuple[Path, ...]), ("scale", float), ("period_s", float)]
)
"""One rail: attributes whose product, times `scale`, is its watts."""


def watts(rail: Rail) -> float:
    """What a rail draws now.

    Raises:
        Problem: It vanished, may not be read, or gives no number.
    """
    value = rail.scale
    for file in rail.files:
        value *= read_integer(file, _DENIED)
    return value


class JetsonMeter(Meter):
    """Power of the module.

    Args:
        root: Of the file system.
    """

    name = "jetson"

    def __init__(self, root: Path) -> None:
        self._sys = root / "sys"
        self._module: Optional[Module] = find_module(root)
        self._rails: Optional[List[Rail]] = None

    @property
    def boundary(self) -> str:
        if self._rails is None or self._module is None:
            return "Jetson module"
        labels = [rail.label for rail in self._rails]
        if labels == ["VIN"]:
            where = "%s module and carrier board" % self._module.name
        else:
            where = "%s module; the carrier board is outside" % self._module.name
        return "%s (%s)" % (" + ".join(labels), where)

    @property
    def period_s(self) -> float:
        """Of the slowest monitor, at least 0.05 s; 0.1 s where it tells none."""
        return max([rail.period_s for rail in self._rails or ()] or [_DEFAULT_PERIOD])

    def read(self) -> Dict[str, float]:
        if self._rails is None:
            self._rails = self._choose()
        return {rail.label: watts(rail) for rail in self._rails}

    def _choose(self) -> List[Rail]:
        module = self._module
        if module is None:
            raise Problem("unavailable", "not a Jetson")
        found = {rail.label: rail for rail in find_rails(self._sys, module)}
        if not found:
            raise Problem(
                "unavailable",
                "no power monitor of the %s module under %s" % (module.name, self._sys),
                "a container must see the host's /sys; custom carriers must keep the INA3221 in the device tree",
            )
        for total in _TOTALS:
            if total in found:
                return [found[total]]
        wanted = _SUMS.get(module.chip, ())
        lacking = [label for label in wanted if label not in found]
        if lacking or not wanted:
            what = "not " + ", ".join(lacking) if lacking else "no known set of rails"
            raise Problem(
                "unavailable",
                "the %s module shows no total rail and %s; it shows %s"
                % (module.name, what, ", ".join(found)),
                "part of the module's power would be missing; check the device tree's power monitors",
            )
        return [found[label] for label in wanted]


def find_rails(sysfs: Path, module: Module) -> List[Rail]:
    """All rails that the module's monitors show, whether or not they can be read."""
    return _hwmon(sysfs, module) + _iio(sysfs)


def _hwmon(sysfs: Path, module: Module) -> List[Rail]:
    """JetPack 5 and later: mV and mA, or uW."""
    found: List[Rail] = []
    bare: List[Rail] = []
    for folder in sorted(
        (sysfs / "class/hwmon").glob("hwmon*"), key=lambda path: (len(path.name), path.name)
    ):
        chip = read_text(folder / "name") or ""
        if not chip.startswith("ina"):
            continue
        for rail in _rails_of(folder):
            (bare if rail.label.startswith("power") else found).append(rail)
            if rail.label.startswith("power") and chip != "ina238":
                bare.pop()
    # Thor's one INA238 is the input's monitor, also where the device tree gives it no label.
    if module.chip == "tegra264" and len(bare) == 1 and all(rail.label != "VIN" for rail in found):
        found.append(bare[0]._replace(label="VIN"))
    return found


def _rails_of(folder: Path) -> List[Rail]:
    period = _period(folder)
    powers = numbered(folder, r"power(\d+)_input")
    if powers:
        # The chip multiplies itself; its voltages and currents are the same rails again.
        whole = read_text(folder / "label")
        return [
            Rail(
                read_text(folder / ("power%d_label" % number)) or whole or "power%d" % number,
                (folder / ("power%d_input" % number),),
                _MICRO,
                period,
            )
            for number in powers
        ]
    found = []
    for number in numbered(folder, r"curr(\d+)_input"):
        label = read_text(folder / ("in%d_label" % number)) or read_text(folder / ("curr%d_label" % number))
        volts = folder / ("in%d_input" % number)
        if label is not None and label not in _UNUSED and volts.exists():
            found.append(Rail(label, (volts, folder / ("curr%d_input" % number)), _MICRO, period))
    return found


def _iio(sysfs: Path) -> List[Rail]:
    """JetPack 4: mW; its driver tells no interval."""
    found = []
    for label in sorted((sysfs / _IIO).glob("*/iio[:_]device*/rail_name_*")):
        number, text = label.name[len("rail_name_") :], read_text(label) or ""
        if number.isdigit() and text not in ("", "NC"):
            file = label.parent / ("in_power%s_input" % number)
            found.append(Rail(text, (file,), 1e-3, _DEFAULT_PERIOD))
    return found


def _period(folder: Path) -> float:
    text = read_text(folder / "update_interval") or ""
    told = int(text) * 1e-3 if text.isdigit() else 0.0
    return max(told, _SHORTEST_PERIOD) if told > 0 else _DEFAULT_PERIOD
