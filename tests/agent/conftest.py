"""Agents on machines that stand in folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.devices.fake_jetpack import FakeJetPack, make_jetpack

from .agents import Agent, package

Connect = Callable[..., Agent]


@pytest.fixture(scope="session")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def jetpack(tmp_path: Path) -> Iterator[FakeJetPack]:
    """An Orin Nano with JetPack 6.2; what runs on it in the end is ended."""
    found = make_jetpack(tmp_path / "jetson")
    yield found
    found.kill()


@pytest.fixture
def connect(agent_file: Path, jetpack: FakeJetPack) -> Iterator[Connect]:
    """Start an agent on the Orin Nano; arguments are further environment variables, without their GREENCC_AGENT_."""
    agents: list[Agent] = []

    def start(**settings: object) -> Agent:
        more = {f"GREENCC_AGENT_{name}": str(value) for name, value in settings.items()}
        agents.append(Agent(agent_file, {**jetpack.environment, **more}))
        return agents[-1]

    yield start
    for agent in agents:
        agent.end()


@pytest.fixture
def agent(connect: Connect) -> Agent:
    return connect()
