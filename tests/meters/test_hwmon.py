"""Generic hwmon channels: what is found, chosen, left out and refused."""

from __future__ import annotations

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import is_counter
from greencc.meters.hwmon import HwmonCounter, HwmonMeter, known_channels, open_hwmon
from greencc.meters.known import Sources
from greencc.meters.opening import open_meter


def names(tree) -> list[str]:
    return [channel.name for channel in known_channels(tree.root)]


def server(tree) -> str:
    """An ACPI power meter, a PMBus supply and a temperature sensor."""
    tree.hwmon(0, "coretemp", "coretemp.0", {"temp1_input": 45000, "temp1_label": "Package id 0"})
    tree.hwmon(
        2,
        "pmbus",
        "3-0058",
        {"power1_input": 120_000_000, "power1_label": "pin", "in1_label": "vin", "in1_input": 230_000}
        | {"curr1_label": "iin", "curr1_input": 522},
    )
    files = {"power1_average": 350_000_000, "power1_average_interval": 1000, "power1_accuracy": "90.0%"}
    return tree.hwmon(1, "power_meter", "ACPI000D:00", files)


def test_an_acpi_power_meter_is_the_platform(tree) -> None:
    server(tree)
    meter = open_hwmon(tree.root)
    assert isinstance(meter, HwmonMeter)
    assert meter.missing() is None
    assert meter.sample().watts == pytest.approx({"power_meter/power1": 350.0})
    assert meter.boundary == "power_meter/power1 (the platform, as its ACPI power meter measures it)"
    assert meter.period_s == 1.0


def test_several_acpi_channels_are_not_added_up_unless_named(tree) -> None:
    tree.hwmon(
        1,
        "power_meter",
        "ACPI000D:00",
        {"power1_average": 350_000_000, "power2_average": 120_000_000, "power1_average_interval": 1000},
    )
    missing = open_hwmon(tree.root).missing()
    assert missing is not None
    assert "several ACPI power channels (power_meter/power1, power_meter/power2)" in missing
    one = open_hwmon(tree.root, ("power_meter/power1",))
    assert isinstance(one, HwmonMeter)
    assert one.sample().watts == pytest.approx({"power_meter/power1": 350.0})
    both = open_hwmon(tree.root, ("power_meter/power1", "power_meter/power2"))
    assert isinstance(both, HwmonMeter)
    assert sum(both.sample().watts.values()) == pytest.approx(470.0)


def test_channels_of_unknown_meaning_are_not_picked_but_listed(tree) -> None:
    tree.hwmon(0, "ina226", "1-0041", {"power1_input": 1_500_000, "label": "VDD_CPU", "update_interval": 140})
    missing = open_hwmon(tree.root).missing()
    assert missing is not None
    assert "ina226/VDD_CPU" in missing
    assert "nothing says what they cover" in missing


def test_channels_are_chosen_by_name_and_added_up(tree) -> None:
    server(tree)
    tree.hwmon(4, "ina226", "1-0041", {"power1_input": 1_500_000, "label": "VDD_CPU", "update_interval": 140})
    meter = open_hwmon(tree.root, ("ina226/VDD_CPU", "pmbus/pin"))
    assert isinstance(meter, HwmonMeter)
    assert meter.sample().watts == pytest.approx({"ina226/VDD_CPU": 1.5, "pmbus/pin": 120.0})
    assert meter.boundary == "pmbus/pin + ina226/VDD_CPU (as the board labels its rails)"
    assert meter.period_s == pytest.approx(0.14)


def test_a_spec_names_channels(tree) -> None:
    server(tree)
    tree.hwmon(4, "ina226", "1-0041", {"power1_input": 1_500_000, "label": "VDD_CPU", "update_interval": 140})
    meter = open_meter("hwmon:ina226/VDD_CPU+pmbus/pin", {}, Sources(sysfs=tree.root))
    assert isinstance(meter, HwmonMeter)
    assert meter.sample().watts == pytest.approx({"ina226/VDD_CPU": 1.5, "pmbus/pin": 120.0})


