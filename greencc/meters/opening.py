"""`open_meter`: from a text such as ``shelly:http://192.168.1.5?switch=0`` to a meter (docs/energy.md has the grammar).

Nothing is asked of a device here: whether it answers, its `missing` tells. Messages quote a spec's kind and its
options, never its address, which may hold a password.
"""

from __future__ import annotations

import math
import os
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from greencc.core.errors import UnavailableError, UsageError, did_you_mean
from greencc.core.meter import Grade, Meter, PowerMeter
from greencc.meters._digest import Login
from greencc.meters._external import Facts
from greencc.meters._http import TIMEOUT_S, Address, JsonClient
from greencc.meters._values import unit_named
from greencc.meters.csv_replay import Pace, replay
from greencc.meters.http_json import PERIOD_S, JsonSource, http_meter
from greencc.meters.hwmon import open_hwmon
from greencc.meters.known import METERS, Sources
from greencc.meters.mqtt import PORT as MQTT_PORT
from greencc.meters.mqtt import SECURE_PORT, STALE_PERIODS, MqttSource, Topic, mqtt_meter
from greencc.meters.parts import part_of
from greencc.meters.ptdaemon import PORT as PTD_PORT
from greencc.meters.ptdaemon import PtdMeter
from greencc.meters.shelly import Component, ShellySource, shelly_meter

USER, PASSWORD, TOKEN = "GREENCC_METER_USER", "GREENCC_METER_PASSWORD", "GREENCC_METER_TOKEN"
_YES = {"true": True, "false": False}
# Its parts are channels, which only become a meter by being named.
_CHANNELS = "hwmon"
# A device of a meter that has several: ``0`` or ``gpu-0``.
_NUMBERED = re.compile(r"(?:gpu-)?([0-9]{1,3})")
_SENSOR = ("period", "uncertainty", "boundary", "grade")

_AnyMeter: TypeAlias = Meter | PowerMeter
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Spec:
    """A spec in parts: `rest` is what stands between the kind and the options."""

    kind: str
    rest: str
    options: Mapping[str, str]
    unknown: Sequence[tuple[str, str]]

    def text(self, name: str) -> str | None:
        return self.options.get(name)

    def number(self, name: str, default: float) -> float:
        text = self.options.get(name)
        if text is None:
            return default
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= 0.0):
            raise UsageError(f"{self.kind}: {name} is {text!r}", hint="give a number that is not below 0")
        return number

    def positive(self, name: str, default: float) -> float:
        number = self.number(name, default)
        if number <= 0.0:
            raise UsageError(f"{self.kind}: {name} is 0", hint="give a positive number of seconds")
        return number

    def index(self, name: str) -> int | None:
        text = self.options.get(name)
        if text is None:
            return None
        if not (text.isdecimal() and text.isascii() and len(text) <= 3):
            raise UsageError(f"{self.kind}: {name} is {text!r}", hint="give a number from 0")
        return int(text)

    def flag(self, name: str) -> bool:
        return self.choice(name, _YES, "false")

    def choice(self, name: str, known: Mapping[str, _T], default: str) -> _T:
        text = self.options.get(name, default)
        if text not in known:
            raise UsageError(f"{self.kind}: {name} is {text!r}", hint=did_you_mean(text, known))
        return known[text]

    def uncertainty(self) -> float | None:
        return None if self.text("uncertainty") is None else self.number("uncertainty", 0.0)

    def grade(self, default: Grade) -> Grade:
        return self.choice("grade", {grade.name: grade for grade in Grade}, default.name)


def open_meter(
    spec: str, environ: Mapping[str, str] | None = None, sources: Sources | None = None
) -> Meter | PowerMeter:
    """The meter that a spec names.

    Args:
        spec: Such as ``rapl``, ``nvml:0``, ``shelly:http://192.168.1.5?switch=0``, ``csv:FILE``.
        environ: Where credentials are taken from that the spec does not hold; default: the environment.
        sources: Where on-device meters look; default: this machine.

    Raises:
        UsageError: The spec is malformed, or names an unknown meter, option or value.
        InputError: The CSV file is not a recording.
    """
    kind, colon, rest = spec.strip().partition(":")
    environ = os.environ if environ is None else environ
    if kind in ("http", "https") and rest.startswith("//"):
        rest = f"{kind}:{rest}"
        kind = "http"
    if kind in _KINDS:
        if not rest:
            raise UsageError(f"{kind}: nothing follows", hint=f"expected {_KINDS[kind].example}")
        return _KINDS[kind].open(_split(kind, rest), environ)
    return _on_device(kind, rest if colon else None, sources or Sources())


