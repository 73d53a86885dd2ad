"""One JSON answer of one device in the local network, within bounds: time, size, and no redirects.

Proxies of the environment are not used, and of an address only its host is ever shown: the rest may hold a secret.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from greencc.core.errors import UnavailableError
from greencc.meters._digest import Challenge, Login, choose
from greencc.meters._values import parse_json

TIMEOUT_S = 3.0
MAX_BYTES = 1 << 20
_CHUNK = 1 << 16
LOGIN_HINT = "set GREENCC_METER_USER and GREENCC_METER_PASSWORD, or write user:password@ before the host"


@dataclass(frozen=True)
class Address:
    """A server: scheme (http or https), host and port."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What a server said, and the monotonic second half-way between asking and knowing."""

    document: object
    seconds: float


@dataclass(frozen=True)
class _Raw:
    status: int
    challenges: tuple[str, ...]
    body: bytes
    seconds: float


@dataclass
class JsonClient:
    """GETs JSON from one server.

    Attributes:
        address: The server.
        login: For servers that ask for one.
        token: Bearer token sent with every request.
        timeout_s: Longest time of one request.
        clock: Monotonic seconds.
    """

    address: Address
    login: Login | None = None
    token: str | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S
    clock: Callable[[], float] = time.monotonic
    _challenge: Challenge | None = field(default=None, init=False, repr=False)

    def get(self, target: str) -> Answer:
        """GET `target` (path and query).

        Raises:
            UnavailableError: The server is unreachable or slow, refuses, redirects, or does not answer with JSON.
        """
        raw = self._request(target)
        if raw.status == HTTPStatus.UNAUTHORIZED and self.login is not None:
            # A nonce that was remembered may be stale: answer a fresh challenge once.
            self._challenge = choose(raw.challenges)
            if self._challenge is None:
                raise UnavailableError(f"{self.address} asks for a kind of login that greencc does not know")
            raw = self._request(target)
        if raw.status != HTTPStatus.OK:
            raise self._refusal(raw)
        return Answer(parse_json(raw.body, str(self.address)), raw.seconds)

    def _refusal(self, raw: _Raw) -> UnavailableError:
        if raw.status == HTTPStatus.UNAUTHORIZED:
            self._challenge = None
            if self.login is None and self.token is None:
                return UnavailableError(f"{self.address} asks for a password", hint=LOGIN_HINT)
            return UnavailableError(f"{self.address} refuses the user, password or token it was given")
        if 300 <= raw.status < 400:
            return UnavailableError(
                f"{self.address} redirects (HTTP {raw.status})", hint="give the address it redirects to"
            )
        hint = "is this the right address?" if raw.status == HTTPStatus.NOT_FOUND else None
        return UnavailableError(f"{self.address} answered HTTP {raw.status}", hint=hint)

    def _request(self, target: str) -> _Raw:
        secure = self.address.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(self.address.host, self.address.port, timeout=self.timeout_s)
        start = self.clock()
        try:
            connection.connect()
            timed = _Timed(connection.sock, start + self.timeout_s, self.clock)
            try:
                connection.sock = timed
                return self._exchange(connection, target, start)
            finally:
                timed.socket.close()
        except TimeoutError as error:
            raise UnavailableError(f"{self.address} did not answer within {self.timeout_s:g} s") from error
        except OSError as error:
            raise UnavailableError(f"{self.address} cannot be reached: {error.strerror or error}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise UnavailableError(
                f"{self.address} does not speak HTTP as it should: {type(error).__name__}"
            ) from error

    def _exchange(self, connection: http.client.HTTPConnection, target: str, start: float) -> _Raw:
        headers = {"Accept": "application/json", "Connection": "close"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        elif self.login is not None and self._challenge is not None:
            headers["Authorization"] = self._challenge.answer(self.login, "GET", target)
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > MAX_BYTES:
                raise UnavailableError(f"{self.address} answered with more than {MAX_BYTES} bytes")
        if response.length:
            raise UnavailableError(f"{self.address} ended its answer {response.length} bytes early")
        challenges = tuple(response.headers.get_all("WWW-Authenticate") or ())
        return _Raw(response.status, challenges, bytes(body), (start + self.clock()) / 2.0)


class _Timed:
    """A connected socket, as far as `http.client` uses one, whose every wait ends at one deadline.

    A timeout of the socket itself would start anew with each byte that a slow server lets drip.
    """

    def __init__(self, connected: socket.socket, deadline: float, clock: Callable[[], float]) -> None:
        self.socket, self._deadline, self._clock = connected, deadline, clock

    def _left(self) -> None:
        left = self._deadline - self._clock()
        if left <= 0.0:
            raise TimeoutError
        self.socket.settimeout(left)

    def sendall(self, data: bytes) -> None:
        self._left()
        self.socket.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self))

    def receive_into(self, buffer: Any) -> int:
        self._left()
        return self.socket.recv_into(buffer)

    def close(self) -> None:
        """Does nothing: `http.client` closes a socket that it still reads from."""


class _TimedReader(io.RawIOBase):
    def __init__(self, timed: _Timed) -> None:
        self._timed = timed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._timed.receive_into(buffer)
