"""A device with round figures; machines as sysfs trees, attributes that refuse, a clock that only tests move."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from greencc.core.kernels import Work
from greencc.core.meter import Grade
from greencc.meters.device import DeviceProfile, MemoryLevel, PowerMode
from greencc.meters.model import Range


@dataclass
class Tree:
    """A sysfs root that is written as the kernel would show it."""

    root: Path

    def write(self, files: Mapping[str, object], under: str = "") -> None:
        for name, text in files.items():
            path = self.root / under / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def link(self, name: str, target: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self.root / target)

    def device_tree(self, model: str, *compatible: str) -> None:
        """Strings of the device tree end with a zero byte."""
        folder = self.root / "firmware/devicetree/base"
        folder.mkdir(parents=True)
        (folder / "model").write_text(model + "\0")
        (folder / "compatible").write_text("".join(name + "\0" for name in compatible))

    def hwmon(self, number: int, name: str, device: str, files: Mapping[str, object]) -> str:
        """A chip on an I2C bus, linked from the hwmon class and from its driver; gives its folder."""
        home = f"devices/platform/bus/i2c-1/{device}"
        folder = f"{home}/hwmon/hwmon{number}"
        self.write({"name": name, **files}, folder)
        self.link(f"{folder}/device", home)
        self.link(f"class/hwmon/hwmon{number}", folder)
        self.link(f"bus/i2c/drivers/{name}/{device}", home)
        return folder


@dataclass
class Time:
    """A clock that stands still until it is moved; `sleep` calls `during` with the seconds slept."""

    now: float = 100.0
    during: Callable[[float], None] = lambda seconds: None

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during(seconds)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def moment() -> Time:
    return Time()


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Refuse to open attributes of a name: permission bits do not stop root, so the refusal is played."""

    def refuse(name: str) -> None:
        original = os.open

        def opener(path: str | Path, *args: int, **options: int) -> int:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **options)

        monkeypatch.setattr(os, "open", opener)

    return refuse


def exactly(value: float) -> Range:
    return Range(value, value, value)


def make_device(**changes: Any) -> DeviceProfile:
    """100 Gop/s in FP32, 400 in INT8; a 1 kB cache of 10 GB/s, 1 GB/s beyond; 10 us per kernel, 100 us per run."""
    device = DeviceProfile(
        name="bench",
        title="A test bench",
        processor="cpu",
        boundary="test bench",
        source="made up",
        grade=Grade.D,
        cores=4,
        fingerprint=None,
        rates={
            "float32": {
                Work.PRODUCT: exactly(1e11),
                Work.GROUPED: exactly(1e10),
                Work.FUNCTION: exactly(1e9),
            },
            "int8": {Work.PRODUCT: exactly(4e11)},
        },
        peaks={"float32": 2e11},
        levels=(
            MemoryLevel("L1", 1000, exactly(1e10), exactly(1e-12)),
            MemoryLevel("DRAM", None, exactly(1e9), exactly(1e-10)),
        ),
        kernel_seconds=exactly(1e-5),
        run_seconds=exactly(1e-4),
        idle_watts=exactly(1.0),
        busy_watts=exactly(2.0),
        joules_per_operation={"float32": exactly(1e-11), "int8": exactly(1e-12)},
        modes=(PowerMode("MAX", None), PowerMode("3W", 3.0, 0.5, 1.0)),
    )
    return replace(device, **changes)


@pytest.fixture
def device() -> DeviceProfile:
    return make_device()