def open_working_meter(spec: str) -> Meter | PowerMeter:
    """`open_meter`, of a meter that gives a reading now.

    Raises:
        UsageError, InputError: As `open_meter`.
        UnavailableError: It gives no reading.
    """
    meter = open_meter(spec)
    if reason := meter.missing():
        # The meter's name, not its spec, which may hold a password.
        raise UnavailableError(
            f"the {meter.name} meter gives no reading: {reason}", hint="see 'greencc doctor'"
        )
    return meter


def _on_device(kind: str, part: str | None, at: Sources) -> _AnyMeter:
    known = {meter.name: meter for meter in METERS}
    if kind not in known:
        raise UsageError(f"no meter {kind[:40]!r}", hint=did_you_mean(kind, [*known, *_KINDS]))
    if part is not None and not part:
        raise UsageError(f"{kind}: nothing follows", hint=f"give {kind} alone, or a part of it: {kind}:0")
    if kind == _CHANNELS and part is not None:
        return open_hwmon(at.sysfs, tuple(part.split("+")))
    only = known[kind].open_only
    if only is not None and part is not None and (number := _NUMBERED.fullmatch(part)):
        return only(at, int(number[1]))
    meter = known[kind].open(at)
    return meter if part is None else part_of(meter, part)


def _split(kind: str, rest: str) -> _Spec:
    options = _KINDS[kind].options
    body, mark, query = rest.rpartition("?")
    if not mark or (kind == "csv" and "=" not in query):
        return _Spec(kind, rest, {}, ())
    if "@" in query:
        # A '?' in a password would make its rest look like an option.
        raise UsageError(
            f"{kind}: the options hold '@'", hint="write '@' as %40, and '?' in a password as %3F"
        )
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=100)
    except ValueError:
        raise UsageError(
            f"{kind}: the options after '?' are malformed", hint="write NAME=VALUE, joined by '&'"
        ) from None
    found: dict[str, str] = {}
    unknown = []
    for name, value in pairs:
        if name not in options:
            if not _KINDS[kind].passes_on or did_you_mean(name, options).startswith("did you mean"):
                raise UsageError(f"{kind}: no option {name[:40]!r}", hint=did_you_mean(name, options))
            unknown.append((name, value))
        elif name in found:
            raise UsageError(f"{kind}: {name} is there twice")
        else:
            found[name] = value
    return _Spec(kind, body, found, unknown)


@dataclass(frozen=True)
class _Where:
    address: Address
    login: Login | None
    path: str


def _where(spec: _Spec, schemes: Mapping[str, int], default: str, environ: Mapping[str, str]) -> _Where:
    """Server, login and path of a spec's address."""
    text = spec.rest if "://" in spec.rest else f"{default}://{spec.rest}"
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The error's own text may quote a password.
        host, port = None, None
    if not host or any(c.isspace() or not c.isprintable() for c in text):
        raise UsageError(
            f"{spec.kind}: the address is malformed", hint=f"expected {_KINDS[spec.kind].example}"
        )
    if parts.scheme not in schemes:
        raise UsageError(
            f"{spec.kind}: no scheme {parts.scheme[:40]!r}", hint=did_you_mean(parts.scheme, schemes)
        )
    if not _sendable(host):
        raise UsageError(
            f"{spec.kind}: the host's name is none",
            hint="a label of it has 1 to 63 characters, all of it at most 253",
        )
    if parts.fragment or parts.query:
        raise UsageError(
            f"{spec.kind}: the address holds '#' or a second '?'", hint="write them as %23 and %3F"
        )
    address = Address(parts.scheme, host, schemes[parts.scheme] if port is None else port)
    return _Where(address, _login(spec.kind, parts, environ), parts.path)


def _sendable(host: str) -> bool:
    """Whether a name can be looked up at all; letters beyond ASCII are looked up as IDNA writes them."""
    try:
        return len(host) <= 253 and len(host.encode("idna")) <= 253
    except UnicodeError:
        return False


def _token(environ: Mapping[str, str]) -> str | None:
    """The bearer token; its characters are those of RFC 6750, 2.1, or at least ones that a header may hold."""
    token = environ.get(TOKEN) or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"http: {TOKEN} holds characters that cannot be sent",
            hint="a token is printable ASCII in one line",
        )
    return token


def _login(kind: str, parts: urllib.parse.SplitResult, environ: Mapping[str, str]) -> Login | None:
    if parts.username is not None or parts.password is not None:
        user, password = parts.username or "admin", parts.password or ""
        user, password = urllib.parse.unquote(user), urllib.parse.unquote(password)
    elif PASSWORD in environ:
        user, password = environ.get(USER, "admin"), environ[PASSWORD]
    else:
        return None
    if not (user.isprintable() and password.isprintable()):
        raise UsageError(f"{kind}: the user or password holds characters that cannot be sent")
    return Login(user, password)


def _client(spec: _Spec, where: _Where, token: str | None = None) -> JsonClient:
    return JsonClient(where.address, where.login, token, spec.positive("timeout", TIMEOUT_S))


