"""Units of a budget, and what people write instead of them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from types import MappingProxyType

from greencc.core.errors import UsageError, did_you_mean


class Kind(Enum):
    """What a limit is about; `unit` is what its value is counted in."""

    POWER = "power"
    ENERGY = "energy"
    LATENCY = "latency"
    SIZE = "size"
    MACS = "macs"

    @property
    def unit(self) -> str:
        """The base unit: W, mJ, ms, bytes or MACs."""
        return _BASE[self]


_BASE = {Kind.POWER: "W", Kind.ENERGY: "mJ", Kind.LATENCY: "ms", Kind.SIZE: "bytes", Kind.MACS: "MACs"}

UNITS: Mapping[str, tuple[Kind, Decimal]] = MappingProxyType(
    {
        unit: (kind, Decimal(factor))
        for kind, units in {
            Kind.POWER: {"kW": "1e3", "W": "1", "mW": "1e-3"},
            Kind.ENERGY: {"kJ": "1e6", "J": "1e3", "mJ": "1", "uJ": "1e-3", "nJ": "1e-6"},
            Kind.LATENCY: {"s": "1e3", "ms": "1", "us": "1e-3"},
            Kind.SIZE: {"GB": "1e9", "MB": "1e6", "KB": "1e3", "B": "1"}
            | {"GiB": str(1 << 30), "MiB": str(1 << 20), "KiB": str(1 << 10)},
            Kind.MACS: {"TMACs": "1e12", "GMACs": "1e9", "MMACs": "1e6", "KMACs": "1e3", "MACs": "1"},
        }.items()
        for unit, factor in units.items()
    }
)
"""Every unit with its kind and how many base units it is."""

# Where a lower-case letter means something else. In watts, joules and seconds M is mega, in bytes and MACs no one
# means milli.
_LOWER = {unit.lower(): unit for unit in UNITS} | {
    unit.lower().removesuffix("s"): unit for unit in UNITS if unit.endswith("MACs")
}
_MEGA_IS_A_SLIP = (Kind.POWER, Kind.ENERGY, Kind.LATENCY)

_WORDS = {
    "watt": "W",
    "watts": "W",
    "milliwatts": "mW",
    "joule": "J",
    "joules": "J",
    "millijoules": "mJ",
    "sec": "s",
    "second": "s",
    "seconds": "s",
    "msec": "ms",
    "millisecond": "ms",
    "milliseconds": "ms",
    "usec": "us",
    "byte": "B",
    "bytes": "B",
    "megabytes": "MB",
    "m": "ms",
}
_PREFIX_ALONE = ("K", "M", "G", "T")
_OTHERWISE = {
    "hz": "a rate is no limit: pass --rate 30/s, and a latency such as 33ms",
    "%": "what accuracy may be lost is --max-drop",
    "ns": "write us, ms or s",
    "wh": "write joules: 1 Wh is 3600 J",
    "flops": "write MACs, multiply-accumulates: one is two operations",
}
_MEANT = (
    (("hz", "fps", "qps", "rps", "ips", "/s", "/min", "/h"), "hz"),
    (("%",), "%"),
    (("ns",), "ns"),
    (("wh",), "wh"),
    (("flop", "flops", "ops"), "flops"),
)


def unit_of(name: str, number: str) -> tuple[Kind, Decimal]:
    """The kind and the factor of a unit as people write it, after `number`.

    Case is free where it cannot mislead: ``5w`` and ``20MJ`` differ, for M is mega and a lower-case b is a bit.

    Raises:
        UsageError: There is no such unit, or it is one that nobody means.
    """
    plain = name.replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    if plain in UNITS:
        return UNITS[plain]
    known = _LOWER.get(plain.lower())
    if known is None:
        raise UsageError(f"{number + name!r}: {_no_unit(name)}", hint=_hint(plain, number))
    kind = UNITS[known][0]
    if kind is Kind.SIZE and plain.endswith("b"):
        raise UsageError(f"{number + name!r}: a lower-case b is a bit", hint=f"did you mean {number}{known}?")
    if kind in _MEGA_IS_A_SLIP and len(plain) > 1 and plain.startswith("M"):
        raise UsageError(f"{number + name!r}: a capital M is mega", hint=f"did you mean {number}{known}?")
    return UNITS[known]


def _no_unit(name: str) -> str:
    return f"{name!r} is no unit of a limit" if name else "the unit is missing"


def _hint(plain: str, number: str) -> str:
    if not plain:
        return f"write {number}W, {number}mJ, {number}ms, {number}MB or {number}MACs"
    if plain in _PREFIX_ALONE:
        return f"did you mean {number}{plain}B or {number}{plain}MACs?"
    lowered = plain.lower()
    if lowered in _WORDS:
        return f"did you mean {number}{_WORDS[lowered]}?"
    for endings, what in _MEANT:
        if lowered.endswith(endings):
            return _OTHERWISE[what]
    return did_you_mean(plain, UNITS)


def format_figure(kind: Kind, value: float) -> str:
    """The shortest text that reads as exactly this value, in a unit of which there is at least one: ``33ms``, ``40MB``.

    Args:
        kind: What it is.
        value: In its base unit, finite.
    """
    numbers = {unit: Decimal(repr(value)) / factor for unit, (of, factor) in UNITS.items() if of is kind}
    exact = {unit: number for unit, number in numbers.items() if float(number * UNITS[unit][1]) == value}
    unit = min(exact, key=lambda name: (abs(exact[name]) < 1, len(f"{_plain(exact[name])}{name}")))
    return f"{_plain(exact[unit])}{unit}"


def round_up(value: float, digits: int = 4) -> float:
    """To this many significant digits, upwards: what a message calls the least must be enough when it is typed."""
    if value <= 0.0:
        return value
    exact = Decimal(repr(value))
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return float(exact.quantize(step, rounding="ROUND_CEILING"))


def format_least(kind: Kind, value: float) -> str:
    """What is at least needed, rounded up, in the largest unit of which there is one: ``25.87kB``, not ``25870B``.

    Args:
        kind: What it is.
        value: In its base unit, above 0.
    """
    least = Decimal(repr(round_up(value)))
    factors = {unit: factor for unit, (of, factor) in UNITS.items() if of is kind and not unit.endswith("iB")}
    fitting = [unit for unit, factor in factors.items() if least >= factor]
    unit = max(fitting, key=factors.__getitem__) if fitting else min(factors, key=factors.__getitem__)
    return f"{_plain(least / factors[unit])}{unit}"


def _plain(number: Decimal) -> str:
    number = number.normalize()
    return f"{number:f}" if -6 <= number.adjusted() <= 16 else str(number).lower()
