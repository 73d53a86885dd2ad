"""Python for 64-bit ARM, under QEMU's user emulation."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FOLDER = Path(os.environ.get("GREENCC_ARM64_PYTHON") or Path(__file__).parents[2] / ".venv/arm64")


def arm_python(folder: Path) -> str:
    """A program that is Python for ARM; what it starts by its own name runs in the emulator again."""
    program = FOLDER / "usr/bin/python3"
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is one: the other tests are enough")
    if QEMU is None:
        pytest.skip("apt-get install qemu-user-static")
    if not program.exists():
        pytest.skip("scripts/arm64-python.sh .venv/arm64 fetches Python for 64-bit ARM")
    wrapper = folder / "python3"
    wrapper.write_text(
        f'#!/bin/sh\nPYTHONHOME="{FOLDER}/usr" exec "{QEMU}" -0 "$0" -L "{FOLDER}" "{program.resolve()}" "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(wrapper)
