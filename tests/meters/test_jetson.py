"""Jetson against the sysfs trees of every generation."""

from __future__ import annotations

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade
from greencc.meters.jetson import JetsonMeter, find_module
from greencc.meters.sampling import Sampler


def iio(tree, device: str, number: int, rails: dict[str, int]) -> str:
    """JetPack 4: rails with their power in mW."""
    folder = f"devices/i2c/{device}/iio:device{number}"
    for channel, (label, milliwatts) in enumerate(rails.items()):
        tree.write(
            {
                f"rail_name_{channel}": label,
                f"in_power{channel}_input": milliwatts,
                f"in_voltage{channel}_input": 5000,
                f"in_current{channel}_input": milliwatts // 5,
                f"polling_delay_{channel}": "0 ms",
            },
            folder,
        )
    tree.link(f"bus/i2c/drivers/ina3221x/{device}", f"devices/i2c/{device}")
    return folder


def ina3221(tree, number: int, device: str, rails: list[tuple[str, int, int]], update_ms: int = 18) -> str:
    """JetPack 5 and later: mV and mA, the shunt voltages as in4 to in6, and the sum of the shunts as channel 7."""
    files: dict[str, object] = {"update_interval": update_ms, "samples": 16}
    for channel, (label, millivolts, milliamperes) in enumerate(rails, start=1):
        files |= {f"in{channel}_label": label, f"in{channel}_enable": 1, f"in{channel}_input": millivolts}
        files |= {f"curr{channel}_input": milliamperes, f"in{channel + 3}_input": 40}
    files |= {"in7_label": "sum of shunt voltages", "in7_input": 120, "curr4_input": 2400}
    return tree.hwmon(number, "ina3221", device, files)


def orin_nano(tree) -> str:
    tree.device_tree(
        "NVIDIA Jetson Orin Nano Developer Kit",
        "nvidia,p3768-0000+p3767-0005",
        "nvidia,p3767-0005",
        "nvidia,tegra234",
    )
    return ina3221(
        tree, 1, "1-0040", [("VDD_IN", 4952, 1424), ("VDD_CPU_GPU_CV", 4952, 416), ("VDD_SOC", 4952, 288)]
    )


def agx_orin(tree) -> str:
    tree.device_tree(
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005",
        "nvidia,p3701-0005",
        "nvidia,tegra234",
    )
    rails = [("VDD_GPU_SOC", 19000, 160), ("VDD_CPU_CV", 19000, 80), ("VIN_SYS_5V0", 4968, 800)]
    ina3221(tree, 4, "1-0041", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 80), ("NC", 0, 0)])
    return ina3221(tree, 3, "1-0040", rails, update_ms=140)


def thor(tree, *, monitor: bool = True, label: bool = True) -> None:
    tree.device_tree(
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p3971-0080+p3834-0008",
        "nvidia,p3834-0008",
        "nvidia,tegra264",
    )
    rails = [("VDD_GPU", 11800, -33), ("VDD_CPU_SOC_MSS", 11800, 550), ("VIN_SYS_5V0", 4960, 1300)]
    ina3221(tree, 2, "2-0040", rails)
    if monitor:
        files = {"in0_input": 3, "in1_input": 19800, "curr1_input": 1212, "power1_input": 23_997_600}
        tree.hwmon(3, "ina238", "2-0044", files | ({"label": "VIN"} if label else {}))


def nano(tree) -> None:
    tree.device_tree(
        "NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"
    )
    iio(tree, "6-0040", 0, {"POM_5V_IN": 2875, "POM_5V_GPU": 40, "POM_5V_CPU": 700})


def tx2(tree) -> None:
    tree.device_tree("quill", "nvidia,p2597-0000+p3310-1000", "nvidia,jtx2", "nvidia,tegra186")
    iio(tree, "0-0040", 0, {"VDD_SYS_GPU": 182, "VDD_SYS_SOC": 730, "VDD_4V0_WIFI": 0})
    iio(tree, "0-0041", 1, {"VDD_IN": 5297, "VDD_SYS_CPU": 1917, "VDD_SYS_DDR": 1241})
    iio(tree, "0-0042", 2, {"VDD_MUX": 9000, "VDD_5V0_IO_SYS": 3000, "VDD_3V3_SYS": 1000})


