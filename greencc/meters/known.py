"""The on-device meters, what each covers, and which of them fit a processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from greencc.core.meter import Meter, PowerMeter
from greencc.meters._reading import SYSFS
from greencc.meters.amd import load_amdsmi, open_amdsmi
from greencc.meters.battery import open_battery
from greencc.meters.hwmon import open_hwmon
from greencc.meters.jetson import JetsonMeter
from greencc.meters.nvml import load_pynvml, open_nvml
from greencc.meters.perf import PROC, PerfCalls, PerfMeter, SystemPerf
from greencc.meters.rapl import RaplMeter
from greencc.meters.raspberry import PmicMeter, run_vcgencmd


class Covers(Enum):
    """What is inside a meter's boundary, as far as choosing goes."""

    CPU = "cpu"
    GPU = "gpu"
    BOARD = "board"

    def fits(self, processor: str) -> bool:
        """Whether the meter sees what runs on `processor`; a whole board's meter sees everything on it."""
        return self is Covers.BOARD or self.value == processor


@dataclass(frozen=True)
class Sources:
    """Where the meters look; a test gives recorded or synthetic ones.

    Attributes:
        sysfs: The root of sysfs.
        proc: The root of procfs.
        perf: The system calls of perf events.
        nvml: Gives the `pynvml` module.
        amdsmi: Gives the `amdsmi` module.
        vcgencmd: Gives the output of `vcgencmd pmic_read_adc`.
    """

    sysfs: Path = SYSFS
    proc: Path = PROC
    perf: PerfCalls = field(default_factory=SystemPerf)
    nvml: Callable[[], Any] = load_pynvml
    amdsmi: Callable[[], Any] = load_amdsmi
    vcgencmd: Callable[[], str] = run_vcgencmd


@dataclass(frozen=True)
class Known:
    """A meter greencc knows.

    Attributes:
        name: What `greencc doctor` calls it.
        covers: What it is chosen by.
        boundary: What it measures where there is one.
        open: Makes it; whether it gives a reading, its `missing` says.
        open_only: Makes it for the one device of that number, so that the others need not work; None: it has no such
            way.
    """

    name: str
    covers: Covers
    boundary: str
    open: Callable[[Sources], Meter | PowerMeter]
    open_only: Callable[[Sources, int], Meter | PowerMeter] | None = None


METERS: tuple[Known, ...] = (
    Known("rapl", Covers.CPU, "CPU packages and their DRAM", lambda at: RaplMeter(at.sysfs)),
    Known(
        "perf", Covers.CPU, "CPU packages and their DRAM", lambda at: PerfMeter(at.sysfs, at.proc, at.perf)
    ),
    Known("jetson", Covers.BOARD, "Jetson module", lambda at: JetsonMeter(at.sysfs)),
    Known(
        "nvml",
        Covers.GPU,
        "NVIDIA GPU boards",
        lambda at: open_nvml(at.nvml),
        lambda at, number: open_nvml(at.nvml, only=number),
    ),
    Known("amdsmi", Covers.GPU, "AMD GPU sockets", lambda at: open_amdsmi(at.amdsmi)),
    Known("pi5-pmic", Covers.BOARD, "Raspberry Pi 5 rails", lambda at: PmicMeter(at.sysfs, at.vcgencmd)),
    Known("hwmon", Covers.BOARD, "the platform or rails of your choice", lambda at: open_hwmon(at.sysfs)),
    Known("battery", Covers.BOARD, "whole machine on battery", lambda at: open_battery(at.sysfs)),
)
"""Best first: what updates fast and covers little besides the work stands before what does not."""


def blind_to(meter: Meter | PowerMeter, processor: str) -> str | None:
    """A warning where a meter that was named does not see what runs on `processor`; else None.

    Of meters outside the device and of recordings nothing is known: they are believed.

    Args:
        meter: Any meter, a part of one, or a `Sampler` before it.
        processor: ``cpu`` or ``gpu``.
    """
    kind = meter.name.partition(":")[0]
    known = next((known for known in METERS if kind == known.name or kind.startswith(f"{known.name}-")), None)
    if known is None or known.covers.fits(processor):
        return None
    return (
        f"the {meter.name} meter covers {meter.boundary} and sees nothing of the {processor.upper()}, on which the "
        "model runs: what it tells is no energy of the model"
    )
