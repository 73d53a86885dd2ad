"""Which meters a machine has, which fit a processor, and what `greencc doctor` says of the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, is_counter
from greencc.meters import METERS, Covers, Sources, available_meters, blind_to, probe
from greencc.meters.sampling import Sampler


def nothing(message: str) -> Callable[[], Any]:
    def load() -> Any:
        raise UnavailableError(message)

    return load


@pytest.fixture
def bare(tree) -> Sources:
    """A machine with no meter at all."""
    return Sources(tree.root, tree.root, nvml=nothing("no nvml"), amdsmi=nothing("no amdsmi"))


def laptop(tree) -> None:
    tree.write(
        {"type": "Battery", "status": "Discharging", "power_now": 9_000_000}, "class/power_supply/BAT0"
    )


def jetson(tree) -> None:
    tree.device_tree("NVIDIA Jetson Orin NX", "nvidia,p3767-0000", "nvidia,tegra234")
    tree.hwmon(0, "ina3221", "1-0040", {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 900})


def test_a_bare_machine_has_none_and_every_reason_is_one_line(bare) -> None:
    assert available_meters(sources=bare) == []
    rows = probe(bare)
    assert [row.name for row in rows] == [known.name for known in METERS] + ["model"]
    for row in rows[:-1]:
        assert (row.ok, row.grade) == (False, Grade.B)
        assert row.boundary
        assert row.reason
        assert "\n" not in row.reason
    reasons = {row.name: row.reason for row in rows}
    assert reasons["jetson"] == "not a Jetson"
    assert reasons["pi5-pmic"] == "not a Raspberry Pi 5"
    assert reasons["nvml"] == "no nvml"
    assert (rows[-1].grade, rows[-1].ok) == (Grade.D, True)


def test_a_board_s_meter_fits_both_processors(tree, bare) -> None:
    laptop(tree)
    jetson(tree)
    for processor in ("cpu", "gpu"):
        # The module's own rail stands before what also feeds the screen.
        assert [meter.name for meter in available_meters(processor, bare)] == ["jetson", "battery"]
    rows = {row.name: row for row in probe(bare)}
    assert rows["jetson"].ok
    assert rows["jetson"].boundary.startswith("VDD_IN")


@pytest.mark.parametrize("processor", ["cpu", "gpu"])
def test_a_package_s_meter_says_nothing_of_the_other_processor(processor) -> None:
    fitting = {known.name for known in METERS if known.covers.fits(processor)}
    assert ("rapl" in fitting, "perf" in fitting) == (processor == "cpu", processor == "cpu")
    assert ("nvml" in fitting, "amdsmi" in fitting) == (processor == "gpu", processor == "gpu")
    assert Covers.BOARD.fits(processor)


@pytest.mark.parametrize(
    ("name", "blind"),
    [
        *[(name, "gpu") for name in ("rapl", "rapl:package-0", "perf")],
        *[(name, "cpu") for name in ("nvml", "nvml:0", "nvml-instant:1", "nvml-average", "amdsmi-power")],
        *[
            (name, None)
            for name in ("jetson", "pi5-pmic", "battery-energy", "hwmon", "shelly", "csv", "ptdaemon")
        ],
    ],
)
def test_a_named_meter_that_does_not_hold_the_processor_is_warned_of(name: str, blind: str | None) -> None:
    meter = SimpleNamespace(name=name, boundary="some rail")
    for processor in ("cpu", "gpu"):
        warning = blind_to(meter, processor)  # type: ignore[arg-type]
        if processor == blind:
            assert warning is not None
            assert f"the {name} meter covers some rail and sees nothing of the {processor.upper()}" in warning
        else:
            assert warning is None


def test_a_power_meter_becomes_a_meter_by_watching_it(tree, bare) -> None:
    laptop(tree)
    (sensor,) = available_meters(sources=bare)
    assert not is_counter(sensor)
    with Sampler(sensor, interval_s=0.01) as meter:
        first = meter.read()
        while meter.cost().samples < 5:
            time.sleep(0.005)
        second = meter.read()
    assert second.epoch == first.epoch
    seconds = second.seconds - first.seconds
    assert second.joules["BAT0"] - first.joules["BAT0"] == pytest.approx(9.0 * seconds)
