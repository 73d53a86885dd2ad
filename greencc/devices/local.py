"""The agent on this machine, as a subprocess: for the GPU in this host, or when greencc runs on the device itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from greencc.devices.address import LOCAL
from greencc.devices.greeting import bootstrap_arguments
from greencc.devices.package import AgentPackage, agent_package
from greencc.devices.process import ProcessChannel, printable
from greencc.devices.transport import Channel, ConnectionLostError


class LocalTransport:
    """The way to this machine.

    Args:
        environment: Of the agent; None: this process's.
        package: The agent; tests have others.
        python: Interpreter of the agent, whose packages its backends find; default: this one.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        package: AgentPackage | None = None,
        python: str = sys.executable,
    ) -> None:
        self._environment, self._python = environment, python
        self._package = package or agent_package()

    @property
    def name(self) -> str:
        """As `Transport.name`."""
        return "this machine"

    @property
    def identity(self) -> str:
        """As `Transport.identity`."""
        return LOCAL

    @property
    def package(self) -> AgentPackage:
        """As `Transport.package`."""
        return self._package

    def connect(self) -> Channel:
        """As `Transport.connect`."""
        command = [self._python, *bootstrap_arguments(self._package)]
        try:
            return ProcessChannel(command, self.name, _explain, self._environment)
        except OSError as error:
            raise ConnectionLostError(
                f"the agent cannot be started on this machine: {error.strerror}", passing=False
            ) from error


def _explain(status: int | None, said: str, established: bool) -> ConnectionLostError:
    """An agent that dies after its greeting is started again; one that dies before would die again."""
    last = said.splitlines()[-1:] or [f"exit status {status}"]
    return ConnectionLostError(
        f"the agent on this machine ended: {printable(last[0])}",
        hint="if it was killed, there was perhaps too little memory; else this is a bug in greencc",
        passing=established,
    )
