"""A real OpenSSH server on a loopback port, with keys of its own; the user's own SSH files are never touched."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from greencc.devices.address import SshAddress
from greencc.devices.ssh import SshOptions

_START_SECONDS = 10.0
_PRIVILEGE_FOLDER = Path("/run/sshd")
USER = pwd.getpwuid(os.geteuid()).pw_name


def missing() -> str | None:
    """Why no server can be started here, or None."""
    for program in ("ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"there is no {program}: install openssh-client"
    if server_program() is None:
        return "there is no sshd: install openssh-server"
    return None


def server_program() -> str | None:
    """OpenSSH's server must be called by its full path."""
    return shutil.which("sshd") or next(
        (path for path in ("/usr/sbin/sshd", "/usr/lib/ssh/sshd") if os.access(path, os.X_OK)), None
    )


def make_key(path: Path) -> Path:
    """A key pair without a passphrase; returns the private part's file."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


@dataclass
class Sshd:
    """A running server.

    Attributes:
        folder: Of its files.
        port: On 127.0.0.1.
        environment: Of the sessions.
    """

    folder: Path
    environment: Mapping[str, str]
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> SshAddress:
        return SshAddress("127.0.0.1", USER, self.port)

    @property
    def options(self) -> SshOptions:
        return SshOptions(config=self.client_config, connect_seconds=10)

    @property
    def client_config(self) -> Path:
        """What `ssh` reads instead of the user's files."""
        return self.folder / "client_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        """What the server said."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, or start it again on the same port."""
        if not self.port:
            self._prepare()
        program = server_program()
        assert program is not None
        with (self.folder / "log").open("ab") as log:
            command = [program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server and all sessions."""
        if self._process is not None:
            self.kill_sessions()
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill_sessions(self) -> int:
        """Break all connections, as a failing network does; returns how many there were. Jobs go on."""
        assert self._process is not None
        sessions = psutil.Process(self._process.pid).children()
        for session in sessions:
            # A session may end by itself meanwhile.
            with suppress(psutil.NoSuchProcess):
                for process in (*session.children(recursive=True), session):
                    # The server's processes alone: what they started learns it by the end of its input.
                    if process.name().startswith("sshd"):
                        process.send_signal(signal.SIGKILL)
        psutil.wait_procs(sessions, timeout=_START_SECONDS)
        return len(sessions)

    def trust(self, key: Path | None = None) -> None:
        """Make the client know the host by a public key, the server's own by default."""
        words = (key or self.folder / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {' '.join(words)}\n")

    def login(self, before: str = "", python: Path | None = None) -> None:
        """What a session does: the user's own login scripts change nothing of it.

        Args:
            before: Lines of a shell script that come before the command of the client.
            python: A folder with the `python3` that is found, and with nothing else; default: the tests' own, whose
                packages are then the device's.
        """
        path = str(python) if python else f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        variables = {"PATH": path, **self.environment}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        script = "\n".join([*lines, before, 'eval "$SSH_ORIGINAL_COMMAND"', ""])
        (self.folder / "login.sh").write_text(script)

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            _PRIVILEGE_FOLDER.mkdir(mode=0o755, exist_ok=True)
        make_key(self.folder / "host_key")
        make_key(self.folder / "user_key")
        shutil.copyfile(self.folder / "user_key.pub", self.folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.login()
        settings = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.folder / 'host_key'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "UseDNS no",
            "PrintMotd no",
            "LogLevel VERBOSE",
            "MaxStartups 100",
            f"ForceCommand exec /bin/sh {self.folder / 'login.sh'}",
        ]
        if _version() >= (9, 8):
            settings.append("PerSourcePenalties no")
        (self.folder / "sshd_config").write_text("\n".join(settings) + "\n")
        self.client_config.write_text(
            f"Host *\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
            f"  IdentityFile {self.folder / 'user_key'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        )
        self.trust()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _version() -> tuple[int, int]:
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    match = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    assert match is not None, said
    return int(match[1]), int(match[2])
