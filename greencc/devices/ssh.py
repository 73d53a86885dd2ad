"""Devices by the system's OpenSSH client, which brings the user's keys, agent, jump hosts and known hosts.

It is told never to ask (no password, no passphrase) and never to trust a new or changed host key.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from greencc.devices.address import SshAddress
from greencc.devices.greeting import bootstrap_arguments
from greencc.devices.package import AgentPackage, agent_package
from greencc.devices.process import ProcessChannel
from greencc.devices.ssh_errors import NO_PYTHON, Explainer
from greencc.devices.transport import Channel, ConnectionLostError

CONFIG_VARIABLE = "GREENCC_SSH_CONFIG"
"""A file that `ssh` reads instead of ``~/.ssh/config`` and the system's."""
_CONFIG_SECONDS = 10.0
_PLACE = ("user", "hostname", "port", "proxyjump", "proxycommand")
"""What `ssh -G` tells of where an address leads. The same private address behind two jump hosts is two machines."""
_FIXED = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    # Joins a connection that the user shares, and leaves none behind that would keep our streams open.
    "ControlMaster=no",
    # What goes wrong is read from its messages, which the user's configuration may have silenced.
    "LogLevel=INFO",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
)


@dataclass(frozen=True)
class SshOptions:
    """How `ssh` is called.

    Attributes:
        identity: A file with a private key that is tried first.
        config: As `CONFIG_VARIABLE`; None: the usual ones.
        connect_seconds: Until a host counts as not answering.
        program: The client.
    """

    identity: Path | None = None
    config: Path | None = None
    connect_seconds: int = 10
    program: str = "ssh"

    @classmethod
    def from_environment(cls, identity: Path | None = None) -> SshOptions:
        """With the configuration file that the environment names."""
        config = os.environ.get(CONFIG_VARIABLE)
        return cls(identity, Path(config) if config else None)


class SshTransport:
    """The way to a machine with an SSH server.

    Args:
        address: Of the machine.
        options: As above; None: `SshOptions.from_environment`.
        package: The agent; tests have others.
    """

    def __init__(
        self,
        address: SshAddress,
        options: SshOptions | None = None,
        package: AgentPackage | None = None,
    ) -> None:
        self.address = address
        self._options = options or SshOptions.from_environment()
        self._package = package or agent_package()
        self._identity: str | None = None

    @property
    def name(self) -> str:
        """As `Transport.name`."""
        return str(self.address)

    @property
    def identity(self) -> str:
        """As `Transport.identity`: who `ssh` would log in as, and where, however the address is written."""
        if self._identity is None:
            self._identity = self._resolved()
        return self._identity

    @property
    def package(self) -> AgentPackage:
        """As `Transport.package`."""
        return self._package

    def command(self) -> list[str]:
        """The arguments of the client."""
        return [*self._client("-T"), "--", self.address.destination, self._remote_command()]

    def _client(self, mode: str) -> list[str]:
        """Of the client, but for whom to reach and what to do there."""
        options = self._options
        words = [options.program, mode]
        if options.config is not None:
            words += ["-F", str(options.config)]
        for option in (*_FIXED, f"ConnectTimeout={options.connect_seconds}"):
            words += ["-o", option]
        if options.identity is not None:
            words += ["-i", str(options.identity)]
        if self.address.port is not None:
            words += ["-p", str(self.address.port)]
        return words

    def _resolved(self) -> str:
        """User, host, port and jumps by the client's configuration, which it tells without connecting."""
        command = [*self._client("-G"), "--", self.address.destination]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=_CONFIG_SECONDS, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            # Connecting will tell what is wrong with it.
            return str(self.address)
        lines = [line.partition(" ") for line in answer.stdout.splitlines()]
        found = {key: value.strip() for key, _, value in lines if key in _PLACE}
        if answer.returncode != 0 or not {"user", "hostname", "port"} <= set(found):
            return str(self.address)
        return " ".join(found.get(key, "none") for key in _PLACE)

    def _remote_command(self) -> str:
        """For whatever shell the user has there: one program, and one quoted word without anything to expand."""
        become = f"exec python3 {' '.join(_quoted(word) for word in bootstrap_arguments(self._package))}"
        script = f"command -v python3 >/dev/null 2>&1 || exit {NO_PYTHON}; {become}"
        return f"exec sh -c {shlex.quote(script)}"

    def connect(self) -> Channel:
        """As `Transport.connect`."""
        options = self._options
        if shutil.which(options.program) is None:
            raise ConnectionLostError(
                f"{self.name}: there is no program {options.program!r} on this machine",
                hint="install the OpenSSH client (Debian, Ubuntu: apt install openssh-client)",
                passing=False,
            )
        if options.identity is not None and not os.access(options.identity, os.R_OK):
            raise ConnectionLostError(
                f"{self.name}: the key {options.identity} is not there, or cannot be read by this user",
                hint="give the file of a private key with --identity",
                passing=False,
            )
        try:
            return ProcessChannel(self.command(), self.name, Explainer(self.address))
        except OSError as error:
            raise ConnectionLostError(
                f"{self.name}: {options.program!r} cannot be started: {error.strerror}", passing=False
            ) from error


def _quoted(word: str) -> str:
    # Within single quotes already: double ones do, as our words hold nothing that a shell expands in them.
    assert not set(word) & set("'\"\\$`!"), word
    return f'"{word}"'
