"""Power modes as budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from greencc.core.errors import UsageError
from greencc.planner.budget import BudgetLimit, Kind, format_limit, parse_budget
from greencc.planner.presets import known_modes, mode_within, presets_of


@pytest.fixture(autouse=True)
def _no_profiles_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("jetson-nano:5W", 5.0),
        ("jetson-nano:MAXN", 10.0),
        ("jetson-xavier-nx:15W", 15.0),
        ("jetson-orin-nano:7W", 7.0),
        ("Jetson-Orin-Nano : 7w", 7.0),
        ("jetson-orin-nx:40W", 40.0),
        ("jetson-agx-orin-64:50W", 50.0),
        ("jetson-agx-orin-32:30W", 30.0),
    ],
)
def test_a_power_mode_stands_for_its_watts(text: str, watts: float) -> None:
    power, latency = parse_budget(f"{text},33ms")
    assert power == BudgetLimit(Kind.POWER, watts)
    assert power.shown == text
    assert power.mode.split()[0] == text.split(":")[0].strip().lower()
    assert latency.kind is Kind.LATENCY
    assert parse_budget(format_limit(power)) == (power,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("jetson-orin-nan:7W", "did you mean 'jetson-orin-nano'"),
        ("jetson-orin-nano:8W", "no power mode '8W'.*did you mean"),
        ("jetson-orin-nano", "write one of jetson-orin-nano:7W, jetson-orin-nano:15W, jetson-orin-nano:25W"),
        ("jetson-orin-nano:", "without a power mode"),
        ("jetson-orin-nano:MAXN_SUPER", "no cap in watts"),
        ("raspberry-pi-5:5W", "no device 'raspberry-pi-5' with power modes"),
        (":7W", "is not a limit"),
        ("5W,jetson-nano:5W", "two limits on the power"),
    ],
)
def test_mistakes_name_what_there_is(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_budget(text)


@pytest.mark.parametrize(
    ("watts", "mode"), [(30.0, "25W"), (25.0, "25W"), (24.9, "15W"), (7.0, "7W"), (6.9, None)]
)
def test_the_largest_mode_within_a_budget(watts: float, mode: str | None) -> None:
    found = mode_within("jetson-orin-nano", watts)
    assert (None if found is None else found.mode) == mode


def test_presets_are_the_capped_modes_in_order() -> None:
    for device in known_modes():
        presets = presets_of(device)
        assert [each.watts for each in presets] == sorted(each.watts for each in presets)
        assert all(parse_budget(each.text)[0].value == each.watts for each in presets)
    assert "raspberry-pi-5" not in known_modes()


def test_a_device_of_ones_own_is_a_preset_too(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "greencc/meters/devices/jetson-nano.toml"
    folder = tmp_path / "greencc/devices"
    folder.mkdir(parents=True)
    own = (
        shipped.read_text(encoding="utf-8")
        .replace('"jetson-nano"', '"drone"')
        .replace("watts = 5.0", "watts = 4.0")
    )
    (folder / "drone.toml").write_text(own, encoding="utf-8")
    assert parse_budget("drone:5W")[0].value == 4.0
