"""Device profiles as TOML, in and out. A file is untrusted input: limited in size, checked key by key, names no paths.

Ranges are lists of three numbers, ``[low, central, high]``; one number stands for a figure that is known. Units are in
the keys: giga-operations and gigabytes per second, microseconds, watts, picojoules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greencc.core.errors import InputError
from greencc.core.kernels import Work
from greencc.core.meter import Grade
from greencc.core.toml import TomlTable, parse_toml, read_toml_text, toml_value
from greencc.meters.device import DTYPES, Calibration, DeviceProfile, MemoryLevel, PowerMode, scaled
from greencc.meters.model import Range

SCHEMA = "greencc.device/1"
MAX_BYTES = 64 << 10
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,46}[a-z0-9])?")
_MODE = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_TEXT = 2000
_MOST_ENTRIES = 32
_LARGEST = 1e12
_KEYS = {
    "": (
        "schema", "name", "title", "processor", "boundary", "source", "grade", "cores", "fingerprint", "rate", "memory",
        "overhead", "power", "mode", "calibration",
    ),
    "rate": DTYPES,
    "memory": ("name", "bytes", "gb_per_s", "pj_per_byte"),
    "overhead": ("us_per_kernel", "us_per_run"),
    "power": ("idle_w", "busy_w", "pj_per_op"),
    "mode": ("name", "watts", "compute", "memory"),
    "calibration": (
        "date", "benchmarks", "latency_mape", "latency_factor", "energy_mape", "energy_factor", "meter", "versions",
        "facts",
    ),
}  # fmt: skip
_RATE_KEYS = ("peak_gops", *(f"{work.value}_gops" for work in Work))


def read_profile(path: Path) -> DeviceProfile:
    """Read a profile.

    Raises:
        InputError: The file is missing, too large, not TOML, or a figure is missing, not finite or out of order.
    """
    text = read_toml_text(path, "device profile", MAX_BYTES)
    return parse_profile(text, where=str(path))


def parse_profile(text: str, where: str = "the device profile") -> DeviceProfile:
    """Parse the text of a profile; see `read_profile` for the errors."""
    data = parse_toml(text, where)
    table = _Table(data, where, "")
    if data.get("schema") != SCHEMA:
        raise InputError(
            f"{where} has schema {str(data.get('schema'))[:80]!r}", hint=f"this version reads {SCHEMA!r}"
        )
    table.check(_KEYS[""])
    return _profile(table)


class _Table(TomlTable):
    """A table of a profile: of a limited size, with figures that are finite and positive."""

    def __init__(self, data: Any, origin: str, place: str) -> None:
        super().__init__(data, origin, place)
        if len(data) > _MOST_ENTRIES:
            raise InputError(f"{origin}: {place or 'the file'} has more than {_MOST_ENTRIES} keys")

    def fail(self, key: str, reason: str) -> InputError:
        return InputError(f"{self.origin}: {self.place_of(key)} {reason}")

    def text(self, key: str, pattern: re.Pattern[str] | None = None, default: str | None = None) -> str:
        value = self.data.get(key, default)
        if not isinstance(value, str) or not value or len(value) > _LONGEST_TEXT:
            raise self.fail(key, f"is not a text of 1 to {_LONGEST_TEXT} characters")
        if not value.isprintable() or (pattern is not None and not pattern.fullmatch(value)):
            raise self.fail(key, f"is {value[:80]!r}, which is no valid {key}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.data.get(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        return self._positive(key, value)

    def _positive(self, key: str, value: Any, zero: bool = False) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, "is not a number")
        if not (math.isfinite(value) and (0.0 < value <= _LARGEST or (zero and value == 0.0))):
            raise self.fail(key, f"is {value}: expected a finite number {'from' if zero else 'above'} 0")
        return float(value)

    def range(self, key: str, *, zero: bool = False) -> Range:
        """Low, central and high; `zero`: a fit may have found that a coefficient is 0."""
        value = self.data.get(key)
        if value is None:
            raise self.fail(key, "is missing")
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3:
            raise self.fail(key, "is not a number or a list [low, central, high]")
        low, central, high = (self._positive(key, item, zero) for item in values)
        if not low <= central <= high:
            raise self.fail(key, f"is {[low, central, high]}: expected low <= central <= high")
        return Range(low, central, high)

    def table(self, key: str) -> _Table:
        if key not in self.data:
            raise self.fail(key, "is missing")
        return _Table(self.data[key], self.origin, self.place_of(key))

    def tables(self, key: str) -> list[_Table]:
        value = self.data.get(key, [])
        if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
            raise self.fail(key, f"is not a list of at most {_MOST_ENTRIES} tables")
        return [
            _Table(item, self.origin, f"{self.place_of(key)}[{index}]") for index, item in enumerate(value)
        ]


def _profile(table: _Table) -> DeviceProfile:
    grade = table.text("grade")
    if grade not in ("C", "D"):
        raise table.fail(
            "grade", f"is {grade[:8]!r}: a model is of grade C (calibrated against a meter) or D"
        )
    processor = table.text("processor")
    if processor not in ("cpu", "gpu"):
        raise table.fail("processor", f"is {processor[:20]!r}: expected cpu or gpu")
    calibration = _calibration(table.table("calibration")) if "calibration" in table.data else None
    if grade == "C" and (calibration is None or calibration.energy_mape is None):
        raise table.fail(
            "grade", "is C, but there is no leave-one-out error of the energy (calibration.energy_mape)"
        )
    overhead, power = table.table("overhead"), table.table("power")
    overhead.check(_KEYS["overhead"])
    power.check(_KEYS["power"])
    per_operation = power.table("pj_per_op")
    per_operation.check(DTYPES)
    if "float32" not in per_operation.data:
        raise per_operation.fail("float32", "is missing")
    return DeviceProfile(
        name=table.text("name", _NAME),
        title=table.text("title"),
        processor=processor,
        boundary=table.text("boundary"),
        source=table.text("source"),
        grade=Grade[grade],
        cores=_count(table, "cores") if "cores" in table.data else None,
        fingerprint=table.text("fingerprint", _DIGEST) if "fingerprint" in table.data else None,
        rates=_rates(table.table("rate")),
        peaks={
            dtype: table.table("rate").table(dtype).number("peak_gops") * 1e9
            for dtype in table.table("rate").data
            if "peak_gops" in table.table("rate").table(dtype).data
        },
        levels=_levels(table),
        kernel_seconds=scaled(overhead.range("us_per_kernel"), 1e-6),
        run_seconds=scaled(overhead.range("us_per_run"), 1e-6),
        idle_watts=power.range("idle_w"),
        busy_watts=power.range("busy_w", zero=True),
        joules_per_operation={
            dtype: scaled(per_operation.range(dtype, zero=True), 1e-12) for dtype in per_operation.data
        },
        modes=_modes(table),
        calibration=calibration,
    )


def _count(table: _Table, key: str) -> int:
    value = table.number(key)
    if value != int(value) or value > 1e6:
        raise table.fail(key, f"is {value:g}: expected a whole number")
    return int(value)


def _rates(table: _Table) -> dict[str, dict[Work, Range]]:
    table.check(_KEYS["rate"])
    found: dict[str, dict[Work, Range]] = {}
    for dtype in table.data:
        entry = table.table(dtype)
        entry.check(_RATE_KEYS)
        found[dtype] = {
            work: scaled(entry.range(f"{work.value}_gops"), 1e9)
            for work in Work
            if f"{work.value}_gops" in entry.data
        }
        if Work.PRODUCT not in found[dtype]:
            raise entry.fail("product_gops", "is missing")
    if set(found.get("float32", {})) != set(Work):
        raise table.fail("float32", f"needs {', '.join(f'{work.value}_gops' for work in Work)}")
    return found


def _levels(table: _Table) -> tuple[MemoryLevel, ...]:
    levels: list[MemoryLevel] = []
    entries = table.tables("memory")
    for index, entry in enumerate(entries):
        entry.check(_KEYS["memory"])
        last = index == len(entries) - 1
        if last and "bytes" in entry.data:
            raise entry.fail("bytes", "is given for the last level, which holds everything")
        size = None if last else _size(entry)
        if levels and size is not None and size <= (levels[-1].bytes or 0):
            raise entry.fail("bytes", "is not larger than that of the level before")
        levels.append(
            MemoryLevel(
                entry.text("name", _MODE),
                size,
                scaled(entry.range("gb_per_s"), 1e9),
                scaled(entry.range("pj_per_byte", zero=True), 1e-12),
            )
        )
    if not levels:
        raise table.fail("memory", "is missing: expected [[memory]] tables, the main memory last")
    if len({level.name for level in levels}) < len(levels):
        raise table.fail("memory", "has two levels of the same name")
    return tuple(levels)


def _size(entry: _Table) -> int:
    value = entry.number("bytes")
    if value != int(value):
        raise entry.fail("bytes", "is not a whole number")
    return int(value)


def _modes(table: _Table) -> tuple[PowerMode, ...]:
    modes = []
    for entry in table.tables("mode"):
        entry.check(_KEYS["mode"])
        modes.append(
            PowerMode(
                entry.text("name", _MODE),
                entry.number("watts") if "watts" in entry.data else None,
                entry.number("compute", 1.0),
                entry.number("memory", 1.0),
            )
        )
    if len({mode.name.lower() for mode in modes}) < len(modes):
        raise table.fail("mode", "has two modes of the same name")
    return tuple(modes)


def _calibration(table: _Table) -> Calibration:
    table.check(_KEYS["calibration"])
    factors = {key: table.number(key) for key in ("latency_factor", "energy_factor") if key in table.data}
    for key, value in factors.items():
        if value < 1.0:
            raise table.fail(key, f"is {value:g}: expected at least 1")
    if ("energy_mape" in table.data) != ("energy_factor" in table.data):
        raise table.fail("energy_mape", "and energy_factor go together")
    if "latency_factor" not in factors:
        raise table.fail("latency_factor", "is missing")
    return Calibration(
        date=table.text("date"),
        benchmarks=_count(table, "benchmarks"),
        latency_mape=table.number("latency_mape"),
        latency_factor=factors["latency_factor"],
        energy_mape=table.number("energy_mape") if "energy_mape" in table.data else None,
        energy_factor=factors.get("energy_factor"),
        meter=table.text("meter") if "meter" in table.data else None,
        versions=_texts(table, "versions"),
        facts=_texts(table, "facts"),
    )


def _texts(table: _Table, key: str) -> dict[str, str]:
    if key not in table.data:
        return {}
    inner = table.table(key)
    return {name: inner.text(name) for name in inner.data}


def dump_profile(profile: DeviceProfile) -> str:
    """The profile as TOML, the same when it is read again."""
    lines = [f'schema = "{SCHEMA}"']
    top: dict[str, Any] = {
        "name": profile.name,
        "title": profile.title,
        "processor": profile.processor,
        "grade": profile.grade.name,
        "boundary": profile.boundary,
        "source": profile.source,
        "cores": profile.cores,
        "fingerprint": profile.fingerprint,
    }
    lines += _entries(top)
    for dtype, rates in profile.rates.items():
        peak = profile.peaks.get(dtype)
        values: dict[str, Any] = {"peak_gops": None if peak is None else peak / 1e9}
        values |= {f"{work.value}_gops": _listed(rate, 1e-9) for work, rate in rates.items()}
        lines += ["", f"[rate.{dtype}]", *_entries(values)]
    for level in profile.levels:
        values = {
            "name": level.name,
            "bytes": level.bytes,
            "gb_per_s": _listed(level.bytes_per_second, 1e-9),
            "pj_per_byte": _listed(level.joules_per_byte, 1e12),
        }
        lines += ["", "[[memory]]", *_entries(values)]
    overhead = {
        "us_per_kernel": _listed(profile.kernel_seconds, 1e6),
        "us_per_run": _listed(profile.run_seconds, 1e6),
    }
    watts = {"idle_w": _listed(profile.idle_watts), "busy_w": _listed(profile.busy_watts)}
    operations = {dtype: _listed(value, 1e12) for dtype, value in profile.joules_per_operation.items()}
    for key, values in (("overhead", overhead), ("power", watts), ("power.pj_per_op", operations)):
        lines += ["", f"[{key}]", *_entries(values)]
    for mode in profile.modes:
        lines += ["", "[[mode]]", *_entries(vars(mode))]
    if profile.calibration is not None:
        values = dict(vars(profile.calibration))
        inner = {key: values.pop(key) for key in ("versions", "facts")}
        lines += ["", "[calibration]", *_entries(values)]
        for key, texts in inner.items():
            lines += ["", f"[calibration.{key}]", *_entries(texts)]
    return "\n".join(lines) + "\n"


def _entries(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {toml_value(value)}" for key, value in values.items() if value is not None]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def _listed(range_: Range, factor: float = 1.0) -> list[float]:
    return [_rounded(value * factor) for value in (range_.low, range_.central, range_.high)]


def _rounded(value: float) -> float:
    """Six digits: more would only claim what no fit knows."""
    return float(f"{value:.6g}")
