"""The whole way: OpenSSH's client and server, the bootstrap, and greencc's agent."""

from __future__ import annotations

from greencc.devices.client import AgentClient

from .sshd import USER, Sshd


def test_a_probe(client: AgentClient, sshd: Sshd) -> None:
    assert client.probe()["user"] == USER
