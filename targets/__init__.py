"""Targets: what models are compiled for. Adding one is a file and a line in `TARGETS`."""

from __future__ import annotations

from greencc.core.engine import Target
from greencc.targets._spec import format_spec, parse_spec
from greencc.targets._split import split_specs
from greencc.targets.cpu import CpuTarget
from greencc.targets.jetson import JetsonTarget
from greencc.targets.openvino import OpenVinoTarget
from greencc.targets.tensorrt import TensorRtTarget
from greencc.targets.tensorrt_rtx import TensorRtRtxTarget
from greencc.targets.tvm_arm import TvmArmTarget
from greencc.targets.tvm_cpu import TvmCpuTarget

TARGETS: tuple[type[Target], ...] = (
    CpuTarget,
    OpenVinoTarget,
    TvmCpuTarget,
    TvmArmTarget,
    JetsonTarget,
    TensorRtTarget,
    TensorRtRtxTarget,
)


def make_target(spec: str) -> Target:
    """Make a target from text like ``cpu`` or ``cpu:threads=2``.

    Raises:
        UsageError: The target, an option or a value is unknown.
    """
    return parse_spec(spec, TARGETS)


__all__ = [
    "TARGETS",
    "CpuTarget",
    "JetsonTarget",
    "OpenVinoTarget",
    "TensorRtRtxTarget",
    "TensorRtTarget",
    "TvmArmTarget",
    "TvmCpuTarget",
    "format_spec",
    "make_target",
    "split_specs",
]
