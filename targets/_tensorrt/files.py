"""The files beside an emitted graph: what its device needs to know, to build it, and to check what was built."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.data import Array
from greencc.core.engine import Shipment
from greencc.core.errors import InputError
from greencc.core.files import translated_os_errors
from greencc.targets._tensorrt.flags import BuilderFlags

SCHEMA = "greencc.tensorrt/2"
SETTINGS = "device.json"
SAMPLES = "samples"
_SHIPPED = "greencc.targets._tensorrt.shipped"
_INSTALL = "on a Jetson: sudo apt install libnvinfer-bin; or use build.py; or give --trtexec FILE"
_INSTALL_RTX = "it comes with the SDK of TensorRT for RTX, not with its Python package; or use build.py"
# Options that a builder may lack, by the sign of them in its help, and what follows from that.
_ASKED = {
    "--noTF32": "float32 may be computed in TF32, which is coarser than what was certified; build.py holds it"
}
# What another version may call it: builders that the graph was not made for can be tried.
_ELSEWHERE = {"--skipInference": "--buildOnly", "--buildOnly": "--skipInference"}
_ASKED_RTX = _ASKED | {"--sparsity": "weights of which two in four are zero are computed like all others"}


@dataclass(frozen=True)
class Settings:
    """How an engine is built; ``device.json`` holds the same.

    Attributes:
        title: The device, for people.
        flags: What the builder is told, but for the workspace.
        workspace_mib: Memory that the builder may try kernels with.
        facts: About the device.
        again: Target specs by TensorRT version (``8.5``), to compile with where a device turns out to have another;
            ``*`` is for all others, ``$1`` stands for the version.
        typing: ``weak`` or ``strong``.
        rtx: For TensorRT-RTX, whose versions are its own.
        power_mode: The mode that figures are for; None: the one that the device is in.
    """

    title: str
    flags: BuilderFlags
    workspace_mib: int
    facts: Mapping[str, str]
    again: Mapping[str, str]
    typing: str = "weak"
    rtx: bool = False
    power_mode: str | None = None

    @property
    def tool(self) -> str:
        """The command that builds."""
        return "tensorrt_rtx" if self.rtx else "trtexec"

    @property
    def module(self) -> str:
        """Its module for Python."""
        return "tensorrt_rtx" if self.rtx else "tensorrt"

    @property
    def release(self) -> str:
        """Major and minor version, empty where they do not matter."""
        return "" if self.rtx else self.flags.version.release

    @property
    def shapes(self) -> dict[str, dict[str, list[int]]]:
        """Sizes (min, opt, max) of the inputs that have free ones."""
        return {
            name: {"min": list(each.least), "opt": list(each.best), "max": list(each.most)}
            for name, each in self.flags.profile.inputs.items()
        }

    def to_json(self, model: str) -> dict[str, Any]:
        """What ``device.json`` holds."""
        return {
            "schema": SCHEMA,
            "model": model,
            "device": {"title": self.title, **self.facts},
            "tensorrt": self.flags.version.release,
            "module": self.module,
            "tool": self.tool,
            "typing": self.typing,
            "network_flags": list(self.flags.network_flags),
            "builder_flags": list(self.flags.api_flags),
            "cleared_flags": list(self.flags.cleared_flags),
            "float32_nodes": list(self.flags.float32_nodes),
            "float32_outputs": list(self.flags.float32_outputs),
            "dla": self.flags.dla_core is not None,
            "shapes": self.shapes,
            "workspace_mib": self.workspace_mib,
            "power_mode": self.power_mode,
        }


def write_settings(folder: Path, settings: Settings, model: str) -> None:
    """Write ``device.json``."""
    _write(folder / SETTINGS, json.dumps(settings.to_json(model), indent=2, ensure_ascii=False) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``device.json`` holds.

    Raises:
        InputError: It is missing, or not of this version.
    """
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="compile the model again") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{path} is not of this version", hint="compile the model again")
    return found


def write_files(
    artifact: Path, settings: Settings, shipment: Shipment, free: frozenset[str], tolerance: float
) -> None:
    """Write scripts, samples and instructions beside a graph.

    Args:
        artifact: The graph.
        settings: How it is built; the power mode is the shipment's.
        shipment: What goes out with it.
        free: Inputs with free sizes.
        tolerance: Largest difference of an output, as a share of its largest value.
    """
    folder = artifact.parent
    settings = replace(settings, power_mode=shipment.power_mode)
    write_settings(folder, settings, artifact.name)
    _write(folder / "build.sh", build_script(settings, artifact.name), executable=True)
    for name in ("build.py", "check.py"):
        _write(folder / name, _shipped(name), executable=True)
    write_readme(folder, settings, shipment)
    _write_samples(folder / SAMPLES, shipment, free, tolerance)


