"""A device with round figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from greencc.core.kernels import Work
from greencc.core.meter import Grade
from greencc.meters.device import DeviceProfile, MemoryLevel, PowerMode
from greencc.meters.model import Range


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
