"""The NVIDIA GPU in this computer, and the TensorRT that runs on it: what there is, or why it cannot be used.

Nothing of NVIDIA's is loaded into this process: each question goes to a process with a time limit, since a driver that
does not fit its kernel module hangs, and TensorRT without a GPU can crash. The engines of the `tensorrt` target are
built and run by the agent (`greencc.agent`) in a process of its own on this computer, as on any other device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from greencc.agent.backends import find
from greencc.core.errors import UnavailableError, UsageError
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture

_ASK_SECONDS = 60.0
_NVIDIA = "0x10de"
# CUDA driver API: cuInit's results (cuda.h, CUresult).
_NO_DEVICE, _MISMATCH, _UNSUPPORTED = 100, 803, 804
_DRIVER = """
import ctypes, json
for name in ("libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"):
    try:
        cuda = ctypes.CDLL(name)
        break
    except OSError:
        cuda = None
if cuda is None:
    print(json.dumps({"missing": True}))
    raise SystemExit
status = cuda.cuInit(0)
if status:
    print(json.dumps({"status": status}))
    raise SystemExit
device, title, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
status = cuda.cuDeviceGet(ctypes.byref(device), 0)
status = status or cuda.cuDeviceGetName(title, len(title), device)
status = status or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
parts = []
for attribute in (75, 76):
    value = ctypes.c_int()
    status = status or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    parts.append(value.value)
if status:
    print(json.dumps({"status": status}))
    raise SystemExit
print(json.dumps({"name": title.value.decode(), "sm": 10 * parts[0] + parts[1], "memory": memory.value}))
"""


@dataclass(frozen=True)
class HostGpu:
    """The first GPU of this computer.

    Attributes:
        name: As its driver calls it.
        sm: Compute capability, without the point.
        memory_bytes: Its own; on a Jetson, that of the computer.
    """

    name: str
    sm: int
    memory_bytes: int


@cache
def gpu_here() -> HostGpu:
    """The GPU of this computer, asked once.

    Raises:
        UnavailableError: There is none that works; the message says why.
    """
    told = _ask_driver()
    if told.get("missing"):
        if _on_the_bus():
            raise UnavailableError(
                "there is an NVIDIA GPU here, but its driver (libcuda) is not installed",
                hint="install NVIDIA's driver; 'nvidia-smi' then shows the GPU",
            )
        raise UnavailableError("there is no NVIDIA GPU here")
    status = told.get("status")
    if status is not None:
        raise UnavailableError(f"the NVIDIA driver here does not start: {_reason(status)}", hint=_DRIVER_HINT)
    try:
        return HostGpu(str(told["name"]), int(told["sm"]), int(told["memory"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError(
            "the NVIDIA driver here gives no answer that can be read", hint=_DRIVER_HINT
        ) from error


_DRIVER_HINT = "look with 'nvidia-smi'; after an update of the driver, restart the computer"


def _reason(status: object) -> str:
    known = {
        _NO_DEVICE: "it finds no GPU (is one hidden by CUDA_VISIBLE_DEVICES?)",
        _MISMATCH: "its library and its kernel module are of different versions",
        _UNSUPPORTED: "this GPU is not supported by the compatibility libraries",
    }
    return known.get(status, f"error {status}") if isinstance(status, int) else f"error {status!r}"


def _ask_driver() -> dict[str, Any]:
    command = [sys.executable, "-I", "-c", _DRIVER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"the NVIDIA driver here does not answer within {_ASK_SECONDS:g} s", hint=_DRIVER_HINT
        ) from error
    except OSError as error:
        raise UnavailableError(f"the NVIDIA driver cannot be asked: {error.strerror}") from error
    if done.returncode < 0:
        raise UnavailableError(
            f"the NVIDIA driver here crashes when it is asked (signal {-done.returncode})", hint=_DRIVER_HINT
        )
    try:
        told = json.loads(done.stdout)
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {}


def _on_the_bus() -> bool:
    """Whether a display or accelerator of NVIDIA is plugged in."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (
                (device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class")
            )
        except (OSError, ValueError):
            continue
        if vendor == _NVIDIA and kind.startswith(("0x03", "0x12")):
            return True
    return False


@cache
def version_here() -> TensorRtVersion:
    """The TensorRT of this Python, or of trtexec, asked once.

    Raises:
        UnavailableError: There is none that works.
    """
    backend = find("tensorrt", "/", os.environ, "")
    missing = backend.missing()
    if missing is not None:
        raise UnavailableError(
            f"TensorRT cannot be used here: {missing}", hint="python -m pip install 'greencc[tensorrt]'"
        )
    text = backend.facts()["tensorrt"]
    try:
        return TensorRtVersion.parse(text)
    except UsageError as error:
        raise UnavailableError(f"the TensorRT here is not known: {error.message}", hint=error.hint) from error


def machine_here() -> TensorRtMachine:
    """What graphs for this computer are emitted for.

    Raises:
        UnavailableError: It has no GPU that works, one of a generation that is not known, or no TensorRT for it.
    """
    gpu = gpu_here()
    try:
        generation = architecture(gpu.sm)
    except UsageError as error:
        raise UnavailableError(
            f"the {gpu.name} here is not known: {error.message}", hint=error.hint
        ) from error
    version = version_here()
    if (reason := generation.refusal(version)) is not None:
        raise UnavailableError(
            f"{reason}: the {gpu.name} here",
            hint=f"install another: {generation.span}",
        )
    return TensorRtMachine(version, generation, memory_bytes=gpu.memory_bytes)


def missing_here() -> str | None:
    """Why no engine can be built and run here, in one line; None: it can."""
    try:
        machine_here()
    except UnavailableError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return None
