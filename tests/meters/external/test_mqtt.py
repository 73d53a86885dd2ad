"""MQTT against a broker on loopback that speaks as much of version 3.1.1 (OASIS, 2014) as a meter needs."""

from __future__ import annotations

import importlib.util
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from greencc.core.errors import ExitCode, UnavailableError
from greencc.core.meter import is_counter
from greencc.meters.mqtt import MqttSource
from greencc.meters.opening import open_meter

needs_paho = pytest.mark.skipif(importlib.util.find_spec("paho") is None, reason="greencc[mqtt] is missing")
TOPIC = "tele/socket/SENSOR"


@dataclass
class Broker:
    """Remembers who subscribed to what; `publish` sends to all of them."""

    retained: dict[str, bytes] = field(default_factory=dict)
    login: tuple[str, str] | None = None
    refuses_subscriptions: bool = False
    port: int = 0
    clients: dict[socket.socket, set[str]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    connections: int = 0
    after_subscribe: list[tuple[str, bytes]] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(topic in topics for topics in self.clients.values()), 10)
            for client, topics in self.clients.items():
                if topic in topics:
                    client.sendall(_publish(topic, payload))

    def hang_up(self) -> None:
        with self.changed:
            for client in self.clients:
                client.shutdown(socket.SHUT_RDWR)
            self.clients.clear()

    def serve(self, connection: socket.socket) -> None:
        while True:
            kind, body = _packet(connection)
            if kind == 0x10:
                self._connect(connection, body)
            elif kind == 0x82:
                self._subscribe(connection, body)
            elif kind == 0xC0:
                connection.sendall(b"\xd0\x00")
            elif kind in (0xE0, 0):
                return

    def _connect(self, connection: socket.socket, body: bytes) -> None:
        assert body[:7] == b"\x00\x04MQTT\x04", "not MQTT 3.1.1"
        flags, fields = body[7], _strings(body[10:])
        login = (fields[1], fields[2]) if flags & 0xC0 == 0xC0 else None
        self.connections += 1
        connection.sendall(b"\x20\x02\x00" + (b"\x00" if self.login in (None, login) else b"\x05"))

    def _subscribe(self, connection: socket.socket, body: bytes) -> None:
        (topic,) = _strings(body[2:-1])
        if self.refuses_subscriptions:
            connection.sendall(b"\x90\x03" + body[:2] + b"\x80")
            return
        connection.sendall(b"\x90\x03" + body[:2] + b"\x00")
        if topic in self.retained:
            connection.sendall(_publish(topic, self.retained[topic], retain=True))
        for name, payload in self.after_subscribe:
            connection.sendall(_publish(name, payload))
        with self.changed:
            self.clients.setdefault(connection, set()).add(topic)
            self.changed.notify_all()


def _publish(topic: str, payload: bytes, *, retain: bool = False) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic.encode() + payload
    length, rest = b"", len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length += bytes([digit | (0x80 if rest else 0)])
        if not rest:
            return bytes([0x31 if retain else 0x30]) + length + body


