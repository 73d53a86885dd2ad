"""Which target a device is, and whether a target fits a device: refused before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greencc.core.errors import InputError, UnavailableError
from greencc.devices.facts import DeviceFacts

_AGX_ORIN, _NANO, _XAVIER_NX, _THOR = "jetson-agx-orin", "jetson-nano", "jetson-xavier-nx", "jetson-thor"
_ORIN_NX, _ORIN_NANO = "jetson-orin-nx", "jetson-orin-nano"
# Module part numbers in the device tree's `compatible` (NVIDIA: Jetson module data sheets, ordering information).
_MODULES = (
    ("p3767-0000", _ORIN_NX),
    ("p3767-0001", _ORIN_NX),
    ("p3767-0002", _ORIN_NX),
    ("p3767-0003", _ORIN_NANO),
    ("p3767-0004", _ORIN_NANO),
    ("p3767-0005", _ORIN_NANO),
    ("p3701", _AGX_ORIN),
    ("p3668", _XAVIER_NX),
    ("p3448", _NANO),
    ("p3834", _THOR),
)
_BOARDS = (
    ("orin nano", _ORIN_NANO),
    ("orin nx", _ORIN_NX),
    ("agx orin", _AGX_ORIN),
    ("xavier nx", _XAVIER_NX),
)
_ARM_BOARDS = (("raspberry pi 5", "rpi5"), ("raspberry pi 4", "rpi4"))
_ARM_CORES = (("A78AE", "cortex-a78ae"), ("A76", "cortex-a76"), ("A72", "cortex-a72"), ("A53", "cortex-a53"))
Releases = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Fit:
    """What to compile for a device.

    Attributes:
        target: Spec of the target; None: none is known.
        reason: Why there is none, or what is uncertain about it; empty: nothing.
        remedy: What to do about that.
    """

    target: str | None
    reason: str = ""
    remedy: str = ""


def matching(facts: DeviceFacts, releases: Releases) -> Fit:
    """The target that a device is.

    Args:
        facts: The device's.
        releases: The JetPack releases that are known, each with its TensorRT, by the name of the Jetson preset.
    """
    if facts.is_jetson:
        return _jetson(facts, releases)
    if facts.tensorrt is not None and facts.gpu is not None:
        version = ".".join(facts.tensorrt.split(".")[:2])
        return Fit(f"tensorrt:version={version}")
    if facts.machine == "aarch64":
        return _arm(facts)
    if facts.machine in ("x86_64", "AMD64"):
        return Fit("cpu")
    return Fit(
        None,
        f"greencc has no target for {facts.title} ({facts.machine})",
        "it compiles for 64-bit ARM, x86, Jetson modules and NVIDIA GPUs",
    )


def _jetson(facts: DeviceFacts, releases: Releases) -> Fit:
    preset = jetson_preset(facts)
    if preset is None or preset not in releases:
        return Fit(
            None,
            f"greencc has no preset for this Jetson ({facts.title}, {facts.chip})",
            f"presets: {', '.join(sorted(releases))}; its CPU is 'tvm-arm:preset=jetson-cpu'",
        )
    if facts.jetpack is None:
        return Fit(
            None,
            f"its JetPack is not known (L4T {facts.l4t or 'not found'})",
            "install JetPack's packages there (sudo apt install nvidia-jetpack), or name a release: "
            f"--target jetson:preset={preset},jetpack={next(iter(releases[preset]))}",
        )
    there = None if facts.tensorrt is None else ".".join(facts.tensorrt.split(".")[:2])
    release = known_release(facts.jetpack, list(releases[preset]))
    if release is not None and there in (None, releases[preset][release]):
        return Fit(f"jetson:preset={preset},jetpack={release}")
    known = f"known: {', '.join(releases[preset])}"
    if there is None or _numbers(there) < min(_numbers(each) for each in releases[preset].values()):
        return Fit(
            None,
            f"JetPack {facts.jetpack} is not known for {preset}"
            + (f", nor TensorRT {there}" if there else ""),
            f"{known}; install one of these there, or name the one whose TensorRT is closest with --target "
            f"jetson:preset={preset},jetpack={next(iter(releases[preset]))}",
        )
    # Its TensorRT tells all that a graph depends on.
    return Fit(
        f"tensorrt:version={there},gpu={preset}",
        f"JetPack {facts.jetpack} with TensorRT {there} is not known for {preset}",
        known,
    )


def _arm(facts: DeviceFacts) -> Fit:
    board, cpu = (facts.board or "").lower(), facts.cpu or ""
    for words, preset in _ARM_BOARDS:
        if words in board:
            return Fit(f"tvm-arm:preset={preset}")
    for core, preset in _ARM_CORES:
        if core in cpu:
            return Fit(f"tvm-arm:preset={preset}")
    return Fit("tvm-arm", f"no preset is known for {facts.title}", "code for any 64-bit ARM is slower there")


def jetson_preset(facts: DeviceFacts) -> str | None:
    """The module's preset, by its part number, else by the board's name; None: it has none."""
    words = " ".join(facts.compatible)
    for part, preset in _MODULES:
        if part in words:
            return preset
    board = f"{facts.board or ''} {facts.module or ''}".lower()
    return next((preset for name, preset in _BOARDS if name in board), None)


def known_release(jetpack: str, releases: Sequence[str]) -> str | None:
    """The known release that a JetPack is, or that it only fixes: ``6.2`` for ``6.2.1``, ``4.6.1`` for ``4.6.3``.

    Of several the newest that is not newer than it.
    """
    if re.fullmatch(r"\d+(\.\d+)*", jetpack) is None:
        return None
    wanted = _numbers(jetpack)
    fitting = [each for each in releases if _numbers(each)[:2] == wanted[:2] and _numbers(each) <= wanted]
    return max(fitting, key=_numbers, default=None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))


@dataclass(frozen=True)
class Needs:
    """What engines of a target need; None: anything does.

    Attributes:
        title: Of the target, for messages.
        sm: Compute capability of the GPU.
        tensorrt: Version; major and minor must be the device's.
        preset: Of the Jetson.
    """

    title: str
    sm: int | None = None
    tensorrt: str | None = None
    preset: str | None = None


def check(facts: DeviceFacts, needs: Needs, name: str, fit: Fit) -> None:
    """Refuse a device that a target does not fit.

    Args:
        facts: The device's.
        needs: The target's.
        name: The device's, for messages.
        fit: Of `matching`, for the remedy.

    Raises:
        UnavailableError: It is another kind of machine, or lacks TensorRT.
        InputError: The target is for another GPU, module or TensorRT.
    """
    instead = f"compile for it: --target {fit.target}" if fit.target else fit.remedy
    if needs.preset is not None and not facts.is_jetson:
        raise UnavailableError(f"{name} is no Jetson, but {facts.title}", hint=instead)
    preset = jetson_preset(facts)
    if needs.preset is not None and preset is not None and preset != needs.preset:
        raise InputError(f"{name} is a {preset}, and {needs.title} is compiled for", hint=instead)
    if needs.sm is not None:
        _check_gpu(facts, needs, name, instead)
    if needs.tensorrt is not None:
        _check_tensorrt(facts, needs.tensorrt, needs.title, name, instead)


def _check_gpu(facts: DeviceFacts, needs: Needs, name: str, instead: str) -> None:
    if facts.gpu is None or facts.gpu.sm is None:
        raise UnavailableError(
            f"{name} shows no NVIDIA GPU, which {needs.title} needs",
            hint=f"is its driver installed (there: nvidia-smi)? Else {instead}",
        )
    if facts.gpu.sm != needs.sm:
        raise InputError(
            f"{name} has a GPU of compute capability {facts.gpu.sm} ({facts.gpu.name}), and "
            f"{needs.title} is of {needs.sm}: TensorRT's engines run on the kind of GPU alone that they are built for",
            hint=instead,
        )


def _check_tensorrt(facts: DeviceFacts, wanted: str, title: str, name: str, instead: str) -> None:
    if facts.tensorrt is None:
        if facts.is_jetson and facts.jetpack is None:
            raise UnavailableError(
                f"{name} has no JetPack that can be recognised (L4T {facts.l4t or 'not found'}), and no TensorRT",
                hint="install it there: sudo apt install nvidia-jetpack",
            )
        raise UnavailableError(
            f"{name} has no TensorRT, which {title} needs",
            hint="install it there: sudo apt install tensorrt (on a Jetson: nvidia-jetpack)",
        )
    if facts.tensorrt.split(".")[:2] != wanted.split(".")[:2]:
        raise InputError(
            f"{name} has TensorRT {facts.tensorrt}, and {title} is made for {wanted}: an engine of "
            "one version is of no use to another, and the graph differs",
            hint=instead,
        )
