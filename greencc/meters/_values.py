"""Numbers from strangers: JSON text, a path into it, a unit, and the refusal of everything that is no quantity."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from greencc.core.errors import UnavailableError, UsageError, did_you_mean


@dataclass(frozen=True)
class Unit:
    """A unit of power or energy: what one of it is in watts or joules."""

    name: str
    factor: float
    energy: bool


_UNITS = (
    Unit("mW", 1e-3, energy=False),
    Unit("W", 1.0, energy=False),
    Unit("kW", 1e3, energy=False),
    Unit("mJ", 1e-3, energy=True),
    Unit("J", 1.0, energy=True),
    Unit("kJ", 1e3, energy=True),
    Unit("mWh", 3.6, energy=True),
    Unit("Wmin", 60.0, energy=True),
    Unit("Wh", 3.6e3, energy=True),
    Unit("kWh", 3.6e6, energy=True),
)
UNITS = {unit.name: unit for unit in _UNITS}

_SHOWN_KEYS = 12
_SHOWN_CHARACTERS = 40
_MOST_DIGITS = 9


def unit_named(name: str) -> Unit:
    """The unit of that name.

    Raises:
        UsageError: There is none; upper and lower case differ (mW is not MW).
    """
    if name not in UNITS:
        raise UsageError(f"no unit {name!r}", hint=did_you_mean(name, UNITS))
    return UNITS[name]


def parse_json(text: bytes, where: str) -> object:
    """JSON without NaN and Infinity.

    Raises:
        UnavailableError: `where` gave something else.
    """

    def refuse(constant: str) -> None:
        raise UnavailableError(f"{where} gave {constant}, which is no number")

    try:
        parsed: object = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UnavailableError(
            f"{where} did not give JSON: {_shown(text)}", hint="is this the right address?"
        ) from error
    return parsed


def lookup(document: object, path: str, where: str) -> object:
    """The value at a path: names and list positions joined by dots (`emeters.0.power`), or a JSON pointer (RFC 6901).

    A pointer begins with ``/`` and reaches names that contain dots. An empty path is the document itself.

    Raises:
        UnavailableError: The document has no such value; the message lists what there is.
    """
    if path.startswith("/"):
        steps = [step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/")]
    else:
        steps = path.split(".") if path else []
    value = document
    for number, step in enumerate(steps):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and (position := _position(step)) is not None and position < len(value):
            value = value[position]
        else:
            at = ".".join(steps[:number]) or "the top"
            raise UnavailableError(
                f"{where} has no {_shown(path)}: at {at[:_SHOWN_CHARACTERS]} there is no {_shown(step)}",
                hint=_known(value, step),
            )
    return value


def _position(step: str) -> int | None:
    """A place in a list; more digits than any list of an answer needs are none."""
    return int(step) if step.isdecimal() and len(step) <= _MOST_DIGITS else None


def quantity(value: object, unit: Unit, where: str) -> float:
    """A number, or the text of one, in watts or joules.

    Raises:
        UnavailableError: It is no finite number, or it is negative.
    """
    number = _number(value)
    if number is None:
        raise UnavailableError(f"{where} gave {_shown(value)}, not a number of {unit.name}")
    if number < 0.0:
        raise UnavailableError(
            f"{where} gave {number:g} {unit.name}",
            hint="a device that is measured takes energy; turn the clamp or the meter's direction round",
        )
    if not math.isfinite(number * unit.factor):
        raise UnavailableError(f"{where} gave {number:g} {unit.name}, which is more than there is")
    return number * unit.factor


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _known(value: object, step: str) -> str:
    if isinstance(value, dict):
        names = [str(name)[:_SHOWN_CHARACTERS] for name in value]
        return did_you_mean(step, names[:_SHOWN_KEYS]) if names else "it is empty"
    if isinstance(value, list):
        return f"it is a list of {len(value)}"
    return f"it is {_shown(value)}"


def _shown(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    text = "".join(c if c.isprintable() else " " for c in text[: _SHOWN_CHARACTERS + 1])
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
