"""SCI: units, the table, what is refused."""

from __future__ import annotations

import math

import pytest

from greencc.core.errors import UsageError
from greencc.core.report import Energy
from greencc.measure.carbon import CarbonOptions, carbon_of, grid_of, parse_intensity

# One kWh per inference, so that figures are those of the grid.
KWH = 3.6e9


def energy(value: float, low: float, high: float, grade: str = "D", gross: float | None = None) -> Energy:
    return Energy(value, low, high, grade, "package", "test", gross)


@pytest.mark.parametrize(
    ("text", "grams"),
    [
        ("56", 56.0),
        ("56g", 56.0),
        (" 56.5 g/kWh ", 56.5),
        ("0.056kg", 56.0),
        ("0.4 KG / kWh", 400.0),
        ("56000mg/kWh", 56.0),
        ("0", 0.0),
        ("4.8e2", 480.0),
    ],
)
def test_intensities(text: str, grams: float) -> None:
    assert parse_intensity(text) == pytest.approx(grams)


@pytest.mark.parametrize("text", ["", "g", "a lot", "56 t", "1.2.3", "56g/MWh", "0x10", "5_6", "٥٦"])
def test_what_is_no_intensity(text: str) -> None:
    with pytest.raises(UsageError, match="not a grid intensity"):
        parse_intensity(text)


@pytest.mark.parametrize("text", ["-3", "nan", "inf", "-inf", "1e9", "56kg"])
def test_intensities_that_no_grid_has(text: str) -> None:
    with pytest.raises(UsageError, match="g/kWh"):
        parse_intensity(text)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e9])
def test_the_same_from_python(value: float) -> None:
    with pytest.raises(UsageError, match="grid intensity is"):
        CarbonOptions(grid_intensity=value)


def test_the_table() -> None:
    france = grid_of("fr")
    assert (france.grams_per_kwh, france.place, france.year) == (56.0, "France (FR)", 2023)
    assert grid_of("DEU") == grid_of("DE")
    world = CarbonOptions().grid()
    assert (world.place, world.year) == ("world average", 2023)
    for code in ("US", "CN", "GB", "PL", "IN", "BR", "JP", "ZA", "SE", "TW"):
        grid = grid_of(code)
        assert 5 < grid.grams_per_kwh < 1000
        assert grid.year is not None
        assert 2021 <= grid.year <= 2023
        assert "Ember" in grid.source


@pytest.mark.parametrize(
    ("country", "guess"),
    [
        ("UK", "'GB' (United Kingdom)"),
        ("France", "'FR' (France)"),
        ("germny", "'DE' (Germany)"),
        ("DEUT", "'DE' (Germany)"),
        ("South Kor", "'KR' (South Korea)"),
    ],
)
def test_unknown_countries(country: str, guess: str) -> None:
    with pytest.raises(UsageError, match="no grid intensity for the country") as caught:
        CarbonOptions(country=country)
    assert guess in str(caught.value.hint)


@pytest.mark.parametrize("country", ["", "XX", "?"])
def test_no_guess_is_better_than_a_bad_one(country: str) -> None:
    with pytest.raises(UsageError) as caught:
        CarbonOptions(country=country)
    assert "did you mean" not in str(caught.value.hint)
    assert "ISO 3166" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_intensity": 56.0, "country": "FR"}, "exclude each other"),
        ({"embodied_kg": 100.0}, "go together"),
        ({"lifetime_years": 4.0}, "go together"),
        ({"embodied_kg": -1.0, "lifetime_years": 4.0}, "embodied emissions are"),
        ({"embodied_kg": math.nan, "lifetime_years": 4.0}, "embodied emissions are"),
        ({"embodied_kg": 100.0, "lifetime_years": 0.0}, "lifetime is"),
        ({"embodied_kg": 100.0, "lifetime_years": math.nan}, "lifetime is"),
        ({"embodied_kg": 100.0, "lifetime_years": 1e6}, "lifetime is"),
    ],
)
def test_contradictions(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CarbonOptions(**options)  # type: ignore[arg-type]


def test_sci_is_energy_times_intensity_with_the_energys_interval() -> None:
    found = carbon_of(
        energy(KWH, 0.5 * KWH, 2 * KWH),
        energy(0.1 * KWH, 0, KWH),
        (1.0, 1.0),
        CarbonOptions(grid_intensity=56.0),
    )
    assert found is not None
    side = found.baseline_ug
    assert (side.value, side.low, side.high) == pytest.approx((56e6, 28e6, 112e6))
    assert found.artifact_ug.value == pytest.approx(5.6e6)
    assert found.embodied is None
    assert (found.grade, found.boundary) == ("D", "package")
    assert (found.grid.place, found.grid.year) == ("as given", None)


def test_a_grid_without_emissions() -> None:
    one = energy(KWH, KWH, KWH)
    found = carbon_of(one, one, (1.0, 1.0), CarbonOptions(grid_intensity=0.0))
    assert found is not None
    assert found.baseline_ug.value == 0.0


def test_net_energy_counts_as_gross() -> None:
    """SCI has all that is drawn; the interval moves along, and the worse grade holds for both."""
    net = energy(0.6 * KWH, 0.5 * KWH, 0.7 * KWH, grade="B", gross=KWH)
    found = carbon_of(net, energy(KWH, KWH, KWH), (1.0, 1.0), CarbonOptions(grid_intensity=100.0))
    assert found is not None
    side = found.baseline_ug
    assert (side.value, side.low, side.high) == pytest.approx((100e6, 90e6, 110e6))
    assert found.grade == "D"


def test_embodied_emissions_go_by_time() -> None:
    year_ms = 365.25 * 86400 * 1e3
    options = CarbonOptions(grid_intensity=0.0, embodied_kg=120.0, lifetime_years=4.0)
    one = energy(KWH, KWH, KWH)
    found = carbon_of(one, one, (year_ms, year_ms / 2), options)
    assert found is not None
    assert found.baseline_ug.value == pytest.approx(30e9)
    assert found.artifact_ug.value == pytest.approx(15e9)


def test_without_energy_there_is_nothing_to_tell() -> None:
    assert carbon_of(None, energy(1, 1, 1), (1.0, 1.0), CarbonOptions()) is None
