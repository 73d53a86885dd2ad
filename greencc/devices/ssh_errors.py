"""What `ssh` says when it cannot connect, in words that say what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from greencc.devices.address import SshAddress
from greencc.devices.process import printable
from greencc.devices.transport import ConnectionLostError

NO_PYTHON = 97
"""Exit status of the remote command where there is no python3."""
_SSH_FAILED = 255
_Rule = tuple[re.Pattern[str], Callable[["Explainer", re.Match[str], str], ConnectionLostError]]


@dataclass(frozen=True)
class Explainer:
    """Turns the end of an `ssh` to an address into an error."""

    address: SshAddress

    def __call__(self, status: int | None, said: str, established: bool) -> ConnectionLostError:
        """As `greencc.devices.process.Explain`.

        Messages that come after the agent's greeting may be the device's own, and are not believed.
        """
        if established:
            return ConnectionLostError(
                f"the connection to {self.address} broke{_last(said)}",
                hint="the network failed, or the device was restarted",
            )
        if status == NO_PYTHON:
            return self.lasting(
                "has no python3 in the PATH of a login without a terminal",
                "install it there (Debian, Ubuntu, JetPack: sudo apt install python3)",
            )
        if status == _SSH_FAILED or status is None:
            for pattern, explain in _RULES:
                if match := pattern.search(said):
                    return explain(self, match, said)
            return ConnectionLostError(f"cannot connect to {self.address}{_last(said)}", hint=self.try_it())
        return self.lasting(
            f"ended the login before the agent ran{_last(said) or f' (exit status {status})'}",
            f"see whether the user may run commands there; {self.try_it('true')}",
        )

    def lasting(self, message: str, hint: str) -> ConnectionLostError:
        """One that does not go away by itself."""
        return ConnectionLostError(f"{self.address} {message}", hint=hint, passing=False)

    def try_it(self, *command: str) -> str:
        """A command that shows the user the same."""
        return f"run: {self.command(*command)}"

    def command(self, *command: str) -> str:
        """The user's own `ssh` to that address."""
        return " ".join(("ssh", *self.port(), shlex.quote(self.address.destination), *command))

    def keyscan(self) -> str:
        """A command that shows the host's keys."""
        return f"ssh-keyscan {' '.join((*self.port(), shlex.quote(self.address.host)))} | ssh-keygen -lf -"

    def port(self) -> tuple[str, ...]:
        """Arguments of OpenSSH's programs."""
        return () if self.address.port is None else ("-p", str(self.address.port))


def _changed(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    offending = re.search(r"Offending (?:\S+ )?key in (.+?):(\d+)", said)
    where = f" (line {offending[2]} of {printable(offending[1])})" if offending else ""
    return explainer.lasting(
        f"has another host key than the one that is known{where}: it was set up anew, or somebody is in between",
        "ask whoever runs it; only if the change is right, remove that line and connect once by hand with "
        f"'{explainer.command()}'",
    )


def _unknown(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    return explainer.lasting(
        "has a host key that is not known yet, and greencc trusts none by itself",
        f"{explainer.try_it()} once, and compare the fingerprint with the device's own (there: ssh-keygen -lf "
        f"/etc/ssh/ssh_host_ed25519_key.pub; from here: {explainer.keyscan()})",
    )


def _denied(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    reason = ""
    if key := re.search(r"Load key \"(.+?)\": (.+)", said):
        reason = f"; the key {printable(key[1])} cannot be used: {printable(key[2], 80)}"
    elif "UNPROTECTED PRIVATE KEY" in said:
        reason = "; the private key can be read by others (chmod 600 it)"
    return explainer.lasting(
        f"refuses the login: none of the keys that were offered is let in{reason}",
        f"let it know your key: ssh-copy-id {' '.join((*explainer.port(), explainer.address.destination))}, name "
        "another with --identity, or load one that has a passphrase with ssh-add; passwords are never used",
    )


def _too_many(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    return explainer.lasting(
        "refuses the login: too many keys were offered before the right one",
        "set IdentitiesOnly for it in ~/.ssh/config, and name the right key with --identity",
    )


def _no_host(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    return ConnectionLostError(
        f"{explainer.address}: the name {printable(match[1], 80)} is not known ({printable(match[2], 80)})",
        hint="check the spelling, or give its IP address",
        passing=False,
    )


def _no_answer(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    return ConnectionLostError(
        f"{explainer.address} does not answer: {printable(match[1], 80)}",
        hint="is it switched on, in this network, and running an SSH server (there: systemctl status ssh)?",
    )


def _local_trouble(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    return ConnectionLostError(
        f"{explainer.address}: ssh does not start with this configuration: {printable(match[0])}",
        hint="correct the file that it names; ssh -V tells its version (8.0 or later is needed)",
        passing=False,
    )


def _no_agreement(explainer: Explainer, match: re.Match[str], said: str) -> ConnectionLostError:
    return explainer.lasting(
        f"and this machine's ssh have no method in common: {printable(match[0])}",
        "update the older of the two",
    )


def _rules(*rules: tuple[str, Callable[[Explainer, re.Match[str], str], ConnectionLostError]]) -> list[_Rule]:
    return [(re.compile(pattern, re.MULTILINE), explain) for pattern, explain in rules]


# The first that is found counts: what ssh says last is often only the consequence.
_RULES = _rules(
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .*has changed", _changed),
    (r"No \S+ host key is known for|Host key verification failed", _unknown),
    (r"Too many authentication failures", _too_many),
    (r"Permission denied", _denied),
    (r"Could not resolve hostname (.+?): (.+)", _no_host),
    (
        r"(?:Bad owner or permissions on|Bad configuration option|terminating, |Can't open user config).*",
        _local_trouble,
    ),
    (r"Unable to negotiate with .*", _no_agreement),
    (r"connect to (?:host|address) .* port \d+: (.+)", _no_answer),
    (r"(Connection timed out during banner exchange)", _no_answer),
    (r"(Timeout, server .* not responding)", _no_answer),
    (r"(Connection (?:closed|reset) by .*)", _no_answer),
    (r"(kex_exchange_identification: .*)", _no_answer),
)


def _last(said: str) -> str:
    lines = said.splitlines()
    return f": {printable(lines[-1])}" if lines else ""