def write_readme(folder: Path, settings: Settings, shipment: Shipment, *, built_by: str = "") -> None:
    """Write the instructions.

    Args:
        folder: Of the graph.
        settings: How it is built; the power mode is the shipment's.
        shipment: What goes out with it.
        built_by: The release that has built the engine, ahead of time; empty: there is no engine yet.
    """
    readme = _shipped("README-built.txt" if built_by else "README.txt")
    for mark, text in (
        ("@TITLE@", f"{shipment.name} for {settings.title}"),
        ("@PRODUCT@", "TensorRT for RTX" if settings.rtx else "TensorRT"),
        ("@RELEASE@", built_by),
        ("@TOOL@", settings.tool),
        ("@NAME@", _plain(shipment.name)),
        ("@MODE@", shipment.power_mode or "the mode that the device is in"),
        ("@COUNT@", str(len(shipment.feeds))),
    ):
        readme = readme.replace(mark, text)
    _write(folder / "README.txt", readme)


def build_script(settings: Settings, model: str) -> str:
    """The text of ``build.sh``."""
    values = {
        "MODEL": model,
        "DEVICE_TITLE": settings.title,
        "TENSORRT": settings.release,
        "TOOL": settings.tool,
        "INSTALL": _INSTALL_RTX if settings.rtx else _INSTALL,
        "DLA": "yes" if settings.flags.dla_core is not None else "no",
        "POWER_MODE": settings.power_mode or "",
        "WORKSPACE_MIB": str(settings.workspace_mib),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    cases = [f'        {pattern}) echo "{spec}" ;;' for pattern, spec in settings.again.items()]
    lines += ["again() {", "    case $1 in", *cases, "    esac", "}"]
    flags = [
        "fail "
        + shlex.quote(f"{settings.tool} cannot read the name of the input {name!r}")
        + " 'build with TensorRT'\\''s Python API: python3 build.py'"
        for name in settings.flags.unreadable
    ]
    asked = _ASKED_RTX if settings.rtx else _ASKED
    # Files and workspace are the script's own.
    for argument in settings.flags.trtexec("", "")[2:]:
        flags.append(_pass(shlex.quote(argument), argument.partition("=")[0], asked))
    pool, size = '"--memPoolSize=workspace:$WORKSPACE_MIB"', '"--workspace=$WORKSPACE_MIB"'
    if settings.rtx:
        # It builds without trying kernels; where it takes a limit, it is told.
        flags.append(f'! knows --memPoolSize || set -- "$@" {pool}')
    elif settings.flags.pools:
        flags.append(_either("--memPoolSize", pool, size))
    else:
        flags.append(_either("--workspace", size, pool))
    script = _shipped("build.sh")
    return script.replace("#@SETTINGS@", "\n".join(lines)).replace("#@FLAGS@", "\n".join(flags))


def _pass(argument: str, name: str, asked: Mapping[str, str]) -> str:
    """A line of the script that hands an argument to the builder, where it has it."""
    if name in _ELSEWHERE:
        return _either(name, argument, _ELSEWHERE[name])
    if name not in asked:
        return f'set -- "$@" {argument}'
    lacking = f"lacks {name} {shlex.quote(asked[name])}"
    return f'if knows {name}; then set -- "$@" {argument}; else {lacking}; fi'


def _either(name: str, argument: str, other: str) -> str:
    """A line that hands over the one argument, or the other where another version does not have the one."""
    return (
        f'if [ $any_version = no ] || knows {name}; then set -- "$@" {argument}; else set -- "$@" {other}; fi'
    )


def _write_samples(folder: Path, shipment: Shipment, free: frozenset[str], tolerance: float) -> None:
    with translated_os_errors(folder):
        folder.mkdir(exist_ok=True)
    samples = []
    for index, (feeds, outputs) in enumerate(zip(shipment.feeds, shipment.outputs, strict=True)):
        inputs = [
            _entry(folder, f"{index}-input{place}.bin", name, array) | {"free": name in free}
            for place, (name, array) in enumerate(feeds.items())
        ]
        given = [
            # Python's own library reads no FP16, and trtexec writes outputs as text.
            _entry(folder, f"{index}-output{place}.bin", name, array.astype(np.float32))
            if array.dtype == np.float16
            else _entry(folder, f"{index}-output{place}.bin", name, array)
            for place, (name, array) in enumerate(outputs.items())
        ]
        samples.append({"inputs": inputs, "outputs": given})
    listing = {"tolerance": tolerance, "samples": samples}
    _write(folder / "samples.json", json.dumps(listing, indent=2, ensure_ascii=False) + "\n")


def _entry(folder: Path, file: str, name: str, array: Array) -> dict[str, Any]:
    array = array.astype(array.dtype.newbyteorder("<"))
    path = folder / file
    with translated_os_errors(path):
        path.write_bytes(array.tobytes())
    return {"name": name, "file": file, "dtype": array.dtype.name, "shape": list(array.shape)}


def _plain(name: str) -> str:
    """A name that needs no quotes in a shell."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name
    )


def _shipped(name: str) -> str:
    return resources.files(_SHIPPED).joinpath(name).read_text(encoding="utf-8")


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    with translated_os_errors(path):
        path.write_text(text, encoding="utf-8", newline="\n")
        path.chmod(0o755 if executable else 0o644)
