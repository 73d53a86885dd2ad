"""A meter that publishes to an MQTT topic (Tasmota, Zigbee sockets behind zigbee2mqtt, a script of your own).

A value is the last message with the time it arrived. Retained messages do not count: the broker hands them out at
once, and they may be hours old. A value that is older than `stale_periods` periods is refused.

Needs `paho-mqtt` (greencc[mqtt]).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from greencc.core.errors import UnavailableError
from greencc.meters._digest import Login
from greencc.meters._external import ExternalCounter, ExternalPower, Facts, Stamped
from greencc.meters._values import Unit, lookup, parse_json, quantity

if TYPE_CHECKING:
    from paho.mqtt.client import Client

PORT, SECURE_PORT = 1883, 8883
PERIOD_S = 1.0
STALE_PERIODS = 5.0
TIMEOUT_S = 5.0
_MAX_BYTES = 1 << 16
_LOST = "the connection was lost"


@dataclass(frozen=True)
class Topic:
    """Where a meter publishes.

    Attributes:
        host: The broker.
        port: Its port.
        topic: Without wildcards.
        path: Into JSON payloads; empty: the payload is the number itself.
        unit: Of the value.
        secure: Use TLS.
        login: User and password at the broker.
    """

    host: str
    port: int
    topic: str
    path: str
    unit: Unit
    secure: bool = False
    login: Login | None = None

    @property
    def where(self) -> str:
        return f"topic {self.topic} at {self.host}:{self.port}"


@dataclass
class MqttSource:
    """Implements `greencc.meters._external.Source`; connects on the first fetch, and reconnects by itself.

    Attributes:
        topic: What to listen to.
        boundary: What the meter covers.
        period_s: How often it publishes.
        stale_periods: A value older than so many periods is refused.
        timeout_s: Longest wait for the connection; for the first message it is at least two periods.
        clock: Monotonic seconds.
    """

    topic: Topic
    boundary: str
    period_s: float = PERIOD_S
    stale_periods: float = STALE_PERIODS
    timeout_s: float = TIMEOUT_S
    clock: Callable[[], float] = time.monotonic
    _inbox: _Inbox | None = field(default=None, init=False, repr=False)
    _end: Callable[[], object] | None = field(default=None, init=False, repr=False)

    def fetch(self) -> Stamped:
        """The last message's value, stamped with its arrival.

        Raises:
            UnavailableError: paho-mqtt is missing, the broker is out of reach or refuses, no message came, the last one
                is stale, or it is no quantity.
        """
        if self._inbox is None:
            self._inbox, client = _connect(self.topic, self.timeout_s, self.clock)
            # Also ends paho's thread when nobody holds the meter any more, and when Python ends.
            self._end = weakref.finalize(self, _disconnect, client)
        where = self.topic.where
        arrived, payload = self._inbox.last(max(self.timeout_s, 2.0 * self.period_s), where)
        age, oldest = self.clock() - arrived, self.stale_periods * self.period_s
        if age > oldest:
            raise UnavailableError(
                f"{where}: the last message is {age:.1f} s old ({self._inbox.problem or 'nothing was published'})",
                hint=f"every {self.period_s:g} s was expected; period= tells how often the meter publishes",
            )
        if len(payload) > _MAX_BYTES:
            raise UnavailableError(f"{where} published {len(payload)} bytes, which is no reading")
        if self.topic.path:
            value = lookup(parse_json(payload, where), self.topic.path, where)
        else:
            value = payload.decode("utf-8", "replace").strip()
        return Stamped(arrived, quantity(value, self.topic.unit, where))

    def close(self) -> None:
        """Disconnect; the next fetch connects again."""
        if self._end is not None:
            self._end()
            self._inbox = self._end = None


class _Inbox:
    """The last message of one topic; the methods `on_...` run in paho's thread."""

    def __init__(self, topic: str, clock: Callable[[], float]) -> None:
        self._topic, self._clock = topic, clock
        self._changed = threading.Condition()
        self._message: tuple[float, bytes] | None = None
        self.problem: str | None = None

    def last(self, wait_s: float, where: str) -> tuple[float, bytes]:
        with self._changed:
            self._changed.wait_for(lambda: self._message is not None or self._refused(), wait_s)
            if self._message is not None:
                return self._message
        raise UnavailableError(
            f"{where}: {self.problem or f'no message within {wait_s:g} s'}",
            hint=None
            if self.problem
            else "does the meter publish to this topic? (retained messages do not count)",
        )

    def _refused(self) -> bool:
        return self.problem is not None and self.problem != _LOST

    def on_connect(self, client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            self._tell(f"the broker refuses the connection: {code}")
        else:
            self._tell(None)
            client.subscribe(self._topic)

    def on_subscribe(self, _client: Any, _data: Any, _id: Any, codes: Any, _properties: Any) -> None:
        if any(code.is_failure for code in codes):
            self._tell("the broker refuses the subscription")

    def on_disconnect(self, _client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure and self.problem is None:
            self._tell(_LOST)

    def on_message(self, _client: Any, _data: Any, message: Any) -> None:
        if message.retain:
            return
        with self._changed:
            self._message = (self._clock(), bytes(message.payload))
            self._changed.notify_all()

    def _tell(self, problem: str | None) -> None:
        with self._changed:
            self.problem = problem
            self._changed.notify_all()


def _connect(topic: Topic, timeout_s: float, clock: Callable[[], float]) -> tuple[_Inbox, Client]:
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise UnavailableError(
            "MQTT meters need paho-mqtt, which is not installed", hint="pip install 'greencc[mqtt]'"
        ) from error
    client = Client(CallbackAPIVersion.VERSION2)
    inbox = _Inbox(topic.topic, clock)
    client.on_connect, client.on_disconnect = inbox.on_connect, inbox.on_disconnect
    client.on_subscribe, client.on_message = inbox.on_subscribe, inbox.on_message
    client.connect_timeout = timeout_s
    if topic.secure:
        client.tls_set()
    if topic.login is not None:
        client.username_pw_set(topic.login.user, topic.login.password)
    try:
        client.connect(topic.host, topic.port)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"the MQTT broker {topic.host}:{topic.port} cannot be reached: {getattr(error, 'strerror', None) or error}"
        ) from error
    client.loop_start()
    return inbox, client


def _disconnect(client: Client) -> None:
    client.disconnect()
    client.loop_stop()


def mqtt_meter(source: MqttSource, facts: Facts) -> ExternalPower | ExternalCounter:
    """A counter where the unit is one of energy, else a power meter."""
    return ExternalCounter(source, facts) if source.topic.unit.energy else ExternalPower(source, facts)
