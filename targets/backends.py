"""The run times that compete on one device class: which of them is faster is found by measuring."""

from __future__ import annotations

from greencc.core.engine import Target
from greencc.targets._host import HostTarget
from greencc.targets.cpu import CpuTarget
from greencc.targets.openvino import OpenVinoTarget
from greencc.targets.tvm_cpu import TvmCpuTarget

# What competes with ONNX Runtime, quickest to try first.
OTHERS: tuple[type[HostTarget], ...] = (OpenVinoTarget, TvmCpuTarget)


def backends(target: Target) -> tuple[Target, ...]:
    """The run times of a target's device class that are installed here, `target` itself first.

    `cpu` stands for the class: any run time will do. A run time asked for by name (``openvino``, ``tvm-cpu``,
    ``cpu:backend=onnxruntime``) is alone, and so is ONNX Runtime with options that only it has. The others get the same
    number of threads.

    Args:
        target: It must be able to run here.
    """
    if not isinstance(target, CpuTarget) or target != CpuTarget(threads=target.threads):
        return (target,)
    others = (kind(threads=target.threads) for kind in OTHERS)
    return (target, *(other for other in others if other.missing() is None))