def xavier_nx_jetpack4(tree) -> None:
    tree.device_tree("NVIDIA Jetson Xavier NX", "nvidia,p3449-0000+p3668-0000", "nvidia,tegra194")
    iio(tree, "7-0040", 0, {"VDD_IN": 4100, "VDD_CPU_GPU_CV": 900, "VDD_SOC": 1200})


def xavier_nx_jetpack5(tree) -> None:
    tree.device_tree("NVIDIA Jetson Xavier NX", "nvidia,p3509-0000+p3668-0001", "nvidia,tegra194")
    ina3221(tree, 5, "7-0040", [("VDD_IN", 5000, 820), ("VDD_CPU_GPU_CV", 5000, 180), ("VDD_SOC", 5000, 240)])


def agx_xavier_jetpack4(tree) -> None:
    tree.device_tree("Jetson-AGX", "nvidia,p2972-0000", "nvidia,p2888-0001", "nvidia,tegra194")
    iio(tree, "1-0040", 0, {"GPU": 1000, "CPU": 900, "SOC": 1500})
    iio(tree, "1-0041", 1, {"CV": 100, "VDDRQ": 500, "SYS5V": 2000})


def agx_xavier_jetpack5(tree) -> None:
    tree.device_tree("Jetson-AGX", "nvidia,p2972-0000", "nvidia,p2888-0001", "nvidia,tegra194")
    ina3221(tree, 2, "1-0040", [("GPU", 10000, 100), ("CPU", 10000, 90), ("SOC", 10000, 150)])
    ina3221(tree, 3, "1-0041", [("CV", 10000, 10), ("VDDRQ", 10000, 50), ("SYS5V", 5000, 400)])


BOARDS = [
    (nano, "POM_5V_IN (Nano", {"POM_5V_IN": 2.875}),
    (tx2, "VDD_IN (TX2", {"VDD_IN": 5.297}),
    (xavier_nx_jetpack4, "VDD_IN (Xavier NX", {"VDD_IN": 4.1}),
    (xavier_nx_jetpack5, "VDD_IN (Xavier NX", {"VDD_IN": 4.1}),
    (
        agx_xavier_jetpack4,
        "GPU + CPU + SOC + CV + VDDRQ + SYS5V (AGX Xavier",
        {"GPU": 1.0, "CPU": 0.9, "SOC": 1.5, "CV": 0.1, "VDDRQ": 0.5, "SYS5V": 2.0},
    ),
    (
        agx_xavier_jetpack5,
        "GPU + CPU + SOC + CV + VDDRQ + SYS5V (AGX Xavier",
        {"GPU": 1.0, "CPU": 0.9, "SOC": 1.5, "CV": 0.1, "VDDRQ": 0.5, "SYS5V": 2.0},
    ),
    (orin_nano, "VDD_IN (Orin NX or Orin Nano", {"VDD_IN": 4.952 * 1.424}),
    (
        agx_orin,
        "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (AGX Orin",
        {"VDD_GPU_SOC": 3.04, "VDD_CPU_CV": 1.52, "VIN_SYS_5V0": 3.9744},
    ),
    (thor, "VIN (Thor module and carrier board", {"VIN": 23.9976}),
    (lambda tree: thor(tree, label=False), "VIN (Thor module and carrier board", {"VIN": 23.9976}),
    (
        lambda tree: thor(tree, monitor=False),
        "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0 (Thor",
        # The monitor's offset makes an idle rail slightly negative.
        {"VDD_GPU": -0.3894, "VDD_CPU_SOC_MSS": 6.49, "VIN_SYS_5V0": 6.448},
    ),
]


@pytest.mark.parametrize(("board", "boundary", "watts"), BOARDS)
def test_every_generation_gives_its_total_and_no_rail_twice(tree, board, boundary, watts) -> None:
    board(tree)
    meter = JetsonMeter(tree.root)
    assert meter.missing() is None
    assert meter.boundary.startswith(boundary)
    assert meter.sample().watts == pytest.approx(watts)
    assert (meter.name, meter.grade, meter.uncertainty) == ("jetson", Grade.B, None)


