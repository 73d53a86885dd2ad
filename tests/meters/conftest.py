"""Synthetic machines: sysfs trees written as text, attributes that refuse, and a clock that only tests move."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


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
