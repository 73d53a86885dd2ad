"""The agent in a 64-bit ARM process, under QEMU's user emulation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .agents import Agent, Refused
from .arm64 import arm_python

pytestmark = pytest.mark.full


@pytest.fixture
def python(tmp_path: Path) -> str:
    return arm_python(tmp_path)


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