def test_the_carrier_board_is_told_to_be_outside(tree) -> None:
    orin_nano(tree)
    meter = JetsonMeter(tree.root)
    meter.sample()
    assert "carrier board is outside" in meter.boundary


def test_the_period_is_that_of_the_slowest_monitor(tree) -> None:
    agx_orin(tree)
    meter = JetsonMeter(tree.root)
    meter.sample()
    assert meter.period_s == pytest.approx(0.14)


def test_not_more_than_20_readings_a_second_and_a_tenth_of_a_second_where_nothing_is_told(tree) -> None:
    folder = orin_nano(tree)
    tree.write({"update_interval": 2}, folder)
    meter = JetsonMeter(tree.root)
    meter.sample()
    assert meter.period_s == 0.05
    tree.write({"update_interval": "nan"}, folder)
    meter = JetsonMeter(tree.root)
    meter.sample()
    assert meter.period_s == 0.1


def test_elsewhere_there_is_none(tree) -> None:
    assert JetsonMeter(tree.root).missing() == "not a Jetson"
    tree.device_tree("Raspberry Pi 4 Model B", "raspberrypi,4-model-b", "brcm,bcm2711")
    assert find_module(tree.root) is None
    assert JetsonMeter(tree.root).missing() == "not a Jetson"


def test_a_module_without_monitors_says_so(tree) -> None:
    tree.device_tree("NVIDIA Jetson Orin NX", "nvidia,p3767-0000", "nvidia,tegra234")
    missing = JetsonMeter(tree.root).missing()
    assert missing is not None
    assert "no power monitor of the Orin NX or Orin Nano module" in missing
    assert "container" in missing


def test_a_sum_that_lacks_a_rail_is_refused(tree) -> None:
    folder = agx_orin(tree)
    tree.write({"in2_label": "NC"}, folder)
    assert "not VDD_CPU_CV" in str(JetsonMeter(tree.root).missing())


def test_an_unknown_part_of_a_known_chip_is_named_by_its_chip(tree) -> None:
    tree.device_tree("A carrier", "acme,board", "nvidia,tegra194")
    module = find_module(tree.root)
    assert module is not None
    assert module.name == "Xavier"


def test_permission(tree, deny) -> None:
    orin_nano(tree)
    deny("curr1_input")
    missing = JetsonMeter(tree.root).missing()
    assert missing is not None
    assert "no permission to read" in missing
    assert "udev" in missing


def test_a_rail_that_vanishes_is_named_and_comes_back_in_a_new_epoch(tree, moment) -> None:
    folder = tree.root / orin_nano(tree)
    sampler = Sampler(JetsonMeter(tree.root, moment.clock), interval_s=1.0, clock=moment.clock)
    sampler.read()
    moment.sleep(1.0)
    assert sampler.read().joules == pytest.approx({"VDD_IN": 4.952 * 1.424})
    (folder / "curr1_input").rename(folder / "gone")
    with pytest.raises(UnavailableError, match="curr1_input cannot be read: No such file"):
        sampler.read()
    (folder / "gone").rename(folder / "curr1_input")
    assert sampler.read().epoch == 1


@pytest.mark.parametrize("text", ["nan", "", "1.5", "garbage", "1424 mA"])
def test_what_is_not_a_number_is_named(tree, text) -> None:
    folder = orin_nano(tree)
    meter = JetsonMeter(tree.root)
    meter.sample()
    tree.write({"curr1_input": text}, folder)
    with pytest.raises(UnavailableError, match=r"curr1_input reads .*not a whole number"):
        meter.sample()


def test_slow_reads_leave_a_gap_and_no_made_up_energy(tree, moment) -> None:
    orin_nano(tree)
    meter = JetsonMeter(tree.root, moment.clock)
    sampler = Sampler(meter, clock=moment.clock)
    sampler.read()
    moment.sleep(30.0)
    assert sampler.read().epoch == 1