def test_pairs_of_voltage_and_current_need_a_label(tree) -> None:
    tree.hwmon(
        0,
        "ina3221",
        "1-0040",
        {"in1_label": "VDD_5V", "in1_input": 5000, "curr1_input": 300}
        | {"in2_label": "NC", "in2_input": 0, "curr2_input": 0, "in3_input": 3300, "curr3_input": 10}
        | {"in7_label": "sum of shunt voltages", "in7_input": 120, "curr4_input": 310},
    )
    assert names(tree) == ["ina3221/VDD_5V"]
    meter = open_hwmon(tree.root, ("ina3221/VDD_5V",))
    assert isinstance(meter, HwmonMeter)
    assert meter.sample().watts == pytest.approx({"ina3221/VDD_5V": 1.5})


def test_chips_of_one_name_are_told_apart_by_their_address(tree) -> None:
    for number, device in enumerate(("1-0040", "1-0041")):
        tree.hwmon(number, "ina226", device, {"power1_input": 1_000_000 * (number + 1)})
    assert names(tree) == ["ina226@1-0040/power1", "ina226@1-0041/power1"]


def test_what_other_meters_read_is_left_out(tree) -> None:
    tree.device_tree("NVIDIA Jetson Orin NX", "nvidia,p3767-0000", "nvidia,tegra234")
    tree.hwmon(0, "ina3221", "1-0040", {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 300})
    tree.hwmon(1, "amd_energy", "amd_energy.0", {"energy1_input": 5, "energy1_label": "Esocket0"})
    battery = tree.hwmon(2, "BAT0", "BAT0", {"power1_input": 9_000_000})
    tree.write({"type": "Battery"}, f"{battery}/device")
    assert names(tree) == []
    assert "no power or energy channel" in str(open_hwmon(tree.root).missing())


def test_unknown_and_mixed_names_are_refused(tree) -> None:
    server(tree)
    tree.hwmon(5, "xe", "0000:03:00.0", {"energy1_input": 1, "energy1_label": "card"})
    assert "no hwmon channel nosuch/rail (there are: " in str(
        open_hwmon(tree.root, ("nosuch/rail",)).missing()
    )
    mixed = open_hwmon(tree.root, ("xe/card", "pmbus/pin")).missing()
    assert "mix power and energy counters" in str(mixed)


def counter(tree, moment, watts: float = 20.0) -> HwmonCounter:
    folder = tree.hwmon(0, "xe", "0000:03:00.0", {"energy1_input": 1_000_000, "energy1_label": "card"})
    state = {"joules": 1.0}

    def advance(seconds: float) -> None:
        state["joules"] += watts * seconds
        tree.write({"energy1_input": int(state["joules"] * 1e6)}, folder)

    moment.during = advance
    meter = open_hwmon(tree.root, ("xe/card",), moment.clock)
    assert isinstance(meter, HwmonCounter)
    assert is_counter(meter)
    meter.sleep = moment.sleep
    return meter


def test_energy_counters_are_counted(tree, moment) -> None:
    meter = counter(tree, moment)
    assert meter.missing() is None
    before = meter.read()
    moment.sleep(3.0)
    after = meter.read()
    assert after.joules["xe/card"] - before.joules["xe/card"] == pytest.approx(60.0, abs=1e-5)
    assert after.epoch == before.epoch


def test_a_counter_that_never_moves_is_missing(tree, moment) -> None:
    assert "the hwmon counter of xe/card never moves" in str(counter(tree, moment, watts=0.0).missing())


def test_a_counter_that_sticks_is_named(tree, moment) -> None:
    meter = counter(tree, moment)
    meter.read()
    moment.now += 11.0
    with pytest.raises(UnavailableError, match="xe/card is stuck at 1 J"):
        meter.read()


def test_a_counter_that_goes_back_begins_a_new_epoch(tree, moment) -> None:
    meter = counter(tree, moment)
    first = meter.read()
    tree.write({"class/hwmon/hwmon0/energy1_input": 5})
    moment.now += 1.0
    with pytest.raises(UnavailableError, match="xe/card went back from 1 to 5e-06 J"):
        meter.read()
    assert meter.read().epoch == first.epoch + 1


def test_permission(tree, deny) -> None:
    server(tree)
    deny("power1_average")
    assert "no permission to read" in str(open_hwmon(tree.root).missing())


@pytest.mark.parametrize("text", ["NaN", "", "12.5", "-"])
def test_what_is_not_a_number_is_named(tree, text) -> None:
    folder = server(tree)
    meter = HwmonMeter(tree.root)
    meter.sample()
    tree.write({"power1_average": text}, folder)
    with pytest.raises(UnavailableError, match="power1_average reads"):
        meter.sample()
