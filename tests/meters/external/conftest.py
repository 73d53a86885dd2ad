"""Devices on loopback: a server that plays a Shelly or any JSON source, with the faults that real ones have."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

PASSWORD = "mysecretpassword"
REALM = "shellyplusplugs-aabbccddeeff"


@dataclass
class Device:
    """What the server answers. `pages` maps a path to JSON, text, or a function of the query that gives either."""

    pages: dict[str, Any] = field(default_factory=dict)
    auth: str | None = None
    host: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall: threading.Event | None = None
    nonce: str = "60dc2c69"
    counts: list[int] = field(default_factory=list)

    def allows(self, target: str, header: str | None) -> bool:
        """Check an answer to our digest challenge as RFC 7616 says, or to a basic one."""
        if self.auth is None:
            return True
        if header is None:
            return False
        if self.auth == "basic":
            return header == "Basic YWRtaW46bXlzZWNyZXRwYXNzd29yZA=="
        got = dict(re.findall(r'(\w+)="?([^",]*)"?', header.removeprefix("Digest ")))
        name = {"SHA-256": "sha256", "MD5": "md5"}[self.auth]

        def digest(text: str) -> str:
            return hashlib.new(name, text.encode()).hexdigest()

        first, second = digest(f"admin:{REALM}:{PASSWORD}"), digest(f"GET:{target}")
        expected = digest(f"{first}:{self.nonce}:{got.get('nc')}:{got.get('cnonce')}:auth:{second}")
        count = int(got.get("nc", "0"), 16)
        fresh = count not in self.counts
        self.counts.append(count)
        known = (
            got.get("algorithm") == self.auth and got.get("uri") == target and got.get("nonce") == self.nonce
        )
        return known and fresh and got.get("response") == expected


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        device: Device = self.server.device  # type: ignore[attr-defined]
        device.requests.append((self.path, dict(self.headers)))
        parts = urlsplit(self.path)
        open_page = parts.path == "/shelly"
        if not open_page and not device.allows(self.path, self.headers.get("Authorization")):
            challenge = (
                'Basic realm="meter"'
                if device.auth == "basic"
                else f'Digest qop="auth", realm="{REALM}", nonce="{device.nonce}", algorithm={device.auth}'
            )
            self._send(401, b"", {"WWW-Authenticate": challenge})
            return
        page = device.pages.get(parts.path)
        if callable(page):
            page = page(parts.query)
        if page is None:
            self._send(404, b"No handler", {})
            return
        body = page if isinstance(page, bytes) else json.dumps(page).encode()
        status = 200 if open_page else device.status
        self._send(status, body, {} if open_page else device.headers, None if open_page else device.stall)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], stall: threading.Event | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if stall is not None:
            self.wfile.write(body[:1])
            stall.wait(30)
            body = body[1:]
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            # The client gave up, as the tests of slow and endless answers want it to.
            self.close_connection = True


@pytest.fixture
def device() -> Iterator[Device]:
    """A device without pages; `host` is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    played = Device(host=f"127.0.0.1:{server.server_address[1]}")
    server.device = played  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield played
    if played.stall is not None:
        played.stall.set()
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Clock:
    """A clock that moves when it is told to, or when something sleeps."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gen2(device: Device) -> Callable[..., dict[str, Any]]:
    """Makes the device a Shelly Plus Plug S; the answer is its status, to be changed."""

    def make(watts: float = 42.5, wh: float = 11.679) -> dict[str, Any]:
        # As a Plus Plug S answers (Shelly technical documentation, "Switch").
        status = {
            "id": 0, "source": "init", "output": True, "apower": watts, "voltage": 230.1, "current": 0.2,
            "aenergy": {"total": wh, "by_minute": [708.1, 700.0, 699.2], "minute_ts": 1626935779},
            "temperature": {"tC": 40.1, "tF": 104.2},
        }  # fmt: skip
        device.pages["/shelly"] = {
            "name": "Lab socket", "id": "shellyplusplugs-aabbccddeeff", "mac": "AABBCCDDEEFF",
            "model": "SNPL-00112EU", "gen": 2, "ver": "1.0.0", "app": "PlusPlugS", "auth_en": False,
        }  # fmt: skip
        device.pages["/rpc/Switch.GetStatus"] = lambda query: status if query == "id=0" else None
        return status

    return make
