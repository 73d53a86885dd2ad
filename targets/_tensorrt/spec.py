"""Specs of TensorRT targets as text, for checks that need nothing of the target to be there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from greencc.core.errors import UsageError, did_you_mean
from greencc.targets._tensorrt.machine import (
    ARCHITECTURES,
    Architecture,
    TensorRtMachine,
    TensorRtVersion,
    architecture,
)
from greencc.targets._tensorrt.presets import MODULES, JetsonPreset

NEWEST = TensorRtVersion(11, 4)
"""Taken where a spec names no version."""
RTX_LIKE = TensorRtVersion(10, 15)
"""The TensorRT that TensorRT-RTX 1.x is like."""
GPUS: Mapping[str, int] = {
    "v100": 70, "t4": 75, "rtx-2080": 75, "a100": 80, "a10": 86, "rtx-3090": 86, "l4": 89, "l40s": 89, "rtx-4090": 89,
    "h100": 90, "h200": 90, "b200": 100, "rtx-5090": 120,
}  # fmt: skip
"""Cards by name, with their compute capability."""
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "jetson": ("preset", "jetpack", "dla"),
    "tensorrt": ("version", "gpu"),
    "tensorrt-rtx": ("gpu",),
}


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


def machine_of(spec: str) -> Subject:
    """Read ``tensorrt:10.3``, ``tensorrt:version=10.3,gpu=sm87``, ``jetson:preset=jetson-nano``, ``jetson-nano``.

    Raises:
        UsageError: It names no TensorRT target, or an option, version, GPU, preset or release that is not known.
    """
    name, _, rest = spec.strip().partition(":")
    presets = {preset.value: preset for preset in JetsonPreset}
    if name in presets:
        return _jetson({"preset": name, **_options("jetson", rest, first="")}, presets)
    if name not in _OPTIONS:
        known = [*_OPTIONS, *presets]
        raise UsageError(f"{name!r} is no TensorRT target", hint=did_you_mean(name, known))
    if name == "jetson":
        return _jetson(_options(name, rest, first="preset"), presets)
    if name == "tensorrt-rtx":
        return _tensorrt(_options(name, rest, first="gpu"), rtx=True)
    return _tensorrt(_options(name, rest, first="version"), rtx=False)


def _options(name: str, rest: str, first: str) -> dict[str, str]:
    """Options by name; a text alone at the beginning is that of `first`."""
    found: dict[str, str] = {}
    for index, part in enumerate(filter(None, (piece.strip() for piece in rest.split(",")))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and index == 0 and first:
            key, value = first, key
        elif not equals or not value:
            raise UsageError(f"target option {part!r} has no value", hint=f"write {name}:{key}=VALUE")
        if key not in _OPTIONS[name]:
            raise UsageError(f"target {name!r} has no option {key!r}", hint=did_you_mean(key, _OPTIONS[name]))
        if key in found:
            raise UsageError(f"target option {key!r} is given twice in {name}:{rest}", hint="give it once")
        found[key] = value
    return found


def _jetson(options: Mapping[str, str], presets: Mapping[str, JetsonPreset]) -> Subject:
    name = options.get("preset", JetsonPreset.ORIN_NANO.value)
    if name not in presets:
        raise UsageError(f"{name!r} is no Jetson module", hint=did_you_mean(name, presets))
    dla = options.get("dla", "false").lower()
    if dla not in ("true", "false"):
        raise UsageError(f"target option jetson:dla is {dla!r}", hint="expected true or false")
    module = MODULES[presets[name]]
    release = module.release(options.get("jetpack", ""))
    machine = module.machine(release.release)
    title = f"{module.title}, JetPack {release.release}, TensorRT {machine.version}"
    return Subject(machine, title, dla=dla == "true")


def _tensorrt(options: Mapping[str, str], *, rtx: bool) -> Subject:
    version = (
        RTX_LIKE if rtx else TensorRtVersion.parse(options["version"]) if "version" in options else NEWEST
    )
    gpu = _gpu(options["gpu"]) if "gpu" in options else None
    machine = TensorRtMachine(version, gpu or ARCHITECTURES[-1], rtx=rtx)
    title = f"TensorRT-RTX (like TensorRT {version})" if rtx else f"TensorRT {version}"
    return Subject(machine, f"{title} on {gpu.name if gpu else 'any GPU'}", gpu=gpu is not None)


def _gpu(text: str) -> Architecture:
    """A compute capability (``87``, ``8.7``, ``sm87``), a card, or a Jetson module."""
    wanted = text.strip().lower()
    match = re.fullmatch(r"(?:sm_?)?(\d+)(?:\.(\d))?", wanted)
    if match is not None:
        return architecture(int(match[1] + (match[2] or "")))
    modules = {preset.value: module.sm for preset, module in MODULES.items()}
    known = {**GPUS, **modules}
    if wanted not in known:
        raise UsageError(f"GPU {text!r} is not known", hint=f"write sm87, or {did_you_mean(wanted, known)}")
    return architecture(known[wanted])
