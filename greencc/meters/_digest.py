"""Answers to HTTP authentication challenges: Digest with SHA-256 or MD5 (RFC 7616), and Basic (RFC 7617).

The standard library's digest handler knows no SHA-256, which Shelly devices ask for.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_HASHES: dict[str, Callable[[bytes], str]] = {
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    # What older devices ask for; it protects a meter's reading, not a secret of ours.
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}


@dataclass(frozen=True)
class Login:
    """A user and a password; neither is ever shown."""

    user: str = field(repr=False)
    password: str = field(repr=False)


@dataclass
class Challenge:
    """What a server asks for, and how often its nonce was used."""

    scheme: str
    realm: str = ""
    nonce: str = ""
    opaque: str | None = None
    algorithm: str = "MD5"
    quality: bool = False
    uses: int = 0

    def answer(
        self, login: Login, method: str, target: str, *, token: Callable[[int], str] = secrets.token_hex
    ) -> str:
        """The `Authorization` header of one request."""
        if self.scheme == "basic":
            text = f"{login.user}:{login.password}".encode()
            return f"Basic {base64.b64encode(text).decode('ascii')}"
        digest = _HASHES[self.algorithm]
        self.uses += 1
        first = digest(f"{login.user}:{self.realm}:{login.password}".encode())
        second = digest(f"{method}:{target}".encode())
        fields = {"username": login.user, "realm": self.realm, "nonce": self.nonce, "uri": target}
        if self.quality:
            count, own = f"{self.uses:08x}", token(8)
            fields["response"] = digest(f"{first}:{self.nonce}:{count}:{own}:auth:{second}".encode())
            plain = f", qop=auth, nc={count}"
            fields["cnonce"] = own
        else:
            fields["response"] = digest(f"{first}:{self.nonce}:{second}".encode())
            plain = ""
        if self.opaque is not None:
            fields["opaque"] = self.opaque
        quoted = ", ".join(f'{name}="{_escaped(value)}"' for name, value in fields.items())
        return f"Digest {quoted}, algorithm={self.algorithm}{plain}"


def choose(headers: Sequence[str]) -> Challenge | None:
    """The strongest challenge of a server's `WWW-Authenticate` headers that can be answered; None if there is none."""
    found = [challenge for header in headers if (challenge := _parse(header)) is not None]
    order = ("SHA-256", "MD5")
    digests = [challenge for challenge in found if challenge.scheme == "digest"]
    digests.sort(key=lambda challenge: order.index(challenge.algorithm))
    return next(iter([*digests, *(c for c in found if c.scheme == "basic")]), None)


def _parse(header: str) -> Challenge | None:
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "basic":
        return Challenge("basic")
    if scheme.lower() != "digest":
        return None
    parts = [part for part in urllib.request.parse_http_list(rest) if "=" in part]
    fields = {name.lower(): value for name, value in urllib.request.parse_keqv_list(parts).items()}
    algorithm = fields.get("algorithm", "MD5").upper()
    if algorithm not in _HASHES or "nonce" not in fields:
        return None
    qualities = [quality.strip() for quality in fields.get("qop", "").split(",") if quality.strip()]
    if qualities and "auth" not in qualities:
        return None
    return Challenge(
        "digest", fields.get("realm", ""), fields["nonce"], fields.get("opaque"), algorithm, bool(qualities)
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
