"""Specs of TensorRT targets, for checks that need nothing of the target to be there."""

from __future__ import annotations

from dataclasses import dataclass

from greencc.core.errors import UsageError, did_you_mean
from greencc.targets._spec import parse_spec
from greencc.targets._tensorrt.machine import ARCHITECTURES, NEWEST, TensorRtMachine, TensorRtVersion
from greencc.targets._tensorrt.target import EmittedTarget
from greencc.targets.jetson import JetsonTarget
from greencc.targets.tensorrt import TensorRtTarget
from greencc.targets.tensorrt_rtx import TensorRtRtxTarget

_KINDS: tuple[type[EmittedTarget], ...] = (JetsonTarget, TensorRtTarget, TensorRtRtxTarget)


@dataclass(frozen=True)
class Subject:
    """What a spec stands for.

    Attributes:
        machine: Version and GPU; where `gpu` is False the GPU in it is a placeholder.
        title: For people.
        dla: A deep-learning accelerator was asked for.
        gpu: The GPU is known.
    """

    machine: TensorRtMachine
    title: str
    dla: bool = False
    gpu: bool = True


def is_tensorrt(spec: str) -> bool:
    """Whether a spec names a TensorRT target."""
    return spec.strip().partition(":")[0] in _names()


def machine_of(spec: str) -> Subject:
    """Read a target's spec as a compile does, but for ``tensorrt`` without a GPU, which stands for any.

    Raises:
        UsageError: It names no TensorRT target, or an option, version, GPU, preset or release that is not known.
        UnavailableError: It names the GPU of this computer (``gpu=here``), which has none.
    """
    name = spec.strip().partition(":")[0]
    if name not in _names():
        raise UsageError(f"{name!r} is no TensorRT target", hint=did_you_mean(name, _names()))
    target = parse_spec(spec, _KINDS)
    if isinstance(target, TensorRtTarget) and not target.gpu:
        version = TensorRtVersion.parse(target.version) if target.version else NEWEST
        return Subject(
            TensorRtMachine(version, ARCHITECTURES[-1]), f"TensorRT {version} on any GPU", gpu=False
        )
    assert isinstance(target, EmittedTarget)
    machine = target.machine
    software = (
        f"TensorRT-RTX (like TensorRT {machine.version})" if machine.rtx else f"TensorRT {machine.version}"
    )
    if isinstance(target, JetsonTarget):
        title = f"{target.title}, JetPack {target.release.release}, {software}"
        return Subject(machine, title, dla=target.dla)
    return Subject(machine, f"{software} on {target.title}")


def _names() -> list[str]:
    return [name for kind in _KINDS for name in (kind.name, *kind.aliases)]