_WEB = {"http": 80, "https": 443}


def _shelly(spec: _Spec, environ: Mapping[str, str]) -> _AnyMeter:
    where = _where(spec, _WEB, "http", environ)
    if where.path not in ("", "/"):
        raise UsageError("shelly: a path follows the host", hint=f"expected {_KINDS['shelly'].example}")
    switch, pm1 = spec.index("switch"), spec.index("pm1")
    if switch is not None and pm1 is not None:
        raise UsageError("shelly: both switch and pm1 are given", hint="give one of them")
    component = Component.SWITCH if pm1 is None else Component.PM1
    number = switch or 0 if pm1 is None else pm1
    counter = spec.flag("counter")
    source = ShellySource(_client(spec, where), component, number, counter, spec.text("name"))
    period = spec.positive("period", 1.0) if spec.text("period") is not None else None
    return shelly_meter(source, period, spec.uncertainty())


def _facts(spec: _Spec) -> Facts:
    return Facts(
        spec.kind,
        spec.positive("period", PERIOD_S),
        spec.uncertainty(),
        spec.grade(Grade.A),
        domain="external",
    )


def _unit(spec: _Spec) -> str:
    unit = spec.text("unit")
    if unit is None:
        raise UsageError(f"{spec.kind}: no unit is given", hint="add unit=W, or J, Wh, ...")
    return unit


def _http(spec: _Spec, environ: Mapping[str, str]) -> _AnyMeter:
    where = _where(spec, _WEB, "http", environ)
    path = spec.text("path")
    if path is None:
        raise UsageError("http: no path into the answer is given", hint="add path=NAME, such as path=apower")
    target = urllib.parse.quote(where.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if spec.unknown:
        target += f"?{urllib.parse.urlencode(spec.unknown)}"
    boundary = spec.text("boundary") or f"external meter at {where.address.host}"
    client = _client(spec, where, _token(environ))
    return http_meter(JsonSource(client, target, path, unit_named(_unit(spec)), boundary), _facts(spec))


def _mqtt(spec: _Spec, environ: Mapping[str, str]) -> _AnyMeter:
    secure = spec.flag("tls")
    where = _where(spec, {"mqtt": SECURE_PORT if secure else MQTT_PORT}, "mqtt", environ)
    name = urllib.parse.unquote(where.path.removeprefix("/"))
    if not name or any(c in name for c in "#+\0"):
        raise UsageError(
            "mqtt: the topic is missing or has a wildcard", hint=f"expected {_KINDS['mqtt'].example}"
        )
    topic = Topic(
        where.address.host,
        where.address.port,
        name,
        spec.text("path") or "",
        unit_named(_unit(spec)),
        secure,
        where.login,
    )
    facts = _facts(spec)
    boundary = spec.text("boundary") or f"external meter, {topic.where}"
    stale = spec.positive("stale", STALE_PERIODS)
    return mqtt_meter(MqttSource(topic, boundary, facts.period_s, stale), facts)


def _csv(spec: _Spec, environ: Mapping[str, str]) -> _AnyMeter:
    pace = spec.choice("pace", {pace.value: pace for pace in Pace}, Pace.CLOCK.value)
    return replay(Path(spec.rest), pace, spec.grade(Grade.D), spec.uncertainty())


def _ptdaemon(spec: _Spec, environ: Mapping[str, str]) -> _AnyMeter:
    where = _where(spec, {"ptdaemon": PTD_PORT}, "ptdaemon", {})
    if where.login or where.path:
        raise UsageError("ptdaemon: more than host and port", hint=f"expected {_KINDS['ptdaemon'].example}")
    return PtdMeter(where.address.host, where.address.port)


@dataclass(frozen=True)
class _Kind:
    """How one kind of spec is opened; `passes_on` sends options that are not ours to the device."""

    example: str
    options: tuple[str, ...]
    open: Callable[[_Spec, Mapping[str, str]], _AnyMeter]
    passes_on: bool = False


_KINDS: Mapping[str, _Kind] = {
    "shelly": _Kind(
        "shelly:http://192.168.1.5?switch=0",
        ("switch", "pm1", "counter", "name", "period", "uncertainty", "timeout"),
        _shelly,
    ),
    "http": _Kind(
        "http:http://192.168.1.6/power?path=watts&unit=W",
        ("path", "unit", "timeout", *_SENSOR),
        _http,
        passes_on=True,
    ),
    "mqtt": _Kind(
        "mqtt:broker:1883/home/socket?path=power&unit=W", ("path", "unit", "stale", "tls", *_SENSOR), _mqtt
    ),
    "csv": _Kind("csv:FILE", ("pace", "grade", "uncertainty"), _csv),
    "ptdaemon": _Kind("ptdaemon:host:8888", (), _ptdaemon),
}
