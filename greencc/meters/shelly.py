"""Shelly sockets and relays: power, or their energy counter, over HTTP in the local network.

Second and later generations answer `/rpc/Switch.GetStatus?id=N` (or `PM1.GetStatus`) with `apower` in watts and
`aenergy.total` in watt-hours, and guard it with digest authentication, SHA-256, user `admin`. The first generation
answers `/meter/N` with `power` in watts and `total` in watt-minutes, and uses basic authentication. `/shelly` is open
on all, and tells which it is.

Power is the better choice for nearly every measurement: it is fresh about once a second, whereas the counters move in
steps of a minute's energy, so a block of 100 periods takes 100 minutes. The counter misses nothing between two
samples, which is what very long windows want.

Source: Shelly technical documentation, "Switch", "PM1" and "Authentication" (Gen2+), "meter/0" (Gen1). No accuracy is
claimed there, so `uncertainty` is None unless the user gives the figure of the data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from greencc.core.errors import UnavailableError
from greencc.meters._external import ExternalCounter, ExternalPower, Facts, Stamped
from greencc.meters._http import Answer, JsonClient
from greencc.meters._values import UNITS, lookup, quantity

POWER_PERIOD_S = 1.0
COUNTER_PERIOD_S = 60.0
_NAME_CHARACTERS = 60


class Component(Enum):
    """What of a device measures: the value is its RPC namespace."""

    SWITCH = "Switch"
    PM1 = "PM1"


@dataclass
class ShellySource:
    """Implements `greencc.meters._external.Source`.

    Attributes:
        client: The device.
        component: Which kind of component; the first generation has only one, and ignores it.
        number: Which of them.
        counter: Fetch the energy counter, in joules, instead of the power.
        name: What is plugged in, for the boundary; default: the name the device was given, else its model and host.
    """

    client: JsonClient
    component: Component = Component.SWITCH
    number: int = 0
    counter: bool = False
    name: str | None = None
    _generation: int | None = field(default=None, init=False)
    _called: str | None = field(default=None, init=False)

    @property
    def boundary(self) -> str:
        return f"wall socket, {self.name or self._called or f'Shelly at {self.client.address.host}'}"

    def fetch(self) -> Stamped:
        """Power now, or energy so far.

        Raises:
            UnavailableError: The device is out of reach, is no Shelly, does not measure, or is switched off.
        """
        if self._generation is None:
            self._generation = self._identify()
        return self._first() if self._generation == 1 else self._later()

    def _identify(self) -> int:
        """Generation of the device, and what it is called."""
        info = self.client.get("/shelly").document
        address = self.client.address
        if not isinstance(info, dict) or not ("gen" in info or "type" in info):
            raise UnavailableError(f"{address} is no Shelly: /shelly does not tell its model")
        generation = info.get("gen", 1)
        if isinstance(generation, bool) or not isinstance(generation, int) or generation < 1:
            raise UnavailableError(f"{address} is a Shelly of an unknown generation")
        model = _text(info.get("app") or info.get("model") or info.get("type"))
        self._called = _text(info.get("name")) or f"Shelly {model} at {address.host}".replace("  ", " ")
        return generation

    def _first(self) -> Stamped:
        answer = self.client.get(f"/meter/{self.number}")
        where = f"the meter of {self.client.address}"
        if lookup(answer.document, "is_valid", where) is not True:
            raise UnavailableError(f"{where} says that its reading is not valid")
        return self._value(answer, "total" if self.counter else "power", "Wmin" if self.counter else "W")

    def _later(self) -> Stamped:
        answer = self.client.get(f"/rpc/{self.component.value}.GetStatus?id={self.number}")
        status, address = answer.document, self.client.address
        what = f"{self.component.value.lower()} {self.number}"
        if not isinstance(status, dict):
            raise UnavailableError(f"{address} does not tell the status of {what}")
        if status.get("errors"):
            raise UnavailableError(f"{address} reports an error of {what}: {_text(status['errors'])}")
        if status.get("output") is False:
            raise UnavailableError(
                f"{what} of {address} is off: what is plugged in gets no power", hint="switch it on"
            )
        if "apower" not in status:
            raise UnavailableError(
                f"{what} of {address} has no power meter", hint="use a model with one (PM, Plug S)"
            )
        return self._value(
            answer, "aenergy.total" if self.counter else "apower", "Wh" if self.counter else "W"
        )

    def _value(self, answer: Answer, path: str, unit: str) -> Stamped:
        where = str(self.client.address)
        value = lookup(answer.document, path, where)
        return Stamped(answer.seconds, quantity(value, UNITS[unit], where))


def shelly_meter(
    source: ShellySource, period_s: float | None = None, uncertainty: float | None = None
) -> ExternalPower | ExternalCounter:
    """A counter or a power meter, as the source says.

    Args:
        source: The device.
        period_s: How often its value changes; default: `COUNTER_PERIOD_S` or `POWER_PERIOD_S`.
        uncertainty: Relative standard uncertainty, from the data sheet.

    Raises:
        UsageError: A number is out of range.
    """
    default = COUNTER_PERIOD_S if source.counter else POWER_PERIOD_S
    facts = Facts("shelly", default if period_s is None else period_s, uncertainty)
    return ExternalCounter(source, facts) if source.counter else ExternalPower(source, facts)


def _text(value: object) -> str:
    """A device's text, short and printable."""
    text = "" if value is None else str(value)
    return "".join(c for c in text if c.isprintable())[:_NAME_CHARACTERS].strip()