def _packet(connection: socket.socket) -> tuple[int, bytes]:
    """Type byte and body of a packet; type 0 at the end."""
    head = connection.recv(1)
    if not head:
        return 0, b""
    length = shift = 0
    while True:
        digit = connection.recv(1)[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            break
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return head[0], body


def _strings(data: bytes) -> list[str]:
    found = []
    while data:
        end = 2 + int.from_bytes(data[:2], "big")
        found.append(data[2:end].decode())
        data = data[end:]
    return found


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.broker.serve(self.request)  # type: ignore[attr-defined]


@pytest.fixture
def broker() -> Iterator[Broker]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    played = Broker(port=server.server_address[1])
    server.broker = played  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield played
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Listener:
    """Opens meters at the broker and closes them."""

    broker: Broker
    opened: list[Any] = field(default_factory=list)

    def __call__(self, options: str = "unit=W", login: str = "", timeout_s: float = 10.0) -> Any:
        meter = open_meter(f"mqtt:{login}127.0.0.1:{self.broker.port}/{TOPIC}?{options}", {})
        source = meter.source  # type: ignore[union-attr]
        assert isinstance(source, MqttSource)
        source.timeout_s = timeout_s
        self.opened.append(source)
        return meter


@pytest.fixture
def listen(broker: Broker) -> Iterator[Listener]:
    listener = Listener(broker)
    yield listener
    for source in listener.opened:
        source.close()


def _value(meter: Any, wanted: float) -> Any:
    """The sample that has arrived in paho's thread."""
    inbox = meter.source._inbox
    with inbox._changed:
        text = str(wanted).encode()
        assert inbox._changed.wait_for(lambda: inbox._message is not None and text in inbox._message[1], 10)
    return meter.sample()


@needs_paho
def test_the_last_message_with_its_arrival(broker: Broker, listen: Listener) -> None:
    broker.after_subscribe = [(TOPIC, json.dumps({"ENERGY": {"Power": 41.5}}).encode())]
    meter = listen("path=ENERGY.Power&unit=W&period=10")
    assert meter.missing() is None
    first = meter.sample()
    assert first.watts == {"external": 41.5}
    assert meter.sample() == first, "the arrival must not move without a message"
    broker.publish(TOPIC, json.dumps({"ENERGY": {"Power": 52.25}}).encode())
    second = _value(meter, 52.25)
    assert second.watts == {"external": 52.25}
    assert second.seconds > first.seconds
    assert meter.boundary == f"external meter, topic {TOPIC} at 127.0.0.1:{broker.port}"
    assert broker.connections == 1


@needs_paho
def test_plain_numbers_of_energy(broker: Broker, listen: Listener) -> None:
    broker.after_subscribe = [(TOPIC, b" 1.5\n")]
    meter = listen("unit=Wh&boundary=desk")
    assert is_counter(meter)
    assert meter.read().joules == {"external": 5400.0}
    assert meter.boundary == "desk"


@needs_paho
def test_retained_messages_do_not_count(broker: Broker, listen: Listener) -> None:
    broker.retained[TOPIC] = b"99"
    meter = listen("unit=W&period=0.1", timeout_s=0.3)
    with pytest.raises(UnavailableError, match=r"no message within 0.3 s .*retained messages do not count"):
        meter.sample()
    broker.publish(TOPIC, b"10.5")
    assert _value(meter, 10.5).watts == {"external": 10.5}


@needs_paho
def test_a_stale_value_is_refused(broker: Broker, listen: Listener) -> None:
    broker.after_subscribe = [(TOPIC, b"7")]
    meter = listen("unit=W&period=10&stale=3")
    arrived = meter.sample().seconds
    meter.source.clock = lambda: arrived + 30.0
    assert meter.sample().watts == {"external": 7.0}
    meter.source.clock = lambda: arrived + 30.5
    with pytest.raises(
        UnavailableError, match=r"the last message is 30.5 s old \(nothing was published\)"
    ) as caught:
        meter.sample()
    assert caught.value.exit_code == ExitCode.UNAVAILABLE


@needs_paho
def test_a_lost_connection_is_told_and_taken_up_again(broker: Broker, listen: Listener) -> None:
    broker.after_subscribe = [(TOPIC, b"7")]
    meter = listen("unit=W&period=10")
    first = meter.sample()
    inbox = meter.source._inbox
    broker.after_subscribe = [(TOPIC, b"8.25")]
    # Nobody gets in again before the loss was seen.
    broker.login = ("nobody", "x")
    broker.hang_up()
    with inbox._changed:
        assert inbox._changed.wait_for(lambda: inbox.problem is not None, 10)
    meter.source.clock = lambda: first.seconds + 100.0
    with pytest.raises(UnavailableError, match=r"the connection was lost|the broker refuses the connection"):
        meter.sample()
    broker.login = None
    meter.source.clock = lambda: first.seconds
    assert _value(meter, 8.25).watts == {"external": 8.25}
    assert broker.connections >= 2


@needs_paho
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "gave '', not a number of W"),
        (b"on", "gave 'on', not a number"),
        (b"nan", "gave 'nan', not a number"),
        (b"-1", "gave -1 W"),
        (b"\xff\xfe", "not a number of W"),
        (b"1" * 70_000, "published 70000 bytes"),
    ],
)
def test_payloads_that_are_no_reading(broker: Broker, listen: Listener, payload: bytes, message: str) -> None:
    broker.after_subscribe = [(TOPIC, payload)]
    with pytest.raises(UnavailableError, match=message):
        listen().sample()


@needs_paho
def test_payloads_without_the_path(broker: Broker, listen: Listener) -> None:
    broker.after_subscribe = [(TOPIC, b'{"power": 3}')]
    with pytest.raises(UnavailableError, match=r"has no 'pwer': .*did you mean 'power'"):
        listen("path=pwer&unit=W").sample()
    broker.after_subscribe = [(TOPIC, b"{")]
    with pytest.raises(UnavailableError, match="did not give JSON"):
        listen("path=power&unit=W").sample()


@needs_paho
def test_logins_and_refusals(broker: Broker, listen: Listener) -> None:
    broker.login, broker.after_subscribe = ("ann", "sesame"), [(TOPIC, b"3")]
    assert listen(login="ann:sesame@").sample().watts == {"external": 3.0}
    with pytest.raises(UnavailableError, match=r"the broker refuses the connection: .*") as caught:
        listen(login="ann:guess@").sample()
    assert "guess" not in str(caught.value)
    broker.login, broker.refuses_subscriptions = None, True
    with pytest.raises(UnavailableError, match="refuses the subscription"):
        listen().sample()


@needs_paho
def test_no_broker(listen: Listener) -> None:
    listen.broker.port = 9
    with pytest.raises(UnavailableError, match=r"the MQTT broker 127.0.0.1:9 cannot be reached"):
        listen().sample()


def test_without_paho_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("paho", "paho.mqtt", "paho.mqtt.client", "paho.mqtt.enums"):
        monkeypatch.setitem(sys.modules, name, None)
    reason = open_meter("mqtt:127.0.0.1/a?unit=W", {}).missing()
    assert reason == "MQTT meters need paho-mqtt, which is not installed (pip install 'greencc[mqtt]')"
