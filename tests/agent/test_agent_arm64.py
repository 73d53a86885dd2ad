"""The agent in a 64-bit ARM process, under QEMU's user emulation."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from .agents import Agent, Refused

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FOLDER = Path(os.environ.get("GREENCC_ARM64_PYTHON") or Path(__file__).parents[2] / ".venv/arm64")

pytestmark = pytest.mark.full


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program that is Python for ARM; what it starts by its own name runs in the emulator again."""
    program = FOLDER / "usr/bin/python3"
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is one: the other tests are enough")
    if QEMU is None:
        pytest.skip("apt-get install qemu-user-static")
    if not program.exists():
        pytest.skip("scripts/arm64-python.sh .venv/arm64 fetches Python for 64-bit ARM")
    wrapper = tmp_path / "python3"
    wrapper.write_text(
        f'#!/bin/sh\nPYTHONHOME="{FOLDER}/usr" exec "{QEMU}" -0 "$0" -L "{FOLDER}" "{program.resolve()}" "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(wrapper)


def test_an_arm_process_serves_meters_and_sets_power_modes(python: str, agent_file: Path, jetpack) -> None:
    agent = Agent(agent_file, jetpack.environment, (python,))
    try:
        told = agent.ask("probe")
        assert told["machine"] == "aarch64"
        assert (told["jetpack"], told["chip"]) == ("6.2", "tegra234")
        agent.put(os.urandom(1 << 20))
        idle = agent.result("idle-1", {"kind": "idle", "seconds": 0.2, "metered": True})
        assert {row["watts"]["VDD_IN"] for row in idle["samples"]} == {3.2}
        assert agent.ask("power-mode", set="7W")["before"] == "25W"
        agent.ask("bye")
        assert jetpack.mode == "25W"
        with pytest.raises(Refused, match=r"longer than its 0\.5 s"):
            agent.result("slow", {"kind": "idle", "seconds": 600, "limits": {"seconds": 0.5}})
    finally:
        agent.end()
