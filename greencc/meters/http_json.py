"""Any meter that answers HTTP with JSON: an address, a path into the answer, and the unit of what is there.

Home Assistant, Tasmota, myStrom, ESPHome, a rack's power distribution unit, a script of your own. The user states what
the meter covers; nothing in the answer tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from greencc.meters._external import ExternalCounter, ExternalPower, Facts, Stamped
from greencc.meters._http import JsonClient
from greencc.meters._values import Unit, lookup, quantity

PERIOD_S = 1.0


@dataclass
class JsonSource:
    """Implements `greencc.meters._external.Source`.

    Attributes:
        client: The server.
        target: Path and query of the request; never shown, for it may hold a key.
        path: Into the answer; see `greencc.meters._values.lookup`.
        unit: Of the value there.
        boundary: What the meter covers.
    """

    client: JsonClient
    target: str = field(repr=False)
    path: str
    unit: Unit
    boundary: str

    def fetch(self) -> Stamped:
        """The value now.

        Raises:
            UnavailableError: The server gives none.
        """
        answer = self.client.get(self.target)
        where = str(self.client.address)
        value = lookup(answer.document, self.path, where)
        return Stamped(answer.seconds, quantity(value, self.unit, where))


def http_meter(source: JsonSource, facts: Facts) -> ExternalPower | ExternalCounter:
    """A counter where the unit is one of energy, else a power meter."""
    return ExternalCounter(source, facts) if source.unit.energy else ExternalPower(source, facts)
