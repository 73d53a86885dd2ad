"""The battery: power in its several spellings, and only while it feeds the machine."""

from __future__ import annotations

import pytest

from greencc.core.errors import UnavailableError
from greencc.meters.battery import BatteryCounter, BatteryMeter, open_battery


def battery(tree, name: str = "BAT0", status: str = "Discharging", **gauge: object) -> None:
    tree.write({"type": "Battery", "status": status, "present": 1, **gauge}, f"class/power_supply/{name}")


def mains(tree, online: int) -> None:
    tree.write({"type": "Mains", "online": online}, "class/power_supply/AC")


@pytest.mark.parametrize(
    "gauge",
    [
        {"power_now": 9_250_000},
        # Some drivers give a negative sign while discharging.
        {"power_now": -9_250_000},
        {"voltage_now": 7_400_000, "current_now": 1_250_000},
        {"voltage_now": 7_400_000, "current_now": -1_250_000},
    ],
)
def test_power_of_a_discharging_battery(tree, gauge) -> None:
    battery(tree, **gauge)
    mains(tree, 0)
    meter = open_battery(tree.root)
    assert isinstance(meter, BatteryMeter)
    assert meter.missing() is None
    assert meter.sample().watts == pytest.approx({"BAT0": 9.25})
    assert meter.boundary == "whole machine on battery (BAT0)"


def test_two_batteries_of_which_one_feeds(tree) -> None:
    battery(tree, "BAT0", "Not charging", power_now=0)
    battery(tree, "BAT1", power_now=5_000_000)
    battery(tree, "hidpp_battery_0", "Discharging", scope="Device")
    meter = open_battery(tree.root)
    assert isinstance(meter, BatteryMeter)
    assert meter.sample().watts == {"BAT1": 5.0}


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_on_mains_there_is_no_meter(tree, status) -> None:
    battery(tree, status=status, power_now=20_000_000)
    mains(tree, 1)
    missing = open_battery(tree.root).missing()
    assert missing is not None
    assert f"runs on mains (BAT0 is {status.lower()})" in missing
    assert "unplug it" in missing


def test_a_plugged_charger_counts_even_where_the_battery_drains(tree) -> None:
    battery(tree, power_now=2_000_000)
    mains(tree, 1)
    assert "mains" in str(open_battery(tree.root).missing())


def test_no_battery(tree) -> None:
    assert open_battery(tree.root).missing() == "no battery"
    battery(tree, "wacom", scope="Device", power_now=1)
    assert open_battery(tree.root).missing() == "no battery"


def test_plugged_in_while_measuring(tree) -> None:
    battery(tree, power_now=9_000_000)
    meter = BatteryMeter(tree.root)
    meter.sample()
    battery(tree, status="Charging", power_now=30_000_000)
    with pytest.raises(UnavailableError, match="runs on mains"):
        meter.sample()


def test_a_gauge_of_zero_watts_tells_nothing(tree) -> None:
    battery(tree, power_now=0)
    assert "at 0 W" in str(open_battery(tree.root).missing())


def test_a_gauge_that_tells_only_what_is_left(tree, moment) -> None:
    battery(tree, energy_now=40_000_000)
    meter = open_battery(tree.root, moment.clock)
    assert isinstance(meter, BatteryCounter)
    assert meter.missing() is None
    first = meter.read()
    moment.now += 60.0
    battery(tree, energy_now=39_900_000)
    # 0.1 Wh
    assert meter.read().joules["BAT0"] - first.joules["BAT0"] == pytest.approx(360.0)
    battery(tree, status="Charging", energy_now=39_900_000)
    with pytest.raises(UnavailableError, match="mains"):
        meter.read()
    battery(tree, energy_now=39_950_000)
    assert meter.read().epoch == first.epoch + 1


def test_a_gauge_that_tells_only_charge(tree, moment) -> None:
    battery(tree, charge_now=3_000_000, voltage_now=12_000_000)
    meter = open_battery(tree.root, moment.clock)
    assert isinstance(meter, BatteryCounter)
    assert meter.missing() is None
    first = meter.read()
    moment.now += 30.0
    battery(tree, charge_now=3_000_000, voltage_now=11_900_000)
    # The load makes the voltage sag: nothing was counted yet.
    assert meter.read().joules == first.joules
    moment.now += 30.0
    battery(tree, charge_now=2_990_000, voltage_now=11_800_000)
    # 10 mAh at 11.9 V, the mean of the steps' voltages.
    taken = meter.read().joules["BAT0"] - first.joules["BAT0"]
    assert taken == pytest.approx(0.010 * 3600.0 * 11.9)
    moment.now += 30.0
    battery(tree, charge_now=2_980_000, voltage_now=11_800_000)
    assert meter.read().joules["BAT0"] - first.joules["BAT0"] == pytest.approx(taken + 0.010 * 3600.0 * 11.8)
    battery(tree, charge_now=2_985_000, voltage_now=11_800_000)
    with pytest.raises(UnavailableError, match="went back"):
        meter.read()
    assert meter.read().epoch == first.epoch + 1


def test_charge_without_a_voltage_is_no_energy(tree) -> None:
    battery(tree, charge_now=3_000_000)
    assert "voltage_now cannot be read" in str(open_battery(tree.root).missing())
    battery(tree, charge_now=3_000_000, voltage_now=0)
    assert "a voltage of 0" in str(open_battery(tree.root).missing())


def test_a_gauge_that_tells_neither(tree) -> None:
    battery(tree, capacity=80)
    assert "energy_now cannot be read" in str(open_battery(tree.root).missing())
    assert "neither power_now nor" in str(BatteryMeter(tree.root).missing())


def test_garbage(tree) -> None:
    battery(tree, power_now="nan")
    assert "power_now reads 'nan'" in str(open_battery(tree.root).missing())
