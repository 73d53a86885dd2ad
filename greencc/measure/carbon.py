"""Carbon per inference: SCI (ISO/IEC 21031:2024), ``((E * I) + M) / R`` with R = one inference.

E is the gross energy per inference, I the grid's intensity, and M the share of the device's embodied emissions:
``M = TE * TS`` with TE the emissions of making it and TS the inference's time over the device's lifetime. All of the
device counts as reserved meanwhile; time in which it idles is not charged. Offsets and certificates do not enter.
The interval is that of the energy: the intensity, a yearly mean, has none.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from greencc.core.errors import UsageError
from greencc.core.report import Carbon, Embodied, Energy, GridIntensity, Interval

_TABLE = "grid_intensity.csv"
_WORLD_SOURCE = "Ember, Global Electricity Review 2024"
_COUNTRY_SOURCE = "Our World in Data from Ember and the Energy Institute, through CodeCarbon 3.3.2"
_JOULES_PER_KWH = 3.6e6
_SECONDS_PER_YEAR = 365.25 * 86_400.0
# Coal emits about 1,000 g/kWh: what lies far above was given in another unit.
MAX_GRAMS_PER_KWH = 5_000.0
MAX_LIFETIME_YEARS = 100.0
_INTENSITY = re.compile(
    r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?|[-+]?nan|[-+]?inf)\s*(g|kg|mg)?(?:\s*/\s*kwh)?", re.IGNORECASE
)
# Codes in use elsewhere that are not ISO 3166's.
_ALIASES = {"GB": ("UK",), "GR": ("EL",)}
_GRAMS = {"": 1.0, "g": 1.0, "kg": 1e3, "mg": 1e-3}


@dataclass(frozen=True)
class CarbonOptions:
    """Where the electricity comes from and what the device took to make.

    Attributes:
        grid_intensity: Grams of CO2 equivalent per kWh, where the user knows them.
        country: ISO 3166 code of two or three letters; its yearly mean is looked up. With neither, the world's mean.
        embodied_kg: Kilograms of CO2 equivalent of making (and disposing of) the device; None: not included.
        lifetime_years: How long the device serves; goes with `embodied_kg`.
    """

    grid_intensity: float | None = None
    country: str | None = None
    embodied_kg: float | None = None
    lifetime_years: float | None = None

    def __post_init__(self) -> None:
        if self.grid_intensity is not None:
            if self.country is not None:
                raise UsageError(
                    "a grid intensity and a country exclude each other",
                    hint="give the one that you know better",
                )
            _check_intensity(self.grid_intensity)
        if self.country is not None:
            grid_of(self.country)
        if (self.embodied_kg is None) != (self.lifetime_years is None):
            raise UsageError(
                "embodied emissions and a lifetime go together",
                hint="give both, such as --embodied 120 --lifetime 4, or neither",
            )
        if self.embodied_kg is not None and not (math.isfinite(self.embodied_kg) and self.embodied_kg >= 0.0):
            raise UsageError(
                f"the embodied emissions are {self.embodied_kg} kg",
                hint="expected kilograms of CO2 equivalent",
            )
        if self.lifetime_years is not None and not 0.0 < self.lifetime_years <= MAX_LIFETIME_YEARS:
            raise UsageError(
                f"the lifetime is {self.lifetime_years} years",
                hint=f"expected more than 0 and at most {MAX_LIFETIME_YEARS:g} years",
            )

    def grid(self) -> GridIntensity:
        """The intensity that these options mean, with its origin.

        Raises:
            UsageError: The country is not in the table.
        """
        if self.grid_intensity is not None:
            return GridIntensity(float(self.grid_intensity), "as given", None, "given by the user")
        return grid_of(self.country)

    def embodied(self) -> Embodied | None:
        if self.embodied_kg is None or self.lifetime_years is None:
            return None
        return Embodied(self.embodied_kg, self.lifetime_years)


def parse_intensity(text: str) -> float:
    """Parse ``56``, ``56g``, ``56 g/kWh`` or ``0.056kg/kWh`` into grams per kWh.

    Raises:
        UsageError: It is not such a figure, not finite, negative, or larger than any grid's.
    """
    match = _INTENSITY.fullmatch(text.strip())
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        match, value = None, math.nan
    if match is None:
        raise UsageError(f"{text!r} is not a grid intensity", hint="write 56g, in grams of CO2e per kWh")
    grams = value * _GRAMS[(match[2] or "").lower()]
    _check_intensity(grams)
    return grams


def _check_intensity(grams: float) -> None:
    if not (math.isfinite(grams) and 0.0 <= grams <= MAX_GRAMS_PER_KWH):
        raise UsageError(
            f"the grid intensity is {grams:g} g/kWh",
            hint=f"expected grams of CO2e per kWh between 0 and {MAX_GRAMS_PER_KWH:,.0f}; grids have 20 to 1,000",
        )


def grid_of(country: str | None) -> GridIntensity:
    """The yearly mean of a country by its ISO 3166 code, or of the world (None).

    Raises:
        UsageError: The country is not in the table.
    """
    if country is None:
        return _world()
    code = country.strip().upper()
    for row in _countries():
        if code and code in (row.alpha2, row.alpha3):
            return GridIntensity(row.grams, f"{row.name} ({row.alpha2})", row.year, _COUNTRY_SOURCE)
    raise UsageError(f"there is no grid intensity for the country {country!r}", hint=_guess(code))


@dataclass(frozen=True)
class _Row:
    alpha2: str
    alpha3: str
    name: str
    grams: float
    year: int


@cache
def _rows() -> tuple[_Row, ...]:
    text = files("greencc.measure").joinpath("data").joinpath(_TABLE).read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        _Row(row["alpha2"], row["alpha3"], row["name"], float(row["g_per_kwh"]), int(row["year"]))
        for row in csv.DictReader(lines)
    )


def _countries() -> Iterator[_Row]:
    return (row for row in _rows() if row.alpha2)


def _world() -> GridIntensity:
    row = next(row for row in _rows() if not row.alpha2)
    return GridIntensity(row.grams, row.name, row.year, _WORLD_SOURCE)


def _guess(code: str) -> str:
    """Which country may have been meant; names are understood here, so that the answer tells the code."""
    by_name = {row.name.upper(): row for row in _countries()}
    by_code = {row.alpha3: row for row in _countries()} | {
        alias: row for row in _countries() for alias in _ALIASES.get(row.alpha2, ())
    }
    close = (
        [by_code[name] for name in by_code if name == code]
        or [by_name[name] for name in difflib.get_close_matches(code, by_name, n=1, cutoff=0.7)]
        or [by_name[name] for name in by_name if len(code) > 3 and name.startswith(code)][:1]
        # Two letters are too few to guess by.
        or [
            by_code[name]
            for name in difflib.get_close_matches(code, by_code, n=1, cutoff=0.6)
            if len(code) > 2
        ]
    )
    known = "give an ISO 3166 code such as FR or DEU, or --grid-intensity"
    return f"did you mean {close[0].alpha2!r} ({close[0].name})? {known}" if close else known


def carbon_of(
    baseline: Energy | None,
    artifact: Energy | None,
    latencies_ms: tuple[float, float],
    options: CarbonOptions,
) -> Carbon | None:
    """SCI of both variants, or None where their energy is not known.

    Args:
        baseline: Energy per inference.
        artifact: Likewise.
        latencies_ms: Median time per inference of both: what the embodied share is by.
        options: Grid and device.
    """
    if baseline is None or artifact is None:
        return None
    grid, embodied = options.grid(), options.embodied()
    sides = [
        _micrograms(energy, milliseconds, grid, embodied)
        for energy, milliseconds in zip((baseline, artifact), latencies_ms, strict=True)
    ]
    return Carbon(
        baseline_ug=sides[0],
        artifact_ug=sides[1],
        grid=grid,
        embodied=embodied,
        grade=max(baseline.grade, artifact.grade),
        boundary=artifact.boundary
        if baseline.boundary == artifact.boundary
        else f"{baseline.boundary}; {artifact.boundary}",
    )


def _micrograms(
    energy: Energy, milliseconds: float, grid: GridIntensity, embodied: Embodied | None
) -> Interval:
    made = 0.0
    if embodied is not None:
        lifetime_ms = embodied.lifetime_years * _SECONDS_PER_YEAR * 1e3
        made = embodied.kg * 1e9 * milliseconds / lifetime_ms
    per_millijoule = grid.grams_per_kwh * 1e6 / (_JOULES_PER_KWH * 1e3)
    gross = energy.gross_interval()
    return Interval(*(item * per_millijoule + made for item in (gross.value, gross.low, gross.high)))
